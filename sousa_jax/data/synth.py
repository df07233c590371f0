"""The built-in data: simulated players perform the 40 rudiments on random drums, nothing to download.

Two models, one after the other. The performance model (`draw_player`, `play`) restates how SOUSA's generator plays a
rudiment, with its numbers (MIT, Copyright (c) 2025 Zak Keown); the players' traits are drawn independently here, while
SOUSA correlates them. The sound model (`render`) is our own: modal drums with snare wires, SOUSA's velocity curve, a
room like SOUSA's. SOUSA's compressor, EQ, clipping and named microphones are not modelled.

    clips = SynthClips("train", num_clips=2_000, seed=0)
    clips.table                                          one row a clip: SOUSA's columns and the label
    clips.waveform(7, sample_rate=32_000)                rendered when asked for

A clip is a pure function of (seed, split, index), whatever was asked for before and however many clips there are.
"""

import dataclasses
import functools
import hashlib
import itertools
import uuid
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.fft
from scipy.ndimage import uniform_filter1d

from sousa_jax.data.clips import METADATA_COLUMNS
from sousa_jax.errors import InputError
from sousa_jax.rudiments import NUM_CLASSES, RUDIMENTS, Rudiment

VERSION = "synth-1"  # part of every fingerprint: raise it when a clip of the same seed sounds different
TIERS = ("beginner", "intermediate", "advanced", "professional")

# ---------------------------------------------------------------------------------------------------------- players

# trait: means by tier, standard deviations by tier, allowed range
TRAITS = {
    "timing_sd_ms": ((50, 28, 14, 7), (10, 8, 4, 2), (0, 100)),
    "timing_inconsistency": ((0.60, 0.35, 0.15, 0.08), (0.15, 0.10, 0.05, 0.03), (0, 1)),  # x 10 ms of extra error
    "tempo_drift": ((0.025, 0.012, 0.006, 0.002), (0.015, 0.008, 0.004, 0.002), (-0.5, 0.5)),  # beats per beat
    "velocity_sd": ((0.12, 0.15, 0.10, 0.07), (0.04, 0.04, 0.03, 0.02), (0, 0.5)),  # relative
    "accent_differentiation": ((6, 10, 14, 16), (2, 2, 2, 1.5), (0, 20)),
    "accent_accuracy": ((0.70, 0.88, 0.96, 0.99), (0.10, 0.05, 0.02, 0.005), (0, 1)),  # a probability
    "weak_hand_velocity": ((0.72, 0.85, 0.94, 0.98), (0.08, 0.05, 0.03, 0.015), (0.5, 1)),  # weak / strong
    "weak_hand_late_ms": ((8, 4, 1.5, 0.5), (5, 3, 1.5, 0.5), (-20, 20)),
    "weak_hand_velocity_sd": ((0.15, 0.08, 0.03, 0.01), (0.05, 0.03, 0.015, 0.005), (0, 0.3)),
    "flam_spacing_ms": ((50, 35, 28, 25), (15, 8, 4, 2), (10, 80)),
    "flam_spacing_sd": ((0.30, 0.15, 0.08, 0.04), (0.10, 0.05, 0.03, 0.015), (0, 0.5)),  # relative
    "diddle_ratio": ((0.75, 0.90, 0.97, 0.99), (0.15, 0.08, 0.03, 0.01), (0.6, 1.4)),  # gap of the pair / slot
    "diddle_ratio_sd": ((0.20, 0.10, 0.05, 0.02), (0.05, 0.03, 0.02, 0.01), (0, 0.3)),
    "roll_decay": ((0.30, 0.15, 0.05, 0.02), (0.10, 0.05, 0.03, 0.01), (0, 0.5)),
    "buzz_density": ((0.50, 0.75, 0.90, 0.96), (0.15, 0.10, 0.05, 0.02), (0, 1)),
    "fatigue": ((0.15, 0.08, 0.03, 0.01), (0.05, 0.03, 0.02, 0.005), (0, 0.3)),
}
COMFORT_BPM = ((60, 100), (70, 150), (60, 180), (50, 220))  # outside it the timing error grows
LEFT_HANDED = 0.1


@dataclasses.dataclass(frozen=True)
class Player:
    """A simulated player: `tier` of `TIERS`, `dominant_hand` `R` or `L`, and a value for each of `TRAITS`."""

    tier: str
    dominant_hand: str
    comfort_bpm: tuple[float, float]
    traits: dict[str, float]


