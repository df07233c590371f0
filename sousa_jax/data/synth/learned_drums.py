"""Drums learnt from recordings: what a stroke of each strength sounds like, by itself, on the drums of a data set.

    python -m sousa_jax.data.synth --drums_of=sousa_mini --out=drums.npz
    python -m sousa_jax.main --config=configs/strokes.py:small --config.data.synth.drums=drums.npz …

Clips of one drum (SOUSA's column `soundfont`) whose strokes are known are cut at every stroke. A sound bank plays
the same sample again and again, so what belongs to a stroke is alike in all pieces, up to a millisecond or two, while
rooms, noise and the strokes before differ: laid over each other at the best lag and averaged, only the drum is left.
Strokes of one velocity layer are averaged together, pieces end where the next stroke falls.

The synthesizer then plays endless performances on these drums, in rooms of its own.
"""

import dataclasses
import pathlib
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
import soxr

from sousa_jax.data.clips import Clips
from sousa_jax.data.synth.drums import HIT_S, VARIANTS, Drum
from sousa_jax.data.synth.presets import SOUSA
from sousa_jax.errors import InputError
from sousa_jax.files import finished

COLUMN = "soundfont"
RATE = 16_000  # Hz of what is learnt; nothing above 8 kHz
LAYERS = VARIANTS  # of equal width in velocity
FEWEST = 30  # strokes of a layer; with less it sounds like the next louder one, only softer
BEFORE_S, LAG_S = 0.004, 0.0025  # heard before a stroke; how far from its time in the table it may fall
BODY_S = 0.030  # by which strokes are laid over each other and measured
SHORTEST_S, CLOSEST_S = 0.040, 0.030  # pieces that end earlier, or begin so soon after a stroke, tell little
CLEAR = 0.5  # correlation of a stroke with its drum, from which on its level is the drum's and not that of noise
SEEDS, ROUNDS = 6, 4  # strokes that averaging begins with, the best is taken; how often it is repeated
TAIL_S = (0.020, 0.040)  # from here on a soft layer rings as the loudest one does, of which more is heard
STEP_S = 0.010  # in which a tail may not grow louder: what does is another stroke


class LearnedDrums(NamedTuple):
    """`hits`: `(n_drums, LAYERS, n_hit)` float32 at one sample rate, soft to loud, equally strong, the loudest with a
    peak of 1. `exponent`: `(n_drums,)` float32: the level is (velocity / 127) ** exponent, beside SOUSA's own gain.
    `share`: how often SOUSA's style is heard on one of them, not on a random drum."""

    hits: np.ndarray
    exponent: np.ndarray
    share: float = 1.0


def draw(key: jax.Array, learned: LearnedDrums, drum: Drum, style: jax.Array | int) -> Drum:
    """One of the learnt drums in place of `drum`, as often as `learned.share` says, in style `SOUSA`."""
    own, which = jax.random.uniform(jax.random.fold_in(key, len(Drum._fields)), (2,))
    number = jnp.floor(which * len(learned.hits)).astype(jnp.int32)
    hits, exponent = jnp.asarray(learned.hits)[number], jnp.asarray(learned.exponent)[number]
    taken = Drum(
        hits, jnp.zeros_like(hits), jnp.bool_(True), jnp.int32(LAYERS), exponent, jnp.float32(0), jnp.float32(0)
    )
    use = (jnp.asarray(style) == SOUSA) & (own < learned.share)
    return jax.tree.map(lambda new, old: jnp.where(use, new, old), taken, drum)


