"""Drums learnt from recordings are the drums that were played, and the synthesizer plays on them when it is to."""

import jax
import numpy as np
import pandas as pd
import pytest

from configs import strokes
from sousa_jax.data import sousa, train_batches
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.data.synth import Source, SynthBatches, learned_drums
from sousa_jax.data.synth.drums import HIT_S, VARIANTS, draw_drum, strike
from sousa_jax.data.synth.learned_drums import LAYERS, RATE, LearnedDrums
from sousa_jax.data.synth.presets import NATURAL, SOUSA
from sousa_jax.data.synth.strokes import Strokes
from sousa_jax.errors import InputError

N_HIT = round(HIT_S * RATE)
EXPONENT, LAYER_FROM = 2.0, 64  # of the drum that is to be learnt: softer strokes are another sample


def ringing(seed, decay_s, hz):
    rng, t = np.random.default_rng(seed), np.arange(N_HIT) / RATE
    return (np.sin(2 * np.pi * hz * t) + rng.normal(0, 0.5, N_HIT)) * np.exp(-t / decay_s)


SOFT, LOUD = ringing(1, 0.02, 900), ringing(2, 0.03, 1700)


class Recorded:
    """Clips of one drum in rooms of their own; strokes begin up to a millisecond late, as sound banks play them."""

    def __init__(self, n_clips=16, n_strokes=60):
        self.table = pd.DataFrame({"soundfont": ["drum"] * n_clips})
        self._clips = [self._play(np.random.default_rng(100 + i), n_strokes) for i in range(n_clips)]

    @staticmethod
    def _play(rng, n_strokes):
        time_s = 0.1 + np.cumsum(rng.uniform(0.05, 0.3, n_strokes))
        velocity = rng.integers(16, 128, n_strokes)
        dry = np.zeros(int((time_s[-1] + 1) * RATE))
        for at, v in zip(time_s, velocity, strict=True):
            begin = round((at + rng.uniform(0, 0.001)) * RATE)
            level = (v / 127) ** (EXPONENT + 1)  # once by the bank, once by SOUSA's gain
            dry[begin : begin + N_HIT] += level * (SOFT if v < LAYER_FROM else LOUD)
        t = np.arange(RATE // 2) / RATE
        room = rng.normal(0, 0.03, len(t)) * np.exp(-t / 0.07) * (t > 0.03)
        room[0] = 1
        wave = np.fft.irfft(np.fft.rfft(dry, 2 * len(dry)) * np.fft.rfft(room, 2 * len(dry)))[: len(dry)]
        order = rng.permutation(n_strokes)  # a table need not be in the order of time
        nothing = np.zeros(n_strokes, bool)
        strokes = ClipStrokes(*(x[order].astype(np.float32) for x in (time_s, velocity)), nothing, nothing)
        return (0.5 * wave / np.abs(wave).max()).astype(np.float32), strokes

    def waveform(self, index, sample_rate):
        assert sample_rate == RATE
        return self._clips[index][0]

    def clip_strokes(self, index):
        return self._clips[index][1]


@pytest.fixture(scope="module")
def learnt():
    return learned_drums.learn(Recorded())


def likeness(heard, played):
    """The largest correlation over all lags, which are not looked at."""
    found = np.correlate(heard, played, "full")
    return found.max() / np.sqrt((heard @ heard) * (played @ played))


def test_layers_are_the_samples_that_were_played(learnt):
    names, drums = learnt
    assert names == ["drum"]
    assert drums.hits.shape == (1, LAYERS, N_HIT)
    body, whole = slice(0, RATE // 30), slice(0, RATE // 8)
    for layer, hit in enumerate(drums.hits[0]):
        played, other = (LOUD, SOFT) if layer >= LAYERS // 2 else (SOFT, LOUD)
        if layer:  # the softest lies too deep under its neighbours
            assert likeness(hit[body], played[body]) > 0.9, layer
        assert likeness(hit[body], other[body]) < 0.6, layer
    assert likeness(drums.hits[0, -1, whole], LOUD[whole]) > 0.95


def test_level_follows_velocity_as_it_did(learnt):
    _, drums = learnt
    assert drums.exponent[0] == pytest.approx(EXPONENT, abs=0.3)
    np.testing.assert_allclose(np.abs(drums.hits[0, -1]).max(), 1, rtol=1e-5)
    body = np.sqrt(np.square(drums.hits[0, :, : round(learned_drums.BODY_S * RATE)]).mean(-1))
    np.testing.assert_allclose(body, body[-1], rtol=1e-4)


def test_a_hit_begins_at_once_and_dies_away(learnt):
    """What other strokes and rooms left in a tail would be heard as strokes that nobody plays."""
    hit = learnt[1].hits[0, -1]
    assert np.flatnonzero(np.abs(hit) > 0.1)[0] < 0.001 * RATE
    level = np.sqrt(np.square(hit.reshape(-1, RATE // 100)).mean(1))
    assert (np.diff(level[4:]) < 0.02 * level[0]).all()
    assert level[-1] < 0.02 * level[0]


def test_one_line_for_clips_that_teach_nothing():
    few = Recorded(n_clips=1, n_strokes=20)
    with pytest.raises(InputError, match=r"drum: \d+ strokes stand alone, too few"):
        learned_drums.learn(few)
    few.table = few.table.rename(columns={"soundfont": "bank"})
    with pytest.raises(InputError, match="no column 'soundfont'"):
        learned_drums.learn(few)


# --------------------------------------------------------------------------------------------------------------- files


def test_what_is_saved_is_loaded(learnt, tmp_path):
    path = tmp_path / "drums.npz"
    learned_drums.save(path, *learnt)
    loaded = learned_drums.load(path, RATE, 0.5)
    np.testing.assert_array_equal(loaded.hits, learnt[1].hits)
    np.testing.assert_array_equal(loaded.exponent, learnt[1].exponent)
    assert loaded.share == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["drums.npz"]
    at_32k = learned_drums.load(path, 32_000)
    assert at_32k.hits.shape == (1, LAYERS, round(HIT_S * 32_000))
    assert likeness(at_32k.hits[0, -1, ::2], learnt[1].hits[0, -1]) > 0.98


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "no file of learnt drums"),
        (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "no file of learnt drums"),
        (lambda path: np.savez(path, hits=np.array([{}], object), exponent=np.ones(1)), "no file of learnt drums"),
        (lambda path: np.savez(path, exponent=np.ones(1)), "no file of learnt drums"),
        (lambda path: np.savez(path, hits=np.ones((1, 2, 3)), exponent=np.ones(1)), "expected"),
        (lambda path: np.savez(path, hits=np.full((1, LAYERS, N_HIT), np.nan), exponent=np.ones(1)), "expected"),
    ],
)
def test_other_files_are_refused_in_one_line(write, says, tmp_path):
    """Pickled objects among them, which are never opened."""
    path = tmp_path / "drums.npz"
    write(path)
    with pytest.raises(InputError, match=says) as refused:
        learned_drums.load(path, RATE)
    assert "\n" not in str(refused.value)


def test_a_share_is_between_nothing_and_all(tmp_path):
    with pytest.raises(InputError, match=r"drums_share is 1\.5"):
        learned_drums.load(tmp_path / "drums.npz", RATE, 1.5)


# ------------------------------------------------------------------------------------------------------------- playing


def of_layers():
    """Two drums whose hits say which layer they are."""
    hits = np.tile(np.arange(1, LAYERS + 1, dtype=np.float32)[:, None] / LAYERS, (2, 1, N_HIT))
    return LearnedDrums(hits, np.array([1.0, 2.0], np.float32))


@pytest.mark.parametrize(
    ("style", "share", "is_learnt"), [(SOUSA, 1.0, True), (SOUSA, 0.0, False), (NATURAL, 1.0, False)]
)
def test_learnt_drums_take_the_place_of_random_ones_in_style_sousa(style, share, is_learnt):
    for seed in range(4):
        key = jax.random.key(seed)
        random = draw_drum(key, style, sample_rate=RATE)
        drum = learned_drums.draw(key, of_layers()._replace(share=share), random, style)
        assert bool(drum.layers == VARIANTS) is is_learnt
        if not is_learnt:
            jax.tree.map(np.testing.assert_array_equal, drum, random)


def test_a_stroke_sounds_with_the_layer_of_its_velocity():
    key, velocity = jax.random.key(0), np.array([1, 15, 16, 63, 64, 111, 112, 127], np.float32)
    drum = learned_drums.draw(key, of_layers(), draw_drum(key, SOUSA, sample_rate=RATE), SOUSA)
    zeros = np.zeros(len(velocity), np.int32)
    strokes = Strokes(velocity, velocity, velocity, velocity, zeros, zeros, zeros > 0, zeros, zeros - 1, zeros == 0)
    hits = strike(key, drum, strokes)
    np.testing.assert_array_equal(hits.variant, np.floor(velocity / 127 * LAYERS).clip(max=LAYERS - 1))
    np.testing.assert_allclose(hits.head_level, (velocity / 127) ** drum.exponent, rtol=1e-5)


def test_batches_on_learnt_drums_play_the_same_and_sound_otherwise():
    def batch(learned):
        made = SynthBatches(
            Source("sousa", 1), batch_size=2, sample_rate=RATE, window_s=0.5, seed=3, strokes_per_second=100,
            learned=learned,
        )  # fmt: skip
        return jax.device_get(next(made)[0])

    plain, never, always = batch(None), batch(of_layers()._replace(share=0.0)), batch(of_layers())
    np.testing.assert_allclose(never["waveform"], plain["waveform"], atol=1e-6)
    assert np.abs(always["waveform"] - plain["waveform"]).max() > 0.1
    np.testing.assert_array_equal(always["label"], plain["label"])


def test_training_hears_the_drums_of_its_config(learnt, tmp_path):
    config = strokes.get_config("smoke")
    config.data.synth.num_cycles, config.train.batch_size = 1, 2

    def waveform():
        batches = train_batches(config, None, sample_rate=RATE, window_s=0.5, bad=None, position=None)
        return np.asarray(next(batches)[0]["waveform"])

    random = waveform()
    config.data.synth.drums, config.data.synth.drums_share = str(tmp_path / "drums.npz"), 1.0
    with pytest.raises(InputError, match="no file of learnt drums"):
        waveform()
    learned_drums.save(tmp_path / "drums.npz", *learnt)
    assert np.abs(waveform() - random).max() > 0.1


@pytest.mark.slow
def test_the_drums_of_sousa(sousa_mini):
    """Banks answer velocity by 40 · log10(v / 127) dB, as General MIDI has it; the marching snare is flat."""
    names, drums = learned_drums.learn(sousa.open_clips(str(sousa_mini), "train"))
    exponent = dict(zip(names, drums.exponent, strict=True))
    assert exponent.pop("Marching_Snare") < 0.4
    assert all(1.3 < found < 2.7 for found in exponent.values()), exponent
    body, later = drums.hits[:, -1, : RATE // 50], drums.hits[:, -1, RATE // 4 :]
    assert (np.square(later).mean(1) < 0.01 * np.square(body).mean(1)).all()