def draw_player(tier: str, rng: np.random.Generator) -> Player:
    """A random player of that tier. `InputError` for an unknown tier. Source: SOUSA's player profiles."""
    if tier not in TIERS:
        raise InputError(f"unknown skill tier {tier!r}; known: {', '.join(TIERS)}")
    t = TIERS.index(tier)
    draws = rng.standard_normal(len(TRAITS))
    traits = {
        name: float(np.clip(mean[t] + sd[t] * z, *limits))
        for z, (name, (mean, sd, limits)) in zip(draws, TRAITS.items(), strict=True)
    }
    return Player(tier, "L" if rng.random() < LEFT_HANDED else "R", COMFORT_BPM[t], traits)


# ------------------------------------------------------------------------------------------------------ performance

WRITTEN_VELOCITY = {"A": 120, "t": 65, "d": 75, "b": 70, "g": 40}
LARGEST_SHIFT_S = 0.3  # no stroke leaves its written time by more, moved grace notes included


@dataclasses.dataclass(frozen=True)
class Strokes:
    """What was played, in the order of time; arrays of one length n.

    Attributes:
      time_s: float64, seconds from the first written downbeat, ≥ 0. The first stroke need not be at 0.
      velocity: int32, MIDI velocity 1 … 127.
      hand: `R` or `L`.
      kind: a letter of `rudiments.STROKE_TYPES`.
      is_grace: bool. True for grace notes and, as in SOUSA, for the bounces of a buzz stroke after its first.
      slot: int32, which written stroke this is, counted through all cycles; a bounce has the slot of its buzz stroke.
    """

    time_s: np.ndarray
    velocity: np.ndarray
    hand: np.ndarray
    kind: np.ndarray
    is_grace: np.ndarray
    slot: np.ndarray


@functools.cache
def _score(rudiment: Rudiment, num_cycles: int) -> dict[str, np.ndarray]:
    """The written strokes as arrays: every stroke of the pattern, grace notes included, owns one equal slot."""
    length = len(rudiment.strokes)
    cycle_starts = length * np.arange(num_cycles)
    kind = np.array(list(rudiment.strokes) * num_cycles)
    beat = np.arange(len(kind)) * rudiment.beats_per_cycle / length
    diddles = np.flatnonzero(kind == "d")  # they come in pairs
    score = {
        "kind": kind,
        "hand": np.array(list(rudiment.sticking) * num_cycles),
        "velocity": np.array([float(WRITTEN_VELOCITY[k]) for k in kind]),
        "beat": beat,
        "offset_beats": np.zeros(len(kind)),
        "diddle_first": diddles[0::2],
        "diddle_second": diddles[1::2],
    }
    for rule in ("flam", "drag_first", "drag_second"):
        graces = [g for g in rudiment.graces if g.rule == rule]
        score[rule] = np.array([s + g.slot for s in cycle_starts for g in graces], int)
        score[rule + "_primary"] = np.array([s + g.primary for s in cycle_starts for g in graces], int)
    for g in rudiment.graces:
        score["offset_beats"][cycle_starts + g.slot] = g.offset_beats
    return score


