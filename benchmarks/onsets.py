"""Does the synthesizer sound as SOUSA does? A small network learns to hear strokes; real clips test it, bank by bank.

    python -m benchmarks.onsets --data=sousa_mini                          trained on synthetic clips alone
    python -m benchmarks.onsets --data=sousa_mini --train=real             trained on the real ones, all banks
    python -m benchmarks.onsets --data=sousa_mini --train=real --leave_out=Marching_Snare

Prints, for each sound bank of the test split, F1 of the strokes at ±20 ms (`mir_eval`), precision, recall, and recall
of soft strokes (velocity below 50). The bounces of a buzz stroke after its first, 2 to 5 ms apart, are not counted;
grace notes are. Both ways of training take the same number of steps of the same batches of windows.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import mir_eval
import numpy as np
import optax
import pandas as pd
import scipy.signal
from flax import nnx

from benchmarks.dilated import DilatedBlocks
from sousa_jax.data.sousa import open_clips
from sousa_jax.data.synth import Source, SynthBatches
from sousa_jax.data.synth.strokes import Strokes
from sousa_jax.data.synth.targets import frame_targets
from sousa_jax.errors import one_line_errors
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.logging import Progress

RATE = 16_000
FRAMES_PER_SECOND = 200
WINDOW_S = 2.5
TOLERANCE_S = 0.020
SOFT = 50
TEST_S = 8.0
SPEC = FrontendSpec(
    sample_rate=RATE, n_fft=512, win_length=320, hop_length=RATE // FRAMES_PER_SECOND, n_mels=64,
    fmax_hz=7_500.0, fmax_jitter_hz=800, window_s=WINDOW_S,
)  # fmt: skip
DILATIONS = (1, 2, 4, 8)


class OnsetNet(nnx.Module):
    """Log-mel `(B, n_mels, T)` → logits of a stroke in each frame `(B, T)`."""

    def __init__(self, width: int = 64, *, rngs: nnx.Rngs):
        self.patches = nnx.Conv(1, 16, (3, 7), strides=(1, 4), rngs=rngs)
        self.mix = nnx.Conv(16, 32, (3, 3), strides=(1, 2), rngs=rngs)
        self.flat = nnx.Linear(32 * (SPEC.n_mels // 8), width, rngs=rngs)
        self.blocks = DilatedBlocks(width, DILATIONS, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, log_mel: jax.Array) -> jax.Array:
        x = log_mel.transpose(0, 2, 1)  # (B, T, n_mels)
        x = x - x.mean((1, 2), keepdims=True)  # the level of a recording says nothing
        x = nnx.relu(self.patches(x[..., None]))
        x = nnx.relu(self.mix(x))  # (B, T, n_mels / 8, 32)
        x = self.flat(x.reshape(*x.shape[:2], -1))
        return self.head(self.blocks(x))[..., 0]


# ------------------------------------------------------------------------------------------------------------- training


def synthetic_batches(batch_size: int, seed: int, dialect: str) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Windows and the frames in which a stroke falls."""

    @jax.jit
    def onsets(strokes: Strokes) -> jax.Array:
        return jax.vmap(lambda s: frame_targets(s, n_frames(WINDOW_S), FRAMES_PER_SECOND).onset)(strokes)

    source = Source(dialect, num_cycles=0, window_s=WINDOW_S)
    for batch, _ in SynthBatches(source, batch_size=batch_size, sample_rate=RATE, window_s=WINDOW_S, seed=seed):
        yield batch["waveform"], onsets(batch["strokes"])


