"""The heads: strokes out of frames, the list of the likely ones, and what a rhythm head reads of them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.models.heads import (
    FEATURES,
    LIKELY,
    MOST_PER_SECOND,
    DilatedBlock,
    RhythmHead,
    StrokeHead,
    describe,
    gather,
    list_strokes,
    probabilities,
)

RATE, N = 200, 80  # frames: one shape, compiled once
SLOTS = N * MOST_PER_SECOND // RATE

listed = jax.jit(lambda heard: list_strokes(heard, RATE))


def stream(onset, **others):
    """`(1, T)` each; silent where nothing is said."""
    onset = np.asarray(onset, np.float32)[None]
    return FrameTargets(onset, *(np.asarray(others.get(name, 0 * onset), np.float32).reshape(onset.shape)
                                 for name in FrameTargets._fields[1:]))  # fmt: skip


def filled(onset, n=N):
    """The probabilities of the first frames, then silence."""
    return np.pad(np.asarray(onset, np.float32), (0, n - len(onset)))


# ------------------------------------------------------------------------------------------------------- list_strokes


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, N - 1), max_size=SLOTS + 4), st.integers(0, 99))
def test_certain_strokes_are_listed_as_they_fell(frames, seed):
    """In neighbouring frames too; what there is no room for is left out, and behind the last one everything is zero."""
    frames = np.array(sorted(frames), int)
    onset = np.zeros(N, np.float32)
    onset[frames] = 1
    velocity, grace, density = np.random.default_rng(seed).random((3, N)).astype(np.float32)
    found = listed(stream(onset, velocity=velocity * onset, grace=grace * onset, density=density))
    there, n = frames[:SLOTS], min(len(frames), SLOTS)
    expected = (there / RATE, onset[there], velocity[there], grace[there], density[there], np.ones(n))
    for name, x, wanted in zip(found._fields, found, expected, strict=True):
        assert x.shape == (1, SLOTS)
        np.testing.assert_allclose(x[0], filled(wanted, SLOTS), atol=1e-6, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=N, max_size=N))
def test_of_anything_that_is_heard_the_list_is_in_order(onset):
    found = listed(stream(onset, velocity=np.ones(N)))
    n = int(found.there.sum())
    assert np.isfinite(np.stack(found)).all()
    assert (np.diff(found.time_s[0, :n]) > 0).all()
    assert (found.onset[0, :n] >= LIKELY).all()
    assert (found.onset <= 1).all()
    np.testing.assert_array_equal(found.there[0], np.arange(SLOTS) < n)


def test_a_stroke_spread_over_three_frames_is_one_between_them():
    onset = filled([0, 0.2, 0.5, 0.1, 0])
    found = listed(stream(onset, velocity=filled([0, 0.2, 0.8, 0.4, 0]), grace=filled([0, 1, 0, 0, 0])))
    assert found.there.sum() == 1
    assert found.onset[0, 0] == pytest.approx(0.8)
    assert found.time_s[0, 0] * RATE == pytest.approx(2 - 0.1 / 0.8, abs=1e-4)
    assert found.velocity[0, 0] == pytest.approx((0.2 * 0.2 + 0.5 * 0.8 + 0.1 * 0.4) / 0.8)
    assert found.grace[0, 0] == pytest.approx(0.2 / 0.8)


def test_what_is_unlikely_is_not_listed():
    """Three frames together count."""
    found = listed(stream(filled([0, 0.09, 0, 0, 0.06, 0.05, 0, 0, 0.11])))
    np.testing.assert_allclose(found.time_s[0, :3] * RATE, [4 + 0.05 / 0.11, 8, 0], atol=1e-4)


def test_times_are_exact_at_the_end_of_a_long_window():
    """Half precision, which accelerators prefer in products, would know them to 8 ms."""
    onset = np.zeros(2000)
    onset[[1997, 1999]] = 1
    found = list_strokes(stream(onset), RATE)
    np.testing.assert_allclose(found.time_s[0, :2], [1997 / RATE, 1999 / RATE], atol=2e-6)


def test_gathered_probabilities_stay_where_they_are_largest():
    onset = np.asarray(gather(stream([0, 0.2, 0.5, 0.1, 0, 0.3, 0.3, 0])).onset)[0]
    np.testing.assert_allclose(onset, [0, 0, 0.8, 0, 0, 0.3, 0.3, 0], atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- describe


def test_the_gaps_of_a_steady_beat_are_what_they_are():
    """A stroke each tenth of a second, all as hard: logarithm of the gap, and no gap or velocity is unlike the mean."""
    onset = np.zeros(400, np.float32)
    onset[40:340:20] = 1
    found = np.asarray(describe(list_strokes(stream(onset, velocity=0.5 * onset), RATE)))[0]
    assert found.shape == (40, FEATURES)
    before, after, beside_before, beside_after, velocity, beside_velocity, *_, onset = found[1:14].T
    for gap in (before, after):
        np.testing.assert_allclose(gap, np.log(0.105) / 2 + 1, atol=1e-4)
    for beside in (beside_before, beside_after, beside_velocity):
        assert np.abs(beside).max() < 0.06  # of the constants against silence
    np.testing.assert_allclose(velocity, 3 * 0.5 - 1.6, atol=1e-5)
    np.testing.assert_array_equal(onset, 1)
    assert (found[15:] == 0).all()


def test_a_tempo_is_a_shift_of_the_gaps():
    """Twice as slow, log gaps are half of log 2 larger; nothing else changes, but for the shortest gap's constant."""
    onset = np.zeros((2, 800), np.float32)
    frames = np.cumsum([40, 30, 60, 30, 30, 60])
    onset[0, frames], onset[1, 2 * frames] = 1, 1
    one, slow = (np.asarray(describe(list_strokes(stream(x), RATE)))[0, 1:5] for x in onset)
    np.testing.assert_allclose((slow - one)[:, :2], np.log(2) / 2, atol=0.01)
    np.testing.assert_allclose(slow[:, 2:], one[:, 2:], atol=0.03)


