"""`python -m ports.verify` proves the port on every golden file, and can fail."""

import json
import re

import numpy as np
import pytest

from ports import golden, verify
from sousa_jax.errors import InputError


@pytest.fixture(scope="module")
def short_golden(parity, tmp_path_factory):
    """Only the 1.5 s clips of seed 0: one compilation for the tests that are not about other lengths."""
    path = tmp_path_factory.mktemp("golden") / "short.npz"
    with np.load(parity / "efficientat" / "golden_seed0.npz") as file:
        np.savez(path, **{key: file[key] for key in file.files if "/" not in key or re.match(r"1p5s|mn", key)})
    return path


@pytest.fixture
def verified(run):
    def call(checkpoint, golden_file, *flags):
        return run(verify.main, "--model=efficientat", f"--checkpoint={checkpoint}", f"--golden={golden_file}", *flags)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("section", ["mn10_as", "mn04_as", "mn01_as"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_golden_file_and_section(parity, official_file, verified, section, seed):
    reference = parity / "efficientat" / f"golden_seed{seed}.npz"
    code, out, _ = verified(official_file(section, seed), reference)
    assert code == 0, out
    assert f"section {section}: the fingerprint says these very weights" in out
    assert "PASSED" in out
    with np.load(reference) as file:
        wanted = [key for key in file.files if key.endswith("/frontend") or re.search(rf"/{section}/", key)]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r"\w+s/", line)}
    assert sorted(rows) == sorted(wanted)
    # Rounding leaves more room than the tolerances need: a change that eats it up should be noticed.
    for name, (_, _, _, stored, waveform) in rows.items():
        assert name.endswith("/frontend") or float(stored) < 1e-4, name
        assert float(waveform) < (1.2e-3 if re.search("frontend|embedding|logits", name) else 3e-3), name


def test_one_short_run_passes(official_file, short_golden, verified):
    code, out, err = verified(official_file("mn01_as"), short_golden)
    assert (code, err) == (0, "")
    assert re.search(r"PASSED: worst .* from stored \S+ at 1p5s/mn01_as/\w+ \(allowed 2e-04\), from waveform", out)


def test_tolerances_can_be_set(official_file, short_golden, verified):
    for flag in ("--tolerance_stored=1e-9", "--tolerance_waveform=1e-9"):
        code, out, _ = verified(official_file("mn01_as"), short_golden, flag)
        assert code == 1
        assert "FAILED" in out
        assert "(allowed 1e-09)" in out


def test_bfloat16_has_its_own_bound(official_file, short_golden, verified):
    code, out, _ = verified(official_file("mn01_as"), short_golden, "--dtype=bfloat16")
    assert code == 0, out
    assert "(allowed 2e+00)" in out
    code, out, _ = verified(
        official_file("mn01_as"),
        short_golden,
        "--dtype=bfloat16",
        "--tolerance_stored=2e-4",
        "--tolerance_waveform=2e-3",
    )
    assert code == 1
    assert re.search(r"FAILED: .* from stored \S+e[-+]0[01]", out)


@pytest.mark.parametrize(
    "key",
    [
        "features.0.0.weight",
        "features.7.block.1.0.weight",
        "features.12.block.2.conc_se_layers.0.fc2.bias",
        "features.15.block.3.1.running_var",
        "classifier.2.bias",
    ],
)
def test_one_changed_weight_fails(official_state, save, short_golden, verified, key):
    state = official_state("mn01_as")
    state[key] *= 1.2
    code, out, _ = verified(save(state), short_golden)
    assert code == 1
    assert "FAILED" in out
    assert "section mn01_as: chosen by size, THE WEIGHTS ARE NOT THE SAME" in out


def test_a_dropped_statistic_is_named(official_state, save, short_golden, verified):
    state = official_state("mn01_as")
    del state["features.9.block.1.1.running_mean"]
    code, out, err = verified(save(state), short_golden)
    assert (code, out) == (2, "")
    assert "1 missing in the file: features.9.block.1.1.running_mean" in err


