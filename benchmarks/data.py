"""How many clips a second the data layer makes, beside the loop that one would write without it.

    python -m benchmarks.data                  five-second clips, 44.1 kHz, two channels, 24 bit, made here
    python -m benchmarks.data --data=FOLDER    the train split of a folder with SOUSA

Everything is on: parquet → FLAC → one channel → 32 kHz → silent tail cut → random five-second window → batch of 32.
The other loop is `librosa.load` on the same bytes, cut or padded to five seconds, in one thread. Each variant runs
once a round and its best round counts. Clips a second are of wall time; clips a core second are of the time that
this process really had on the cores, all threads together, which other work on the machine disturbs less.
"""

import argparse
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np

SAMPLE_RATE = 32_000
WINDOW_S = 5.0
BATCH = 32
ROUNDS = 3


def make_folder(root: pathlib.Path, n_clips: int = 192, source_rate: int = 44_100) -> None:
    """A train split in the Hub's layout. The clips are strokes of decaying noise over a quiet noise floor."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile

    from sousa_jax.rudiments import SLUGS

    rng = np.random.default_rng(0)
    n = int(WINDOW_S * source_rate)
    rows = []
    for i in range(n_clips):
        wave = 1e-5 * rng.standard_normal((n, 2))
        for start in np.arange(0, n - source_rate // 2, source_rate // int(rng.integers(4, 12))):
            n_stroke = min(n - start, source_rate // 2)
            decay = rng.uniform(0.05, 0.5) * np.exp(-np.arange(n_stroke) / (0.012 * source_rate))[:, None]
            wave[start : start + n_stroke] += decay * rng.standard_normal((n_stroke, 2))
        file = io.BytesIO()
        soundfile.write(file, wave / np.abs(wave).max(), source_rate, format="FLAC", subtype="PCM_24")
        slug = SLUGS[i % len(SLUGS)]
        rows.append(
            {
                "sample_id": f"clip{i}",
                "profile_id": f"player{i}",
                "rudiment_slug": slug,
                "tempo_bpm": 120,
                "duration_sec": WINDOW_S - 0.5,
                "num_cycles": 4,
                "skill_tier": "advanced",
                "dominant_hand": "right",
                "soundfont": "noise",
                "augmentation_preset": "clean_studio",
                "augmentation_group_id": f"group{i}",
                "audio": {"bytes": file.getvalue(), "path": f"clip{i}.flac"},
            }
        )
    (root / "audio").mkdir(parents=True)
    file_name = root / "audio" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file_name, row_group_size=64, compression="none")
    size_kb = sum(len(row["audio"]["bytes"]) for row in rows) / n_clips / 1e3
    print(f"{n_clips} clips of {WINDOW_S:g} s, {source_rate} Hz, two channels, 24 bit: {size_kb:.0f} kB of FLAC each")


def batches(clips, workers: int, n_batches: int = 18) -> int:
    """Makes that many training batches and returns the number of their clips."""
    from sousa_jax.data.pipeline import BadClips, TrainBatches

    with TrainBatches(
        clips,
        batch_size=BATCH,
        sample_rate=SAMPLE_RATE,
        window_s=WINDOW_S,
        seed=0,
        bad=BadClips(clips, 0.0),
        workers=workers,
        prefetch=0,  # what was made ahead would be work that the rate does not count
    ) as made:
        for _ in range(n_batches):
            next(made)
    return n_batches * BATCH


def librosa_loop(files: list[bytes]) -> int:
    """The same from the bytes with librosa, without threads. Returns the number of clips."""
    import librosa

    n_samples = int(WINDOW_S * SAMPLE_RATE)
    for first in range(0, len(files), BATCH):
        waves = [librosa.load(io.BytesIO(file), sr=SAMPLE_RATE)[0] for file in files[first : first + BATCH]]
        np.stack([librosa.util.fix_length(wave, size=n_samples) for wave in waves])
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with SOUSA instead of clips made here")
    arguments = parser.parse_args()

    from sousa_jax.data.cache import CachedClips
    from sousa_jax.data.sousa import open_clips, stream_clips
    from sousa_jax.errors import one_line_errors

    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = f"{scratch}/datasets"  # read when `datasets` is imported
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
        if arguments.data is None:
            make_folder(pathlib.Path(scratch) / "sousa")
        folder = arguments.data or f"{scratch}/sousa"
        clips = open_clips(folder, "train")
        stream = stream_clips(folder, "train")
        encoded = [clip.encoded for _, clip in zip(range(128), stream.read(0), strict=False)]
        files = [file if isinstance(file, bytes) else file.read_bytes() for file in encoded]
        cached = CachedClips(clips, SAMPLE_RATE, scratch, workers=2)
        librosa_loop(files[:2])  # its first call compiles

        variants: dict[str, Callable[[], int]] = {
            "librosa.load loop, 1 thread": lambda: librosa_loop(files),
            "random access, 1 worker": lambda: batches(clips, 1),
            "random access, 2 workers": lambda: batches(clips, 2),
            "streamed, 1 worker": lambda: batches(stream, 1),
            "streamed, 2 workers": lambda: batches(stream, 2),
            "cached, 1 worker": lambda: batches(cached, 1, 60),
            "cached, 2 workers": lambda: batches(cached, 2, 60),
        }
        wall, core = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0.0)
        for _ in range(ROUNDS):
            for name, run in variants.items():
                wall_s, core_s = time.perf_counter(), time.process_time()
                n_clips = run()
                wall[name] = max(wall[name], n_clips / (time.perf_counter() - wall_s))
                core[name] = max(core[name], n_clips / (time.process_time() - core_s))
        plain = wall["librosa.load loop, 1 thread"]
        print(f"{'':<28} {'clips/s':>9} {'per core s':>11} {'x librosa':>10}")
        for name in variants:
            print(f"{name:<28} {wall[name]:>9.0f} {core[name]:>11.0f} {wall[name] / plain:>10.1f}")
        speedup = wall["random access, 2 workers"] / wall["random access, 1 worker"]
        print(f"two workers decode {speedup:.2f} times what one does, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