# --------------------------------------------------------------------------------------------------------- RhythmHead


def head(**changes):
    """A small one; made in one compiled call."""
    settings = {"num_classes": 7, "per_second": RATE, "width": 12, **changes}
    return nnx.jit(lambda: RhythmHead(**settings, rngs=nnx.Rngs(0)))()


@functools.cache
def small_head():
    """`head()` as a jitted function."""
    graphdef, state = nnx.split(head())
    return jax.jit(lambda heard: nnx.merge(graphdef, state)(heard))


def shape_of(n, **changes):
    """What a head gives of `n` frames, and its parameters, as shapes."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: head(**changes)))
    heard = FrameTargets(*[jax.ShapeDtypeStruct((1, n), np.float32)] * 4)
    return jax.eval_shape(lambda state, heard: nnx.merge(graphdef, state)(heard), state, heard), state


def performance(n, shift=0, seed=0, gap=23):
    """Strokes about `gap` frames apart; the first a second after the beginning, the last one before the end."""
    rng = np.random.default_rng(seed)
    frames = np.cumsum(rng.integers(gap - 5, gap + 6, n))
    frames = frames[(frames > RATE) & (frames < n - RATE)] + shift
    stream = np.zeros((4, n), np.float32)
    stream[0, frames], stream[1, frames] = 1, rng.uniform(0.2, 1, len(frames))
    stream[2, frames] = rng.random(len(frames)) < 0.2
    stream[3, frames] = 0.05
    return FrameTargets(*stream[:, None])


def test_default_size_and_shapes():
    """Below a million parameters, and the head of model `strokes` at its rate."""
    (logits, embedding), parameters = shape_of(400, num_classes=40, width=96)
    assert 200_000 < sum(array.size for array in jax.tree.leaves(parameters)) < 1_000_000
    assert logits.shape == (1, 40)
    assert embedding.shape == (1, 288)
    assert logits.dtype == embedding.dtype == np.float32


@pytest.mark.parametrize("n", [4, 5, 203])
def test_any_number_of_frames(n):
    rng = np.random.default_rng(n)
    logits, embedding = small_head()(FrameTargets(*rng.random((4, 2, n)).astype(np.float32)))
    assert logits.shape == (2, 7)
    assert embedding.shape == (2, 36)
    assert np.isfinite(logits).all()


def test_silence_has_an_answer_too():
    logits, embedding = small_head()(FrameTargets(*np.zeros((4, 1, 600), np.float32)))
    assert np.isfinite(logits).all()
    assert np.isfinite(embedding).all()


@pytest.mark.parametrize("per_second", [20, 50, 75, 1000])
def test_rates(per_second):
    (logits, _), _ = shape_of(500, per_second=per_second)
    assert logits.shape == (1, 7)


@pytest.mark.parametrize("per_second", [0, -50, 19])
def test_lower_rates_are_refused(per_second):
    with pytest.raises(InputError, match=rf"at least 20 frames a second, not {per_second}") as error:
        head(per_second=per_second)
    assert "\n" not in str(error.value)


def test_the_same_played_a_little_later_is_the_same():
    """By any number of frames: only the gaps count."""
    logits = lambda *args, **kwargs: np.asarray(small_head()(performance(1200, *args, **kwargs))[0])  # noqa: E731
    here = logits()
    another = np.abs(logits(seed=3, gap=35) - here).max()
    moved = [np.abs(logits(shift) - here).max() for shift in (1, 2, 3, 50)]
    assert max(moved) < 1e-3 * another


def test_velocity_and_grace_without_an_onset_change_nothing():
    """Bit for bit: where no stroke is, nobody asks how hard it was."""
    heard = performance(600)
    noise = np.random.default_rng(5).random((2, 1, 600)).astype(np.float32) * (heard.onset == 0)
    changed = heard._replace(velocity=heard.velocity + noise[0], grace=heard.grace + noise[1])
    for one, other in zip(small_head()(heard), small_head()(changed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_velocity_grace_density_and_probability_of_strokes_count():
    heard = performance(600)
    here = np.asarray(small_head()(heard)[0])
    for changed in (
        heard._replace(velocity=0.5 * heard.velocity),
        heard._replace(grace=heard.onset - heard.grace),
        heard._replace(density=4 * heard.density),
        heard._replace(onset=0.5 * heard.onset),
    ):
        assert np.abs(np.asarray(small_head()(changed)[0]) - here).max() > 1e-3


def test_clips_of_a_batch_do_not_see_each_other():
    one, other = performance(600, seed=1), performance(600, seed=2)
    both = FrameTargets(*(np.concatenate(pair) for pair in zip(one, other, strict=True)))
    apart = np.concatenate([small_head()(one)[0], small_head()(other)[0]])
    np.testing.assert_allclose(small_head()(both)[0], apart, atol=1e-5)


def test_the_loss_of_the_name_reaches_every_part_of_the_stream():
    """On a stroke's frame and those beside it, where something is heard, the gradient is finite and not zero."""
    onset = np.tile([0, 0.1, 0.5, 0.2] + [0] * 8, 40).astype(np.float32)[None]
    rng = np.random.default_rng(0)
    heard = FrameTargets(onset, *(jnp.asarray(x, jnp.float32) for x in rng.uniform(0.05, 0.9, (3, 1, 480))))
    gradient = jax.grad(lambda heard: small_head()(heard)[0][0, 3])(heard)
    for name, part in gradient._asdict().items():
        assert np.isfinite(part).all(), name
        where = onset == 0.5 if name == "density" else onset > 0  # density is read where the peak is
        assert (np.asarray(part) != 0)[where].mean() > 0.9, name