def real_batches(
    data: pathlib.Path, batch_size: int, seed: int, leave_out: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random windows of the train split, and the frames in which a stroke falls."""
    rng = np.random.default_rng(seed)
    clips = [clip for clip in read(data, "train") if clip["bank"] not in leave_out]
    n, frames = round(WINDOW_S * RATE), n_frames(WINDOW_S)
    while True:
        wave, onset = np.zeros((batch_size, n), np.float32), np.zeros((batch_size, frames), np.float32)
        for row in range(batch_size):
            clip = clips[rng.integers(len(clips))]
            start = rng.integers(max(1, len(clip["wave"]) - n))
            part = clip["wave"][start : start + n]
            wave[row, : len(part)] = part
            frame = np.round((clip["time_s"] - start / RATE) * FRAMES_PER_SECOND).astype(int)
            onset[row, frame[(frame >= 0) & (frame < frames)]] = 1
        yield wave, onset


def n_frames(duration_s: float) -> int:
    return SPEC.n_frames(round(duration_s * RATE))


def read(data: pathlib.Path, split: str) -> list[dict]:
    """Clips with their strokes: `wave`, `time_s` from the clip's first sample, `velocity`, `bank`; bounces left out."""
    clips = open_clips(str(data), split)
    strokes = pd.read_parquet(data / "auxiliary" / "strokes.parquet")
    by_clip = dict(iter(strokes.groupby("sample_id")))
    found = []
    for i, row in enumerate(clips.table.itertuples()):
        mine = by_clip[row.sample_id]
        time_s = np.maximum(mine["actual_time_ms"].to_numpy(), 0) / 1000  # nothing sounds before the clip begins
        counted = (mine["stroke_type"] != "buzz") | ~mine["is_grace_note"]
        wave = clips.waveform(i, RATE)[: round(TEST_S * RATE)]
        counted = counted.to_numpy() & (time_s < len(wave) / RATE)
        found.append({
            "wave": wave, "time_s": time_s[counted], "velocity": mine["actual_velocity"].to_numpy()[counted],
            "bank": row.soundfont, "preset": row.augmentation_preset,
        })  # fmt: skip
    return found


# ----------------------------------------------------------------------------------------------------------- evaluation


def peaks(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Seconds at which strokes are heard."""
    found, _ = scipy.signal.find_peaks(np.pad(logits, 1, constant_values=-99), height=threshold, distance=2)
    return (found - 1) / FRAMES_PER_SECOND


def score(clips: list[dict], logits: list[np.ndarray], threshold: float) -> pd.DataFrame:
    """Hits, heard, true and soft strokes of each clip."""
    rows = []
    for clip, z in zip(clips, logits, strict=True):
        heard = peaks(z, threshold)
        order = np.argsort(clip["time_s"])
        true_s, velocity = clip["time_s"][order], clip["velocity"][order]
        matched = mir_eval.util.match_events(true_s, heard, TOLERANCE_S) if len(heard) else []
        hit = np.zeros(len(true_s), bool)
        hit[[i for i, _ in matched]] = True
        soft = velocity < SOFT
        rows.append({
            "bank": clip["bank"], "preset": clip["preset"], "hits": hit.sum(), "heard": len(heard),
            "true": len(true_s), "soft_hits": hit[soft].sum(), "soft": soft.sum(),
            "late_s": np.sum([heard[j] - true_s[i] for i, j in matched]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def f1(table: pd.DataFrame) -> float:
    return 2 * table["hits"].sum() / (table["heard"].sum() + table["true"].sum())


def report(table: pd.DataFrame, by: str) -> None:
    for name, group in [*table.groupby(by), ("all", table)]:
        print(
            f"{name:<28} F1 {f1(group):.3f}  precision {group.hits.sum() / max(1, group.heard.sum()):.3f}  "
            f"recall {group.hits.sum() / group.true.sum():.3f}  soft {group.soft_hits.sum() / group.soft.sum():.3f}  "
            f"late {1000 * group.late_s.sum() / max(1, group.hits.sum()):+.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="SOUSA folder in the Hub's layout")
    parser.add_argument("--train", choices=("synth", "real"), default="synth")
    parser.add_argument("--dialect", default="sousa")
    parser.add_argument("--leave_out", nargs="*", default=[], help="sound banks not to train on; with --train=real")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    if args.train == "synth":
        batches = synthetic_batches(args.batch_size, args.seed, args.dialect)
    else:
        batches = real_batches(args.data, args.batch_size, args.seed, args.leave_out)
    graph, params = nnx.split(OnsetNet(rngs=nnx.Rngs(args.seed)))
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, args.steps // 20, args.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))
    step = make_step(graph, optimizer, args.seed)
    opt_state = optimizer.init(params)
    bar = Progress(args.steps, 0, args.batch_size, line_every_s=20)
    for number in range(args.steps):
        wave, onset = next(batches)
        params, opt_state, loss = step(params, opt_state, wave, onset, number)
        bar.update(f"loss {float(loss):.4f}")
    bar.close()

    @jax.jit
    def hear(wave: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(spectrogram(wave[None], SPEC))[0]

    def logits(clips: list[dict]) -> list[np.ndarray]:
        n = round(TEST_S * RATE)
        heard = [np.asarray(hear(np.pad(clip["wave"], (0, n - len(clip["wave"]))))) for clip in clips]
        return [z[: n_frames(len(clip["wave"]) / RATE)] for z, clip in zip(heard, clips, strict=True)]

    # The threshold is a matter of the training data: chosen on clips like those, never on the test split.
    chosen = read(args.data, "validation") if args.train == "real" else synthetic_clips(args.dialect)
    heard = logits(chosen)
    threshold = max(np.arange(-3, 2, 0.25), key=lambda t: f1(score(chosen, heard, t)))
    print(f"trained on {args.train} {args.leave_out or ''}; threshold {threshold:+.2f}, "
          f"F1 there {f1(score(chosen, heard, threshold)):.3f}")  # fmt: skip
    test = read(args.data, "test")
    heard = logits(test)
    table = score(test, heard, threshold)
    report(table, "bank")
    print()
    report(table, "preset")
    best = max(np.arange(-3, 2, 0.25), key=lambda t: f1(score(test, heard, t)))
    print(f"\nwith the threshold that suits the test split best ({best:+.2f}): {f1(score(test, heard, best)):.3f}")


def synthetic_clips(dialect: str) -> list[dict]:
    """Clips to choose the threshold on, as `read` gives them."""
    made = []
    for (wave, onset), _ in zip(synthetic_batches(32, 1, dialect), range(4), strict=False):
        for w, o in zip(np.asarray(wave), np.asarray(onset), strict=True):
            time_s = np.flatnonzero(o) / FRAMES_PER_SECOND
            made.append({"wave": w, "time_s": time_s, "velocity": np.zeros(len(time_s)), "bank": "synth", "preset": ""})
    return made


def make_step(graph: nnx.GraphDef, optimizer: optax.GradientTransformation, seed: int) -> Callable:
    def loss_fn(params, log_mel, onset):
        z = nnx.merge(graph, params)(log_mel)
        # A frame beside a stroke is nearly right: it counts as a third.
        beside = jnp.maximum(jnp.pad(onset[:, 1:], ((0, 0), (0, 1))), jnp.pad(onset[:, :-1], ((0, 0), (1, 0))))
        target = jnp.maximum(onset, beside / 3)
        return (optax.sigmoid_binary_cross_entropy(z, target) * (1 + 2 * onset)).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, wave, onset, number):
        rng = jax.random.fold_in(jax.random.key(seed), number)
        log_mel = spectrogram(wave, SPEC, rng=rng)
        loss, grads = jax.value_and_grad(loss_fn)(params, log_mel, onset)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


if __name__ == "__main__":
    main()
