"""`python -m ports.convert`: what it writes, what it refuses, and that it leaves nothing behind."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch

from ports import checkpoints, convert, efficientat, sources
from ports.port import port
from ports.rules import invert
from sousa_jax import checkpoint
from sousa_jax.errors import InputError
from sousa_jax.models.efficientat import PRESETS


@pytest.fixture
def refused(run, tmp_path):
    """`refused(file, *flags)`: the one line with which a conversion is refused; nothing is left behind."""

    def call(file, *flags):
        before = sorted(tmp_path.iterdir())
        code, out, err = run(
            convert.main, "--model=efficientat", f"--checkpoint={file}", f"--out={tmp_path / 'out'}", *flags
        )
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
        return err

    return call


def test_command_line_writes_a_loadable_folder(official_file, tmp_path):
    file, out = official_file("mn01_as"), tmp_path / "deep" / "model"
    command = [sys.executable, "-m", "ports.convert", "--model=efficientat", f"--checkpoint={file}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    sha256 = checkpoints.read(file).sha256
    for part in (sha256, "249 arrays", "head.output.kernel, head.output.bias", "classifier.5.weight", "counter"):
        assert part in done.stdout
    model = checkpoint.load_model(out)
    assert (model.name, model.config.width, model.config.num_classes) == ("efficientat", 0.1, 40)
    official = checkpoints.read(file).state
    np.testing.assert_array_equal(model.params["head.hidden.kernel"], official["classifier.2.weight"].T)
    np.testing.assert_array_equal(model.stats["last.norm.var"], official["features.16.1.running_var"])
    assert model.params["head.output.kernel"].shape == (128, 40)
    assert np.std(model.params["head.output.kernel"]) == pytest.approx(0.01, rel=0.1)  # the official initialization
    assert not np.any(model.params["head.output.bias"])
    assert model.provenance["sha256"] == sha256
    assert model.provenance["report"]["fresh"].keys() == {"head.output.kernel", "head.output.bias"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["model"]


def test_the_files_own_number_of_classes_keeps_everything(official_state, save, run, tmp_path):
    state = official_state("mn01_as")
    file, out = save(state), tmp_path / "model"
    flags = "--model=efficientat", f"--checkpoint={file}", f"--out={out}", "--num_classes=527"
    code, text, _ = run(convert.main, *flags)
    assert code == 0
    assert "fresh    0 arrays" in text
    model = checkpoint.load_model(out)
    back = invert(efficientat.rules(model.config), {**model.params, **model.stats})
    assert back.keys() == {key for key in state if not key.endswith("num_batches_tracked")}
    assert all(np.array_equal(back[key], state[key]) for key in back)
    # The official file name is known: its origin is recorded, and read back as plain JSON.
    stored = json.loads((out / "model.json").read_text())["provenance"]
    assert stored["source"]["urls"][0].endswith("/v0.0.1/mn01_as_mAP_298.pt")
    assert stored["source"]["licence"] == "MIT"
    # The folder exists now, and is not overwritten.
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    code, _, err = run(convert.main, *flags)
    assert code == 2
    assert "already exists" in err
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before


def test_safetensors_are_read_too(official_state, tmp_path):
    state = official_state("mn01_as")
    safetensors.numpy.save_file(state, tmp_path / "mn01_as.safetensors")
    read = checkpoints.read(tmp_path / "mn01_as.safetensors").state
    assert checkpoints.fingerprint(read) == checkpoints.fingerprint(state)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "mn01_as.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="truncated or no safetensors"):
        checkpoints.read(tmp_path / "cut.safetensors")


class Malicious:
    """Unpickled, it would create the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(refused, tmp_path, zipped):
    file, victim = tmp_path / "mn10_as_mAP_471.pt", tmp_path / "victim"
    content = {"features.0.0.weight": torch.ones(2), "extra": Malicious(victim)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    message = refused(file)
    assert "refused, nothing in it was run" in message
    assert not victim.exists()
    torch.load(file, weights_only=False)  # it was dangerous indeed
    assert victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(official_state, refused, tmp_path, zipped, kept):
    file = tmp_path / "mn01_as_mAP_298.pt"
    state = {key: torch.from_numpy(value) for key, value in official_state("mn01_as").items()}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert "truncated" in refused(file) or "no PyTorch checkpoint" in refused(file)


def test_what_is_no_checkpoint_is_refused(refused, tmp_path):
    assert "No such file" in refused(tmp_path / "absent.pt")
    (tmp_path / "page.pt").write_text("<html>404</html>")
    assert "no PyTorch checkpoint" in refused(tmp_path / "page.pt")
    assert "does not end in" in refused(tmp_path / "model.onnx")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    assert "holds no state dict" in refused(tmp_path / "other.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    assert "holds no state dict" in refused(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("model", "content"),
    [
        ("htsat", {"state_dict": {"sed_model.layers.0.blocks.0.attn.qkv.weight": torch.ones(2)}, "epoch": 1}),
        ("beats", {"cfg": {"layers": 12}, "model": {"post_extract_proj.weight": torch.ones(2)}}),
        ("ast", {"module.v.cls_token": torch.ones(1)}),
        ("no model known here", {"conv.weight": torch.ones(1)}),
    ],
)
def test_another_models_file_is_recognized(refused, tmp_path, model, content):
    torch.save(content, tmp_path / "file.pt")
    message = refused(tmp_path / "file.pt")
    assert "is not efficientat" in message
    assert f"looks like {model}" in message


@pytest.mark.parametrize(
    ("model", "section"), [("htsat", "audioset"), ("beats", "pretrained"), ("ast", "original"), ("ast", "hf")]
)
def test_official_keys_of_other_models_are_recognized(parity, model, section):
    entries = json.loads((parity / model / "spec.json").read_text())["sections"][section]["entries"]
    assert checkpoints.looks_like({entry["key"]: None for entry in entries}) == model


def test_missing_and_extra_keys_are_named(official_state, save, refused):
    state = official_state("mn01_as")
    state["features.5.block.7.weight"] = state.pop("features.5.block.0.0.weight")
    message = refused(save(state))
    assert "1 missing in the file: features.5.block.0.0.weight" in message
    assert "1 not used by the model: features.5.block.7.weight" in message


def test_a_missing_class_layer_is_named(official_state, save, refused):
    state = official_state("mn01_as")
    del state["classifier.5.weight"]
    assert "classifier.5.weight" in refused(save(state))


def test_bfloat16_is_refused(official_state, refused, tmp_path):
    state = {key: torch.from_numpy(value) for key, value in official_state("mn01_as").items()}
    state["classifier.5.bias"] = state["classifier.5.bias"].bfloat16()
    torch.save(state, tmp_path / "mn01_as.pt")
    assert "classifier.5.bias is torch.bfloat16" in refused(tmp_path / "mn01_as.pt")


def test_unusable_flags_are_refused(official_state, save, refused):
    file = save(official_state("mn01_as"))
    assert "at least 1" in refused(file, "--num_classes=0")
    assert "unknown EfficientAT variant 'mn1O'" in refused(file, "--variant=mn1O")
    assert "--variant says mn04, width 0.4, but the shapes say 0.1" in refused(file, "--variant=mn04")
    assert "--variant says mn10_fc" in refused(file, "--variant=mn10_fc")


def test_a_file_name_that_contradicts_the_shapes_is_refused(official_state, save, refused):
    state = official_state("mn01_as")
    assert "the file name says mn10" in refused(save(state, "mn10_as_mAP_471.pt"))


@pytest.mark.parametrize(
    ("file_name", "variant"),
    [
        ("mn01_as_mAP_298.pt", "mn01"),
        ("mn40_as_no_im_pre_mAP_483(2).pt", "mn40"),
        ("mn40_as_ext_mAP_487.pt", "mn40"),
        ("mn10_as_hop_5_mAP_475.pt", "mn10_hop_5"),
        ("mn10_as_mels_256_mAP_474.pt", "mn10_mels_256"),
        ("mn10_as_fc_mAP_465.pt", "mn10_fc"),
        ("mn10_as_fc_s2211_mAP_466.pt", "mn10_fc_s2211"),
        ("mn10_im_pytorch.pt", "mn10"),
        ("mn10_as.pt", "mn10"),
    ],
)
def test_variant_of_official_file_names(file_name, variant):
    assert efficientat._variant_in(file_name) == variant


@pytest.mark.parametrize("file_name", ["model.pt", "mn10.pt", "mn10_asx.pt", "mn11_as.pt", "my_mn10_as.pt"])
def test_other_file_names_say_nothing(file_name):
    assert efficientat._variant_in(file_name) is None


def test_every_listed_source_agrees_with_its_file_name():
    listed = sources.files("efficientat")
    assert {efficientat._variant_in(name) for name in listed} == set(PRESETS)
    for name, source in listed.items():
        assert source["variant"] == efficientat._variant_in(name)
        assert source["urls"] == [f"https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/{name}"]
        assert source["reported_map"] == int(re.search(r"mAP_(\d+)", name)[1]) / 1000


def test_hop_comes_from_the_file_name_else_from_the_flag_else_it_is_assumed(official_state, save):
    state = official_state("mn10_as")
    named = port("efficientat", save(state, "mn10_as_hop_5_mAP_475.pt"))
    assert (named.variant, named.config.frontend.hop_length) == ("mn10_hop_5", 160)
    assert "by the file name: hop 5 ms" in named.evidence
    flagged = port("efficientat", save(state, "renamed.pt"), variant="mn10_mels_64")
    assert (flagged.variant, flagged.config.frontend.n_mels) == ("mn10_mels_64", 64)
    assert "by --variant: hop 10 ms, 64 mel bands" in flagged.evidence
    assumed = port("efficientat", save(state, "renamed.pt"))
    assert (assumed.variant, assumed.config.frontend.hop_length) == ("mn10", 320)
    assert "by assumption" in assumed.evidence
