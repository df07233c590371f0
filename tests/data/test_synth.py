"""The synthesizer: clips are pure functions of (seed, split, index), players play as SOUSA's do, the sound shows it."""

import dataclasses
import re

import hypothesis
import hypothesis.strategies as st
import librosa
import numpy as np
import pytest
import soxr

from sousa_jax.data.clips import METADATA_COLUMNS, Clips
from sousa_jax.data.synth import PEAK, ROOMS, TIERS, Strokes, SynthClips, draw_player, play, render
from sousa_jax.errors import InputError
from sousa_jax.rudiments import NUM_CLASSES, RUDIMENTS, SLUGS, Rudiment, by_slug

SPLITS = ("train", "validation", "test")


def written_s(rudiment: Rudiment, tempo_bpm: float, slot: np.ndarray) -> np.ndarray:
    return slot * rudiment.beats_per_cycle / len(rudiment.strokes) * 60 / tempo_bpm


def by_slot(strokes: Strokes) -> Strokes:
    """In the order of writing, first hits only: buzz bounces left out."""
    first = [np.flatnonzero(strokes.slot == s)[0] for s in range(strokes.slot.max() + 1)]
    return Strokes(*(getattr(strokes, f.name)[first] for f in dataclasses.fields(strokes)))


# ------------------------------------------------------------------------------------------------------------ clips


def test_table_is_what_clips_promise():
    clips = SynthClips("train", 60, seed=3)
    assert isinstance(clips, Clips)
    assert list(clips.table.columns) == [*METADATA_COLUMNS, "label"]
    assert len(clips) == len(clips.table) == 60
    assert clips.table.label.dtype == np.int32
    assert [SLUGS[i] for i in clips.table.label] == list(clips.table.rudiment_slug)
    assert clips.table.tempo_bpm.between(60, 180).all()
    assert set(clips.table.augmentation_preset) <= set(ROOMS)
    for i in (0, 59):
        row, strokes = clips.table.iloc[i], clips.strokes(i)
        assert row.duration_sec == strokes.time_s[-1] + 0.5
        assert len(clips.waveform(i, 16_000)) == round((strokes.time_s[-1] - strokes.time_s[0] + 1) * 16_000)


def test_ids_have_sousas_form():
    table = SynthClips("validation", 2_700, seed=0).table  # more than one round of players
    form = re.compile(r"^(beg|int|adv|pro)(\d{3})_(.+)_(\d+)bpm_([a-z0-9]+)_([a-z0-9]+)$")
    for row in table.iloc[::50].itertuples():
        tier, _, slug, tempo, font, preset = form.match(row.sample_id).groups()
        expected = (row.skill_tier[:3], row.rudiment_slug, str(row.tempo_bpm), "synth", row.augmentation_preset)
        assert (tier, slug, tempo, font, preset) == expected
        assert row.augmentation_group_id == f"{row.profile_id[:8]}_{slug}_{tempo}"
    assert table.sample_id.is_unique
    assert table.augmentation_group_id.is_unique


def test_a_clip_depends_on_seed_split_and_index_only():
    few, many = SynthClips("train", 40, seed=1), SynthClips("train", 90, seed=1)
    many.waveform(70, 16_000)  # another order of access
    for i in (39, 0, 17):
        np.testing.assert_array_equal(few.waveform(i, 16_000), many.waveform(i, 16_000))
        assert few.table.iloc[i].equals(many.table.iloc[i])
    for other in (SynthClips("train", 40, seed=2), SynthClips("test", 40, seed=1)):
        assert not np.array_equal(few.strokes(0).velocity, other.strokes(0).velocity)


def test_fingerprint():
    sets = [
        SynthClips("train", 40, 0),
        SynthClips("train", 41, 0),
        SynthClips("train", 40, 1),
        SynthClips("test", 40, 0),
    ]
    assert len({s.fingerprint for s in sets}) == 4
    assert re.fullmatch("[0-9a-f]{16}", sets[0].fingerprint)
    assert SynthClips("train", 40, 0).fingerprint == sets[0].fingerprint


