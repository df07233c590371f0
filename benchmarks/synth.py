"""How fast the synthesizer is, beside the generator it stands in for and the training step it feeds.

    python -m benchmarks.synth

Clips a second: five seconds at 32 kHz, drawn, played, rendered, cut and labelled in one jitted function; the same
without sound, as performances and as frames of strokes; and an EfficientAT mn10 training step on the same batch, the
appetite to be stilled. Then the memory that a batch of 256 such clips takes. SOUSA's own generator took 0.30 s a clip
on one core with sound (FluidSynth and its effects) and plays 1,000 performances a second without; it is not run here.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sousa_jax.data.synth import Source, SynthBatches
from sousa_jax.data.synth.stream import draw_row, stream_key

SAMPLE_RATE, WINDOW_S = 32_000, 5.0
SOUSA_S, SOUSA_PER_S = 0.30, 1000  # seconds a clip with sound, performances a second without
ROUNDS = 5
MEMORY_BATCH = 256


def seconds(run: Callable[[], Any]) -> float:
    """The best of a few calls, after one that compiles."""
    jax.block_until_ready(run())
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
    return best


def batches(batch_size: int, **settings: Any) -> SynthBatches:
    return SynthBatches(Source(), batch_size=batch_size, sample_rate=SAMPLE_RATE, window_s=WINDOW_S, seed=0, **settings)


def training_step(batch_size: int) -> Callable[[], Any]:
    """One mn10 training step, as the scratch config has it; the state goes from call to call."""
    from configs import efficientat_scratch
    from sousa_jax import models
    from sousa_jax.optim import make_optimizer
    from sousa_jax.rudiments import NUM_CLASSES
    from sousa_jax.step import TrainState, make_train_step

    config = efficientat_scratch.get_config()
    config.train.batch_size = batch_size
    model_config = models.make_config("efficientat", "mn10", num_classes=NUM_CLASSES)
    params, stats = models.init("efficientat", model_config, 0)
    optimizer = make_optimizer(config, 1000)
    step = make_train_step("efficientat", model_config, optimizer, config)
    state = [TrainState.create(params, stats, optimizer)]
    batch = {
        "waveform": jax.random.normal(jax.random.key(0), (batch_size, round(WINDOW_S * SAMPLE_RATE))) / 10,
        "label": jnp.arange(batch_size) % NUM_CLASSES,
    }

    def run() -> Any:
        state[0], metrics = step(state[0], {}, batch)
        return metrics

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)  # the child process
    args = parser.parse_args()
    if args.memory:
        return print_memory()
    n = args.batch_size
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, batch of {n}, {WINDOW_S:g} s at {SAMPLE_RATE} Hz", flush=True)
    if device.platform == "cpu":  # first: a child's highest memory is never below its parent's
        subprocess.run([sys.executable, "-m", "benchmarks.synth", "--memory"], check=True)
    made = batches(n)
    clip_s = seconds(lambda: next(made)[0]["waveform"]) / n
    print(f"sound        {1 / clip_s:8.0f} clips/s  {1000 * clip_s:7.2f} ms a clip  "
          f"{SOUSA_S / clip_s:.0f} times SOUSA's generator (0.30 s a clip, one core)")  # fmt: skip
    narrow = batches(n, bandwidth_hz=8_000.0)
    narrow_s = seconds(lambda: next(narrow)[0]["waveform"]) / n
    print(f"up to 8 kHz  {1 / narrow_s:8.0f} clips/s  {1000 * narrow_s:7.2f} ms a clip")
    key, source, many = stream_key(0, "train"), Source(), 4096
    symbols = jax.jit(lambda first: jax.vmap(functools.partial(draw_row, key, source=source))(first + jnp.arange(many)))
    symbols_s = seconds(lambda: symbols(0)) / many
    print(f"symbols      {1 / symbols_s:8.0f} performances/s  "
          f"{1 / symbols_s / SOUSA_PER_S:.0f} times SOUSA's generator (1,000 a second and core)")  # fmt: skip
    silent = batches(n, sound=False, strokes_per_second=200)
    stream_s = seconds(lambda: next(silent)[0]["stroke_targets"]) / n
    print(f"streams      {1 / stream_s:8.0f} clips/s, windows of strokes without sound, 200 frames a second")
    step_s = seconds(training_step(n)) / n
    print(f"mn10 step    {1 / step_s:8.0f} clips/s  {1000 * step_s:7.2f} ms a clip  "
          f"the sound costs {clip_s / step_s:.0%} of it")  # fmt: skip


def print_memory() -> None:
    """The highest memory of a fresh process while it makes one large batch, over what it took before."""
    jax.block_until_ready(jnp.zeros(8) + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = next(batches(MEMORY_BATCH))[0]
    jax.block_until_ready(batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory       {(peak - before) / 1e6:.2f} GB for a batch of {MEMORY_BATCH}, compilation included")


if __name__ == "__main__":
    main()
