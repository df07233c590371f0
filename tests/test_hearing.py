"""From soft streams to single strokes: where they fell, which are one, and how many were heard of how many."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sousa_jax.data.frame_targets import FrameTargets, place_on_frames
from sousa_jax.hearing import THRESHOLD, StrokeCounts, count, match, pick

PER_SECOND = 200


def stream(onset, velocity=0.5, grace=0.0):
    """One stream from onset probabilities, `(T,)` each."""
    onset = np.asarray(onset, np.float32)
    same = [np.broadcast_to(np.float32(value), onset.shape) for value in (velocity, grace, 0.0)]
    return FrameTargets(onset, *same)


def at(frames, n=40):
    onset = np.zeros(n, np.float32)
    for frame, p in frames.items():
        onset[frame] = p
    return onset


# Gaps of more than two frames: nothing is merged.
APART = st.lists(st.integers(11, 400), min_size=1, max_size=12).map(lambda gaps: list(itertools.accumulate(gaps)))


@settings(max_examples=100, deadline=None)
@given(APART, st.data())
def test_exact_strokes_come_back_within_half_a_frame(times_ms, data):
    """Through the targets and back: time within 2.5 ms, velocity and grace as they were, confidence 1."""
    time_s = np.array(times_ms, np.float32) / 1000
    velocity = np.array([data.draw(st.integers(1, 127)) for _ in time_s], np.float32)
    grace = np.array([data.draw(st.booleans()) for _ in time_s])
    n_frames = int(time_s[-1] * PER_SECOND) + 2
    heard = pick(
        place_on_frames(time_s, velocity, grace, np.zeros(len(time_s), bool), n_frames, PER_SECOND), PER_SECOND
    )
    assert len(heard.time_s) == len(time_s)
    assert np.abs(heard.time_s - time_s).max() <= 0.5 / PER_SECOND + 1e-6
    np.testing.assert_allclose(heard.velocity, velocity / 127, rtol=1e-6)
    np.testing.assert_array_equal(heard.grace, grace)
    np.testing.assert_array_equal(heard.confidence, 1)
    assert {column.dtype for column in heard} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("spread", "frame"),
    [
        ({10: 0.5, 11: 0.5}, 10.5),
        ({10: 0.75, 11: 0.25}, 10.25),
        ({10: 0.3, 11: 0.6}, 10 + 2 / 3),
        ({9: 0.2, 10: 0.5, 11: 0.2}, 10.0),
        ({9: 0.3, 10: 0.3, 11: 0.3}, 10.0),
    ],
)
def test_a_stroke_on_several_frames_is_one_at_their_centre_of_mass(spread, frame):
    heard = pick(stream(at(spread)), PER_SECOND)
    np.testing.assert_allclose(heard.time_s, [frame / PER_SECOND], atol=1e-6)
    np.testing.assert_allclose(heard.confidence, [sum(spread.values())], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 37), st.floats(0.0, 1.0), st.floats(0.5, 1.0))
def test_however_a_stroke_is_split_over_two_frames_it_is_one(frame, share, p):
    heard = pick(stream(at({frame: p * (1 - share), frame + 1: p * share})), PER_SECOND)
    assert len(heard.time_s) == 1
    assert heard.time_s[0] * PER_SECOND == pytest.approx(frame + share, abs=1e-3)
    assert heard.confidence[0] == pytest.approx(p, rel=1e-5)


def test_strokes_two_frames_apart_are_two_and_next_to_each_other_one():
    assert (pick(stream(at({10: 1.0, 12: 1.0})), PER_SECOND).time_s * PER_SECOND).round(4).tolist() == [10, 12]
    assert (pick(stream(at({10: 1.0, 11: 1.0})), PER_SECOND).time_s * PER_SECOND).round(4).tolist() == [10.5]


def test_confidence_never_exceeds_one():
    np.testing.assert_array_equal(pick(stream(at({10: 1.0, 11: 1.0})), PER_SECOND).confidence, [1.0])


def test_the_velocity_is_that_of_the_peak():
    frames = at({10: 0.3, 11: 0.6})
    heard = pick(stream(frames, velocity=np.arange(40) / 40, grace=np.arange(40) / 80), PER_SECOND)
    np.testing.assert_allclose([heard.velocity[0], heard.grace[0]], [11 / 40, 11 / 80], rtol=1e-6)


def test_what_is_too_uncertain_is_no_stroke():
    """The sum of three frames counts, not the peak."""
    frames = {5: THRESHOLD - 0.01, 15: THRESHOLD + 0.01, 25: 0.15, 26: 0.1, 35: 0.15, 36: 0.16, 37: 0.15}
    heard = pick(stream(at(frames)), PER_SECOND)
    assert (heard.time_s * PER_SECOND).round(2).tolist() == [15, 36]
    assert len(pick(stream(at(frames)), PER_SECOND, threshold=0.1).time_s) == 4
    assert len(pick(stream(at(frames)), PER_SECOND, threshold=0.9).time_s) == 0


def test_strokes_at_the_edges_are_heard():
    """In the first and in the last frame, alone and with a neighbour; never before the beginning."""
    heard = pick(stream(at({0: 1.0, 39: 1.0})), PER_SECOND)
    assert (heard.time_s * PER_SECOND).round(4).tolist() == [0, 39]
    heard = pick(stream(at({0: 0.6, 1: 0.2, 38: 0.2, 39: 0.6})), PER_SECOND)
    assert (heard.time_s * PER_SECOND).round(4).tolist() == [0.25, 38.75]
    assert len(pick(stream([1.0]), PER_SECOND).time_s) == 1


def test_silence_has_no_strokes():
    for onset in (np.zeros(40), np.full(40, 0.01), np.zeros(1)):
        assert all(column.shape == (0,) for column in pick(stream(onset), PER_SECOND))


# --------------------------------------------------------------------------------------------------- match and count

TIMES_MS = st.lists(st.integers(0, 300), max_size=15).map(sorted)


@settings(max_examples=100, deadline=None)
@given(TIMES_MS, TIMES_MS)
def test_matching_is_one_to_one_within_the_tolerance_and_as_large_as_can_be(true_ms, heard_ms):
    """As many pairs as a bipartite matching by another library finds."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    true_s, heard_s = (np.array(ms, float) / 1000 for ms in (true_ms, heard_ms))
    of_true, of_heard = match(true_s, heard_s, 0.0205)
    assert len(of_true) == len(of_heard)
    assert len(set(of_true.tolist())) == len(set(of_heard.tolist())) == len(of_true)
    assert (np.abs(true_s[of_true] - heard_s[of_heard]) <= 0.0205).all()
    if true_ms and heard_ms:
        near = csr_array(np.abs(true_s[:, None] - heard_s) <= 0.0205)
        assert len(of_true) == (maximum_bipartite_matching(near) >= 0).sum()
    else:
        assert len(of_true) == 0


