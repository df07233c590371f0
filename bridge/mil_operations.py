"""What the operations of an ML Program compute, by name.

Arguments have MIL's names. Tensors of fp16 or fp32 come as float32 arrays, integers and truth values in their own
dtype, constants without dimensions as plain Python values. Every function computes in float32; rounding the result to
the declared type is the caller's (`bridge.mil`). Defaults are those of MIL, for what a program leaves out.

Convolutions and matrix products are PyTorch's, so that they round as in the twin that a program is compared with;
everything else is NumPy.

Source: the reference of MIL operations, coremltools `converters/mil/mil/ops/defs` (iOS15 to iOS18).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special
import torch

from bridge.mil_values import unpack_bits

Axes = Sequence[int] | np.ndarray | None


def _axes(axes: Axes) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


def _along(x: np.ndarray | float, axis: int | None, rank: int) -> np.ndarray:
    """A vector, turned to lie along an axis of something with `rank` dimensions; a scalar as it is."""
    x = np.asarray(x)
    return x.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if x.ndim else x


# ---------------------------------------------------------------------------------------------------------------------
# Elementwise
# ---------------------------------------------------------------------------------------------------------------------


def gelu(x: np.ndarray, mode: str = "EXACT") -> np.ndarray:
    if mode == "EXACT":
        return 0.5 * x * (1 + scipy.special.erf(x / np.float32(np.sqrt(2))))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3)))
    return x * scipy.special.expit(1.702 * x)


# Names of `cast`. The caller rounds to fp16.
_CASTS = {
    "fp16": np.float32, "fp32": np.float32, "bool": np.bool_, "int8": np.int8, "uint8": np.uint8, "int16": np.int16,
    "uint16": np.uint16, "int32": np.int32,
}  # fmt: skip


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(x).astype(_CASTS[dtype])


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    strides: Axes = None,
    pad_type: str = "valid",
    pad: Axes = None,
    dilations: Axes = None,
    groups: int = 1,
) -> np.ndarray:
    """`(N, C_in, *D)` and `(C_out, C_in / groups, *K)` to `(N, C_out, *D')`, of one to three dimensions."""
    rank = weight.ndim - 2
    strides, dilations = (_axes(given) or (1,) * rank for given in (strides, dilations))
    if pad_type == "custom":
        sides = np.reshape(pad, (rank, 2))
    elif pad_type == "valid":
        sides = np.zeros((rank, 2), int)
    else:  # as much as makes D' = ceil(D / stride); an odd one goes to the end, of `same_lower` to the beginning
        size, kernel, step = np.array(x.shape[2:]), np.array(weight.shape[2:]), np.array(strides)
        total = np.maximum(0, (-(-size // step) - 1) * step + (kernel - 1) * np.array(dilations) + 1 - size)
        less, more = total // 2, total - total // 2
        sides = np.stack([less, more] if pad_type == "same" else [more, less], axis=1)
    x = np.pad(x, [(0, 0), (0, 0), *sides.tolist()])
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
    return function(*_tensors(x, weight, bias), stride=strides, dilation=dilations, groups=groups).numpy()


def avg_pool(
    x: np.ndarray,
    kernel_sizes: Axes,
    strides: Axes = None,
    pad_type: str = "valid",
    pad: Axes = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> np.ndarray:
    """A convolution with equal weights; zeros of the padding count, or not."""
    if ceil_mode:
        raise NotImplementedError("avg_pool with ceil_mode")
    channels, kernel = x.shape[1], _axes(kernel_sizes)
    ones = np.ones((channels, 1, *kernel), np.float32)
    total = conv(x, ones, None, strides, pad_type, pad, groups=channels)
    if exclude_padding_from_average:
        return total / conv(np.ones_like(x), ones, None, strides, pad_type, pad, groups=channels)
    return total / np.float32(np.prod(kernel))


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    return torch.nn.functional.linear(*_tensors(x, weight, bias)).numpy()


def matmul(x: np.ndarray, y: np.ndarray, transpose_x: bool = False, transpose_y: bool = False) -> np.ndarray:
    x, y = _tensors(x, y)
    return ((x.mT if transpose_x else x) @ (y.mT if transpose_y else y)).numpy()


def _tensors(*arrays: np.ndarray | None) -> list[torch.Tensor | None]:
    return [None if array is None else torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def batch_norm(
    x: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    gamma: np.ndarray | float = 1.0,
    beta: np.ndarray | float = 0.0,
    epsilon: float = 1e-5,
) -> np.ndarray:
    mean, variance, gamma, beta = (_along(value, 1, x.ndim) for value in (mean, variance, gamma, beta))
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def layer_norm(
    x: np.ndarray,
    axes: Axes = None,
    gamma: np.ndarray | float = 1.0,
    beta: np.ndarray | float = 0.0,
    epsilon: float = 1e-5,
) -> np.ndarray:
    over = _axes(axes)
    return (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + epsilon) * gamma + beta


def classify(probabilities: np.ndarray, classes: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The likeliest label, and the probability of each."""
    flat = np.ravel(probabilities)
    return classes[int(flat.argmax())], dict(zip(classes, flat.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Reductions
# ---------------------------------------------------------------------------------------------------------------------


def _reduction(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def reduce(x: np.ndarray, axes: Axes = None, keep_dims: bool = False) -> np.ndarray:
        return function(x, axis=_axes(axes), keepdims=keep_dims)

    return reduce


def reduce_argmax(x: np.ndarray, axis: int = -1, keep_dims: bool = False) -> np.ndarray:
    return np.argmax(x, axis=axis, keepdims=keep_dims)


def cumsum(x: np.ndarray, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> np.ndarray:
    turned = np.flip(x, axis) if reverse else x
    total = np.cumsum(turned, axis=axis, dtype=x.dtype)
    total = total - turned if exclusive else total
    return np.flip(total, axis) if reverse else total


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


def reshape(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """A size of 0 keeps the dimension at its place, -1 takes what is left."""
    return np.reshape(x, [x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def concat(values: Sequence[np.ndarray], axis: int, interleave: bool = False) -> np.ndarray:
    """`interleave` takes turns: the first slice of each, then the second of each."""
    if not interleave:
        return np.concatenate(values, axis)
    axis = axis % values[0].ndim
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return np.stack(values, axis + 1).reshape(shape)


def split(
    x: np.ndarray, axis: int, num_splits: int | None = None, split_sizes: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    parts = num_splits if split_sizes is None else np.cumsum(split_sizes)[:-1]
    return tuple(np.split(x, parts, axis))


def slice_by_index(
    x: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    stride: np.ndarray | None = None,
    begin_mask: np.ndarray | None = None,
    end_mask: np.ndarray | None = None,
    squeeze_mask: np.ndarray | None = None,
) -> np.ndarray:
    def at(i: int) -> int | slice:
        first = None if begin_mask is not None and begin_mask[i] else int(begin[i])
        if squeeze_mask is not None and squeeze_mask[i]:
            return first or 0
        last = None if end_mask is not None and end_mask[i] else int(end[i])
        return slice(first, last, None if stride is None else int(stride[i]))

    return x[tuple(at(i) for i in range(x.ndim))]


def slice_by_size(x: np.ndarray, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A size of -1 takes what follows."""
    ends = [None if n == -1 else int(b + n) for b, n in zip(begin, size, strict=True)]
    return x[tuple(slice(int(b), e) for b, e in zip(begin, ends, strict=True))]


def pad(x: np.ndarray, pad: np.ndarray, mode: str = "constant", constant_val: float = 0.0) -> np.ndarray:
    """`pad` counts before and after each of the last dimensions."""
    sides = np.reshape(pad, (-1, 2)).tolist()
    sides = [[0, 0]] * (x.ndim - len(sides)) + sides
    if mode == "constant":
        return np.pad(x, sides, constant_values=constant_val)
    return np.pad(x, sides, mode={"replicate": "edge", "reflect": "reflect"}[mode])


def gather(
    x: np.ndarray, indices: np.ndarray | int, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> np.ndarray:
    if batch_dims:
        rows = [gather(row, of_row, axis - 1, batch_dims - 1) for row, of_row in zip(x, indices, strict=True)]
        return np.stack(rows)
    return np.take(x, indices, axis)


def gather_along_axis(x: np.ndarray, indices: np.ndarray, axis: int = 0, validate_indices: bool = False) -> np.ndarray:
    return np.take_along_axis(x, indices, axis)


def upsample_nearest_neighbor(
    x: np.ndarray, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> np.ndarray:
    """Of whole factors, which every definition of a nearest neighbour agrees on."""
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        if factor != int(factor):
            raise NotImplementedError(f"upsample_nearest_neighbor by {factor}, which is no whole number")
        x = np.repeat(x, int(factor), axis)
    return x


# ---------------------------------------------------------------------------------------------------------------------
# Quantized activations and compressed weights
# ---------------------------------------------------------------------------------------------------------------------


def quantize(
    input: np.ndarray,
    scale: np.ndarray | float,
    output_dtype: str,
    zero_point: np.ndarray | int = 0,
    axis: int | None = None,
) -> np.ndarray:
    """Halves go to the even neighbour, what is beyond the range to its end."""
    scale, zero_point = (_along(value, axis, input.ndim) for value in (scale, zero_point))
    kind = np.dtype(output_dtype)
    steps = np.round(input / scale.astype(np.float32)) + zero_point.astype(np.float32)
    return np.clip(steps, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def dequantize(
    input: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | float = 0, axis: int | None = None
) -> np.ndarray:
    scale, zero_point = (_along(value, axis, input.ndim) for value in (scale, zero_point))
    return (input.astype(np.float32) - zero_point.astype(np.float32)) * scale.astype(np.float32)


def constexpr_affine_dequantize(
    quantized_data: np.ndarray, zero_point: np.ndarray | float, scale: np.ndarray | float, axis: int
) -> np.ndarray:
    return dequantize(quantized_data, scale, zero_point, axis)


def constexpr_blockwise_shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None):
    """`scale` and `offset` have one number for each block of `data`."""
    data = data.astype(np.float32)
    return (data if offset is None else data - _to_shape(offset, data.shape)) * _to_shape(scale, data.shape)


def _to_shape(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis)
    return blocks.astype(np.float32)


def constexpr_lut_to_dense(
    indices: np.ndarray, lut: np.ndarray, shape: np.ndarray | None = None, vector_axis: int | None = None
) -> np.ndarray:
    """A palette. Of iOS 16: one `(n,)` table, packed indices and the `shape` they have. Of iOS 18: indices `(*D)`, and
    tables `(*G, n, v)`, one for each block of the indices, whose entries are vectors along `vector_axis`."""
    if shape is not None:
        count, bits = int(np.prod(shape)), int(np.log2(len(lut)))
        return lut[unpack_bits(indices.tobytes(), bits, count)].reshape([int(size) for size in shape])
    block = np.indices(indices.shape, sparse=True)
    block = tuple(i * groups // size for i, groups, size in zip(block, lut.shape, indices.shape, strict=False))
    vectors = lut[(*block, indices)]  # (*D, v)
    if lut.shape[-1] == 1:
        return vectors[..., 0]
    axis = vector_axis % indices.ndim
    dense = np.moveaxis(vectors, -1, axis + 1)  # (…, D_axis, v, …)
    return dense.reshape(*indices.shape[:axis], -1, *indices.shape[axis + 1 :])


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "cast": cast,
    "ceil": lambda x: np.ceil(x),
    "classify": classify,
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "concat": concat,
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "constexpr_cast": lambda source_val, output_dtype: cast(source_val, output_dtype),
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "conv": conv,
    "cos": lambda x: np.cos(x),
    "cumsum": cumsum,
    "dequantize": dequantize,
    "einsum": lambda values, equation: np.einsum(equation, *values),
    "equal": lambda x, y: np.equal(x, y),
    "erf": lambda x: scipy.special.erf(x),
    "exp": lambda x: np.exp(x),
    "expand_dims": lambda x, axes: np.expand_dims(x, _axes(axes)),
    "floor": lambda x: np.floor(x),
    "floor_div": lambda x, y: np.floor_divide(x, y),
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gelu": gelu,
    "greater": lambda x, y: np.greater(x, y),
    "greater_equal": lambda x, y: np.greater_equal(x, y),
    "identity": lambda x: x,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + np.float32(epsilon)),
    "layer_norm": layer_norm,
    "less": lambda x, y: np.less(x, y),
    "less_equal": lambda x, y: np.less_equal(x, y),
    "linear": linear,
    "log": lambda x, epsilon=1e-45: np.log(x + np.float32(epsilon)),
    "logical_and": lambda x, y: np.logical_and(x, y),
    "logical_not": lambda x: np.logical_not(x),
    "logical_or": lambda x, y: np.logical_or(x, y),
    "matmul": matmul,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "mul": lambda x, y: x * y,
    "not_equal": lambda x, y: np.not_equal(x, y),
    "pad": pad,
    "pow": lambda x, y: np.power(x, y),
    "quantize": quantize,
    "real_div": lambda x, y: x / y,
    "reduce_argmax": reduce_argmax,
    "reduce_log_sum_exp": _reduction(scipy.special.logsumexp),
    "reduce_max": _reduction(np.max),
    "reduce_mean": _reduction(np.mean),
    "reduce_min": _reduction(np.min),
    "reduce_sum": _reduction(np.sum),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "reshape": reshape,
    "reverse": lambda x, axes=None: np.flip(x, _axes(axes)),
    "rsqrt": lambda x, epsilon=1e-12: 1 / np.sqrt(x + np.float32(epsilon)),
    "select": lambda cond, a, b: np.where(cond, a, b),
    "sigmoid": lambda x: scipy.special.expit(x),
    "sigmoid_hard": lambda x, alpha, beta: np.clip(np.float32(alpha) * x + np.float32(beta), 0, 1),
    "sign": lambda x: np.sign(x),
    "silu": lambda x: x * scipy.special.expit(x),
    "sin": lambda x: np.sin(x),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "softmax": lambda x, axis=-1: scipy.special.softmax(x, axis),
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "split": split,
    "sqrt": lambda x: np.sqrt(x),
    "square": lambda x: np.square(x),
    "squeeze": lambda x, axes=None: np.squeeze(x, _axes(axes)),
    "stack": lambda values, axis: np.stack(values, axis),
    "sub": lambda x, y: x - y,
    "tanh": lambda x: np.tanh(x),
    "thresholded_relu": lambda x, alpha: np.where(x >= alpha, x, 0),
    "tile": lambda x, reps: np.tile(x, reps),
    "transpose": lambda x, perm: np.transpose(x, perm),
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