# ----------------------------------------------------------------------------------------------------------- learning


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Pieces of clips, one a stroke: `(n, before + n_hit)` samples with `lag` more on both sides; how many samples from
    the stroke on are its own; its velocity; a number of the clip."""

    samples: np.ndarray
    own: np.ndarray
    velocity: np.ndarray
    clip: np.ndarray


def learn(clips: Clips) -> tuple[list[str], LearnedDrums]:
    """The drums of recorded clips and their names, in alphabetical order.

    `InputError` if the clips do not say which drum they are of, or if too few strokes of one can be told apart.
    """
    if COLUMN not in clips.table:
        raise InputError(f"the clips have no column {COLUMN!r}, which says what drum is played")
    names = sorted(clips.table[COLUMN].unique())
    found = [_learn_one(name, _cut(clips, np.flatnonzero(clips.table[COLUMN] == name))) for name in names]
    hits, exponents = zip(*found, strict=True)
    return names, LearnedDrums(np.stack(hits).astype(np.float32), np.array(exponents, np.float32))


def _samples(seconds: float) -> int:
    return round(seconds * RATE)


def _cut(clips: Clips, rows: np.ndarray) -> _Pieces:
    before, around = _samples(BEFORE_S), _samples(LAG_S)
    samples, own, velocities, clip = [], [], [], []
    for row in rows:
        wave, strokes = clips.waveform(int(row), RATE), clips.clip_strokes(int(row))
        order = np.argsort(strokes.time_s, kind="stable")
        time_s, velocity = strokes.time_s[order], strokes.velocity[order]
        gaps = np.diff(time_s, prepend=-np.inf, append=np.inf)
        alone = (gaps[:-1] >= CLOSEST_S) & (gaps[1:] >= SHORTEST_S)
        for at, gap, strength in zip(time_s[alone], gaps[1:][alone], velocity[alone], strict=True):
            begin = round(float(at) * RATE) - before - around
            end = begin + before + _samples(HIT_S) + 2 * around
            if begin >= 0 and end <= len(wave):
                samples.append(wave[begin:end])
                own.append(min(gap - BEFORE_S, HIT_S) * RATE)
                velocities.append(strength)
                clip.append(row)
    return _Pieces(np.array(samples, np.float32), np.array(own), np.array(velocities), np.array(clip))


def _learn_one(name: str, pieces: _Pieces) -> tuple[np.ndarray, float]:
    """`(LAYERS, n_hit)` and the exponent of one drum."""
    layer = np.clip(pieces.velocity / 128 * LAYERS, 0, LAYERS - 1).astype(int)
    n_strokes = np.bincount(layer, minlength=LAYERS)
    if n_strokes.max() < FEWEST:
        raise InputError(
            f"{name}: {len(layer)} strokes stand alone, too few to learn a drum from ({FEWEST} of a layer)"
        )
    hits, level, alike = {}, np.zeros(len(layer)), np.zeros(len(layer))
    for i in np.flatnonzero(n_strokes >= FEWEST):
        of = layer == i
        hits[i], level[of], alike[of] = _average(_Pieces(*(column[of] for column in dataclasses.astuple(pieces))))
    loudest = max(hits)
    hits = {i: _whole(hit, hits[loudest]) for i, hit in hits.items()}
    nearest = [min((i for i in hits if i >= wanted), default=loudest) for wanted in range(LAYERS)]
    # Clips are raised to full scale, and SOUSA's gain follows velocity a first time by itself.
    clear = (alike > CLEAR) & (layer >= LAYERS // 2)
    exponent = _slope_within(pieces.clip[clear], np.log(pieces.velocity[clear]), np.log(level[clear])) - 1
    return np.stack([hits[i] for i in nearest]) / np.abs(hits[loudest]).max(), float(max(exponent, 0))


def _slope_within(group: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """The slope of y over x, `(n,)` each, where each group has a level of its own; 1 if nothing can be told."""
    _, number = np.unique(group, return_inverse=True)
    n = np.bincount(number)
    x, y = (values - (np.bincount(number, values) / np.maximum(n, 1))[number] for values in (x, y))
    return float(x @ y / (x @ x)) if x @ x > 0 else 1.0


def _average(pieces: _Pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the pieces of one layer have in common, `(before + n_hit,)` of RMS 1 in its body; how loud it is in each of
    them, and how like it each is."""
    before, around = _samples(BEFORE_S), _samples(LAG_S)
    n_body = before + _samples(BODY_S)
    # Differences from sample to sample: low frequencies, of which rooms are full, would decide everything.
    steps = np.diff(pieces.samples, axis=1)
    noise = np.square(steps[:, :before]).mean(1)
    body = np.square(steps[:, around + before : around + n_body]).mean(1)
    clearest = np.argsort(-body / (noise + np.median(noise)))[:SEEDS]
    best = max((_align(pieces.samples, steps, noise, pieces.samples[i, around : around + n_body]) for i in clearest),
               key=lambda found: np.median(found.alike))  # fmt: skip
    whole = np.take_along_axis(pieces.samples, np.arange(before + _samples(HIT_S)) + best.begin[:, None], 1)
    own = np.arange(-before, _samples(HIT_S)) < pieces.own[:, None]
    weight = (best.weight * best.level)[:, None] * own
    hit = (weight * whole).sum(0) / np.maximum((weight * best.level[:, None]).sum(0), 1e-9)
    level = np.sqrt(np.square(hit[before:n_body]).mean())
    return hit / level, level * best.level, best.alike