def play(
    rudiment: Rudiment, tempo_bpm: float, player: Player, rng: np.random.Generator, num_cycles: int = 4
) -> Strokes:
    """One performance: `num_cycles` repetitions of the rudiment by `player`.

    Source: SOUSA's performance generator. Timing errors are in ms and do not shrink with the slot, so a beginner's
    strokes change order at high tempo.

    Raises:
      InputError: the tempo is not positive, or there is not at least one cycle.
    """
    if tempo_bpm <= 0 or num_cycles < 1:
        raise InputError(f"a performance needs tempo_bpm > 0 and num_cycles >= 1, not {tempo_bpm} and {num_cycles}")
    score, p = _score(rudiment, num_cycles), player.traits
    kind, n = score["kind"], len(score["kind"])
    beat_s = 60 / tempo_bpm
    slot_s = beat_s * rudiment.beats_per_cycle / len(rudiment.strokes)
    written_s = beat_s * (score["beat"] + score["offset_beats"])
    weak = score["hand"] != player.dominant_hand
    tiring = 0.5 * p["fatigue"] * np.arange(n) / n
    noise = rng.standard_normal((4, n))

    slowest, fastest = player.comfort_bpm
    discomfort = 1 + 0.01 * (max(0, slowest - tempo_bpm) + max(0, tempo_bpm - fastest))
    error_ms = p["timing_sd_ms"] * discomfort * noise[0] + 10 * p["timing_inconsistency"] * noise[1]
    error_ms += p["weak_hand_late_ms"] * weak
    error_ms += rng.choice((-1, 1)) * p["tempo_drift"] * 1000 * beat_s * score["beat"]
    time_s = written_s + np.clip(error_ms * (1 + tiring) / 1000, -LARGEST_SHIFT_S, LARGEST_SHIFT_S)

    velocity = score["velocity"] * (1 + p["velocity_sd"] * noise[2] - tiring)
    velocity += score["velocity"] * weak * (p["weak_hand_velocity"] - 1 + p["weak_hand_velocity_sd"] * noise[3])
    mistaken = rng.random(n) > p["accent_accuracy"]  # an accent is missed, any other stroke falsely accented
    velocity += mistaken * np.where(kind == "A", -3, 2) * p["accent_differentiation"]
    velocity = np.clip(velocity, 1, 127)

    first, second = score["diddle_first"], score["diddle_second"]
    ratio = rng.normal(p["diddle_ratio"], p["diddle_ratio_sd"], len(first))
    time_s[second] = time_s[first] + slot_s * np.clip(ratio, 0.5, 1.5)
    velocity[second] = velocity[first] * rng.normal(0.92, 0.03, len(first))

    spacing_s = p["flam_spacing_ms"] / 1000
    grace, primary = score["flam"], score["flam_primary"]
    gap_s = rng.normal(spacing_s, spacing_s * p["flam_spacing_sd"], len(grace))
    time_s[grace] = time_s[primary] - np.clip(gap_s, 0.005, 0.100)
    velocity[grace] = velocity[primary] * rng.normal(0.6, 0.05, len(grace))

    one, two, primary = score["drag_first"], score["drag_second"], score["drag_second_primary"]
    spread = p["flam_spacing_sd"] * rng.standard_normal((2, len(two)))
    time_s[two] = time_s[primary] - np.clip(0.6 * spacing_s * (0.8 + spread[0]), 0.003, 0.050)
    time_s[one] = time_s[two] - np.clip(0.6 * spacing_s * (1.5 + spread[1]), 0.005, 0.080)
    velocity[one], velocity[two] = 0.55 * velocity[primary], 0.495 * velocity[primary]

    if rudiment.family == "roll":
        sustained = np.maximum(0.5, 1 - 0.05 * p["roll_decay"] * np.arange(n))
        velocity = np.where((kind == "t") | (kind == "d"), velocity * sustained, velocity)
    time_s = np.maximum(0, np.clip(time_s, written_s - LARGEST_SHIFT_S, written_s + LARGEST_SHIFT_S))

    # A buzz stroke becomes a few bounces, every other stroke stays one.
    hits = rng.normal(3 + 5 * p["buzz_density"], 2 * (1 - p["buzz_density"]), n)
    hits = np.where(kind == "b", np.clip(hits, 3, 8), 1).astype(int)
    slot = np.repeat(np.arange(n, dtype=np.int32), hits)
    bounce = np.arange(len(slot)) - np.repeat(np.cumsum(hits) - hits, hits)
    time_s = time_s[slot] + bounce * rng.uniform(0.002, 0.005, n)[slot]
    velocity = np.clip(velocity[slot] * 0.85**bounce, 1, 127).astype(np.int32)
    is_grace = (kind[slot] == "g") | (bounce > 0)

    order = np.argsort(time_s, kind="stable")
    columns = (time_s, velocity, score["hand"][slot], kind[slot], is_grace, slot)
    return Strokes(*(column[order] for column in columns))


# ------------------------------------------------------------------------------------------------------------ sound

