"""A fixed number of synthetic clips with a table, for evaluation and for export: the first rows of the stream.

clips = SynthClips("test", num_clips=400, seed=0)
clips.table                                          one row a clip: SOUSA's columns and the label
clips.waveform(7, sample_rate=32_000)                rendered when asked for
"""

import dataclasses
import functools
import hashlib
import math
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sousa_jax.data.clips import METADATA_COLUMNS
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.data.synth.players import TIERS
from sousa_jax.data.synth.presets import PRESETS, Preset
from sousa_jax.data.synth.render import render
from sousa_jax.data.synth.stream import SPLITS, Performance, Source, draw_row, player_number, row_keys, stream_key
from sousa_jax.data.synth.strokes import Strokes, is_bounce
from sousa_jax.data.synth.written import NOTATED
from sousa_jax.errors import InputError
from sousa_jax.rudiments import SLUGS

VERSION = "synth-2"  # part of every fingerprint: raise it when a clip of the same seed sounds different
CLIPS_PER_PLAYER = 40  # one of each rudiment
SILENCE_S = 1.0  # a clip ends that long after its last stroke, as in SOUSA
# Clips differ in length, compiled functions cannot: a clip is rendered into the first of these that it fits into.
LENGTHS_S = (8.0, 24.0)
ROWS_AT_ONCE = 256


DEFAULT = Source()