class _Aligned(NamedTuple):
    """Of each piece: `alike`, its correlation with their average; `begin`, the sample where the average begins in it;
    its `level` in the average's units; how much it counts."""

    alike: np.ndarray
    begin: np.ndarray
    level: np.ndarray
    weight: np.ndarray


def _align(samples: np.ndarray, steps: np.ndarray, noise: np.ndarray, seed: np.ndarray) -> _Aligned:
    """Pieces laid over their average, which begins as `seed`."""
    n, average = len(seed), seed
    reached = steps[:, : n - 1 + 2 * _samples(LAG_S)]
    power = scipy.signal.correlate(np.square(reached), np.ones((1, n - 1)), "valid")
    for _ in range(ROUNDS):
        wanted = np.diff(average)
        match = scipy.signal.correlate(reached, wanted[None], "valid")
        begin = match.argmax(1)
        at_best, own_power = (np.take_along_axis(of, begin[:, None], 1)[:, 0] for of in (match, power))
        level = np.maximum(at_best / (wanted @ wanted), 0)
        alike = np.maximum(at_best, 0) / np.sqrt((wanted @ wanted) * own_power + 1e-12)
        weight = np.square(alike) / (noise + np.median(noise))
        pieces = np.take_along_axis(samples, np.arange(n) + begin[:, None], 1)
        average = (weight * level) @ pieces / max((weight * np.square(level)).sum(), 1e-12)
    return _Aligned(alike, begin, level, weight)


def _whole(hit: np.ndarray, loudest: np.ndarray) -> np.ndarray:
    """`(n_hit,)` from an average: the loudest layer's tail, nothing in it that grows, the onset at the beginning."""
    first, last = (_samples(BEFORE_S + seconds) for seconds in TAIL_S)
    ratio = np.sqrt(np.square(hit[first:last]).mean() / np.square(loudest[first:last]).mean())
    n, step = len(hit), _samples(STEP_S)
    into_tail = np.clip((np.arange(n) - first) / (last - first), 0, 1)
    hit = hit * (1 - into_tail) + ratio * into_tail * loudest
    blocks = np.add.reduceat(np.square(hit), np.arange(0, n, step)) / step
    in_tail = np.arange(len(blocks)) * step >= last
    allowed = np.minimum.accumulate(np.where(in_tail, blocks, blocks[~in_tail][-1]))
    gain = np.where(in_tail, np.sqrt(np.minimum(1, allowed / np.maximum(blocks, 1e-20))), 1)
    hit = hit * np.interp(np.arange(n), (np.arange(len(blocks)) + 0.5) * step, gain)
    onset = max(0, np.flatnonzero(np.abs(hit) > 0.1 * np.abs(hit).max())[0] - _samples(0.0005))
    hit = np.pad(hit[onset:], (0, onset))[: _samples(HIT_S)]
    hit = hit * np.minimum(1, (len(hit) - np.arange(len(hit))) / (len(hit) / 4))
    return hit / np.sqrt(np.square(hit[: _samples(BODY_S)]).mean())


# --------------------------------------------------------------------------------------------------------------- files


def save(path: pathlib.Path, names: list[str], learned: LearnedDrums) -> None:
    with finished(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, names=np.array(names), hits=learned.hits, exponent=learned.exponent)


def load(path: str | pathlib.Path, sample_rate: int, share: float = 1.0) -> LearnedDrums:
    """The drums of a file that `save` wrote, at `sample_rate` Hz. `InputError` if it is none, or for a share that is
    none."""
    if not 0 <= share <= 1:
        raise InputError(f"drums_share is {share}, it must be 0 to 1")
    try:
        with np.load(path, allow_pickle=False) as file:
            hits, exponent = file["hits"], file["exponent"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no file of learnt drums ({error}); python -m sousa_jax.data.synth --drums_of=DATA writes one"
        ) from None
    if hits.ndim != 3 or hits.shape != (len(exponent), LAYERS, _samples(HIT_S)) or not np.isfinite(hits).all():
        raise InputError(
            f"{path}: drums of shape {hits.shape}, expected (n, {LAYERS}, {_samples(HIT_S)}); learn them again"
        )
    rows = hits.reshape(-1, hits.shape[-1])
    n_hit = round(HIT_S * sample_rate)
    if sample_rate != RATE:
        rows = np.stack([soxr.resample(np.append(row, [0, 0]), RATE, sample_rate)[:n_hit] for row in rows])
    return LearnedDrums(rows.reshape(len(hits), LAYERS, n_hit).astype(np.float32), exponent.astype(np.float32), share)
