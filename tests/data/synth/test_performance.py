"""The performance model: every written stroke is played, players play as SOUSA's do, both dialects."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax.data.synth.performance import LARGEST_SHIFT_S, Take, play, room_for_cycles, room_for_seconds
from sousa_jax.data.synth.players import (
    CORRELATIONS,
    LEFT_HANDED,
    TIER_SHARES,
    TIERS,
    TRAITS,
    draw_player,
    tier_of_player,
)
from sousa_jax.data.synth.stream import Source, draw_performance
from sousa_jax.data.synth.strokes import DIDDLE, GRACE, KINDS, Strokes, in_order_of_time
from sousa_jax.data.synth.written import DIALECTS, NOTATED, SCORES, SOUSA
from sousa_jax.rudiments import FAMILIES, NUM_CLASSES, RUDIMENTS, SLUGS, by_slug

ROOM = room_for_cycles(4)


@functools.partial(jax.jit, static_argnames="room")
def _play(key, rudiment, dialect, tempo_bpm, num_cycles, left_lead, tier, room=ROOM):
    player_key, play_key = jax.random.split(key)
    take = Take(rudiment, dialect, tempo_bpm, num_cycles, left_lead)
    return play(play_key, take, draw_player(player_key, tier), room)


def perform(seed, rudiment, tempo_bpm=90, tier="beginner", dialect=SOUSA, num_cycles=4, left_lead=False) -> Strokes:
    """One performance by a random player, NumPy arrays without the rows that are not valid."""
    args = (rudiment.id, dialect, float(tempo_bpm), num_cycles, left_lead, TIERS.index(tier))
    strokes = jax.device_get(_play(jax.random.key(seed), *args))
    n = strokes.valid.sum()
    assert strokes.valid[:n].all(), "the valid rows come first"
    return Strokes(*(column[:n] for column in strokes))


def letters(strokes: Strokes) -> tuple[str, str]:
    """Kinds and hands in the written order, without the bounces of buzz strokes."""
    first = ~(strokes.is_grace & (strokes.kind != GRACE))
    return "".join(np.array(KINDS)[strokes.kind[first]]), "".join(np.array(["R", "L"])[strokes.hand[first]])


# --------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("rudiment", RUDIMENTS, ids=SLUGS)
def test_every_stroke_of_the_pattern_is_played(rudiment):
    strokes = perform(rudiment.id, rudiment, num_cycles=3)
    assert letters(strokes) == (3 * rudiment.strokes, 3 * rudiment.sticking)
    slot_beats = rudiment.beats_per_cycle / len(rudiment.strokes)
    plain = (strokes.kind != GRACE) & ~strokes.is_grace
    written = np.array([i * slot_beats for i, kind in enumerate(3 * rudiment.strokes) if kind != "g"])
    np.testing.assert_allclose(strokes.written_s[plain], written * 60 / 90, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rudiment", RUDIMENTS, ids=SLUGS)
def test_every_stroke_of_the_sheet_is_played(rudiment):
    strokes = perform(rudiment.id, rudiment, num_cycles=2, dialect=NOTATED)
    kinds = "".join(s.kind for s in rudiment.notated_strokes)
    hands = "".join(s.hand for s in rudiment.notated_strokes)
    assert letters(strokes) == (2 * kinds, 2 * hands)
    beats = [float(s.beat + c * rudiment.notated_beats) for c in range(2) for s in rudiment.notated_strokes]
    plain = ~(strokes.is_grace & (strokes.kind != GRACE))
    np.testing.assert_allclose(strokes.written_s[plain], np.array(beats) * 60 / 90, rtol=1e-5, atol=1e-6)


def test_left_lead_exchanges_the_hands():
    paradiddle = by_slug("single_paradiddle")
    right, left = (perform(0, paradiddle, left_lead=lead) for lead in (False, True))
    np.testing.assert_array_equal(right.hand, 1 - left.hand)


def test_a_buzz_stroke_is_three_to_eight_bounces():
    strokes = perform(3, by_slug("multiple_bounce_roll"), tier="intermediate")
    starts = np.flatnonzero(~strokes.is_grace)
    hits = np.diff(np.append(starts, len(strokes.kind)))
    assert hits.min() >= 3
    assert hits.max() <= 8
    assert len(set(hits)) > 1
    for start, n in zip(starts, hits, strict=True):
        gaps_s = np.diff(strokes.time_s[start : start + n])
        np.testing.assert_allclose(gaps_s, gaps_s[0], rtol=2e-3)
        assert 0.0019 < gaps_s[0] < 0.0051
        assert (np.diff(strokes.velocity[start : start + n]) <= 0).all()
        assert (strokes.parent[start + 1 : start + n] == start).all()


@hypothesis.given(
    rudiment=st.sampled_from(RUDIMENTS), tempo_bpm=st.integers(60, 180), tier=st.sampled_from(TIERS),
    dialect=st.sampled_from((SOUSA, NOTATED)), num_cycles=st.integers(1, 4), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
@hypothesis.settings(deadline=None, max_examples=200)
def test_a_performance_is_always_playable(rudiment, tempo_bpm, tier, dialect, num_cycles, seed):
    strokes = perform(seed, rudiment, tempo_bpm, tier, dialect, num_cycles)
    assert np.isfinite(strokes.time_s).all()
    assert strokes.time_s.min() >= 0
    assert strokes.velocity.min() >= 1
    assert strokes.velocity.max() <= 127
    np.testing.assert_array_equal(strokes.velocity, np.floor(strokes.velocity))
    bounce = strokes.is_grace & (strokes.kind != GRACE)
    shift = (strokes.time_s - strokes.written_s)[~bounce]
    assert np.abs(shift).max() <= LARGEST_SHIFT_S + 1e-5
    assert (strokes.parent[strokes.is_grace] >= 0).all()
    assert (strokes.parent[~strokes.is_grace] == -1).all()
    owners = strokes.parent[strokes.is_grace]
    assert not strokes.is_grace[owners].any(), "a grace note leads to a stroke that is none"


def test_order_of_time():
    strokes = perform(5, by_slug("flam_drag"), tempo_bpm=180)
    assert (np.diff(strokes.time_s) < 0).any(), "this example should need sorting"
    assert (np.diff(in_order_of_time(strokes).time_s) >= 0).all()


@pytest.mark.parametrize("dialect", [SOUSA, NOTATED], ids=DIALECTS)
def test_there_is_room_for_every_window(dialect):
    """An endless performance that would not fit would end early, and nobody would notice."""
    window_s = 5.0
    room = room_for_seconds(window_s, [dialect])
    for c in range(NUM_CLASSES):
        cycle_s = SCORES.beats[dialect, c] / 3  # at 180 BPM
        num_cycles = np.ceil((0.999 * cycle_s + window_s) / cycle_s)
        assert num_cycles * SCORES.length[dialect, c] <= room.n_slots
        assert num_cycles * (SCORES.length[dialect, c] + 7 * SCORES.n_buzzes[dialect, c]) <= room.n_strokes


# ----------------------------------------------------------------------------------------------------------- players


def test_players_have_their_tiers_traits():
    n = 4000
    for t, tier in enumerate(TIERS):
        player = jax.vmap(draw_player, (0, None))(jax.random.split(jax.random.key(t), n), t)
        for name, (mean, sd, (low, high)) in TRAITS.items():
            values = np.asarray(player.traits[name])
            assert values.min() >= low
            assert values.max() <= high
            if low + 2.5 * sd[t] <= mean[t] <= high - 2.5 * sd[t]:  # clipping does not matter
                assert abs(values.mean() - mean[t]) < 4 * sd[t] / n**0.5 + 0.02 * sd[t], (tier, name)
                assert abs(values.std() / sd[t] - 1) < 0.06, (tier, name)
        assert abs(player.left_handed.mean() - LEFT_HANDED) < 0.02
        for (a, b), r in CORRELATIONS.items():
            found = np.corrcoef(player.traits[a], player.traits[b])[0, 1]
            assert abs(found - r) < 0.12, (tier, a, b, found)


def test_every_few_players_have_all_tiers():
    tiers = np.asarray(tier_of_player(jnp.arange(10_000)))
    np.testing.assert_allclose(np.bincount(tiers) / 10_000, TIER_SHARES, atol=0.002)
    for first in range(0, 200, 13):
        assert set(tiers[first : first + 8]) == {0, 1, 2, 3}


# ------------------------------------------------------------------------------------------------ as SOUSA's do


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    """Statistics of 12,000 performances, four cycles each, by tier, counted as SOUSA's were."""
    draw = jax.jit(jax.vmap(lambda key: draw_performance(key, Source())))
    drawn = [jax.device_get(draw(jax.random.split(jax.random.key(seed), 3000))) for seed in range(4)]
    p = jax.tree.map(lambda *parts: np.concatenate(parts), *drawn)
    s, family = p.strokes, np.array([FAMILIES.index(r.family) for r in RUDIMENTS])[p.take.rudiment]
    error_ms = 1000 * (s.time_s - s.written_s)
    to_parent_ms = 1000 * (np.take_along_axis(s.time_s, np.maximum(s.parent, 0), 1) - s.time_s)
    followed = np.roll(s.kind, -1, 1) != GRACE  # a grace note right before its primary
    result = {}
    for t, tier in enumerate(TIERS):
        mine = (p.player.tier == t)[:, None] & s.valid
        main = mine & ~s.is_grace
        clips = np.flatnonzero(p.player.tier == t)
        disorder, fast = [], []
        for i in clips[:1000]:
            swaps = np.diff(s.time_s[i][main[i]]) < 0
            disorder.append(swaps)
            if p.take.tempo_bpm[i] > 140:
                fast.append(swaps)
        grace = mine & (s.kind == GRACE)
        flam = grace & (family == FAMILIES.index("flam"))[:, None]
        drag = grace & (family == FAMILIES.index("drag"))[:, None] & followed & (to_parent_ms < 60)
        result[tier] = {
            "onset_sd_ms": error_ms[main].std(),
            "onset_mae_ms": np.abs(error_ms[main]).mean(),
            "clip_sd_ms": np.median([error_ms[i][main[i]].std() for i in clips]),
            "disorder": np.concatenate(disorder).mean(),
            "fast_disorder": np.concatenate(fast).mean(),
            "flam_ms": np.median(to_parent_ms[flam]),
            "drag_ms": to_parent_ms[drag].mean(),
            "grace_mean": s.velocity[grace].mean(),
            "grace_sd": s.velocity[grace].std(),
        }
        for kind, name in ((0, "accent"), (1, "tap"), (DIDDLE, "diddle")):
            result[tier][f"{name}_mean"] = s.velocity[main & (s.kind == kind)].mean()
            result[tier][f"{name}_sd"] = s.velocity[main & (s.kind == kind)].std()
    return result