# ------------------------------------------------------------------------------------------- StrokeHead, DilatedBlock


@pytest.mark.parametrize("per_step", [1, 4])
def test_frame_k_of_step_i_is_i_times_per_step_plus_k(per_step):
    """What a step says of its frames stands where the step is, and in their order: by hand, from the linear layer."""
    made = StrokeHead(6, per_step, rngs=nnx.Rngs(0))
    frames = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    found = made(jnp.asarray(frames), 5 * per_step)
    said = frames @ np.asarray(made.linear.kernel[...]) + np.asarray(made.linear.bias[...])
    for i, k, stream in itertools.product(range(5), range(per_step), range(4)):
        np.testing.assert_allclose(found[stream][:, i * per_step + k], said[:, i, 4 * k + stream], atol=1e-5)


def test_too_many_steps_are_cut_and_missing_frames_are_silent():
    made = StrokeHead(6, 4, rngs=nnx.Rngs(0))
    frames = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)
    whole, cut, padded = (made(frames, n) for n in (20, 17, 26))
    for full, short, long in zip(whole, cut, padded, strict=True):
        np.testing.assert_array_equal(short, full[:, :17])
        np.testing.assert_array_equal(long[:, :20], full)
        assert (np.asarray(jax.nn.sigmoid(long[:, 20:])) < 0.003).all()


def test_it_starts_out_nearly_silent():
    """Of frames as norms leave them, one in twenty strokes; less than one in five anywhere."""
    made = StrokeHead(64, 2, rngs=nnx.Rngs(0))
    frames = jax.random.normal(jax.random.key(0), (2, 500, 64))
    onset = np.asarray(probabilities(made(0 * frames, 1000)).onset)
    np.testing.assert_allclose(onset, 1 / (1 + np.exp(3)), rtol=1e-5)
    assert np.median(probabilities(made(frames, 1000)).onset) < 0.1


def test_sixteen_bit_frames_give_float32():
    made = StrokeHead(6, 2, rngs=nnx.Rngs(0))
    assert {x.dtype for x in made(jnp.ones((1, 3, 6), jnp.bfloat16), 6)} == {np.dtype("float32")}


def test_probabilities_keep_the_names():
    heard = probabilities(FrameTargets(*(jnp.full((1, 2), value) for value in (0.0, 20.0, -20.0, np.log(3)))))
    np.testing.assert_allclose(np.stack(heard)[:, 0, 0], [0.5, 1, 0, 0.75], atol=1e-6)


def test_a_block_sees_two_dilations_to_either_side():
    dilation = 4
    block = DilatedBlock(8, dilation, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 41, 8))
    changed = np.asarray(block(x.at[0, 20, 3].add(1.0)) - block(x))
    seen = 20 + dilation * np.arange(-2, 3)
    assert set(np.flatnonzero(np.abs(changed[0]).max(-1) > 1e-6)) == set(seen.tolist())


def test_a_block_computed_again_gives_the_same():
    block = DilatedBlock(8, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 20, 8))
    loss = lambda block, x: jnp.sum(block(x) ** 2)  # noqa: E731
    kept = nnx.grad(loss)(block, x)
    block.recompute = True
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(nnx.grad(loss)(block, x)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