def test_another_frontend_is_refused(official_state, save, short_golden, verified):
    code, _, err = verified(save(official_state("mn10_as"), "mn10_as_hop_5_mAP_475.pt"), short_golden)
    assert code == 2
    assert "1p5s/frontend has shape (2, 128, 300) here, (2, 128, 150) in the golden file" in err


def rewritten(source, target, change_meta=None, **arrays):
    """A copy of a golden file with other meta or arrays; an array that is None is left out."""
    with np.load(source) as file:
        content = {key: file[key] for key in file.files} | arrays
    meta = json.loads(str(content["meta"]))
    (change_meta or (lambda meta: None))(meta)
    content["meta"] = json.dumps(meta)
    np.savez(target, **{key: value for key, value in content.items() if value is not None})
    return target


def test_other_seed_means_other_clips(official_file, short_golden, verified, tmp_path):
    changed = rewritten(short_golden, tmp_path / "golden.npz", lambda meta: meta.update(seed=5))
    code, out, _ = verified(official_file("mn01_as"), changed)
    assert code == 1
    assert re.search(r"FAILED: .* from stored \S+e-05", out)  # the stored frontend is still the right one


def test_a_strided_frontend_leaves_the_waveform_only(official_file, short_golden, verified, tmp_path):
    with np.load(short_golden) as file:
        frontend = file["1p5s/frontend"]
    changed = rewritten(
        short_golden,
        tmp_path / "golden.npz",
        lambda meta: meta["arrays"]["1p5s/frontend"].update(stride=7),
        **{"1p5s/frontend": frontend.reshape(2, -1)[:, ::7]},
    )
    code, out, _ = verified(official_file("mn01_as"), changed)
    assert code == 0
    assert "stored: nothing to judge" in out


def test_nan_fails(official_file, short_golden, verified, tmp_path):
    with np.load(short_golden) as file:
        logits = file["1p5s/mn01_as/logits"]
    logits[1, 3] = np.nan
    changed = rewritten(short_golden, tmp_path / "golden.npz", **{"1p5s/mn01_as/logits": logits})
    code, out, _ = verified(official_file("mn01_as"), changed)
    assert code == 1
    assert "nan" in out


def test_unusable_golden_files_are_refused(official_file, short_golden, parity, verified, tmp_path):
    def message(path):
        code, _, err = verified(official_file("mn01_as"), path)
        assert code == 2
        assert err.count("\n") == 1
        return err

    assert "No such file" in message(tmp_path / "absent.npz")
    (tmp_path / "cut.npz").write_bytes(short_golden.read_bytes()[:100_000])
    assert "no golden file, or a damaged one" in message(tmp_path / "cut.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    assert "no golden file" in message(tmp_path / "array.npy")
    np.savez(tmp_path / "no_meta.npz", x=np.ones(3))
    assert "no golden file" in message(tmp_path / "no_meta.npz")
    assert "is a golden file of 'beats'" in message(parity / "beats" / "golden_seed0.npz")
    other = tmp_path / "other.npz"
    rewritten(short_golden, other, lambda meta: meta["weights_sha256"].pop("mn01_as"))
    assert "mn04_as with" in message(other)
    rewritten(short_golden, other, lambda meta: meta["arrays"]["1p5s/frontend"].update(stride=2))
    assert "not every 2th value" in message(other)
    rewritten(short_golden, other, **{"1p5s/frontend": None})
    assert "holds nothing of section mn01_as" in message(other)
    rewritten(short_golden, other, lambda meta: meta.update(sample_rate=16_000))
    assert "16000 Hz" in message(other)


@pytest.mark.parametrize(
    ("run", "samples"),
    [("10s", 320_000), ("2p6s", 83_200), ("0p75s", 24_000), ("1s", 32_000), ("5s_repeat", 160_000)],
)
def test_length_of_a_run(run, samples):
    assert golden.clip_samples(run, 32_000) == samples


def test_a_run_of_unknown_kind_is_refused():
    for run in ("repeat_5s", "5sec", "mn01_as"):
        with pytest.raises(InputError, match=run):
            golden.clip_samples(run, 32_000)
