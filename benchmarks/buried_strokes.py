"""How far strokes stand out of what still rings, on real and on synthetic clips, and how many of them are heard.

    python -m benchmarks.buried_strokes --data=sousa_mini --workdir=sousa_jax/shipped [--drums=drums.npz]

A stroke stands out by as many decibels as the 20 ms from it on are louder than the 20 ms before it (300 to 7,000 Hz).
Soft strokes under the ring of loud ones stand out by less than nothing. Synthetic clips that are to replace real ones
should have as many of those, and the same ear should hear as many of them.
"""

import argparse
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pandas as pd
import scipy.signal

from sousa_jax import checkpoint
from sousa_jax.data import sousa
from sousa_jax.data.clips import loop_fill, trim_tail
from sousa_jax.data.frame_targets import FrameTargets, place_on_frames
from sousa_jax.data.synth import Source, SynthBatches, learned_drums
from sousa_jax.hearing import match, pick
from sousa_jax.step import make_eval_step

BAND_HZ = (300, 7000)
LOUDNESS_S, BEFORE_S = 0.020, 0.005  # of a piece; how long before a stroke it ends
ALONE_S = (0.040, 0.025)  # to the stroke before and to the next
EDGES_DB = (-np.inf, -3, -1, 0, 1, 2, 3, 5, 8, np.inf)
BATCH, N_SYNTHETIC = 32, 640


def real(path: str, spec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first window of each test clip, and the times of its strokes in seconds."""
    clips = sousa.open_clips(path, "test")
    for i in range(len(clips)):
        wave = trim_tail(clips.waveform(i, spec.sample_rate), spec.sample_rate)
        strokes = clips.clip_strokes(i).window(0, len(wave), spec.window_samples, spec.sample_rate)
        yield loop_fill(wave, spec.window_samples, 0), strokes.time_s[~strokes.is_bounce]


def synthetic(spec, learned) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    batches = SynthBatches(
        Source("sousa", 4), batch_size=BATCH, sample_rate=spec.sample_rate, window_s=spec.window_s, seed=77,
        split="test", strokes_per_second=200, learned=learned,
    )  # fmt: skip
    for _ in range(N_SYNTHETIC // BATCH):
        batch, _ = next(batches)
        for wave, onset in zip(*jax.device_get((batch["waveform"], batch["stroke_targets"].onset)), strict=True):
            yield wave, np.flatnonzero(onset) / 200


def prominence_db(wave: np.ndarray, time_s: np.ndarray, rate: int) -> np.ndarray:
    """By how much each stroke stands out, `(S,)`."""
    band = scipy.signal.sosfiltfilt(scipy.signal.butter(2, BAND_HZ, "bandpass", fs=rate, output="sos"), wave)
    energy = np.cumsum(np.append(0, np.square(band)))

    def within(begin_s: np.ndarray) -> np.ndarray:
        begin, end = (np.clip(np.round(s * rate).astype(int), 0, len(wave)) for s in (begin_s, begin_s + LOUDNESS_S))
        return energy[end] - energy[begin] + 1e-9

    return 10 * np.log10(within(time_s) / within(time_s - BEFORE_S - LOUDNESS_S))


def measure(model: checkpoint.Model, windows: Iterator[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """A row for each stroke that stands alone: how far it stands out, and whether it was heard."""
    spec, per_second = model.config.frontend, model.config.strokes_per_second
    step, rows, waiting = make_eval_step(model.name, model.config), [], []

    def hear() -> None:
        waves = np.stack([wave for wave, _ in waiting])
        waves = np.pad(waves, ((0, BATCH - len(waves)), (0, 0)))
        heard = jax.device_get(step(model.params, model.stats, {"waveform": waves}).strokes)
        for row, (wave, time_s) in enumerate(waiting):
            # Merged to frames, as the ear was taught.
            frames = place_on_frames(
                time_s.astype(np.float32), np.full(len(time_s), 64, np.float32), *np.zeros((2, len(time_s)), bool),
                round(spec.window_s * per_second), per_second,
            )  # fmt: skip
            true_s = np.flatnonzero(frames.onset) / per_second
            hit = np.zeros(len(true_s), bool)
            hit[match(true_s, pick(FrameTargets(*(x[row] for x in heard)), per_second).time_s)[0]] = True
            gaps = np.diff(true_s, prepend=-np.inf, append=np.inf)
            alone = (gaps[:-1] >= ALONE_S[0]) & (gaps[1:] >= ALONE_S[1])
            alone &= (true_s > LOUDNESS_S + BEFORE_S) & (true_s < spec.window_s - LOUDNESS_S)
            stands_out = prominence_db(wave, true_s, spec.sample_rate)
            rows.extend(zip(stands_out[alone], hit[alone], strict=True))

    for window in windows:
        waiting.append(window)
        if len(waiting) == BATCH:
            hear()
            waiting = []
    if waiting:
        hear()
    return pd.DataFrame(rows, columns=["db", "heard"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--drums", help="a file of learnt drums")
    args = parser.parse_args()
    model = checkpoint.load_model(args.workdir)
    spec = model.config.frontend
    tables = {"real": measure(model, real(args.data, spec)), "random drums": measure(model, synthetic(spec, None))}
    if args.drums:
        learned = learned_drums.load(args.drums, spec.sample_rate)
        tables["learnt drums"] = measure(model, synthetic(spec, learned))
    found = {}
    for name, table in tables.items():
        band = pd.cut(table["db"], EDGES_DB)
        found[name, "share"] = band.value_counts(normalize=True, sort=False)
        found[name, "heard"] = table.groupby(band, observed=False)["heard"].mean()
    print(pd.DataFrame(found).round(2).to_string())
    for name, table in tables.items():
        print(f"{name}: {len(table)} strokes, {table['heard'].mean():.3f} heard")


if __name__ == "__main__":
    main()
