"""From answers of windows to what was played: flickers go, changes are where they were, silence is no playing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sousa_jax.rudiments import NUM_CLASSES, SLUGS
from sousa_jax.timeline import PER_SECOND, SWITCH, Answer, overall, path, scores, segments

WINDOW_S, HOP_S = 5.0, 0.5
SURE = 0.9


def log_probs(shares):
    """Of what a window holds, `{class: share}`: most of it for the class with most, as a network answers."""
    probabilities = np.full(NUM_CLASSES, (1 - SURE) / NUM_CLASSES)
    total = sum(share**3 for share in shares.values())
    for label, share in shares.items():
        probabilities[label] += SURE * share**3 / total
    return np.log(probabilities)


def take(parts, objections=None):
    """Answers and power of a stream of `(class or None, seconds)`; None is silence."""
    edges = np.cumsum([0, *(seconds for _, seconds in parts)])
    power = np.concatenate([np.full(round(s * PER_SECOND), 1e-12 if label is None else 0.1) for label, s in parts])
    answers = []
    for begin in np.arange(0, edges[-1] - WINDOW_S + 1e-9, HOP_S):
        held = {}
        for (label, _), a, b in zip(parts, edges, edges[1:], strict=False):
            overlap = min(b, begin + WINDOW_S) - max(a, begin)
            if overlap > 0 and label is not None:
                held[label] = held.get(label, 0) + overlap
        objection = (objections or {}).get(max(held, key=held.get) if held else None, "")
        answers.append(Answer(begin, begin + WINDOW_S, log_probs(held) if held else None, objection if held else ""))
    return answers, power


def told(found):
    return [(round(segment.start_s, 2), round(segment.end_s, 2), segment.rudiment) for segment in found]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(6, 15), min_size=1, max_size=4),
    st.lists(st.integers(0, NUM_CLASSES - 1), min_size=4, max_size=4, unique=True),
)
def test_rudiments_one_after_another_are_told_apart_within_a_hop(lengths, labels):
    parts = list(zip(labels, [round(x, 2) for x in lengths], strict=False))
    answers, power = take(parts)
    found = segments(answers, power)
    assert [segment.rudiment for segment in found] == [SLUGS[label] for label, _ in parts]
    ends = np.cumsum([seconds for _, seconds in parts])
    assert np.abs([segment.end_s for segment in found] - ends).max() <= HOP_S
    assert found[0].start_s == 0
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(found))
    assert all(segment.probability == pytest.approx(SURE, abs=0.2) for segment in found)


def test_a_pause_is_where_the_change_is():
    """And belongs to neither, though no window was silent."""
    found = segments(*take([(3, 8.0), (None, 0.8), (5, 9.0)]))
    assert told(found) == [(0, 8.0, SLUGS[3]), (8.8, 17.8, SLUGS[5])]


def test_silence_before_between_and_after_is_not_played():
    found = segments(*take([(None, 6.0), (3, 8.0), (None, 12.0), (3, 7.0), (None, 7.0)]))
    assert told(found) == [(6.0, 14.0, SLUGS[3]), (26.0, 33.0, SLUGS[3])]


def test_what_is_softer_than_silence_is_no_segment():
    """The room before the first stroke, whatever was said of windows that hold little but it."""
    answers, power = take([(9, 4.0), (3, 10.0)], objections={9: "too few strokes"})
    power[:400] = 1e-8
    assert told(segments(answers, power)) == [(4.0, 14.0, SLUGS[3])]


def test_a_long_pause_parts_what_is_the_same():
    found = segments(*take([(3, 8.0), (None, 3.0), (3, 7.0)]))
    assert told(found) == [(0, 8.0, SLUGS[3]), (11.0, 18.0, SLUGS[3])]


def test_a_flicker_is_no_change():
    answers, power = take([(3, 20.0)])
    for k in (10, 11, 20):
        answers[k] = answers[k]._replace(log_probs=log_probs({7: 1.0}))
    assert told(segments(answers, power)) == [(0, 20.0, SLUGS[3])]


def test_what_is_rejected_has_no_name_but_a_reason():
    answers, power = take([(3, 10.0), (9, 10.0), (5, 10.0)], objections={9: "no clear strokes"})
    found = segments(answers, power)
    assert [(segment.rudiment, segment.objection) for segment in found] == [
        (SLUGS[3], ""),
        ("", "no clear strokes"),
        (SLUGS[5], ""),
    ]
    assert found[1].probability == 0


def test_one_rejected_window_between_others_is_no_change():
    answers, power = take([(3, 12.0)])
    answers[7] = answers[7]._replace(objection="too few strokes")
    assert told(segments(answers, power)) == [(0, 12.0, SLUGS[3])]


def test_nothing_and_silence_have_no_segments():
    assert segments([], np.zeros(0)) == []
    answers, power = take([(None, 8.0)])
    assert segments(answers, power) == []
    assert overall(answers, []) is None


def test_the_whole_is_the_mean_of_its_segments_by_length():
    answers, power = take([(3, 10.0), (5, 20.0)])
    found = segments(answers, power)
    probabilities = overall(answers, found)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[5] / probabilities[3] == pytest.approx(2, rel=0.2)


def test_without_a_rudiment_the_whole_is_what_it_would_be():
    answers, power = take([(9, 10.0)], objections={9: "no clear strokes"})
    found = segments(answers, power)
    assert [segment.rudiment for segment in found] == [""]
    assert overall(answers, found).argmax() == 9


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(2, 4), st.integers(0, 10**6))
def test_the_path_is_the_likeliest_of_all(n, n_labels, seed):
    """Beside every possible one."""
    score = np.random.default_rng(seed).normal(0, 8, (n, n_labels))

    def total(labels):
        return score[np.arange(n), list(labels)].sum() - SWITCH * np.count_nonzero(np.diff(labels))

    best = max(map(total, itertools.product(range(n_labels), repeat=n)))
    assert total(path(score)) == pytest.approx(best)


def test_no_window_is_asked_for_more_than_it_can_say():
    """A network that is sure of something else by a thousand nats counts as one window, no more."""
    sure = np.full(NUM_CLASSES, -1000.0)
    sure[3] = 0
    score = scores([Answer(0, 5, sure, ""), Answer(0, 5, None, "")])
    assert score[0, :NUM_CLASSES].min() == np.log(1e-3)
    assert np.isneginf(score[1, :NUM_CLASSES]).all()
