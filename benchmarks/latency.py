"""One window at a time on one CPU core, samples to logits, by the PyTorch twin and by Flax: a proxy for a phone.

    taskset -c 0 python -m benchmarks.latency [--models=mn04,mn10,mn10_hop_5,strokes] [--seconds=5] [--repeats=20]

It is no measurement of an iPhone, whose units, runtime and precision are other ones; it says what the work amounts to,
frontend included. The twin has its batch norms folded, as Core ML folds them, and lies channels-last, which suits CPUs.
Counted is the processor's time, in which other programs do not show. Random weights: they do not change the time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import time

import jax
import numpy as np
import torch

from bridge import quantize, to_torch
from sousa_jax import models
from sousa_jax.checkpoint import Model
from sousa_jax.frontends import spectrogram
from sousa_jax.models.efficientat import PRESETS as EFFICIENTAT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mn04,mn10,mn10_hop_5,strokes", help="names of variants, with commas")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()

    torch.set_num_threads(1)
    print(
        f"latency proxy: batch 1, one CPU core, {args.seconds:g} s of sound, "
        f"best of {args.repeats}, milliseconds of processor time"
    )
    print(f"{'model':<14}{'twin':>8}{'of which frontend':>20}{'flax':>8}")
    for variant in args.models.split(","):
        name = "efficientat" if variant in EFFICIENTAT else variant
        config = models.make_config(name, variant).for_window(args.seconds, "fill")
        twin, frontend, flax = times(name, config, args.repeats)
        print(f"{variant:<14}{twin:8.1f}{frontend:20.1f}{flax:8.1f}", flush=True)


def times(name: str, config, repeats: int) -> tuple[float, float, float]:
    """Milliseconds of the twin, of its frontend alone, and of the jitted Flax network with its frontend."""
    model = Model(name, config, *models.init(name, config), {})
    samples = np.random.default_rng(0).standard_normal(config.frontend.window_samples, np.float32) / 10
    apply = models.apply_fn(name, config)
    flax = jax.jit(lambda waveform: apply(model.params, model.stats, spectrogram(waveform, config.frontend))[0].logits)
    twin, heard = to_torch.listener(model), torch.from_numpy(samples)
    network = quantize.folded(twin.network)
    for array in network.parameters():
        if array.ndim == 4:
            array.data = array.data.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return (
            _milliseconds(lambda: network(twin.frontend(heard).to(memory_format=torch.channels_last)), repeats),
            _milliseconds(lambda: twin.frontend(heard), repeats),
            _milliseconds(lambda: jax.block_until_ready(flax(samples[None])), repeats),
        )


def _milliseconds(call, repeats: int) -> float:
    """Processor time, best of `repeats` after two calls to warm up."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


if __name__ == "__main__":
    main()