# Measured on real SOUSA clips (2,050 clips of 100 players: 26, 34, 32, 8 of the tiers), and how far ours may be off.
# Pooled errors hang on the few players with the largest drift. SOUSA's 26 beginners happen to flam narrowly: 40 ms on
# average, where its generator draws them around 50 ms; ours are drawn around 50 ms too.
AS_SOUSA = {
    "onset_sd_ms": ((139, 68, 38, 11), 0.3),
    "onset_mae_ms": ((110, 49, 27, 8.4), 0.3),
    "clip_sd_ms": ((88, 36, 19, 8.8), 0.2),
    "accent_mean": ((90, 104, 111, 117), 0.06),
    "accent_sd": ((30, 21, 15, 9), 0.2),
    "tap_mean": ((54, 59, 63, 64), 0.06),
    "tap_sd": ((17, 13, 10, 6), 0.2),
    "diddle_mean": ((50, 60, 67, 70), 0.06),
    "diddle_sd": ((20, 16, 11, 7), 0.2),
    "grace_mean": ((44, 48, 53, 56), 0.06),
    "grace_sd": ((18, 17, 16, 15), 0.15),
    "flam_ms": ((38, 36, 27, 26), (0.45, 0.15, 0.15, 0.15)),
    "drag_ms": ((26, 18, 14, 12), (0.45, 0.2, 0.2, 0.2)),
}


