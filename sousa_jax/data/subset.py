"""Some of a split's clips: to train without a sound bank or a tier that the test then brings."""

import hashlib

import numpy as np

from sousa_jax.data.clips import METADATA_COLUMNS, Clips
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.errors import InputError, nearest


class SubsetClips:
    """The clips of a split but for those that `exclude` names; satisfies `sousa_jax.data.clips.Clips`.

    Args:
      clips: random access.
      exclude: such as `("soundfont=Marching_Snare", "skill_tier=beginner")`: a clip that one of them fits is left out.

    Raises:
      InputError: an unknown column, a value that no clip has, or no clip is left.
    """

    def __init__(self, clips: Clips, exclude: tuple[str, ...]):
        self._clips, self.split = clips, clips.split
        self.resolved_revision = getattr(clips, "resolved_revision", None)
        left = np.ones(len(clips), bool)
        for rule in exclude:
            column, _, value = rule.partition("=")
            if column not in METADATA_COLUMNS:
                hint = nearest(column, METADATA_COLUMNS) or ", ".join(METADATA_COLUMNS)
                raise InputError(f"config.data.exclude has {rule!r}, expected COLUMN=VALUE; columns: {hint}")
            values = clips.table[column].astype(str)
            if not (values == value).any():
                raise InputError(
                    f"config.data.exclude has {rule!r}, but no {clips.split} clip has that {column}; "
                    f"there are: {', '.join(sorted(values.unique())[:20])}"
                )
            left &= (values != value).to_numpy()
        if not left.any():
            raise InputError(f"config.data.exclude={exclude} leaves no {clips.split} clip")
        self._rows = np.flatnonzero(left)
        self.table = clips.table.iloc[self._rows].reset_index(drop=True)
        self.fingerprint = hashlib.sha256(f"{clips.fingerprint} without {sorted(exclude)}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._rows)

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        return self._clips.waveform(int(self._rows[index]), sample_rate)

    def clip_strokes(self, index: int) -> ClipStrokes:
        return self._clips.clip_strokes(int(self._rows[index]))
