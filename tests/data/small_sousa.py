"""Small datasets for the tests of the data layer, made in a moment."""

import io
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from sousa_jax.data.clips import METADATA_COLUMNS, BadClip
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.rudiments import CLASS_IDS, SLUGS


def flac(seed: int, seconds: float = 0.2, rate: int = 8000, n_channels: int = 1) -> bytes:
    """A noise burst whose samples say which clip it is."""
    rng = np.random.default_rng(seed)
    shape = (round(seconds * rate), n_channels)
    file = io.BytesIO()
    soundfile.write(file, 0.5 * rng.uniform(-1, 1, shape), rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def rows(split: str, n_groups: int, n_variants: int = 2) -> list[dict]:
    """Rows as the Hub has them: `n_variants` clips of each performance, one after another."""
    made = []
    for i in range(n_groups * n_variants):
        group = i // n_variants
        made.append(
            {
                "sample_id": f"{split}{i:03d}",
                "profile_id": f"player-of-{split}",
                "rudiment_slug": SLUGS[group % len(SLUGS)],
                "tempo_bpm": 60 + group,
                "duration_sec": 0.2,
                "num_cycles": 4,
                "skill_tier": "advanced",
                "dominant_hand": "right",
                "soundfont": "bank",
                "augmentation_preset": "gym",
                "augmentation_group_id": f"{split}-group{group}",
                "audio": {"bytes": flac(i, 0.1 + 0.02 * (i % 7)), "path": f"{split}{i:03d}.flac"},
            }
        )
    return made


def write_hub(root: pathlib.Path, splits: dict[str, list[list[dict]]], row_group_size: int = 4) -> pathlib.Path:
    """A folder in the Hub's layout from the rows of each shard of each split."""
    (root / "audio").mkdir(parents=True)
    for split, shards in splits.items():
        for i, shard in enumerate(shards):
            path = root / "audio" / f"{split}-{i:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(pa.Table.from_pylist(shard), path, row_group_size=row_group_size)
    return root


def streamed(clips) -> list:
    """All clips of a stream, in their order."""
    return [clip for shard in range(len(clips.shards)) for clip in clips.read(shard)]


class FakeClips:
    """`n` clips in memory, of lengths around a tenth of a second at any rate; clip i is full of the value i + 1."""

    split = "train"
    fingerprint = "0123456789abcdef"

    def __init__(self, n: int, bad: tuple[int, ...] = (), n_variants: int = 1):
        slugs = [SLUGS[i % len(SLUGS)] for i in range(n)]
        self.table = pd.DataFrame({column: [f"{column}{i}" for i in range(n)] for column in METADATA_COLUMNS}).assign(
            rudiment_slug=slugs,
            label=np.array([CLASS_IDS[slug] for slug in slugs], np.int32),
            duration_sec=0.1,
            augmentation_group_id=[f"group{i // n_variants}" for i in range(n)],
        )
        self.bad = bad
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.table)

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        self.asked.append(index)
        if index in self.bad:
            raise BadClip(self.table["sample_id"][index], "broken on purpose")
        return np.full(sample_rate // 10 + index, index + 1, np.float32)


def write_strokes(file: pathlib.Path, strokes: list[tuple]) -> None:
    """A table of strokes (sample_id, time in ms, velocity, is_grace_note, stroke_type)."""
    names = ("sample_id", "actual_time_ms", "actual_velocity", "is_grace_note", "stroke_type")
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(zip(names, stroke, strict=True)) for stroke in strokes]), file)


class ClickClips(FakeClips):
    """Silence but for one sample a stroke, as high as its velocity / 127; the last stroke ends the clip.

    `times_s` are the strokes of each clip; `velocities` by default 127.
    """

    def __init__(self, times_s: list[list[float]], velocities: list[list[float]] | None = None):
        super().__init__(len(times_s))
        self.times_s = [np.array(times, np.float32) for times in times_s]
        self.velocities = [np.array(v, np.float32) for v in velocities or [[127] * len(t) for t in times_s]]

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        samples = np.rint(self.times_s[index] * np.float64(sample_rate)).astype(int)
        wave = np.zeros(samples.max() + 1 + sample_rate, np.float32)  # a second of silence follows
        np.maximum.at(wave, samples, self.velocities[index] / 127)
        return wave

    def clip_strokes(self, index: int) -> ClipStrokes:
        none = np.zeros(len(self.times_s[index]), bool)
        return ClipStrokes(self.times_s[index], self.velocities[index], none, none)