@pytest.mark.parametrize("statistic", AS_SOUSA)
def test_players_play_as_sousas_do(measured, statistic):
    theirs, band = AS_SOUSA[statistic]
    ours = np.array([measured[tier][statistic] for tier in TIERS])
    np.testing.assert_array_less(np.abs(ours / theirs - 1), band, f"{statistic}: {ours.round(1)}, SOUSA {theirs}")


def test_strokes_change_order_as_often_as_sousas(measured):
    """SOUSA: 6.4, 0.6, 0.0, 0.0 % of neighbours; above 140 BPM 13, 1.3, 0.1, 0 %."""
    for statistic, theirs in (("disorder", (0.064, 0.006, 0, 0)), ("fast_disorder", (0.13, 0.013, 0.001, 0))):
        ours = np.array([measured[tier][statistic] for tier in TIERS])
        np.testing.assert_allclose(ours, theirs, rtol=0.4, atol=0.006, err_msg=statistic)


def test_better_players_are_more_regular(measured):
    for statistic in ("onset_sd_ms", "clip_sd_ms", "disorder", "accent_sd", "flam_ms", "drag_ms"):
        found = [measured[tier][statistic] for tier in TIERS]
        assert found == sorted(found, reverse=True), (statistic, found)


def test_slow_drags_keep_sousas_limit():
    """The first grace of a drag may move by 0.3 s only, so at slow tempo it stays well before its primary."""
    gaps_ms = {}
    for tempo_bpm in (70, 120):
        strokes = perform(0, by_slug("single_drag_tap"), tempo_bpm, "professional")
        gaps_ms[tempo_bpm] = 1000 * np.median(strokes.time_s[2::4] - strokes.time_s[0::4])
    assert 170 < gaps_ms[70] < 260
    assert 25 < gaps_ms[120] < 50


def test_notated_ornaments_lead_to_their_primary():
    """On the sheet an ornament takes no time: it sounds within a tenth of a second before its primary, in order."""
    for slug in ("flam_accent", "single_drag_tap", "double_drag_tap", "triple_ratamacue", "flam_drag"):
        strokes = perform(1, by_slug(slug), 70, "intermediate", NOTATED)
        grace = np.flatnonzero(strokes.kind == GRACE)
        grace = grace[strokes.time_s[strokes.parent[grace]] > 0.2]  # the very first one is clipped to zero
        gap_s = strokes.time_s[strokes.parent[grace]] - strokes.time_s[grace]
        assert gap_s.min() > 0, slug
        assert gap_s.max() < 0.17, slug
        pairs = grace[:-1][strokes.parent[grace[:-1]] == strokes.parent[grace[1:]]]
        assert (strokes.time_s[pairs] < strokes.time_s[pairs + 1]).all(), slug
