"""Simulated hearing: nothing at amount 0, the errors that were asked for at amount 1, and never beyond 0 … 1."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.data.synth.mishearing import (
    BANDS,
    QUANTILES,
    REACH,
    SALIENCE_DB,
    HearingErrors,
    measure,
    mishear,
    salience_db,
)
from sousa_jax.errors import InputError

N_FRAMES, RATE = 400, 200
AT = np.linspace(0, 1, QUANTILES)
# Masked strokes are heard badly, free ones well; a frame late or early, now and then; something every half second.
ERRORS = HearingErrors(
    certainty=tuple(tuple(np.minimum(0.1 + 0.1 * band + (0.9 - 0.08 * band) * AT, 1)) for band in range(BANDS)),
    place=(0.02, 0.18, 0.60, 0.15, 0.05),
    velocity_bias=tuple(np.linspace(0.1, -0.1, BANDS)),
    velocity_sd=(0.1,) * BANDS,
    grace=(0.1, 0.8),
    false_alarm_rate=0.01,
    false_alarm=tuple(0.05 + 0.55 * AT),
    density_sd=0.05,
)
NOTHING_WRONG = HearingErrors(
    ((1.0,) * QUANTILES,) * BANDS, (0.0, 0.0, 1.0, 0.0, 0.0), (0.0,) * BANDS, (0.0,) * BANDS, (0.0, 1.0), 0.0,
    (0.0,) * QUANTILES, 0.0,
)  # fmt: skip
_mishear = jax.jit(mishear, static_argnums=(2, 3, 4))


def hear(key, true, errors, amount):
    return jax.device_get(_mishear(key, true, errors, RATE, amount))


def performances(n_clips, closest=2 * REACH + 2, seed=0) -> FrameTargets:
    """Clips whose strokes lie at least `closest` frames apart, by default so far that none is near two."""
    rng = np.random.default_rng(seed)
    onset = np.zeros((n_clips, N_FRAMES), np.float32)
    for row in onset:
        frames = np.cumsum(rng.integers(closest, closest + 14, N_FRAMES // closest))
        row[frames[(frames > REACH) & (frames < N_FRAMES - REACH)]] = 1
    velocity = onset * rng.uniform(0.01, 1, onset.shape)
    grace = onset * (rng.random(onset.shape) < 0.2)
    density = 0.05 * sum(np.roll(np.pad(onset, ((0, 0), (5, 5))), shift, 1) for shift in range(-4, 6))[:, 5:-5]
    density[:, 100:150] += 0.3  # a buzz
    return FrameTargets(*(x.astype(np.float32) for x in (onset, velocity, grace, density)))


@pytest.fixture(scope="module")
def misheard():
    """What fell in 600 clips, and what an ear with `ERRORS` heard."""
    true = performances(600)
    return true, hear(jax.random.key(1), true, ERRORS, 1.0)


def test_at_amount_zero_it_is_what_fell():
    true = performances(8)
    heard = hear(jax.random.key(0), true, ERRORS, 0.0)
    for name, ours, theirs in zip(true._fields, heard, true, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=name)


def test_half_the_amount_is_half_the_doubt(misheard):
    """Of onsets, on average; false alarms are half as many."""
    true, whole = misheard
    half = hear(jax.random.key(1), true, ERRORS, 0.5)
    struck = true.onset > 0
    lost = [struck.sum() - np.asarray(_near(heard.onset)[struck]).sum() for heard in (half, whole)]
    assert lost[0] / lost[1] == pytest.approx(0.5, abs=0.05)
    far = _near(true.onset) == 0
    alarms = [(np.asarray(heard.onset)[far] > 0).mean() for heard in (half, whole)]
    assert alarms[0] / alarms[1] == pytest.approx(0.5, abs=0.1)


def _near(x):
    """The sum over `2 · REACH + 1` frames around each."""
    return sum(np.roll(x, shift, 1) for shift in range(-REACH, REACH + 1))


def test_measuring_gives_back_what_was_asked_for(misheard):
    """About: 11,000 strokes and 600 drums' luck. With a known bias each: what is moved leaves on average a quarter of
    its probability where it fell, and the bent curves of clips blur velocities beside `velocity_sd`."""
    true, heard = misheard
    found = measure(heard, true, RATE)
    np.testing.assert_allclose(found.certainty, ERRORS.certainty, atol=0.06)
    centre = np.arange(-REACH, REACH + 1) == 0
    np.testing.assert_allclose(found.place, 0.75 * np.array(ERRORS.place) + 0.25 * centre, atol=0.015)
    np.testing.assert_allclose(found.velocity_bias, ERRORS.velocity_bias, atol=0.05)
    assert np.all(np.array(found.velocity_sd) > 0.08)
    assert np.all(np.array(found.velocity_sd) < 0.15)
    np.testing.assert_allclose(found.grace, ERRORS.grace, atol=1e-3)
    assert found.false_alarm_rate == pytest.approx(0.01, rel=0.1)
    np.testing.assert_allclose(found.false_alarm, ERRORS.false_alarm, atol=0.03)


def test_what_is_not_heard_leaves_no_trace():
    """Or the rhythm head would learn to read from it what no ear can give: of strokes of no certainty nothing is left,
    in no stream, but the buzz."""
    deaf = dataclasses.replace(NOTHING_WRONG, certainty=((0.0,) * QUANTILES,) * BANDS)
    true = performances(20)
    heard = hear(jax.random.key(3), true, deaf, 1.0)
    for name in ("onset", "velocity", "grace"):
        assert not getattr(heard, name).any(), name
    buzz = np.zeros(N_FRAMES, bool)
    buzz[100:150] = True
    assert not heard.density[:, ~buzz].any()
    np.testing.assert_allclose(heard.density[:, buzz], 0.3, atol=1e-5)


def test_salience_by_hand():
    """At 200 frames a second a ring of 60 ms falls by e^-1 in 12 frames. A lone stroke of full velocity stands 30 dB
    above the floor; an equal one 12 frames later 10 lg e = 4.34 dB above the ring, one of half the velocity 12 dB less,
    at whose frame it is still the first that rings."""
    true = FrameTargets(*np.zeros((4, 2, 40), np.float32))
    true.onset[:, [10, 22]] = 1
    true.velocity[0, [10, 22]], true.velocity[1, [10, 22]] = (1, 1), (1, 0.5)
    found = np.asarray(salience_db(true, RATE))
    np.testing.assert_allclose(found[:, 10], 30, atol=1e-4)
    np.testing.assert_allclose(found[:, 22], [4.34, 4.34 - 12.04], atol=0.02)  # the floor takes 0.01


def test_a_perfect_ear_has_no_errors():
    true = performances(30)
    found = measure(true, true, RATE)
    np.testing.assert_allclose(found.certainty, 1)
    np.testing.assert_allclose(found.place, [0, 0, 1, 0, 0])
    np.testing.assert_allclose((found.velocity_bias, found.velocity_sd), 0, atol=1e-12)
    assert found.grace == (0.0, 1.0)
    assert (found.false_alarm_rate, found.density_sd) == (0.0, 0.0)


def test_with_no_errors_nothing_is_lost_but_the_place_of_a_stroke():
    """At full amount and without errors onsets are what fell; only velocities are bent."""
    true = performances(8)
    heard = hear(jax.random.key(0), true, NOTHING_WRONG, 1.0)
    for name in ("onset", "grace", "density"):
        np.testing.assert_allclose(getattr(heard, name), getattr(true, name), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("closest", [1, 2, 6])
def test_all_is_between_zero_and_one(closest):
    """Also where strokes are so close that what is heard of two falls on one frame, and with absurd errors."""
    sure = ((1.0,) * QUANTILES,) * BANDS
    changes = {"velocity_sd": (3.0,) * BANDS, "false_alarm_rate": 0.5, "density_sd": 5.0, "certainty": sure}
    absurd = dataclasses.replace(ERRORS, **changes)
    true = performances(40, closest)
    for errors in (ERRORS, absurd):
        for name, heard in hear(jax.random.key(2), true, errors, 1.0)._asdict().items():
            assert heard.dtype == np.float32
            assert heard.shape == true.onset.shape
            assert np.isfinite(heard).all(), name
            assert heard.min() >= 0, name
            assert heard.max() <= 1, name


def test_the_same_key_hears_the_same_and_another_one_not():
    true = performances(4)
    one, again, other = (hear(jax.random.key(k), true, ERRORS, 1.0) for k in (5, 5, 6))
    for a, b, c in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_what_a_clip_s_strokes_share_is_no_blur():
    """A drum that is heard half as loud as it was struck, all along: a bias, hardly a spread."""
    true = performances(60)
    loudness = np.random.default_rng(0).uniform(0.6, 1, (60, 1)).astype(np.float32)
    level = true._replace(velocity=0.5 * true.onset)
    heard = level._replace(velocity=level.velocity * loudness)
    found = measure(heard, level, RATE)
    assert found.velocity_sd[4] < 1e-6
    assert found.velocity_bias[4] == pytest.approx(-0.1, abs=0.02)


def test_an_alarm_spread_over_frames_is_one():
    """0.2 beside 0.1 is one of 0.3."""
    onset = np.zeros((1, 400), np.float32)
    onset[0, [100, 101, 300]] = 0.2, 0.1, 0.3
    silent = FrameTargets(*np.zeros((4, 1, 400), np.float32))
    fell = silent._replace(onset=np.eye(1, 400, 200, dtype=np.float32))
    found = measure(silent._replace(onset=onset + fell.onset), fell, RATE)
    np.testing.assert_allclose(found.false_alarm, 0.3, atol=1e-6)
    assert found.false_alarm_rate == pytest.approx(2 / (400 - 2 * REACH - 1))


def test_each_clip_has_its_own_luck(misheard):
    """Half of the variance of luck lies between clips: a drum that is hard to hear is so all along. Means over a clip's
    thirty strokes then vary by about that much of all; of independent ones it would be 0.03."""
    true, heard = misheard
    struck = true.onset > 0
    expected = np.array(ERRORS.certainty).mean(1)[np.digitize(salience_db(true, RATE), SALIENCE_DB)]
    off = (np.minimum(_near(heard.onset), 1) - expected) * struck
    per_clip = off.sum(1) / struck.sum(1)
    assert 0.35 * off[struck].var() < per_clip.var() < 0.6 * off[struck].var()


def test_velocities_of_a_clip_are_bent_by_one_curve():
    """Without blur: rising with the true ones in each clip, another curve in each."""
    true = performances(20)
    heard = hear(jax.random.key(0), true, NOTHING_WRONG, 1.0)
    exponents = []
    for row in range(20):
        struck = true.onset[row] > 0
        loud, said = true.velocity[row][struck], np.asarray(heard.velocity[row])[struck]
        keep = said > 0.02  # softer ones are raised to 0.01
        exponents.append(np.log(said[keep]) / np.log(loud[keep]))
        np.testing.assert_allclose(exponents[-1], exponents[-1][0], rtol=1e-3)
    firsts = [e[0] for e in exponents]
    assert 0.05 < np.std(np.log(firsts)) < 0.15


# ----------------------------------------------------------------------------------------------------- kept and refused


def test_errors_survive_json(misheard):
    true, heard = misheard
    for errors in (ERRORS, measure(heard, true, RATE)):
        again = HearingErrors(**json.loads(json.dumps(dataclasses.asdict(errors))))
        assert again == errors
        assert hash(again) == hash(errors), "static in a jitted function"


@pytest.mark.parametrize(
    "changes",
    [
        {"certainty": [[1.0] * QUANTILES]},
        {"certainty": [[1.0] * 3] * BANDS},
        {"place": [1.0]},
        {"velocity_sd": [0.1]},
        {"velocity_bias": [0.1]},
        {"false_alarm": [0.1] * 4},
    ],
    ids=lambda changes: f"{next(iter(changes))}",
)
def test_errors_of_another_shape_are_refused(changes):
    with pytest.raises(InputError, match=r"no hearing errors of this version: .*measure them again") as error:
        HearingErrors(**{**dataclasses.asdict(ERRORS), **changes})
    assert "\n" not in str(error.value)


def test_without_strokes_nothing_is_measured():
    silence = FrameTargets(*np.zeros((4, 2, N_FRAMES), np.float32))
    with pytest.raises(InputError, match=r"cannot be measured where no stroke falls"):
        measure(silence, silence, RATE)


def test_silence_behind_a_clip_changes_nothing(misheard):
    """Clips of several lengths are padded to one: no frame of that is a chance for a false alarm."""
    true, heard = misheard
    n = N_FRAMES // 2
    some = [FrameTargets(*(x[:50, :n] for x in stream)) for stream in (heard, true)]
    more = [FrameTargets(*(np.pad(x, ((0, 0), (0, 70))) for x in stream)) for stream in some]
    expected, found = measure(*some, RATE), measure(*more, RATE, np.full(50, n))
    for name, value in dataclasses.asdict(expected).items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-9, err_msg=name)
    assert measure(*more, RATE).false_alarm_rate < 0.9 * expected.false_alarm_rate


def test_a_few_strokes_are_enough_to_measure():
    """One stroke: what bands cannot know they take from all strokes."""
    true = FrameTargets(*np.zeros((4, 1, N_FRAMES), np.float32))
    true.onset[0, 100], true.velocity[0, 100] = 1, 0.5
    heard = FrameTargets(*(x.copy() for x in true))
    heard.onset[0, 100], heard.onset[0, 101] = 0.5, 0.25
    found = measure(heard, true, RATE)
    np.testing.assert_allclose(found.certainty, 0.75)
    np.testing.assert_allclose(found.place, [0, 0, 2 / 3, 1 / 3, 0])
    assert all(np.isfinite(value).all() for value in dataclasses.asdict(found).values())


def test_everything_struck_leaves_no_room_for_false_alarms():
    """A roll without a quiet frame has none; nothing is divided by zero."""
    true = FrameTargets(*np.ones((4, 1, 50), np.float32))
    found = measure(true, true, RATE)
    assert found.false_alarm_rate == 0
    assert np.isfinite(found.place).all()
