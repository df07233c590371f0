"""Forward and training step of the backbones beside eager PyTorch on the same shapes, as ratios in one run.

    python -m benchmarks.models [--models mn10,mn04] [--batch 1,8] [--seconds 5] [--repeats 5]

PyTorch runs channels-last, its faster layout here. Both sides do the same work: logits from a ready
spectrogram; and loss, gradients, AdamW update with batch statistics for a training step.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sousa_jax.frontends import spectrogram
from sousa_jax.models.efficientat import EfficientAT, EfficientATConfig


def milliseconds(call, repeats: int) -> float:
    """Best of `repeats` after one warm-up call: the machine's noise only ever adds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def jax_times(config, features, labels, repeats):
    """(forward ms, training step ms, compile seconds of the step, frontend ms)."""
    model = EfficientAT(config, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adamw(1e-4)

    @jax.jit
    def forward(params, rest, features):
        return nnx.merge(graphdef, params, rest)(features).logits

    def loss_fn(params, rest, features, labels, rng):
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(features, train=True, rng=rng).logits
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.split(model, nnx.Param, ...)[2]

    @jax.jit
    def train_step(params, rest, opt_state, features, labels, rng):
        (loss, rest), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rest, features, labels, rng)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state, loss

    features, labels = jnp.asarray(features), jnp.asarray(labels)
    args = (params, rest, optimizer.init(params), features, labels, jax.random.key(0))
    start = time.perf_counter()
    compiled = train_step.lower(*args).compile()
    compile_s = time.perf_counter() - start
    forward_ms = milliseconds(lambda: jax.block_until_ready(forward(params, rest, features)), repeats)
    step_ms = milliseconds(lambda: jax.block_until_ready(compiled(*args)), repeats)

    spec = config.frontend
    waveform = jnp.zeros((features.shape[0], features.shape[2] * spec.hop_length))
    frontend = jax.jit(lambda w: spectrogram(w, spec))
    frontend_ms = milliseconds(lambda: jax.block_until_ready(frontend(waveform)), repeats)
    return forward_ms, step_ms, compile_s, frontend_ms


def torch_times(config, features, labels, repeats):
    """(forward ms, training step ms) of eager PyTorch."""
    import torch

    from benchmarks.torch_efficientat import TorchEfficientAT

    model = TorchEfficientAT(config).to(memory_format=torch.channels_last)
    x = torch.from_numpy(features)[:, None].contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def forward():
        with torch.inference_mode():
            model(x)

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    model.eval()
    forward_ms = milliseconds(forward, repeats)
    model.train()
    return forward_ms, milliseconds(step, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mn10,mn04")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    print(f"{jax.devices()[0].device_kind}, {args.seconds:g} s windows, milliseconds, best of {args.repeats}")
    print(f"{'':18}|{'forward':^26}|{'training step':^26}|")
    print(f"{'model':<10}{'batch':>7} |{'jax':>8}{'torch':>8}{'ratio':>8}  |{'jax':>8}{'torch':>8}{'ratio':>8}  |"
          f"{'frontend':>9}{'compile s':>10}")  # fmt: skip
    rng = np.random.default_rng(0)
    for name in args.models.split(","):
        config = EfficientATConfig.preset(name)
        frames = config.frontend.n_frames(round(args.seconds * config.frontend.sample_rate))
        for batch in map(int, args.batch.split(",")):
            features = rng.standard_normal((batch, config.frontend.n_mels, frames), np.float32)
            labels = rng.integers(0, config.num_classes, batch)
            forward, step, compile_s, frontend = jax_times(config, features, labels, args.repeats)
            torch_forward, torch_step = torch_times(config, features, labels, args.repeats)
            print(
                f"{name:<10}{batch:>7} |{forward:8.1f}{torch_forward:8.1f}{torch_forward / forward:7.1f}x  |"
                f"{step:8.1f}{torch_step:8.1f}{torch_step / step:7.1f}x  |{frontend:9.1f}{compile_s:10.1f}"
            )


if __name__ == "__main__":
    main()
