"""What several backbones share: the outputs that all of them give, and the parts that decide their speed.

The parts carry their own backward passes where XLA's automatic ones move more memory than needed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sousa_jax.data.frame_targets import FrameTargets

# How a window shorter than the released one meets a network. `fill`: the network sees exactly the window, or the
# window over and over, never stretched in time nor padded; a rhythm stays what it was. `official`: as the released
# code does it, for numbers that compare with its own. A config's `for_window(window_s, length)` takes one of them.
LENGTHS = ("fill", "official")


class Outputs(NamedTuple):
    """What every backbone returns.

    logits: `(batch, num_classes)` float32, before any softmax or sigmoid.
    embedding: `(batch, width)` float32, the pooled features that the classifier reads.
    frames: `(batch, steps, width)` float32, features over time before pooling, mel bands averaged.
    strokes: logits of `FrameTargets`, `(batch, n_frames)` float32 each, of networks that hear strokes; else None.
    """

    logits: jax.Array
    embedding: jax.Array
    frames: jax.Array
    strokes: FrameTargets | None = None


class Recomputable(nnx.Module):
    """A block, `forward(x, *others) -> x`, of which the backward pass may keep the input alone and compute the inside
    again (gradient checkpointing, T. Chen et al., arXiv:1604.06174): where `recompute` is set. Same numbers, a third
    more work, far less memory."""

    recompute = False

    def __call__(self, x: jax.Array, *others: Any) -> jax.Array:
        if not self.recompute:
            return self.forward(x, *others)
        return nnx.remat(lambda block, x: block.forward(x, *others))(self, x)


# ------------------------------------------------------------------------------------------- batch norm and activation


def _hard_swish_slope(z: jax.Array) -> jax.Array:
    return jnp.where(z <= -3, 0, jnp.where(z >= 3, 1, (2 * z + 3) / 6))


# Name → the activation and its derivative.
ACTIVATIONS = {
    "none": (lambda z: z, jnp.ones_like),
    "relu": (jax.nn.relu, lambda z: (z > 0).astype(z.dtype)),
    "hard_swish": (jax.nn.hard_swish, _hard_swish_slope),
}


def normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, activation: str, epsilon: float
) -> jax.Array:
    """Batch norm with given statistics `(channels,)`, then the activation; x `(…, channels)`, its dtype kept."""
    slope = scale * lax.rsqrt(var + epsilon)
    z = x * slope.astype(x.dtype) + (bias - mean * slope).astype(x.dtype)
    return ACTIVATIONS[activation][0](z)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, activation: str, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch norm with the batch's own statistics, then the activation.

    Returns `(y, mean, var)`; mean and (biased) variance are float32 `(channels,)` and pass no gradient on.
    The backward pass keeps nothing but `x`: normalized values are worked out again, which is cheaper than
    reading them back.
    """
    return _batch_normalize_forward(x, scale, bias, activation, epsilon)[0]


def _batch_normalize_forward(x, scale, bias, activation, epsilon):
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes)
    var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0.0)
    return (normalize(x, mean, var, scale, bias, activation, epsilon), mean, var), (x, scale, bias, mean, var)


def _batch_normalize_backward(activation, epsilon, saved, grads):
    x, scale, bias, mean, var = saved
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    inverse = lax.rsqrt(var + epsilon)
    slope = scale * inverse
    wide = x.astype(jnp.float32)
    grad_z = grads[0].astype(jnp.float32) * ACTIVATIONS[activation][1](wide * slope + (bias - mean * slope))
    grad_bias = grad_z.sum(axes)
    grad_scale = ((grad_z * wide).sum(axes) - mean * grad_bias) * inverse
    # d x = slope (d z - mean of d z - x̂ mean of (d z x̂)), sorted into one multiple of d z, one of x, one constant.
    per_x = slope * inverse * grad_scale / count
    constant = per_x * mean - slope * grad_bias / count
    return (grad_z * slope - wide * per_x + constant).astype(x.dtype), grad_scale, grad_bias


batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)


class Norm(nnx.Module):
    """Batch norm over the last axis, and the activation after it. `momentum` is how much of the running statistics
    stays (PyTorch's 0.01 is 0.99 here). Statistics are float32 whatever the input; the output keeps its dtype."""

    def __init__(self, channels: int, activation: str, *, momentum: float, epsilon: float):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))
        self.activation, self.epsilon, self.momentum = activation, epsilon, momentum

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            return normalize(x, self.mean[...], self.var[...], scale, bias, self.activation, self.epsilon)
        y, mean, var = batch_normalize(x, scale, bias, self.activation, self.epsilon)
        count = x.size // x.shape[-1]
        for running, new in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):  # as PyTorch: unbiased
            running[...] = self.momentum * running[...] + (1.0 - self.momentum) * new
        return y


# ---------------------------------------------------------------------------------------------- pointwise convolution