def test_a_first_come_first_served_matching_would_lose_a_pair():
    """100 ms is near to both 85 and 115, 70 only to 85: nobody is left alone."""
    of_true, of_heard = match(np.array([0.070, 0.100]), np.array([0.085, 0.115]))
    assert sorted(zip(of_true.tolist(), of_heard.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_counts_of_a_batch_by_hand():
    """First clip: a hit 3 frames late, a miss, a false alarm. Second: nothing fell, one was heard. Third: nothing."""
    true = np.stack([at({5: 1, 20: 1}), at({}), at({})])
    heard = np.stack([at({8: 1.0, 33: 0.9}), at({7: 0.5}), at({})])
    whole = count(stream(heard), stream(true), PER_SECOND)
    assert whole == StrokeCounts(hits=1, heard=3, true=2)
    assert whole.f1 == pytest.approx(2 * 1 / 5)
    parts = [count(stream(h[None]), stream(t[None]), PER_SECOND) for h, t in zip(heard, true, strict=True)]
    assert parts[0].plus(parts[1]).plus(parts[2]) == whole


def test_fifteen_milliseconds_are_near_and_twenty_five_are_not():
    for late, hits in ((3, 1), (-3, 1), (5, 0), (-5, 0)):
        assert count(stream(at({10 + late: 1})[None]), stream(at({10: 1})[None]), PER_SECOND).hits == hits


def test_strokes_heard_as_they_fell_are_all_hits():
    """Of strokes that are two frames or more apart; nothing at all scores nothing."""
    onset = (np.random.default_rng(0).random((3, 100)) < 0.3).astype(np.float32)
    onset[:, 1::2] = 0
    found = count(stream(onset), stream(onset), PER_SECOND)
    assert found == StrokeCounts(*[int(onset.sum())] * 3)
    assert found.f1 == 1
    assert StrokeCounts().f1 == 0
