"""The trained network that comes with the package: small, readable, and it names what is clearly played."""

import json

import jax
import numpy as np
import pytest
import soundfile

from sousa_jax import checkpoint, strokes
from sousa_jax.data.synth.request import Request, perform

LARGEST_MB = 12


@pytest.fixture(scope="module")
def model():
    return checkpoint.load_model(checkpoint.SHIPPED)


def test_it_is_small_and_has_a_card(model):
    files = [path for path in checkpoint.SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_MB * 1e6
    card = (checkpoint.SHIPPED / "README.md").read_text()
    scores = json.loads((checkpoint.SHIPPED / "results" / "test_metrics.json").read_text())
    assert f"{scores['balanced_accuracy']:.4f}" in card
    assert model.config.num_classes == 40
    assert model.config.strokes_per_second == 200


@pytest.mark.slow
@pytest.mark.parametrize("rudiment", ["single_paradiddle", "flam", "double_stroke_open_roll"])
def test_it_names_what_a_professional_plays(model, rudiment, tmp_path, capsys):
    rate = model.config.frontend.sample_rate
    wave, _ = perform(jax.random.key(1), Request(rudiment, tempo_bpm=100, tier="professional"), rate)
    soundfile.write(tmp_path / "played.wav", np.asarray(wave), rate)
    strokes.main([str(tmp_path / "played.wav")])
    assert capsys.readouterr().out.splitlines()[0].endswith(rudiment.replace("_", " ").title())