@jax.custom_vjp
def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`: `(…, channels_in)` times `(channels_in, channels_out)`."""
    return x @ kernel


def _pointwise_backward(saved, grad):
    x, kernel = saved
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    # XLA's CPU copies the left factor into transposed order: let that be the narrower of the two.
    if rows.shape[1] <= grad_rows.shape[1]:
        kernel_grad = jnp.einsum("nc,nd->cd", rows, grad_rows, preferred_element_type=jnp.float32)
    else:
        kernel_grad = jnp.einsum("nd,nc->dc", grad_rows, rows, preferred_element_type=jnp.float32).T
    return grad @ kernel.T, kernel_grad.astype(kernel.dtype)


pointwise_conv.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _pointwise_backward)


# ---------------------------------------------------------------------------------------------- depthwise convolution


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Each channel convolved with its own k × k kernel, padded by (k - 1) / 2 on all sides as PyTorch does.

    Args:
      x: `(batch, height, width, channels)`.
      kernel: `(k, k, channels)`, k odd.
      stride: 1 or 2, in both directions.

    Returns:
      `(batch, (height - 1) // stride + 1, (width - 1) // stride + 1, channels)`.

    XLA's grouped convolution is slow on CPUs, where this is written as k² shifted multiply-adds; the
    numbers are the same to rounding. Accelerators take `lax.conv_general_dilated`.
    """
    if jax.default_backend() == "cpu":
        return _shifted_conv(x, kernel, stride)
    return grouped_conv(x, kernel, stride)


def grouped_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`depthwise_conv` as one grouped convolution."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pad_hw(x: jax.Array, before: int, after: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def _shift_add(x: jax.Array, kernel: jax.Array, stride: int, height: int, width: int) -> jax.Array:
    """Sum over the taps of the padded `x`, shifted and strided to `(height, width)`, times the tap."""
    size = kernel.shape[0]
    total = None
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            columns = slice(j, j + (width - 1) * stride + 1, stride)
            term = x[:, rows, columns] * kernel[i, j]
            total = term if total is None else total + term
    return total


@jax.custom_vjp
def _shifted_conv_1(x, kernel):
    return _shift_add(_pad_hw(x, kernel.shape[0] // 2, kernel.shape[0] // 2), kernel, 1, *x.shape[1:3])


@jax.custom_vjp
def _shifted_conv_2(x, kernel):
    pad = kernel.shape[0] // 2
    return _shift_add(_pad_hw(x, pad, pad), kernel, 2, (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2)


def _shifted_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return {1: _shifted_conv_1, 2: _shifted_conv_2}[stride](x, kernel)


def _input_gradient_1(grad, kernel, height, width):
    pad = kernel.shape[0] // 2
    return _shift_add(_pad_hw(grad, pad, pad), kernel[::-1, ::-1], 1, height, width)


def _input_gradient_2(grad, kernel, height, width):
    """The transposed convolution of stride 2, one parity of rows and columns at a time: every parity sees
    only a quarter of the taps, so nothing is multiplied by the zeros of a dilated gradient."""
    size = kernel.shape[0]
    pad = size // 2
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    padded = _pad_hw(grad, pad, pad + 1)  # output row (r + pad - i) / 2 lies within pad of row r / 2
    rows = []
    for row_parity in range(2):
        columns = []
        for column_parity in range(2):
            total = jnp.zeros((grad.shape[0], half_height, half_width, grad.shape[3]), grad.dtype)
            for i in range((row_parity + pad) % 2, size, 2):
                top = pad + (row_parity + pad - i) // 2
                for j in range((column_parity + pad) % 2, size, 2):
                    left = pad + (column_parity + pad - j) // 2
                    total += padded[:, top : top + half_height, left : left + half_width] * kernel[i, j]
            columns.append(total)
        rows.append(jnp.stack(columns, axis=3))  # (B, H/2, W/2, 2, C)
    whole = jnp.stack(rows, axis=2)  # (B, H/2, 2, W/2, 2, C)
    return whole.reshape(grad.shape[0], 2 * half_height, 2 * half_width, -1)[:, :height, :width]


def _kernel_gradient(x, grad, size, stride):
    """`(size, size, C)`: for each tap the sum over batch, rows and columns of shifted input times gradient.

    A loop over rows with one elementwise accumulator `(width, C)` a tap; XLA's reduction over a shifted
    slice does not vectorize and is 3 to 20 times slower.
    """
    padded = _pad_hw(x, size // 2, size // 2)
    batch, height, width, channels = grad.shape
    taps = [(i, j) for i in range(size) for j in range(size)]

    def add_row(n, totals):
        clip, row = n // height, n % height
        window = lax.dynamic_slice(padded, (clip, row * stride, 0, 0), (1, size, padded.shape[2], channels))[0]
        grad_row = lax.dynamic_slice(grad, (clip, row, 0, 0), (1, 1, width, channels))[0, 0]
        return tuple(
            total + window[i, j : j + (width - 1) * stride + 1 : stride].astype(jnp.float32) * grad_row
            for total, (i, j) in zip(totals, taps, strict=True)
        )

    zeros = tuple(jnp.zeros((width, channels), jnp.float32) for _ in taps)
    totals = lax.fori_loop(0, batch * height, add_row, zeros)
    return jnp.stack([total.sum(0) for total in totals]).reshape(size, size, channels)


def _forward(conv):
    return lambda x, kernel: (conv(x, kernel), (x, kernel))


def _backward(input_gradient, stride):
    def backward(saved, grad):
        x, kernel = saved
        kernel_grad = _kernel_gradient(x, grad, kernel.shape[0], stride)
        return input_gradient(grad, kernel, *x.shape[1:3]), kernel_grad.astype(kernel.dtype)

    return backward


_shifted_conv_1.defvjp(_forward(_shifted_conv_1), _backward(_input_gradient_1, 1))
_shifted_conv_2.defvjp(_forward(_shifted_conv_2), _backward(_input_gradient_2, 2))
