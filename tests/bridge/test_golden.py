"""What a phone is checked against is what the network answers, and a file is written whole or not at all."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bridge import golden
from sousa_jax import checkpoint, models
from sousa_jax.data.synth.request import Request
from sousa_jax.frontends import FrontendSpec
from sousa_jax.rudiments import SLUGS
from sousa_jax.step import make_eval_step

FRONTEND = FrontendSpec(
    sample_rate=16_000, n_fft=512, win_length=320, hop_length=80, n_mels=16, fmax_hz=7_500.0, window_s=2.0
)
CONFIG = models.StrokesConfig(width=16, dilations=(1,), rhythm_widths=(8, 8), frontend=FRONTEND)
REQUEST = Request("flam_tap", tempo_bpm=140, num_cycles=1)


def clip(key, request, sample_rate):
    """In place of the synthesizer, which compiles for a minute: a second of noise and a silent tail, of the seed."""
    assert request == REQUEST
    noise = np.asarray(jax.random.uniform(key, (sample_rate,), minval=-0.5, maxval=0.5))
    return np.concatenate([noise, np.zeros(sample_rate // 2, np.float32)]), None


@pytest.fixture(scope="module")
def model():
    """Of random weights, made to prefer some classes, at a temperature that is not one."""
    rng = np.random.default_rng(1)
    shapes, _ = models.abstract("strokes", CONFIG)
    params = {path: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    params["rhythm.output.bias"] = rng.normal(0, 1, 40).astype(np.float32)
    return checkpoint.Model("strokes", CONFIG, params, {}, {}, temperature=2.5)


@pytest.fixture(scope="module")
def content(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "perform", clip)
        return golden.golden(model, REQUEST, seed=7)


def test_the_samples_are_a_window_of_the_length_policy(content):
    """The tail is gone, and the second of sound goes round."""
    sound = clip(jax.random.key(7), REQUEST, 16_000)[0][:16_000]
    assert content["sample_rate"] == 16_000
    assert content["n_samples"] == 32_000
    np.testing.assert_array_equal(golden.decode(content["samples"]), np.tile(sound, 2))


def test_the_answer_is_the_networks_to_these_samples_at_its_temperature(model, content):
    window = golden.decode(content["samples"])[None]
    with jax.default_matmul_precision("highest"):
        heard = make_eval_step("strokes", CONFIG)(model.params, model.stats, {"waveform": window})
    expected = jax.nn.softmax(heard.logits[0] / 2.5)
    assert tuple(content["probabilities"]) == SLUGS
    np.testing.assert_allclose(list(content["probabilities"].values()), expected, atol=1e-6)
    assert content["label"] == SLUGS[int(np.argmax(expected))]

    strokes = content["strokes"]
    assert strokes["rows"] == ["onset", "velocity", "grace", "density"]
    assert (strokes["frames_per_second"], strokes["frames"]) == (200, 400)
    values = golden.decode(strokes["values"]).reshape(4, 400)
    np.testing.assert_allclose(values, np.concatenate(heard.strokes), atol=1e-6)


def test_a_network_without_strokes_has_none_in_the_file():
    content = golden.document(
        model="x",
        clip="x",
        sample_rate=1,
        window=np.zeros(3, np.float32),
        probabilities=np.full(40, 1 / 40),
        strokes=None,
        strokes_per_second=0,
    )
    assert "strokes" not in content


def test_other_classes_are_refused(model):
    other = dataclasses.replace(model, config=dataclasses.replace(CONFIG, num_classes=41))
    with pytest.raises(checkpoint.InputError, match="41 classes, expected the 40 rudiments"):
        golden.golden(other, REQUEST, seed=0)


def test_encoding_is_little_endian_float32_row_by_row():
    assert golden.encode(np.array([[1.0, 2.0], [0.0, -1.0]])) == "AACAPwAAAEAAAAAAAACAvw=="


class TestProgram:
    @pytest.fixture(autouse=True)
    def no_network(self, model, content, monkeypatch):
        monkeypatch.setattr(checkpoint, "load_model", lambda folder: model)
        monkeypatch.setattr(golden, "golden", lambda *args: content)

    def test_writes_the_file_and_says_what_is_in_it(self, content, tmp_path, capsys):
        out = tmp_path / "golden.json"
        golden.main(["--workdir=RUN", f"--out={out}"])
        assert json.loads(out.read_text("utf-8")) == content
        assert content["label"] in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--rudiment=paradiddel"], "paradiddel"),
            (["--tempo=400"], "60 to 180"),
            (["--out=nowhere/golden.json"], "there is no folder"),
        ],
    )
    def test_refuses_in_one_line(self, arguments, message, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as exit_:
            golden.main(["--workdir=RUN", "--out=golden.json", *arguments])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_file_is_replaced_only_when_asked(self, content, tmp_path, capsys):
        out = tmp_path / "golden.json"
        out.write_text("mine")
        with pytest.raises(SystemExit):
            golden.main(["--workdir=RUN", f"--out={out}"])
        assert "already exists" in capsys.readouterr().err
        assert out.read_text() == "mine"
        golden.main(["--workdir=RUN", f"--out={out}", "--overwrite"])
        assert json.loads(out.read_text("utf-8")) == content
