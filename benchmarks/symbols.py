"""Does the synthesizer play as SOUSA does? A small network learns the rudiments from synthetic *strokes alone*, without
sound, and is tested on the strokes that SOUSA's generator wrote down.

    python -m benchmarks.symbols --data=sousa_mini [--steps=3000]

Prints the balanced accuracy on the test split's stroke tables: whole clips, and the first five seconds. What is missing
to 1 is in the performances themselves (beginners, rudiments that sound alike); a network trained on SOUSA's own
performances that is much better would mean that ours differ.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from sklearn.metrics import balanced_accuracy_score

from benchmarks.dilated import DilatedBlocks
from sousa_jax.data.synth.stream import Source, draw_performance
from sousa_jax.data.synth.strokes import Strokes, in_order_of_time
from sousa_jax.errors import one_line_errors
from sousa_jax.logging import Progress
from sousa_jax.rudiments import CLASS_IDS, NUM_CLASSES

MAX_STROKES = 96  # a buzz roll has more; its first ones are enough
WINDOW_S = 5.0
DILATIONS = (1, 2, 4, 8, 1)
N_FEATURES = 5


class StrokeNet(nnx.Module):
    """Dilated convolutions along the strokes in order of time: `(B, S, 5)` features and `(B, S)` mask to logits."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.stem = nnx.Linear(N_FEATURES, width, rngs=rngs)
        self.blocks = DilatedBlocks(width, DILATIONS, rngs=rngs)
        self.norm = nnx.LayerNorm(2 * width, rngs=rngs)
        self.head = nnx.Linear(2 * width, NUM_CLASSES, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        mask = mask[..., None]
        x = self.blocks(self.stem(features) * mask, mask)
        mean = x.sum(1) / mask.sum(1)
        largest = jnp.where(mask, x, -jnp.inf).max(1)
        return self.head(self.norm(jnp.concatenate([mean, largest], -1)))


def features(time_s: jax.Array, velocity: jax.Array, valid: jax.Array) -> jax.Array:
    """What is heard of a stroke: the gaps before and after it, its strength. `(..., S)` each to `(..., S, 5)`."""
    gap = jnp.diff(time_s, axis=-1)
    zero = jnp.zeros_like(time_s[..., :1])
    before = jnp.concatenate([zero, gap], -1)
    after = jnp.where(jnp.roll(valid, -1, -1), jnp.concatenate([gap, zero], -1), 0).at[..., -1].set(0)
    typical = jnp.sum(before * valid, -1, keepdims=True) / jnp.sum(valid, -1, keepdims=True)
    log = lambda s: jnp.log(0.005 + jnp.clip(s, 0, 5)) / 2 + 1  # noqa: E731
    columns = (log(before), log(after), before / typical - 1, after / typical - 1, velocity / 40 - 1.6)
    return jnp.where(valid[..., None], jnp.stack(columns, -1), 0)


def window(strokes: Strokes, start_s: jax.Array, length_s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The strokes sounding in a window, first `MAX_STROKES` of them: time, velocity, valid."""
    valid = strokes.valid & (strokes.time_s >= start_s) & (strokes.time_s < start_s + length_s)
    heard = in_order_of_time(strokes._replace(valid=valid))
    heard = Strokes(*(column[:MAX_STROKES] for column in heard))
    return heard.time_s - heard.time_s[0], heard.velocity, heard.valid


def synthetic(key: jax.Array, source: Source) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One training example: features, mask, label. Half of them are whole, half a window of five seconds."""
    draw_key, whole_key, start_key = jax.random.split(key, 3)
    performance = draw_performance(draw_key, source)
    strokes = performance.strokes
    last_s = jnp.max(jnp.where(strokes.valid, strokes.time_s, 0))
    whole = jax.random.bernoulli(whole_key)
    start_s = jnp.where(whole, 0, jax.random.uniform(start_key) * jnp.maximum(0, last_s - WINDOW_S + 0.3))
    start_s = start_s * jax.random.bernoulli(jax.random.fold_in(start_key, 1))
    time_s, velocity, valid = window(strokes, start_s, jnp.where(whole, jnp.inf, WINDOW_S))
    return features(time_s, velocity, valid), valid, performance.take.rudiment


def real(data: pathlib.Path, split: str, length_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, mask and labels of a SOUSA split from its stroke table."""
    table = pd.concat(pd.read_parquet(f) for f in sorted((data / "labels_only").glob(f"{split}-*.parquet")))
    strokes = pd.read_parquet(data / "auxiliary" / "strokes.parquet").sort_values("actual_time_ms", kind="stable")
    by_clip = dict(iter(strokes.groupby("sample_id")))
    shape = (len(table), MAX_STROKES)
    time_s, velocity, valid = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    for i, sample_id in enumerate(table["sample_id"]):
        clip = by_clip[sample_id]
        at = (clip["actual_time_ms"].to_numpy() - clip["actual_time_ms"].iloc[0]) / 1000
        at = at[at < length_s][:MAX_STROKES]
        time_s[i, : len(at)], velocity[i, : len(at)] = at, clip["actual_velocity"].to_numpy()[: len(at)]
        valid[i, : len(at)] = True
    return np.asarray(features(time_s, velocity, valid)), valid, table["rudiment_slug"].map(CLASS_IDS).to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="SOUSA folder in the Hub's layout")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    source = Source(dialect="sousa", num_cycles=4)
    graph, params = nnx.split(StrokeNet(args.width, rngs=nnx.Rngs(args.seed)))
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, args.steps // 20, args.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3))

    def loss_fn(params, x, mask, label):
        logits = nnx.merge(graph, params)(x, mask)
        targets = optax.smooth_labels(jax.nn.one_hot(label, NUM_CLASSES), 0.05)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, number):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(args.seed), number), args.batch_size)
        x, mask, label = jax.vmap(lambda key: synthetic(key, source))(keys)
        loss, grads = jax.value_and_grad(loss_fn)(params, x, mask, label)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    predict = jax.jit(lambda params, x, mask: nnx.merge(graph, params)(x, mask).argmax(-1))
    tests = {name: real(args.data, "test", s) for name, s in (("whole clips", np.inf), ("first 5 s", WINDOW_S))}

    def report(number: int) -> None:
        for name, (x, mask, label) in tests.items():
            found = np.asarray(predict(params, x, mask))
            print(f"step {number}: SOUSA test, {name}: balanced accuracy {balanced_accuracy_score(label, found):.3f}")

    opt_state = optimizer.init(params)
    bar = Progress(args.steps, 0, args.batch_size)
    for number in range(args.steps):
        params, opt_state, loss = step(params, opt_state, number)
        bar.update(f"loss {float(loss):.3f}")
        if (number + 1) % max(1, args.steps // 4) == 0:
            report(number + 1)
    bar.close()


if __name__ == "__main__":
    main()