# Share of the reverberated sound, from ... to; SOUSA's presets have 0 to 0.4.
ROOMS = {
    "close": (0, 0.01),
    "field": (0.03, 0.08),
    "practice": (0.1, 0.2),
    "studio": (0.15, 0.25),
    "garage": (0.25, 0.35),
    "gym": (0.3, 0.4),
}
# Energy of a room's noise tail over that of the direct sound. Measured on SOUSA: its tail starts at about 0.3 of the
# direct hit in every sample at 44.1 kHz, so that 30 ms after a stroke it can be as loud as the stroke.
TAIL_ENERGY = 140
HIT_S = 0.35
HITS_PER_HAND = 3
MEMBRANE_MODES = np.array([1.0, 1.59, 2.14, 2.30, 2.65, 2.92, 3.50])  # ideal drum head, relative to the lowest mode
PEAK = 10 ** (-1 / 20)  # -1 dBFS, as in SOUSA


def _noise(rng: np.random.Generator, count: int, duration_s: float, sample_rate: int) -> np.ndarray:
    """White noise, (count, n) float32, of variance 1 in a band of 10 kHz.

    Drawn frequency by frequency from 0 Hz up, so that another sample rate gives the same noise, cut off elsewhere.
    """
    n = round(duration_s * sample_rate)
    bins = rng.standard_normal((n // 2 + 1, count, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return scipy.fft.irfft(bins.T, n, norm="forward") / np.float32(np.sqrt(4 * 10_000 * duration_s))


def _hits(rng: np.random.Generator, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """A random snare drum as two times (2 · HITS_PER_HAND, n) float32: hits of the head alone; of wires and stick."""

    def between(low, high):  # evenly on a logarithmic scale
        return low * (high / low) ** rng.random()

    t = np.arange(round(HIT_S * sample_rate), dtype=np.float32) / sample_rate
    count = 2 * HITS_PER_HAND
    frequency = between(140, 420) * MEMBRANE_MODES * rng.normal(1, 0.02, len(MEMBRANE_MODES))
    decay_s = between(0.03, 0.1) / MEMBRANE_MODES ** rng.uniform(0.3, 1)
    strength = MEMBRANE_MODES ** -rng.uniform(0, 1.2) * rng.lognormal(0, 0.4, len(MEMBRANE_MODES))
    # Where the stick lands differs from hand to hand, and a little from hit to hit.
    landing = np.repeat(rng.lognormal(0, 0.25, (2, len(MEMBRANE_MODES))), HITS_PER_HAND, axis=0)
    strength = strength / strength.sum() * landing * rng.lognormal(0, 0.1, (count, len(MEMBRANE_MODES)))
    wires, wires_decay_s = between(0.1, 0.8), between(0.015, 0.07)
    stick, stick_decay_s = between(0.2, 1.5), between(0.0007, 0.003)

    fade = 1 - t / np.float32(HIT_S)
    modes = (
        np.sin(np.outer(np.float32(2 * np.pi * frequency), t)) * np.exp(np.outer(np.float32(-1 / decay_s), t)) * fade
    )
    envelope = (wires * np.exp(-t / wires_decay_s) + stick * np.exp(-t / stick_decay_s)) * fade
    return strength.astype(np.float32) @ modes, _noise(rng, count, HIT_S, sample_rate) * envelope.astype(np.float32)


def _low_pass(hz: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """Gain of a filter without phase, like all of SOUSA's: it shifts nothing in time."""
    return 1 / (1 + np.square(np.square(hz / np.float32(cutoff_hz))))


def _room(rng: np.random.Generator, wet: float, n_fft: int, sample_rate: int) -> np.ndarray:
    """Frequency response of room and microphone, (n_fft // 2 + 1,) complex64: direct sound, six reflections, a tail."""
    microphone_hz = 3_000 * 5 ** rng.random()
    delay_s, gain = rng.uniform(0.013, 0.030, 6), rng.uniform(0.2, 0.7, 6) * rng.choice((-1, 1), 6)
    tail = _noise(rng, 1, 0.5, sample_rate)[0]
    tail *= 10 ** (-3 * np.linspace(0, 1, len(tail), dtype=np.float32))  # SOUSA's RT60: -60 dB after 0.5 s
    tail *= np.sqrt(TAIL_ENERGY / np.sum(tail**2))
    response = np.append(np.zeros(round(0.030 * sample_rate), np.float32), tail)
    response[0] = 1
    np.add.at(response, np.round(delay_s * sample_rate).astype(int), gain)
    hz = np.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=np.float32)
    reverb = scipy.fft.rfft(response, n_fft) * (np.float32(wet) * _low_pass(hz, 8_000))
    return (np.float32(1 - wet) + reverb) * _low_pass(hz, microphone_hz)


def render(
    strokes: Strokes,
    sample_rate: int,
    rng: np.random.Generator,
    duration_s: float | None = None,
    room: str | None = None,
) -> np.ndarray:
    """The sound of `strokes` on a random drum, in a room, through a microphone.

    Loudness follows velocity twice, as in SOUSA: in the drum, and by a gain of velocity / 127 that is constant from one
    stroke to the next, so that a soft stroke also cuts the ring of the loud one before it.

    Args:
      sample_rate: Hz, at least 8,000. Equal `rng` give the same drum and room at every rate.
      duration_s: length from the first stroke on; one second after the last stroke if None.
      room: one of `ROOMS`; drawn if None.

    Returns:
      (round(duration_s * sample_rate),) float32, mono. The first stroke is at sample 0, the peak at -1 dBFS.

    Raises:
      InputError: unknown room, too low a sample rate, or a duration that is not positive.
    """
    drum_rng, strike_rng, room_rng, noise_rng = rng.spawn(4)
    room = room or str(room_rng.choice(list(ROOMS)))
    onset_s = strokes.time_s - strokes.time_s[0]
    duration_s = onset_s[-1] + 1.0 if duration_s is None else duration_s
    if room not in ROOMS:
        raise InputError(f"unknown room {room!r}; known: {', '.join(ROOMS)}")
    if sample_rate < 8_000 or duration_s * sample_rate < 1:
        raise InputError(f"cannot render {duration_s} s at {sample_rate} Hz; at least one sample at 8000 Hz is needed")
    n = round(duration_s * sample_rate)
    onset = np.round(onset_s * sample_rate).astype(int)
    onset = onset[onset < n]
    velocity = strokes.velocity[: len(onset)] / 127

    head, wires = _hits(drum_rng, sample_rate)
    head_level = velocity ** strike_rng.uniform(0, 2)  # sampled drums answer to velocity between not at all and 40 dB
    wires_level = head_level * velocity ** strike_rng.uniform(0.1, 0.8)  # and soft strokes are duller
    hit = strike_rng.integers(HITS_PER_HAND, size=len(onset)) + HITS_PER_HAND * (strokes.hand[: len(onset)] == "L")
    hit_n = head.shape[1]
    wave = np.zeros(n + hit_n, np.float32)
    for i, h in enumerate(hit):
        wave[onset[i] : onset[i] + hit_n] += np.float32(head_level[i]) * head[h] + np.float32(wires_level[i]) * wires[h]
    wave = wave[:n]

    gain = np.repeat(velocity.astype(np.float32), np.diff(onset, append=n))
    wave *= uniform_filter1d(gain, max(1, round(0.003 * sample_rate)), mode="nearest")

    floor_db = noise_rng.uniform(-60, -40)  # below the signal's power
    uniform_noise = noise_rng.random(n, dtype=np.float32) - np.float32(0.5)
    wave += uniform_noise * np.float32(np.sqrt(12) * wave.std() * 10 ** (floor_db / 20))

    n_fft = scipy.fft.next_fast_len(n + round(0.53 * sample_rate), real=True)
    wet = room_rng.uniform(*ROOMS[room])
    wave = scipy.fft.irfft(scipy.fft.rfft(wave, n_fft) * _room(room_rng, wet, n_fft, sample_rate), n_fft)[:n]
    return wave * np.float32(PEAK / np.abs(wave).max())


# ------------------------------------------------------------------------------------------------------------ clips

SPLIT_PLAYERS = {"train": range(68), "validation": range(68, 81), "test": range(81, 100)}  # of every 100 players
TIER_SHARES = (0.25, 0.35, 0.25, 0.15)
TEMPOS_PER_PLAYER = 5
TEMPO_BPM = (60, 180)
NUM_CYCLES = 4
ROUND, PERFORMANCE, SOUND = range(3)  # independent streams of random numbers


class SynthClips:
    """Synthetic clips of one split; satisfies `sousa_jax.data.clips.Clips`.

    Clips come in rounds of 100 players shared out to the splits as in SOUSA, five tempos a player. Within a round no
    (player, tempo, rudiment) comes twice, and the next round has new players, so all performances differ, and players
    never cross splits. Every 40 consecutive clips hold each class once.

    Args:
      split: `train`, `validation` or `test`.
      num_clips: at least 1; 40 or more have every class. A smaller set is the beginning of a larger one.
      seed: not negative.

    Raises:
      InputError: unknown split, or a number below its limit.
    """

    def __init__(self, split: str, num_clips: int, seed: int):
        if split not in SPLIT_PLAYERS:
            raise InputError(f"unknown split {split!r}; known: {', '.join(SPLIT_PLAYERS)}")
        if num_clips < 1 or seed < 0:
            raise InputError(f"synthetic clips need num_clips >= 1 and seed >= 0, not {num_clips} and {seed}")
        self.split, self.seed = split, seed
        self.fingerprint = hashlib.sha256(f"{VERSION} {split} {num_clips} {seed}".encode()).hexdigest()[:16]
        rounds = (self._round(number) for number in itertools.count())
        cast = itertools.islice(itertools.chain.from_iterable(rounds), num_clips)
        self._players, rows = zip(*cast, strict=True)
        self.table = pd.DataFrame(rows).astype({"label": np.int32})
        self.table["duration_sec"] = [self.strokes(i).time_s[-1] + 0.5 for i in range(num_clips)]
        self.table = self.table[[*METADATA_COLUMNS, "label"]]

    def __len__(self) -> int:
        return len(self.table)

    def strokes(self, index: int) -> Strokes:
        """What is played in a clip. `waveform` begins at the first stroke: its time is `time_s - time_s[0]`."""
        rudiment, tempo_bpm = RUDIMENTS[self.table["label"].iat[index]], self.table["tempo_bpm"].iat[index]
        return play(rudiment, tempo_bpm, self._players[index], self._rng(PERFORMANCE, index), NUM_CYCLES)

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        """The whole clip, (n,) float32, mono, peak at -1 dBFS. The same performance and drum at every `sample_rate`."""
        room = self.table["augmentation_preset"].iat[index]
        return render(self.strokes(index), sample_rate, self._rng(SOUND, index), room=room)

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, list(SPLIT_PLAYERS).index(self.split), stream, number])

    def _round(self, number: int) -> Iterator[tuple[Player, dict]]:
        """Player and row of `table` (all but the duration) of each clip of one round."""
        rng = self._rng(ROUND, number)
        numbers = SPLIT_PLAYERS[self.split]
        # Tiers are dealt out by share, not drawn, so that a small split has all of them.
        quantile = rng.permutation((np.arange(len(numbers)) + 0.5) / len(numbers))
        players = [draw_player(TIERS[t], rng) for t in np.searchsorted(np.cumsum(TIER_SHARES), quantile)]
        profile_ids = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in players]
        tempos = rng.permuted(np.tile(np.arange(TEMPO_BPM[0], TEMPO_BPM[1] + 1), (len(players), 1)), axis=1)
        takes = len(players) * TEMPOS_PER_PLAYER  # of each class
        labels = rng.permuted(np.tile(np.arange(NUM_CLASSES), (takes, 1)), axis=1)
        casting = rng.permuted(np.tile(np.arange(takes), (NUM_CLASSES, 1)), axis=1)  # a player and tempo for each take
        rooms = rng.choice(list(ROOMS), labels.shape)
        for (take, place), label in np.ndenumerate(labels):
            who, which = divmod(casting[label, take], TEMPOS_PER_PLAYER)
            player, profile_id, tempo, room = (
                players[who],
                profile_ids[who],
                int(tempos[who, which]),
                rooms[take, place],
            )
            slug = RUDIMENTS[label].slug
            yield (
                player,
                {
                    "sample_id": f"{player.tier[:3]}{100 * number + numbers[who]:03d}_{slug}_{tempo}bpm_synth_{room}",
                    "profile_id": profile_id,
                    "rudiment_slug": slug,
                    "tempo_bpm": tempo,
                    "num_cycles": NUM_CYCLES,
                    "skill_tier": player.tier,
                    "dominant_hand": {"R": "right", "L": "left"}[player.dominant_hand],
                    "soundfont": "synth",
                    "augmentation_preset": str(room),
                    "augmentation_group_id": f"{profile_id[:8]}_{slug}_{tempo}",
                    "label": label,
                },
            )
