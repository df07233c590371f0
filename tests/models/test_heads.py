"""The heads: strokes out of frames, and what a rhythm head learns of each frame's neighbouring strokes."""

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
    LAG,
    NEIGHBOUR,
    STREAMS,
    DilatedBlock,
    RhythmHead,
    StrokeHead,
    condense,
    latest_strokes,
    probabilities,
)

# ----------------------------------------------------------------------------------------------------- latest_strokes

N, CHANNELS = 24, 3  # one shape: compiled once for each reach

compiled = jax.jit(latest_strokes)


def register(onset, values, nothing):
    """Which strokes came last before each frame, as one writes it down: `(T, reach, C)` of whole strokes `(T,)`."""
    found, held = [], list(nothing)
    for t in range(len(onset)):
        if t >= LAG and onset[t - LAG]:
            held = [values[t - LAG], *held[:-1]]
        found.append(held)
    return np.array(found)


def drawn(seed, n, reach):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, CHANNELS)).astype(np.float32), rng.normal(size=(reach, CHANNELS)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=N, max_size=N), st.integers(1, 4), st.integers(0, 99))
def test_of_whole_strokes_it_is_the_last_ones(struck, reach, seed):
    onset = np.array(struck, np.float32)
    values, nothing = drawn(seed, N, reach)
    found = compiled(onset[None], values[None], nothing)[0]
    assert found.shape == (N, reach, CHANNELS)
    # 0 and 1 are exact but for x + (y - x), which rounds.
    np.testing.assert_allclose(found, register(onset, values, nothing), atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8), st.integers(1, 3), st.integers(0, 99))
def test_of_soft_strokes_it_is_the_expectation(p, reach, seed):
    """Over all 256 ways in which eight frames can be struck or not."""
    p = np.array(p, np.float64)
    values, nothing = drawn(seed, 8, reach)
    expected = np.zeros((8, reach, CHANNELS))
    for outcome in itertools.product((0, 1), repeat=8):
        chance = np.where(outcome, p, 1 - p).prod()
        expected += chance * register(outcome, values, nothing)
    found = compiled(p[None].astype(np.float32), values[None], nothing)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def doubling(a, b, first):
    """`y[t] = a[t] y[t-1] + b[t]` from `first` on, by log2(T) shifts instead of T steps; along the first axis."""
    shift = 1
    b = b.copy()
    b[0] += a[0] * first
    a = a.copy()
    a[0] = 0
    while shift < len(a):
        before_a = np.concatenate([np.ones_like(a[:shift]), a[:-shift]])
        before_b = np.concatenate([np.zeros_like(b[:shift]), b[:-shift]])
        a, b = a * before_a, a * before_b + b
        shift *= 2
    return b


@pytest.mark.parametrize("n", [5, 64, 1000])
def test_doubling_shifts_compute_the_same(n):
    """Core ML has no scan: place by place of the register, each fed by the one before it as it was a frame ago."""
    reach, rng = 4, np.random.default_rng(n)
    p = (rng.random(n) * (rng.random(n) < 0.3)).astype(np.float32)
    values, nothing = drawn(n, n, reach)
    fed, places = values, []
    for place in range(reach):
        held = doubling((1 - p)[:, None].repeat(CHANNELS, 1), p[:, None] * fed, nothing[place])
        places.append(held)
        fed = np.concatenate([nothing[place][None], held[:-1]])
    exported = np.stack(places, 1)
    exported = np.concatenate([np.broadcast_to(nothing, (LAG, *nothing.shape)), exported[:-LAG]])
    found = compiled(p[None], values[None], nothing)[0]
    np.testing.assert_allclose(found, exported, atol=2e-5)


def test_a_stroke_on_two_frames_is_not_its_own_predecessor():
    """Half on frame 5, half on 6: at neither of them does anything show of it."""
    values, nothing = drawn(0, N, 2)
    onset = np.zeros(N, np.float32)
    onset[5:7] = 0.5
    found = compiled(onset[None], values[None], nothing)[0]
    np.testing.assert_array_equal(found[:7], np.broadcast_to(nothing, (7, *nothing.shape)))
    assert np.abs(found[7:] - nothing).max(axis=(1, 2)).min() > 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sequences_as_short_as_the_lag(n):
    """Nothing is known yet in any frame of the first two."""
    values, nothing = drawn(0, n, 2)
    found = latest_strokes(jnp.ones((1, n)), values[None], nothing)
    assert found.shape == (1, n, 2, CHANNELS)
    np.testing.assert_array_equal(found[0, :LAG], np.broadcast_to(nothing, (min(n, LAG), 2, CHANNELS)))


