"""What is no rudiment: the sounds it is fitted on, the marks, where the limits fall, and that they are stored."""

import json
import types

import numpy as np
import pandas as pd
import pytest
import scipy.signal

from sousa_jax import checkpoint, rejection, stream, thresholds
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.data.other_sounds import SOUNDS, coloured, metronome
from sousa_jax.errors import InputError
from sousa_jax.rejection import Limits, Marks, marks
from sousa_jax.rudiments import NUM_CLASSES
from sousa_jax.step import Heard
from sousa_jax.thresholds import RUDIMENTS, fit, passing

RATE = 16_000

# ---------------------------------------------------------------------------------------------------------------------
# Other sounds
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_sounds_are_made_by_a_seed_at_some_level(kind, rate):
    made = [SOUNDS[kind](np.random.default_rng(seed), 2 * rate, rate) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    for wave in made:
        assert (wave.shape, wave.dtype) == ((2 * rate,), np.float32)
        assert np.isfinite(wave).all()
        assert 10 ** (-31 / 20) < np.abs(wave).max() < 1


@pytest.mark.parametrize("exponent", [-2, -1, 0, 1])
def test_noise_has_the_colour_it_is_asked_for(exponent):
    """Slope of the spectrum on logarithmic scales."""
    wave = coloured(np.random.default_rng(0), 20 * RATE, exponent)
    frequency, power = scipy.signal.welch(wave, RATE, nperseg=4096)
    inside = (frequency > 200) & (frequency < 6000)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(exponent, abs=0.1)


def test_a_metronome_is_exactly_even():
    """Clicks begin a period apart, 40 to 240 a minute, but for the 2 ms that a softer one takes to be seen."""
    for seed in range(8):
        wave = np.abs(metronome(np.random.default_rng(seed), 8 * RATE, RATE))
        loud = np.flatnonzero(wave > 0.2 * wave.max())
        gaps_s = np.diff(loud[np.diff(loud, prepend=-RATE) > 0.1 * RATE]) / RATE
        assert len(gaps_s) >= 4
        assert 0.24 < np.median(gaps_s) < 1.51
        assert np.ptp(gaps_s) < 0.004


# ---------------------------------------------------------------------------------------------------------------------
# Marks and limits
# ---------------------------------------------------------------------------------------------------------------------

PER_SECOND = 200


def struck(times_s, velocity=0.5, confidence=1.0, seconds=5.0):
    onset = np.zeros(round(seconds * PER_SECOND), np.float32)
    at = np.rint(np.asarray(times_s) * PER_SECOND).astype(int)
    onset[at] = confidence
    loud = np.zeros_like(onset)
    loud[at] = velocity
    return FrameTargets(onset, loud, 0 * onset, onset)


LOG_PROBS = np.log(np.where(np.arange(NUM_CLASSES) == 3, 0.61, 0.01))
ROUGHLY = np.arange(0.1, 4.8, 0.2) + np.random.default_rng(0).normal(0, 0.02, 24)
UNEVEN = np.random.default_rng(1).uniform(0.3, 0.9, 24)


def test_marks_say_how_clear_and_how_even_strokes_are():
    found = marks(LOG_PROBS, struck(ROUGHLY, UNEVEN), PER_SECOND)
    assert found.probability == pytest.approx(0.61)
    assert (found.doubt, found.strokes_per_s) == (0, pytest.approx(23 / np.ptp(ROUGHLY), rel=0.01))
    assert found.velocity_spread == pytest.approx(UNEVEN.std(), rel=1e-3)
    assert found.gap_spread > 0.05
    assert marks(LOG_PROBS, struck(ROUGHLY, confidence=0.6), PER_SECOND).doubt == pytest.approx(0.4)
    assert marks(LOG_PROBS, struck([0.5, 1.5, 2.5]), PER_SECOND)[2:] == (0, np.inf, np.inf)
    assert marks(LOG_PROBS, struck(ROUGHLY + 3, seconds=8.0), PER_SECOND).strokes_per_s == found.strokes_per_s, (
        "a pause"
    )
    none = marks(LOG_PROBS, struck([]), PER_SECOND)
    assert (none.doubt, none.strokes_per_s) == (0, 0)
    assert np.isnan(marks(LOG_PROBS, None, 0)[1:]).all()


@pytest.mark.parametrize(
    ("strokes", "objection"),
    [
        (struck(ROUGHLY, UNEVEN), ""),
        (struck(ROUGHLY, UNEVEN, confidence=0.5), "no clear strokes"),
        (struck(np.arange(0.1, 4.8, 0.6), UNEVEN[:8]), "too few strokes"),
        (struck(np.arange(0.1, 4.8, 0.2)), "even as clockwork"),
        (struck(np.arange(0.1, 4.8, 0.2), UNEVEN), ""),
        (struck([]), "too few strokes"),
        (None, ""),
    ],
    ids=["a rudiment", "noise", "slow clicks", "fast clicks", "accents by machine", "nothing", "heard by no strokes"],
)
def test_what_is_no_rudiment_and_why(strokes, objection):
    limits = Limits(probability=0.3, doubt=0.4, strokes_per_s=3.0)
    assert limits.objection(marks(LOG_PROBS, strokes, PER_SECOND)) == objection


def test_a_name_that_is_a_guess_is_none():
    flat = np.full(NUM_CLASSES, -np.log(NUM_CLASSES))
    assert Limits(probability=0.3).objection(marks(flat, None, 0)) == "like no rudiment"
    assert Limits().objection(marks(flat, None, 0)) == ""


def table(**kinds):
    """Marks of windows by kind: `{kind: (doubts, rates)}`."""
    rows = [
        {"kind": kind, **Marks(0.5 + 0.001 * i, doubt, rate, 1.0, 1.0)._asdict()}
        for kind, (doubts, rates) in kinds.items()
        for i, (doubt, rate) in enumerate(zip(doubts, rates, strict=True))
    ]
    return pd.DataFrame(rows)


def test_a_limit_is_at_the_rudiments_edge_or_half_way_to_what_is_further_off():
    """Doubt: voices are as doubtful as the worst rudiments, so these are given up; metronomes are far slower."""
    n = 201
    doubts, rates = np.linspace(0, 0.5, n), np.linspace(4, 8, n)
    mixed = table(
        rudiments=(doubts, rates),
        noise=(np.full(20, 0.9), np.full(20, 6.0)),
        speech=(np.linspace(0.4, 0.9, 20), np.full(20, 6.0)),
        metronome=(np.zeros(20), np.full(20, 2.0)),
    )
    limits = fit(mixed)
    assert limits.doubt == pytest.approx(0.49)
    assert limits.strokes_per_s == pytest.approx((4.02 + 2.0) / 2)
    passed = passing(mixed, limits)
    assert passed[RUDIMENTS] == pytest.approx(0.975, abs=0.01)
    assert (passed["noise"], passed["metronome"]) == (0, 0)
    assert 0 < passed["speech"] < 0.3


def test_a_network_without_strokes_has_one_limit():
    mixed = table(rudiments=([np.nan] * 9, [np.nan] * 9), noise=([np.nan] * 9, [np.nan] * 9))
    limits = fit(mixed)
    assert (limits.doubt, limits.strokes_per_s) == (1.0, 0.0)
    assert 0.4 < limits.probability < 0.6


# ---------------------------------------------------------------------------------------------------------------------
# The program and its file
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A network that hears strokes where it is loud, few sounds, and rudiments of clicks."""
    spec = types.SimpleNamespace(sample_rate=2000, window_samples=10_000)
    config = types.SimpleNamespace(frontend=spec, strokes_per_second=PER_SECOND)

    def step(params, stats, batch):
        level = np.abs(batch["waveform"]).reshape(len(batch["waveform"]), -1, 10).max(2)
        return Heard(np.tile(LOG_PROBS, (len(level), 1)), FrameTargets(*[level / (level.max() + 1e-9)] * 4))

    def clicks(data, split, seed, rate):
        for i in range(6):
            wave = np.zeros(6 * rate, np.float32)
            wave[:: rate // (4 + i)] = 0.5
            yield RUDIMENTS, wave

    monkeypatch.setattr(stream, "_eval_step", lambda *_: step)
    monkeypatch.setattr(checkpoint, "load_model", lambda folder: checkpoint.Model("small", config, {}, {}, {}))
    monkeypatch.setattr(checkpoint, "digest", lambda model: "abc")
    monkeypatch.setattr(thresholds, "N_SOUNDS", 3)
    monkeypatch.setattr(thresholds, "rudiments", clicks)
    return tmp_path


def test_the_limits_are_stored_beside_the_weights_and_read_again(small, capsys):
    thresholds.main([f"--workdir={small}"])
    said = capsys.readouterr().out
    assert f"written to {small / rejection.FILE}" in said
    assert "rudiments" in said
    stored = json.loads((small / rejection.FILE).read_text())
    assert rejection.load(small) == Limits(**stored["limits"])
    assert stored["passing"].keys() == stored["windows"].keys() == {RUDIMENTS, *SOUNDS}
    assert (stored["model"], stored["data"], stored["seed"]) == ("abc", "synth", 42)


def test_data_in_which_nothing_is_heard_are_refused(small, monkeypatch, capsys):
    monkeypatch.setattr(thresholds, "rudiments", lambda *_: [(RUDIMENTS, np.zeros(100, np.float32))])
    with pytest.raises(SystemExit):
        thresholds.main([f"--workdir={small}"])
    assert "no window of rudiments is loud enough" in capsys.readouterr().err
    assert not (small / rejection.FILE).exists()


@pytest.mark.parametrize("content", ["{", '{"limits": {"doubt": 0.5}}', '{"limits": 3}', "[]"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / rejection.FILE).write_text(content)
    with pytest.raises(InputError, match=r"is damaged .* python -m sousa_jax.thresholds") as error:
        rejection.load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_shipped_limits_are_of_the_shipped_weights():
    """After another training `python -m sousa_jax.thresholds --workdir=sousa_jax/shipped --data=…` is run again."""
    stored = json.loads((checkpoint.SHIPPED / rejection.FILE).read_text())
    assert stored["model"] == checkpoint.digest(checkpoint.load_model(checkpoint.SHIPPED))
    assert stored["passing"][RUDIMENTS] > 0.95
    assert stored["passing"]["noise"] < 0.05
