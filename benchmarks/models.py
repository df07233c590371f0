"""Forward and training step of the backbones beside eager PyTorch on the same shapes, as ratios in one run.

    python -m benchmarks.models [--models mn10,htsat,beats,ast] [--batch 1,8] [--seconds 5] [--repeats 5]
    python -m benchmarks.models --dtype bfloat16 --peak_tflops 989      # on an accelerator: model FLOP utilization

Both sides do the same work: logits from a ready spectrogram; and loss, gradients, AdamW update for a training step.
What PyTorch runs: `benchmarks/torch_backbones.py`. Multiply-adds are those of matrix products and convolutions, for one
clip; memory is what XLA plans for the step: parameters, optimizer, activations.
"""

import argparse
import dataclasses
import functools
import math
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sousa_jax import models
from sousa_jax.frontends import spectrogram
from sousa_jax.models import layers
from sousa_jax.models.efficientat import PRESETS as EFFICIENTAT


def milliseconds(call, repeats: int) -> float:
    """Best of `repeats` after one warm-up call: the machine's noise only ever adds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


@dataclasses.dataclass(frozen=True)
class Measured:
    forward_ms: float
    step_ms: float
    compile_s: float
    memory_gb: float


def jax_times(name: str, config, features: np.ndarray, labels: np.ndarray, repeats: int) -> Measured:
    """Our network, jitted; `features` decide the dtype that it computes in."""
    apply = models.apply_fn(name, config)
    params, stats = models.init(name, config)
    optimizer = optax.adamw(1e-4)

    @jax.jit
    def forward(params, stats, features):
        return apply(params, stats, features)[0].logits

    def loss_fn(params, stats, features, labels, rng):
        outputs, stats = apply(params, stats, features, train=True, rng=rng)
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(), stats

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, features, labels, rng):
        params, stats, opt_state = state
        (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, stats, features, labels, rng)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    features, labels, rng = jnp.asarray(features), jnp.asarray(labels), jax.random.key(0)
    forward_ms = milliseconds(lambda: jax.block_until_ready(forward(params, stats, features)), repeats)
    state = (params, stats, optimizer.init(params))
    start = time.perf_counter()
    compiled = train_step.lower(state, features, labels, rng).compile()
    compile_s = time.perf_counter() - start
    plan = compiled.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    memory_gb = (planned - plan.alias_size_in_bytes) / 2**30

    def step():
        nonlocal state
        state = jax.block_until_ready(compiled(state, features, labels, rng))

    return Measured(forward_ms, milliseconds(step, repeats), compile_s, memory_gb)


def frontend_ms(config, batch: int, seconds: float, repeats: int) -> float:
    spec = config.frontend
    waveform = jnp.zeros((batch, round(seconds * spec.sample_rate)))
    frontend = jax.jit(lambda w: spectrogram(w, spec))
    return milliseconds(lambda: jax.block_until_ready(frontend(waveform)), repeats)


def torch_times(name: str, config, features: np.ndarray, labels: np.ndarray, repeats: int) -> tuple[float, float]:
    """(forward ms, training step ms) of eager PyTorch; NaN without transformers, where it is needed."""
    import torch

    from benchmarks.torch_backbones import YARDSTICKS

    make, as_input = YARDSTICKS[name]
    try:
        model = make(config, features.shape[2])
    except ImportError:
        return math.nan, math.nan
    x, y = as_input(torch.from_numpy(features)), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def forward():
        with torch.inference_mode():
            model(x)

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    model.eval()
    forward_time = milliseconds(forward, repeats)
    model.train()
    return forward_time, milliseconds(step, repeats)


# ---------------------------------------------------------------------------------------------------- multiply-adds


def multiply_adds(name: str, config, n_frames: int) -> int:
    """Multiply-adds of matrix products and convolutions in one clip's forward pass."""
    params, stats = models.abstract(name, config)
    features = jax.ShapeDtypeStruct((1, config.frontend.n_mels, n_frames), jnp.float32)
    apply = models.apply_fn(name, config)
    # On CPUs the depthwise convolution is written as shifted sums, which would not be counted.
    with mock.patch.object(layers, "_shifted_conv", layers.grouped_conv):
        jaxpr = jax.make_jaxpr(lambda p, s, x: apply(p, s, x)[0].logits)(params, stats, features)
    return _multiply_adds(jaxpr.jaxpr)


def _multiply_adds(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, layout = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += out.size * math.prod(kernel) // kernel[layout[0]]  # for each output value: all but its channel
        for inner in jax.core.jaxprs_in_params(equation.params):
            total += _multiply_adds(inner)
    return total


# ------------------------------------------------------------------------------------------------------------ table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mn10,htsat,beats,ast", help="names of variants, with commas")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of our computation; PyTorch's is float32")
    parser.add_argument("--peak_tflops", type=float, default=0.0, help="of the device, for the utilization")
    parser.add_argument("--no_torch", action="store_true", help="ours alone")
    args = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f"{device}, {args.seconds:g} s windows, {args.dtype}, milliseconds, best of {args.repeats}")
    print(f"{'':34}|{'forward':^26}|{'training step':^26}|")
    print(f"{'model':<10}{'M params':>9}{'G MACs':>8}{'batch':>7}|{'jax':>9}{'torch':>9}{'ratio':>7} |"
          f"{'jax':>9}{'torch':>9}{'ratio':>7} |{'frontend':>9}{'compile s':>10}{'GB':>6}{'MFU':>6}")  # fmt: skip
    rng = np.random.default_rng(0)
    for variant in args.models.split(","):
        name = "efficientat" if variant in EFFICIENTAT else variant
        config = models.make_config(name, variant).for_window(args.seconds, "fill")
        spec = config.frontend
        n_frames = spec.n_frames(spec.window_samples)
        macs = multiply_adds(name, config, n_frames)
        millions = sum(array.size for array in models.abstract(name, config)[0].values()) / 1e6
        for batch in map(int, args.batch.split(",")):
            features = rng.standard_normal((batch, spec.n_mels, n_frames), np.float32)
            labels = rng.integers(0, config.num_classes, batch)
            ours = jax_times(name, config, features.astype(jnp.dtype(args.dtype)), labels, args.repeats)
            theirs = (math.nan, math.nan)
            if not args.no_torch:
                theirs = torch_times(name, config, features, labels, args.repeats)
            frontend = frontend_ms(config, batch, args.seconds, args.repeats)
            # A training step is about three forward passes, a multiply-add two operations.
            used = 3 * 2 * macs * batch / (ours.step_ms * 1e-3) / (args.peak_tflops * 1e12) if args.peak_tflops else 0
            print(
                f"{variant:<10}{millions:9.2f}{macs / 1e9:8.2f}{batch:>7}"
                f"|{ours.forward_ms:9.1f}{theirs[0]:9.1f}{theirs[0] / ours.forward_ms:6.1f}x "
                f"|{ours.step_ms:9.1f}{theirs[1]:9.1f}{theirs[1] / ours.step_ms:6.1f}x "
                f"|{frontend:9.1f}{ours.compile_s:10.1f}{ours.memory_gb:6.2f}{f'{used:6.0%}' if used else '     -'}",
                flush=True,
            )
            jax.clear_caches()


if __name__ == "__main__":
    main()