def test_gradients_are_finite_and_reach_what_fell_long_ago():
    values, nothing = drawn(1, N, 3)

    def last(onset, values):
        return compiled(onset[None], values[None], nothing)[0, -1].sum()

    for p in (0.0, 1.0, 0.5, 1e-30):
        for gradient in jax.grad(last, argnums=(0, 1))(jnp.full(N, p), jnp.asarray(values)):
            assert np.isfinite(gradient).all()
    only_early = jnp.zeros(N).at[2].set(0.5)
    gradient = jax.grad(last)(only_early, jnp.asarray(values))
    assert (np.abs(gradient[: N - LAG]) > 0).all()
    assert (gradient[N - LAG :] == 0).all()


# --------------------------------------------------------------------------------------------------------- RhythmHead

RATE = 200


def head(**changes):
    """A small one; made in one compiled call."""
    settings = {"num_classes": 7, "per_second": RATE, "fine": 16, "coarse": 12, **changes}
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
    (logits, embedding), parameters = shape_of(400, num_classes=40, fine=64, coarse=96)
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


@pytest.mark.parametrize("per_second", [50, 100, 200, 250, 1000])
def test_rates_that_are_multiples_of_fifty(per_second):
    (logits, _), _ = shape_of(500, per_second=per_second)
    assert logits.shape == (1, 7)


@pytest.mark.parametrize("per_second", [0, -50, 25, 75, 120, 201])
def test_other_rates_are_refused(per_second):
    with pytest.raises(InputError, match=rf"a multiple of 50 frames a second, not {per_second}") as error:
        head(per_second=per_second)
    assert "\n" not in str(error.value)


def test_the_same_played_a_little_later_is_the_same():
    """By whole groups of frames, 20 ms, hardly anything moves: 0.01 of what another rhythm does. By less the random
    layers that join a group see other frames: up to 0.4 of it in four such draws, which training has to lower."""
    n = 1200
    logits = lambda *args, **kwargs: np.asarray(small_head()(performance(n, *args, **kwargs))[0])  # noqa: E731
    here = logits()
    another = np.abs(logits(seed=3, gap=35) - here).max()
    moved = {shift: np.abs(logits(shift) - here).max() for shift in (1, 2, 3, 4, 8)}
    assert max(moved[4], moved[8]) < 0.02 * another
    assert max(moved.values()) < 0.5 * another