class SynthClips:
    """The first `num_clips` rows of a split; satisfies `sousa_jax.data.clips.Clips`.

    A player plays each rudiment once. A smaller set is the beginning of a larger one.

    Args:
      split: `train`, `validation` or `test`; each has its own players.
      num_clips: at least 1; 40 or more have every class.
      seed: not negative.
      source: what kind of performances; `clips_per_player` of it is not used.
      bandwidth_hz: nothing sounds above it; 0 is no limit.

    Raises:
      InputError: unknown split, or a number below its limit.
    """

    def __init__(self, split: str, num_clips: int, seed: int, source: Source = DEFAULT, bandwidth_hz: float = 0.0):
        if num_clips < 1:
            raise InputError(f"there must be at least one synthetic clip, not {num_clips}")
        self.split, self.seed, self._bandwidth_hz = split, seed, bandwidth_hz
        self._source = dataclasses.replace(source, clips_per_player=CLIPS_PER_PLAYER)
        told = f"{VERSION} {split} {num_clips} {seed} {self._source} {bandwidth_hz}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]
        self._key = stream_key(seed, split)
        self._performances = _draw(self._key, num_clips, self._source)
        strokes = self._performances.strokes
        last_s = np.where(strokes.valid, strokes.time_s, 0).max(1)
        self._sounding_s = last_s if source.num_cycles else np.full(num_clips, source.window_s)
        self.table = self._table()

    def __len__(self) -> int:
        return len(self.table)

    def strokes(self, index: int) -> Strokes:
        """What is played in a clip, NumPy arrays, times in seconds from the first sample of its `waveform`."""
        strokes = Strokes(*(column[index] for column in self._performances.strokes))
        begin = self._performances.start_s[index]
        inside = strokes.valid & (strokes.time_s >= begin) & (strokes.time_s < begin + self._length_s(index))
        return strokes._replace(time_s=strokes.time_s - begin, written_s=strokes.written_s - begin, valid=inside)

    def clip_strokes(self, index: int) -> ClipStrokes:
        """As `Clips.clip_strokes`: the same strokes as recorded clips have them."""
        strokes = self.strokes(index)
        bounce = is_bounce(strokes)
        columns = (strokes.time_s, strokes.velocity, strokes.is_grace & ~bounce, bounce)
        return ClipStrokes(*(column[strokes.valid] for column in columns))

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        """The whole clip, (n,) float32, mono. The same performance on the same drum at every `sample_rate`."""
        length_s = self._length_s(index)
        rendered = _render(
            row_keys(self._key, index)[2],
            Strokes(*(column[index] for column in self._performances.strokes)),
            self._performances.start_s[index],
            self._performances.take.dialect[index],
            self._performances.preset[index],
            sample_rate=sample_rate,
            n_samples=round(_room_s(length_s) * sample_rate),
            bandwidth_hz=self._bandwidth_hz,
        )
        return np.asarray(rendered)[: round(length_s * sample_rate)]

    def row(self, index: int) -> dict[str, Any]:
        """The metadata of a clip for export: its row of `table`, and how it is recorded."""
        preset = PRESETS[self._performances.preset[index]]
        if self._performances.take.dialect[index] == NOTATED:
            preset = Preset("natural", "natural", wet=math.nan, mic_type="natural", mic_distance_m=math.nan)
        return self.table.loc[index].to_dict() | {
            "aug_room_type": preset.room_type,
            "aug_room_wet_dry": preset.wet,
            "aug_mic_distance": preset.mic_distance_m,
            "aug_mic_type": preset.mic_type,
            "aug_compression_ratio": preset.compression_ratio,
            "aug_noise_level_db": preset.noise_db,
        }

    def _length_s(self, index: int) -> float:
        return float(self._sounding_s[index]) + (SILENCE_S if self._source.num_cycles else 0)

    def _table(self) -> pd.DataFrame:
        p = self._performances
        number = player_number(np.arange(len(p.preset)), self._source)
        rows = []
        for i, player in enumerate(number):
            slug, tier = SLUGS[p.take.rudiment[i]], TIERS[p.player.tier[i]]
            tempo = int(p.take.tempo_bpm[i])
            # A notated performance is heard in a room drawn at random, which has no name.
            preset = "natural" if p.take.dialect[i] == NOTATED else PRESETS[p.preset[i]].name
            profile_id = _profile_id(self.seed, self.split, int(player))
            everywhere = len(SPLITS) * int(player) + SPLITS.index(self.split)  # numbers of players differ across splits
            rows.append({
                "sample_id": f"{tier[:3]}{everywhere:03d}_{slug}_{tempo}bpm_synth_{preset.replace('_', '')}",
                "profile_id": profile_id,
                "rudiment_slug": slug,
                "tempo_bpm": tempo,
                "duration_sec": float(self._sounding_s[i]) + 0.5,
                "num_cycles": int(p.take.num_cycles[i]),
                "skill_tier": tier,
                "dominant_hand": "left" if p.player.left_handed[i] else "right",
                "soundfont": "synth",
                "augmentation_preset": preset,
                "augmentation_group_id": f"{profile_id[:8]}_{slug}_{tempo}",
                "label": p.take.rudiment[i],
            })  # fmt: skip
        return pd.DataFrame(rows).astype({"label": np.int32})[[*METADATA_COLUMNS, "label"]]


def _profile_id(seed: int, split: str, player: int) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(f"{seed} {split} {player}".encode()).digest()[:16], version=4))


def _draw(key: jax.Array, num_clips: int, source: Source) -> Performance:
    """The first rows of a split as NumPy arrays, drawn a fixed number at a time so that one compilation serves all."""
    drawn = [jax.device_get(_draw_rows(key, first, source)) for first in range(0, num_clips, ROWS_AT_ONCE)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_clips], *drawn)


@functools.partial(jax.jit, static_argnames="source")
def _draw_rows(key: jax.Array, first: jax.Array, source: Source) -> Performance:
    return jax.vmap(lambda row: draw_row(key, row, source))(first + jnp.arange(ROWS_AT_ONCE))


def _room_s(length_s: float) -> float:
    """The length that is rendered for a clip of `length_s` seconds."""
    for room_s in LENGTHS_S:
        if length_s <= room_s:
            return room_s
    return LENGTHS_S[-1] * -(-length_s // LENGTHS_S[-1])


_STATIC = ("sample_rate", "n_samples", "bandwidth_hz")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _render(key: Any, strokes: Strokes, start_s: Any, style: Any, preset: Any, **shape: Any) -> jax.Array:
    return render(key, strokes, start_s=start_s, style=style, preset=preset, **shape)
