"""What several backbones share: the outputs that all of them give, and the depthwise convolution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Outputs(NamedTuple):
    """What every backbone returns.

    logits: `(batch, num_classes)` float32, before any softmax or sigmoid.
    embedding: `(batch, width)` float32, the pooled features that the classifier reads.
    """

    logits: jax.Array
    embedding: jax.Array


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
        window = lax.dynamic_slice(
            padded, (clip, row * stride, 0, 0), (1, size, padded.shape[2], channels)
        )[0]
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