def test_velocity_and_grace_without_an_onset_change_nothing():
    """Bit for bit: where no stroke is, nobody asks how hard it was."""
    heard = performance(600)
    noise = np.random.default_rng(5).random((2, 1, 600)).astype(np.float32) * (heard.onset == 0)
    changed = heard._replace(velocity=heard.velocity + noise[0], grace=heard.grace + noise[1])
    for one, other in zip(small_head()(heard), small_head()(changed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_velocity_grace_and_density_of_strokes_count():
    heard = performance(600)
    here = np.asarray(small_head()(heard)[0])
    for changed in (
        heard._replace(velocity=0.5 * heard.velocity),
        heard._replace(grace=heard.onset - heard.grace),
        heard._replace(density=4 * heard.density),
    ):
        assert np.abs(np.asarray(small_head()(changed)[0]) - here).max() > 1e-3


def test_clips_of_a_batch_do_not_see_each_other():
    one, other = performance(600, seed=1), performance(600, seed=2)
    both = FrameTargets(*(np.concatenate(pair) for pair in zip(one, other, strict=True)))
    apart = np.concatenate([small_head()(one)[0], small_head()(other)[0]])
    np.testing.assert_allclose(small_head()(both)[0], apart, atol=1e-5)


def test_the_gaps_of_a_steady_beat_are_what_they_are():
    """A stroke each quarter of a second: between strokes, each of the gaps before is 0.25 s, on its scale."""
    onset = np.zeros((1, 800), np.float32)
    onset[0, ::50] = 1
    gaps = head()._gaps(FrameTargets(onset, 0.5 * onset, 0 * onset, 0 * onset), backwards=False)
    for t in (450, 475, 499):
        last = t - (t - LAG) // 50 * 50  # frames since the last stroke that is known here
        expected = np.log(0.01 + np.array([last / RATE, 0.25, 0.25, 0.25])) / 1.5 + 1
        np.testing.assert_allclose(gaps[0, t, :4], expected, atol=1e-4)
    np.testing.assert_array_equal(gaps[0, 450, 4:8], 0.5)


def test_what_comes_is_what_came_seen_from_behind():
    heard = performance(600)
    reversed_ = FrameTargets(*(x[:, ::-1] for x in heard))
    made = head()
    np.testing.assert_allclose(
        made._gaps(heard, backwards=True), made._gaps(reversed_, backwards=False)[:, ::-1], atol=1e-5
    )


def test_a_frame_knows_what_came_and_what_comes():
    """Without the last stroke, frames before it know another future and the same past."""
    heard = performance(600)
    last = np.flatnonzero(heard.onset[0])[-1]
    without = FrameTargets(*(np.where(np.arange(600) == last, 0, x).astype(np.float32) for x in heard))
    made = head()
    changed = np.abs(made.neighbourhood(heard) - made.neighbourhood(without))[0, : last - LAG]
    first = STREAMS + 1  # of what a frame knows of others; its own streams and the mean gap stand before
    before, after = changed[:, first : first + NEIGHBOUR * made.reach], changed[:, first + NEIGHBOUR * made.reach :]
    assert before.max() == 0
    assert after.max() > 0.1


def test_the_loss_of_the_name_reaches_every_part_of_the_stream():
    """On a stroke's frame and those beside it, where something is heard, the gradient is finite and not zero."""
    onset = np.tile([0, 0.1, 0.5, 0.2, 0], 80).astype(np.float32)[None]
    rng = np.random.default_rng(0)
    heard = FrameTargets(onset, *(jnp.asarray(x, jnp.float32) for x in rng.uniform(0.05, 0.9, (3, 1, 400))))
    gradient = jax.grad(lambda heard: small_head()(heard)[0][0, 3])(heard)
    for name, part in gradient._asdict().items():
        assert np.isfinite(part).all(), name
        assert (np.asarray(part) != 0)[onset > 0].mean() > 0.9, name


# ----------------------------------------------------------------------------------------------------------- condense

condensed = jax.jit(condense)


def stream(onset, **others):
    """`(1, T)` each; silent where nothing is said."""
    onset = np.asarray(onset, np.float32)[None]
    return FrameTargets(onset, *(np.asarray(others.get(name, 0 * onset), np.float32).reshape(onset.shape)
                                 for name in FrameTargets._fields[1:]))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=N, max_size=N), st.integers(0, 99))
def test_certain_strokes_stay_as_they_are(struck, seed):
    """In neighbouring frames too: what was struck is not merged."""
    onset = np.array(struck, np.float32)
    velocity, grace, density = np.random.default_rng(seed).random((3, N)).astype(np.float32)
    given_ = stream(onset, velocity=velocity * onset, grace=grace * onset, density=density)
    for name, one, other in zip(FrameTargets._fields, given_, condensed(given_), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=N, max_size=N))
def test_what_is_heard_anywhere_stays_a_probability(onset):
    found = condensed(stream(onset, velocity=np.ones(N)))
    for x in found:
        assert np.isfinite(x).all()
        assert x.min() >= 0
        assert x.max() <= 1 + 1e-6


def test_a_stroke_spread_over_three_frames_is_one_of_one_frame():
    found = condensed(stream([0, 0.2, 0.5, 0.1, 0], velocity=[0, 0.2, 0.8, 0.4, 0], grace=[0, 1, 0, 0, 0]))
    assert np.flatnonzero(found.onset[0]).tolist() == [2]
    assert found.onset[0, 2] > 0.99  # 0.8 of one, which is far above even chances
    assert found.velocity[0, 2] == pytest.approx((0.2 * 0.2 + 0.5 * 0.8 + 0.1 * 0.4) / 0.8)
    assert found.grace[0, 2] == pytest.approx(0.2 / 0.8)


def test_the_less_likely_it_is_the_less_it_counts():
    """Even chances at 0.3; nearly sure or nearly nothing twice as high or half as low."""
    found = [float(condensed(stream([0, p, 0])).onset[0, 1]) for p in (0.05, 0.15, 0.3, 0.6, 0.9)]
    assert found == sorted(found)
    assert found[2] == pytest.approx(0.5)
    assert found[1] < 0.05
    assert found[3] > 0.97


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