def test_players_stay_in_their_split():
    tables = [SynthClips(split, 800, seed=0).table for split in SPLITS]
    players = [set(t.profile_id) for t in tables]
    numbers = [set(t.sample_id.str[3:6]) for t in tables]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert players[a].isdisjoint(players[b])
        assert numbers[a].isdisjoint(numbers[b])
    assert [len(p) for p in players] == [68, 13, 19]
    for table in tables:
        assert set(table.skill_tier) == set(TIERS)
        assert (table.groupby("profile_id").tempo_bpm.nunique() <= 5).all()
        assert (table.groupby("profile_id")[["skill_tier", "dominant_hand"]].nunique() == 1).all(axis=None)


@pytest.mark.parametrize("num_clips", [40, 85, 2_600])
def test_classes_are_balanced(num_clips):
    counts = SynthClips("validation", num_clips, seed=5).table.label.value_counts()
    assert len(counts) == NUM_CLASSES
    assert counts.max() - counts.min() <= 1


def test_bad_arguments_are_refused():
    rng = np.random.default_rng(0)
    player = draw_player("beginner", rng)
    strokes = play(RUDIMENTS[0], 100, player, rng)
    for call in (
        lambda: SynthClips("val", 40, seed=0),
        lambda: SynthClips("train", 0, seed=0),
        lambda: SynthClips("train", 40, seed=-1),
        lambda: draw_player("expert", rng),
        lambda: play(RUDIMENTS[0], 0, player, rng),
        lambda: play(RUDIMENTS[0], 100, player, rng, num_cycles=0),
        lambda: render(strokes, 0, rng),
        lambda: render(strokes, 16_000, rng, duration_s=0),
        lambda: render(strokes, 16_000, rng, room="cathedral"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ performance


@pytest.mark.parametrize("rudiment", RUDIMENTS, ids=SLUGS)
def test_every_written_stroke_is_played(rudiment):
    rng = np.random.default_rng(rudiment.id)
    strokes = play(rudiment, 90, draw_player("beginner", rng), rng, num_cycles=3)
    played = by_slot(strokes)
    assert "".join(played.kind) == 3 * rudiment.strokes
    assert "".join(played.hand) == 3 * rudiment.sticking
    np.testing.assert_array_equal(played.is_grace, played.kind == "g")
    hits = np.bincount(strokes.slot)
    if "b" in rudiment.strokes:
        assert hits.min() >= 3
        assert hits.max() <= 8
    else:
        assert hits.min() == hits.max() == 1


@hypothesis.given(
    st.sampled_from(RUDIMENTS), st.integers(60, 180), st.sampled_from(TIERS), st.integers(1, 8), st.integers(0, 2**32)
)
@hypothesis.settings(deadline=None, max_examples=150)
def test_a_performance_is_always_playable(rudiment, tempo_bpm, tier, num_cycles, seed):
    rng = np.random.default_rng(seed)
    strokes = play(rudiment, tempo_bpm, draw_player(tier, rng), rng, num_cycles)
    assert len({len(getattr(strokes, f.name)) for f in dataclasses.fields(strokes)}) == 1
    assert strokes.time_s[0] >= 0
    assert (np.diff(strokes.time_s) >= 0).all()
    assert strokes.velocity.min() >= 1
    assert strokes.velocity.max() <= 127
    main = ~strokes.is_grace
    shift = strokes.time_s[main] - written_s(rudiment, tempo_bpm, strokes.slot[main])
    assert np.abs(shift).max() <= 0.3 + 1e-9


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    """Statistics of 100 players a tier, 12 performances each."""
    result = {}
    for tier in TIERS:
        rng = np.random.default_rng([42, TIERS.index(tier)])
        errors, velocities, flams, drags, disorder = [], {k: [] for k in "Atdg"}, [], [], []
        for _ in range(100):
            player = draw_player(tier, rng)
            for label in rng.choice(NUM_CLASSES, 12, replace=False):
                rudiment, tempo_bpm = RUDIMENTS[label], int(rng.integers(60, 181))
                strokes = by_slot(play(rudiment, tempo_bpm, player, rng))
                main = ~strokes.is_grace
                error_s = strokes.time_s - written_s(rudiment, tempo_bpm, np.arange(len(main)))
                errors.append(1000 * error_s[main])
                disorder.append(np.diff(strokes.time_s[main]) < 0)
                for kind, values in velocities.items():
                    values.append(strokes.velocity[strokes.kind == kind])
                for g in rudiment.graces:
                    gap_ms = 1000 * (
                        strokes.time_s[g.primary :: len(rudiment.strokes)]
                        - strokes.time_s[g.slot :: len(rudiment.strokes)]
                    )
                    {"flam": flams, "drag_second": drags}.get(g.rule, []).extend(gap_ms)
        result[tier] = {
            "onset_sd_ms": np.std(np.concatenate(errors)),
            "clip_sd_ms": np.median([e.std() for e in errors]),
            "disorder": np.mean(np.concatenate(disorder)),
            "flam_ms": np.median(flams),
            "drag_ms": np.mean(drags),
        }
        for kind, values in velocities.items():
            result[tier][f"{kind}_mean"], result[tier][f"{kind}_sd"] = (
                np.mean(np.concatenate(values)),
                np.std(np.concatenate(values)),
            )
    return result


# Measured on real SOUSA clips (2,050 clips of 100 players: 26, 34, 32, 8 of the tiers).
SOUSA = {
    "onset_sd_ms": (139, 68, 38, 11),
    "clip_sd_ms": (88, 36, 19, 8.8),
    "A_mean": (90, 104, 111, 117),
    "A_sd": (30, 21, 15, 9),
    "t_mean": (54, 59, 63, 64),
    "t_sd": (17, 13, 10, 6),
    "d_mean": (50, 60, 67, 70),
    "d_sd": (20, 16, 11, 7),
    "g_mean": (44, 48, 53, 56),
    "flam_ms": (38, 36, 27, 26),
    "drag_ms": (26, 18, 14, 12),
}
# The pooled spread hangs on the few players with the largest drift. SOUSA's 26 beginners happen to flam narrowly:
# 40 ms on average, where its generator draws them around 50 ms.
RELATIVE_BAND = {
    "onset_sd_ms": 0.3,
    "clip_sd_ms": 0.2,
    "A_sd": 0.2,
    "t_sd": 0.2,
    "d_sd": 0.2,
    "flam_ms": 0.45,
    "drag_ms": 0.45,
}


@pytest.mark.parametrize("statistic", SOUSA)
def test_players_play_as_sousas_do(measured, statistic):
    found = np.array([measured[tier][statistic] for tier in TIERS])
    band = np.array([RELATIVE_BAND.get(statistic, 0.06)] * 4)
    if statistic in ("flam_ms", "drag_ms"):
        band[1:] = 0.15
    np.testing.assert_array_less(np.abs(found / SOUSA[statistic] - 1), band, f"{statistic}: {found.round(1)}")


def test_better_players_are_more_regular(measured):
    for statistic in ("onset_sd_ms", "clip_sd_ms", "disorder", "A_sd", "flam_ms"):
        found = [measured[tier][statistic] for tier in TIERS]
        assert found == sorted(found, reverse=True), statistic


def test_slow_drags_keep_sousas_limit():
    """The first grace of a drag may move by 0.3 s only, so at slow tempo it stays well before its primary."""
    rng = np.random.default_rng(0)
    gaps = {}
    for tempo_bpm in (70, 120):
        strokes = by_slot(play(by_slug("single_drag_tap"), tempo_bpm, draw_player("professional", rng), rng))
        gaps[tempo_bpm] = 1000 * np.median(strokes.time_s[2::4] - strokes.time_s[0::4])
    assert 170 < gaps[70] < 260
    assert 25 < gaps[120] < 50


# ------------------------------------------------------------------------------------------------------------ sound


@pytest.mark.parametrize("sample_rate", [16_000, 32_000])
def test_all_rudiments_sound(sample_rate):
    clips = SynthClips("train", 40, seed=11)
    for i in range(40):
        wave = clips.waveform(i, sample_rate)
        assert wave.dtype == np.float32
        assert wave.ndim == 1
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() == pytest.approx(PEAK, rel=1e-4)


def test_every_sample_rate_hears_the_same_drum():
    clips = SynthClips("train", 40, seed=0)
    for i in range(6):
        low = clips.waveform(i, 16_000)
        same = soxr.resample(clips.waveform(i, 32_000), 32_000, 16_000)[: len(low)]
        other = np.resize(clips.waveform(i + 6, 16_000), len(low))
        assert np.corrcoef(low[: len(same)], same)[0, 1] > 0.9
        assert abs(np.corrcoef(low, other)[0, 1]) < 0.2


def test_drums_and_rooms_differ():
    strokes = SynthClips("train", 1, seed=0).strokes(0)
    a, b = (render(strokes, 16_000, np.random.default_rng(seed), room="studio") for seed in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.5


def two_strokes(*velocities: int) -> Strokes:
    time_s = np.array([0.0, 0.06])
    n = len(time_s)
    hand, kind = np.array(list("RR")), np.array(list("tt"))
    return Strokes(time_s, np.array(velocities, np.int32), hand, kind, np.zeros(n, bool), np.arange(n, dtype=np.int32))


def test_a_soft_stroke_cuts_the_ring_of_a_loud_one():
    for seed in range(5):
        loud, soft = (
            render(two_strokes(127, v), 16_000, np.random.default_rng(seed), duration_s=0.5, room="close")
            for v in (127, 6)
        )
        ring = slice(round(0.075 * 16_000), round(0.15 * 16_000))
        assert 20 * np.log10(soft[ring].std() / loud[ring].std()) < -20  # 26.5 dB by the gain


def centroid_hz(wave: np.ndarray, sample_rate: int = 32_000) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float(np.sum(power * np.fft.rfftfreq(len(wave), 1 / sample_rate)) / power.sum())


def test_softer_strokes_are_softer_and_duller():
    quieter, duller = [], []
    for seed in range(20):
        wave = render(two_strokes(120, 40), 32_000, np.random.default_rng(seed), duration_s=0.12, room="close")
        accent, tap = wave[:1_900], wave[1_920:3_820]
        quieter.append(20 * np.log10(tap.std() / accent.std()))
        duller.append(centroid_hz(tap) / centroid_hz(accent))
    assert -32 < np.median(quieter) < -8  # 9.5 dB by the gain alone, twice that again in a drum that answers fully
    assert np.median(duller) < 0.97


def test_rooms_get_wetter():
    """By the sound between strokes: what is left 40 to 60 ms after one, when the drum itself is fading."""
    strokes = two_strokes(120, 1)
    strokes = dataclasses.replace(strokes, time_s=np.array([0.0, 0.5]))
    left = [
        np.median(
            [
                wave[640:960].std() / wave[:320].std()
                for wave in (render(strokes, 16_000, np.random.default_rng(s), 0.4, room) for s in range(25))
            ]
        )
        for room in ("close", "field", "studio", "gym")
    ]
    assert left == sorted(left)
    assert left[-1] > 4 * left[0]


def test_onsets_are_where_the_strokes_are():
    rudiment, found, total = by_slug("single_stroke_roll"), 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        strokes = play(rudiment, 100, draw_player("professional", rng), rng)
        wave = render(strokes, 16_000, rng, room="close")
        wave = np.append(np.zeros(8_000, np.float32), wave)  # the detector misses an onset at the very start
        strength = librosa.onset.onset_strength(y=wave, sr=16_000, n_fft=512, hop_length=80)
        onsets = librosa.onset.onset_detect(onset_envelope=strength, sr=16_000, hop_length=80, units="time") - 0.5
        gap = np.abs(onsets[:, None] - (strokes.time_s - strokes.time_s[0])[None]).min(axis=0)
        found, total = found + np.sum(gap < 0.025), total + len(gap)
    assert found / total >= 0.9
