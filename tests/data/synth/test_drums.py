"""Random drums: alike at every sample rate, unlike each other, softer and duller for soft strokes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from sousa_jax.data.synth.drums import HIT_S, LAYERS, VARIANTS, draw_drum, random_signs, strike
from sousa_jax.data.synth.presets import NATURAL, SOUSA
from sousa_jax.data.synth.strokes import LEFT, RIGHT, Strokes

RATE = 16_000
COUNT = 64


def strokes_of(velocity, hand) -> Strokes:
    velocity, hand = jnp.asarray(velocity, jnp.float32), jnp.asarray(hand, jnp.int32)
    zeros = jnp.zeros(len(velocity), jnp.int32)
    time_s = jnp.arange(len(velocity), dtype=jnp.float32)
    return Strokes(time_s, time_s, velocity, velocity, hand, zeros, zeros > 0, zeros, zeros - 1, zeros == 0)


@pytest.fixture(scope="module", params=[SOUSA, NATURAL], ids=["sousa", "natural"])
def drums(request):
    draw = jax.jit(lambda keys: jax.lax.map(lambda key: draw_drum(key, request.param, sample_rate=RATE), keys))
    return draw(jax.random.split(jax.random.key(1), COUNT))


def one(drums, i):
    return jax.tree.map(lambda leaf: leaf[i], drums)


def centroid_hz(wave: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float(np.sum(power * np.fft.rfftfreq(len(wave), 1 / RATE)) / power.sum())


def test_more_signs_begin_with_the_same_ones():
    few, many = (random_signs(jax.random.key(0), 3, n) for n in (100, 1_001))
    assert few.shape == (3, 100)
    np.testing.assert_array_equal(few, many[:, :100])
    assert set(np.unique(many.real)) == set(np.unique(many.imag)) == {-1, 1}
    assert abs(np.mean(many.real)) < 0.1
    assert abs(np.mean(many.real * many.imag)) < 0.1
    assert abs(np.mean(many[0].real * many[1].real)) < 0.1


def test_hits_are_of_one_level(drums):
    hits = np.asarray(drums.head + drums.wires)
    assert hits.shape == (COUNT, VARIANTS, round(HIT_S * RATE))
    assert np.isfinite(hits).all()
    np.testing.assert_allclose(np.abs(hits).max(axis=(1, 2)), 1, rtol=1e-4)
    assert np.abs(hits[..., -8:]).max() < 0.01  # faded out
    assert np.abs(hits).max(axis=2).min() > 0.1  # no variant is missing


def test_no_two_drums_are_alike(drums):
    hits = np.asarray(drums.head + drums.wires)[:, 0]
    hits = hits / np.linalg.norm(hits, axis=1, keepdims=True)
    likeness = np.abs(hits @ hits.T)
    np.fill_diagonal(likeness, 0)
    assert np.median(likeness) < 0.2
    assert likeness.max() < 0.9


def test_drums_span_the_world(drums):
    hits = np.asarray(drums.head + drums.wires)[:, 0]
    centroids = [centroid_hz(hit) for hit in hits]
    assert np.percentile(centroids, 90) > 4 * np.percentile(centroids, 10)
    energy = np.cumsum(hits**2, axis=1)
    decay_s = np.argmax(energy > 0.9 * energy[:, -1:], axis=1) / RATE
    assert np.percentile(decay_s, 90) > 4 * np.percentile(decay_s, 10)


def test_both_ways_to_answer_occur(drums):
    share = np.mean(drums.sampled)
    assert 0.1 < share < 0.95
    assert (drums.layers[drums.sampled] > 1).any()


def test_sampled_drums_repeat_themselves_and_acoustic_ones_do_not(drums):
    for i in range(12):
        drum = one(drums, i)
        same = strike(jax.random.key(0), drum, strokes_of([100] * 20, [RIGHT, LEFT] * 10))
        templates = np.asarray(drum.head)[same.variant]
        if drum.sampled:
            assert len(set(np.asarray(same.variant))) == 1
            assert np.ptp(same.head_level) == 0
        else:
            assert set(np.asarray(same.variant)[0::2]).isdisjoint(np.asarray(same.variant)[1::2])
            assert 0 < np.ptp(20 * np.log10(same.head_level)) < 12
            assert not np.array_equal(templates[0], templates[1])


def test_velocity_layers_climb(drums):
    velocity = np.arange(1, 128)
    for i in range(12):
        drum = one(drums, i)
        if drum.sampled:
            hits = strike(jax.random.key(0), drum, strokes_of(velocity, [RIGHT] * 127))
            assert (np.diff(hits.variant) >= 0).all()
            assert hits.variant[-1] == LAYERS - 1
            assert len(set(np.asarray(hits.variant))) == drum.layers


def test_softer_strokes_are_softer_and_duller(drums):
    softer_db, duller = [], []
    for i in range(COUNT):
        drum = one(drums, i)
        hits = strike(jax.random.key(0), drum, strokes_of([120, 60], [RIGHT, RIGHT]))
        loud, soft = (
            np.asarray(hits.head_level[k] * drum.head[v] + hits.wires_level[k] * drum.wires[v])
            for k, v in enumerate(hits.variant)
        )
        softer_db.append(20 * np.log10(soft.std() / loud.std()))
        duller.append(centroid_hz(soft) / centroid_hz(loud))
    assert np.median(softer_db) < -4
    assert min(softer_db) > -30
    assert np.median(duller) < 1.02
    assert np.mean(np.array(duller) < 0.95) > 0.2


def test_every_sample_rate_hears_the_same_drum():
    draw = jax.jit(lambda keys, rate: jax.lax.map(lambda key: draw_drum(key, sample_rate=rate), keys), static_argnums=1)
    low, high = (draw(jax.random.split(jax.random.key(7), 6), rate) for rate in (16_000, 44_100))
    np.testing.assert_array_equal(low.exponent, high.exponent)
    for a, b in zip(low.head + low.wires, high.head + high.wires, strict=True):
        same = soxr.resample(np.asarray(b)[5], 44_100, 16_000)[: a.shape[1]]
        assert np.corrcoef(a[5], same)[0, 1] > 0.9
