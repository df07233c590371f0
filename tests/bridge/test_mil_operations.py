"""Every operation of the interpreter against coremltools' own definition, or PyTorch's where coremltools has none."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import mil_operations
from bridge.mil_operations import OPERATIONS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
Y = RNG.normal(size=(3, 1, 5)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.01)
WHOLE = RNG.integers(-3, 4, (2, 3, 4, 5)).astype(np.float32)
BOOLS, MORE_BOOLS = X > 0, WHOLE > 0
INDICES = RNG.integers(0, 3, (2, 3, 4, 5)).astype(np.int32)
BYTES = RNG.integers(0, 256, (4, 6)).astype(np.uint8)


def coremltools_says(name, arguments, opset="iOS17"):
    """The value that coremltools gives to an operation on constants."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil import Builder, Function

    with Function({}, opset_version=AvailableTarget[opset]):
        found = getattr(Builder, name)(**arguments)
        found = found if isinstance(found, (list, tuple)) else [found]
        stays_compressed = name.startswith("constexpr_") or name == "dequantize"
        return [part.op.materialized_val_inference() if stays_compressed else part.val for part in found]


def check(name, arguments, expected, tolerance=1e-6):
    """Ours gives the same shapes and the same values as something else said."""
    found = OPERATIONS[name](**arguments)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.shape(mine) == np.shape(theirs)
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


# Operation, arguments: as coremltools computes them.
CASES = [
    *[(name, {"x": X}) for name in ("abs", "ceil", "cos", "erf", "exp", "floor", "identity", "relu", "relu6")],
    *[(name, {"x": X * 3}) for name in ("sigmoid", "sign", "sin", "softplus", "square", "tanh", "softmax")],
    *[(name, {"x": X, "y": Y}) for name in ("add", "maximum", "minimum", "mul", "real_div", "sub")],
    *[(name, {"x": WHOLE, "y": X.round()}) for name in ("equal", "greater", "greater_equal", "less", "less_equal")],
    ("not_equal", {"x": WHOLE, "y": X.round()}),
    ("floor_div", {"x": WHOLE, "y": POSITIVE}),
    ("sqrt", {"x": POSITIVE}),
    ("pow", {"x": POSITIVE, "y": Y}),
    ("pow", {"x": X, "y": np.float32(2.0)}),
    ("log", {"x": POSITIVE}),
    ("log", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("rsqrt", {"x": POSITIVE}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("inverse", {"x": POSITIVE}),
    ("inverse", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.25)}),
    ("sigmoid_hard", {"x": X * 3, "alpha": np.float32(1 / 6), "beta": np.float32(0.5)}),
    ("thresholded_relu", {"x": X, "alpha": np.float32(-0.3)}),
    ("thresholded_relu", {"x": X, "alpha": X[0, 0, 0, 0]}),
    *[("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")],
    ("softmax", {"x": X, "axis": 1}),
    ("logical_and", {"x": BOOLS, "y": MORE_BOOLS}),
    ("logical_or", {"x": BOOLS, "y": MORE_BOOLS}),
    ("logical_not", {"x": BOOLS}),
    ("select", {"cond": BOOLS, "a": X, "b": POSITIVE}),
    ("cast", {"x": X * 3, "dtype": "int32"}),
    ("cast", {"x": WHOLE, "dtype": "bool"}),
    ("cast", {"x": INDICES, "dtype": "fp32"}),
    ("linear", {"x": X[0, 0], "weight": X[0, 1], "bias": X[0, 0, 0, :4]}),
    ("matmul", {"x": X, "y": X[1, ::-1].copy(), "transpose_y": True}),
    ("matmul", {"x": X, "y": X[1], "transpose_x": True}),
    ("layer_norm", {"x": X, "axes": [-1], "gamma": X[0, 0, 0], "beta": X[0, 0, 1], "epsilon": np.float32(1e-3)}),
    ("layer_norm", {"x": X, "axes": [2, 3]}),
    ("reduce_argmax", {"x": X, "axis": 1}),
    ("reduce_argmax", {"x": X, "axis": -1, "keep_dims": True}),
    ("expand_dims", {"x": X[0], "axes": [0, -1]}),
    ("squeeze", {"x": X[:1, :, :1], "axes": [0]}),
    ("squeeze", {"x": X[:1, :, :1]}),
    ("reshape", {"x": X, "shape": [6, -1]}),
    ("transpose", {"x": X, "perm": [2, 0, -1, 1]}),
    ("concat", {"values": [X, POSITIVE], "axis": -2}),
    ("stack", {"values": [X, POSITIVE], "axis": -1}),
    ("split", {"x": X, "axis": 2, "num_splits": 2}),
    ("split", {"x": X, "axis": -1, "split_sizes": [1, 3, 1]}),
    ("tile", {"x": X, "reps": [1, 2, 1, 3]}),
    ("reverse", {"x": X, "axes": [1, -1]}),
    ("reverse", {"x": X}),
    ("slice_by_size", {"x": X, "begin": [0, 1, 2, 0], "size": [-1, 1, -1, 3]}),
    ("gather", {"x": X, "indices": INDICES[0, 0], "axis": 1, "batch_dims": 0}),
    ("gather", {"x": X, "indices": np.int32(1), "axis": -1, "batch_dims": 0}),
    ("gather", {"x": X, "indices": INDICES[:, :2, 0, 0], "axis": 2, "batch_dims": 1}),
    ("gather_along_axis", {"x": X, "indices": INDICES, "axis": 1}),
    ("gather_along_axis", {"x": X, "indices": INDICES[:, :, ::-1].copy(), "axis": -2}),
    ("quantize", {"input": X, "scale": np.float32(0.25), "zero_point": np.int8(-3), "output_dtype": "int8"}),
    ("quantize", {"input": WHOLE, "scale": np.float32(2), "output_dtype": "int8"}),
    ("quantize", {"input": X * 99, "scale": np.float32(0.5), "zero_point": np.uint8(9), "output_dtype": "uint8"}),
    ("quantize", {"input": X, "scale": POSITIVE[0, :, 0, 0], "axis": 1, "output_dtype": "int8"}),
    ("dequantize", {"input": BYTES, "scale": np.float32(0.25), "zero_point": np.uint8(9)}),
    ("dequantize", {"input": BYTES, "scale": POSITIVE[0, 0, 0, :4], "zero_point": BYTES[:, 0], "axis": 0}),
    ("dequantize", {"input": BYTES.view(np.int8), "scale": POSITIVE[0, 0, 0, :4], "axis": 0}),
    *[
        (f"reduce_{name}", {"x": X, "axes": axes, "keep_dims": keep})
        for name in ("mean", "sum", "max", "min", "log_sum_exp")
        for axes, keep in (([1], False), ([-1, 1], True), ([0, 1, 2, 3], False))
    ],
]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{name}_{i}" for i, (name, _) in enumerate(CASES)])
def test_as_coremltools_defines_it(name, arguments):
    check(name, arguments, coremltools_says(name, arguments))


def test_every_operation_has_a_test():
    """Here: in the table above, or in a test of its own that names it."""
    source = inspect.getsource(inspect.getmodule(test_every_operation_has_a_test))
    own = {name for name in OPERATIONS if f'check("{name}"' in source or f'OPERATIONS["{name}"]' in source}
    assert OPERATIONS.keys() == {name for name, _ in CASES} | own


def test_functions_have_one_name():
    """A function of the module that a program can call is called as in MIL."""
    for name, function in OPERATIONS.items():
        if function.__module__ == mil_operations.__name__ and function.__name__ not in ("<lambda>", "reduce"):
            assert function.__name__ == name


# --------------------------------------------------------------------------------- what coremltools does not compute


def test_activations_and_norms_as_in_torch():
    x = torch.from_numpy(X)
    check("silu", {"x": X}, [torch.nn.functional.silu(x)])
    vectors = {name: POSITIVE[0, :, i, 0].copy() for i, name in enumerate(("mean", "variance", "gamma", "beta"))}
    expected = torch.nn.functional.batch_norm(x, *map(torch.from_numpy, vectors.values()), eps=1e-3)
    check("batch_norm", {"x": X, **vectors, "epsilon": 1e-3}, [expected])


def test_einsum_and_whole_upsampling_as_in_torch():
    y = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
    expected = torch.einsum("nchw,nwhr->nchr", torch.from_numpy(X), torch.from_numpy(y.reshape(2, 5, 4, 3)))
    check("einsum", {"values": [X, y.reshape(2, 5, 4, 3)], "equation": "nchw,nwhr->nchr"}, [expected])
    expected = torch.nn.functional.interpolate(torch.from_numpy(X), scale_factor=(3, 2), mode="nearest")
    check("upsample_nearest_neighbor", {"x": X, "scale_factor_height": 3, "scale_factor_width": 2.0}, [expected])
    with pytest.raises(NotImplementedError, match="whole number"):
        OPERATIONS["upsample_nearest_neighbor"](X, 1.5, 1)


def test_interleaving_as_the_reference_shows_it():
    """The example of MIL's reference; coremltools' own evaluation leaves `interleave` out."""
    ours = dict(values=[np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 10], [11, 12]])], interleave=True)
    check("concat", {**ours, "axis": 0}, [[[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]])
    check("concat", {**ours, "axis": -1}, [[[1, 7, 2, 8], [3, 9, 4, 10], [5, 11, 6, 12]]])


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum_by_hand(reverse, exclusive):
    """Each element is a sum over those up to it, with or without it, from the front or from the back."""
    x = X[0]
    expected = np.zeros_like(x)
    for t in range(x.shape[1]):
        which = [s for s in range(x.shape[1]) if (s > t if reverse else s < t) or (s == t and not exclusive)]
        expected[:, t] = x[:, which].sum(1)
    check("cumsum", {"x": x, "axis": 1, "reverse": reverse, "exclusive": exclusive}, [expected])


def test_classify_names_the_likeliest_class():
    label, of_all = OPERATIONS["classify"](np.array([[0.2, 0.5, 0.3]], np.float32), ["a", "b", "c"])
    assert label == "b"
    assert of_all == pytest.approx({"a": 0.2, "b": 0.5, "c": 0.3})


# ------------------------------------------------------------------------------------------------------- many shapes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_convolutions_of_all_kinds_as_in_torch(data):
    """One to three dimensions; strides, dilations, groups, biases and custom padding."""
    draw = data.draw
    rank = draw(st.integers(1, 3))
    groups, per_group = draw(st.sampled_from([(1, 3), (2, 1), (4, 1), (2, 3)]))
    ints = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, strides, dilations, sides = ints(1, 3), ints(1, 3), ints(1, 2), ints(0, 2)
    size = tuple(draw(st.integers(max(1, (k - 1) * d + 1), 9)) for k, d in zip(kernel, dilations, strict=True))
    x = RNG.normal(size=(2, groups * per_group, *size)).astype(np.float32)
    weight = RNG.normal(size=(groups * 2, per_group, *kernel)).astype(np.float32)
    bias = RNG.normal(size=groups * 2).astype(np.float32) if draw(st.booleans()) else None
    layer = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    tensors = [None if t is None else torch.from_numpy(t) for t in (x, weight, bias)]
    expected = layer(*tensors, stride=strides, padding=sides, dilation=dilations, groups=groups)
    arguments = dict(x=x, weight=weight, bias=bias, strides=strides, dilations=dilations, groups=groups)
    arguments |= dict(pad_type="custom", pad=[side for side in sides for _ in range(2)])
    check("conv", arguments, [expected], tolerance=1e-5)
    if not any(sides):
        arguments |= dict(pad_type="valid")
        check("conv", arguments, [expected], tolerance=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 12), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2))
def test_same_padding_centres_the_kernel(size, kernel, stride, dilation):
    """ceil(size / stride) outputs; the odd one of the zeros lies behind, of `same_lower` before. By the sum that a
    kernel of ones makes at each place."""
    x = RNG.integers(-9, 9, (1, 1, size)).astype(np.float32)
    reach = (kernel - 1) * dilation + 1
    count = -(-size // stride)
    total = max(0, (count - 1) * stride + reach - size)
    for pad_type, before in (("same", total // 2), ("same_lower", -(-total // 2))):
        taps = [[i * stride - before + k * dilation for k in range(kernel)] for i in range(count)]
        expected = [[[sum(x[0, 0, at] for at in of_one if 0 <= at < size) for of_one in taps]]]
        ones = np.ones((1, 1, kernel), np.float32)
        check("conv", dict(x=x, weight=ones, strides=[stride], dilations=[dilation], pad_type=pad_type), [expected])


def test_one_sided_padding_of_a_convolution():
    """Before and after each dimension in turn."""
    x, weight = X, X[:, :, :2, :2].copy()
    padded = torch.nn.functional.pad(torch.from_numpy(x), (3, 1, 0, 2))
    expected = torch.nn.functional.conv2d(padded, torch.from_numpy(weight))
    check("conv", dict(x=x, weight=weight, pad_type="custom", pad=[0, 2, 3, 1]), [expected], tolerance=1e-5)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize(("kernel", "strides", "sides"), [((2, 3), (2, 1), (0, 0)), ((3, 3), (1, 2), (1, 1))])
def test_average_pooling_as_in_torch(kernel, strides, sides, exclude):
    pool = torch.nn.functional.avg_pool2d
    expected = pool(torch.from_numpy(X), kernel, strides, sides, count_include_pad=not exclude)
    arguments = dict(x=X, kernel_sizes=kernel, strides=strides, exclude_padding_from_average=exclude)
    check("avg_pool", arguments | dict(pad_type="custom", pad=[s for s in sides for _ in range(2)]), [expected])
    with pytest.raises(NotImplementedError, match="ceil_mode"):
        OPERATIONS["avg_pool"](**arguments, ceil_mode=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slices_as_coremltools_takes_them(data):
    draw = data.draw
    x = RNG.normal(size=draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))).astype(np.float32)
    begin = [draw(st.integers(0, n - 1)) for n in x.shape]
    end = [draw(st.integers(b + 1, n)) for b, n in zip(begin, x.shape, strict=True)]
    negative = [draw(st.booleans()) for _ in x.shape]
    # The other way of saying the same: counted from the end.
    begin = [b - n if neg else b for b, n, neg in zip(begin, x.shape, negative, strict=True)]
    masks = {
        f"{which}_mask": [draw(st.booleans()) for _ in x.shape]
        for which in ("begin", "end", "squeeze")
        if draw(st.booleans())
    }
    squeezed = masks.get("squeeze_mask", [False])
    if all(squeezed):
        squeezed[0] = False  # of a scalar coremltools makes something else than an array
    stride = [draw(st.integers(1, 3)) for _ in x.shape]
    arguments = dict(x=x, begin=begin, end=end, stride=stride, **masks)
    check("slice_by_index", arguments, coremltools_says("slice_by_index", arguments))


def test_slices_backwards():
    """Of negative strides, as `flip` of PyTorch is sometimes written."""
    masks = dict(begin_mask=[True, False], end_mask=[True, False])
    arguments = dict(x=X[0, 0], begin=[0, 3], end=[0, 0], stride=[-1, -2], **masks)
    check("slice_by_index", arguments, [X[0, 0][::-1, 3:0:-2]])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["constant", "reflect", "replicate"]), st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_padding_as_coremltools_does_it(mode, sides):
    arguments = dict(x=X, pad=np.array(sides, np.int32), mode=mode, constant_val=np.float32(-0.5))
    check("pad", arguments, coremltools_says("pad", arguments))


def test_padding_of_the_last_dimension_alone():
    arguments = dict(x=X, pad=np.array([1, 2], np.int32))
    check("pad", arguments, [torch.nn.functional.pad(torch.from_numpy(X), (1, 2))])


# ------------------------------------------------------------------------------------------------- compressed weights


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["uint8", "int8"]), st.integers(-2, 1), st.booleans())
def test_affine_dequantization_as_coremltools_decompresses(kind, axis, symmetric):
    """Per tensor, per row and per column; with a zero point and without."""
    data = BYTES.view(kind)
    size = data.shape[axis]
    scale = RNG.random(size).astype(np.float32) + 0.01
    zero = np.zeros(size, kind) if symmetric else RNG.integers(0, 99, size).astype(kind)
    for s, z in ((scale, zero), (scale[0], zero[0])):
        arguments = dict(quantized_data=data, zero_point=z, scale=s, axis=np.int32(axis))
        expected = coremltools_says("constexpr_affine_dequantize", arguments, "iOS16")
        check("constexpr_affine_dequantize", arguments, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("blocks", [(1, 1), (4, 1), (1, 6), (2, 3), (4, 2)])
def test_blockwise_scales_as_coremltools_decompresses(kind, blocks):
    data = BYTES.view(kind)
    scale = RNG.random(blocks).astype(np.float32)
    offset = RNG.integers(0, 99, blocks).astype(kind)
    for arguments in (dict(data=data, scale=scale), dict(data=data, scale=scale, offset=offset)):
        expected = coremltools_says("constexpr_blockwise_shift_scale", arguments, "iOS18")
        check("constexpr_blockwise_shift_scale", arguments, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 1, 5)])
def test_palettes_of_ios16_as_coremltools_decompresses(bits, shape):
    from coremltools.optimize._utils import pack_elements_into_bits

    indices = RNG.integers(0, 2**bits, np.prod(shape)).astype(np.uint8)
    lut = RNG.normal(size=2**bits).astype(np.float32)
    arguments = dict(indices=pack_elements_into_bits(indices, bits), lut=lut, shape=np.array(shape, np.uint32))
    check("constexpr_lut_to_dense", arguments, coremltools_says("constexpr_lut_to_dense", arguments, "iOS16"))
    check("constexpr_lut_to_dense", arguments, [lut[indices].reshape(shape)])


@pytest.mark.parametrize("blocks", [(1, 1), (2, 1), (1, 3), (4, 6)])
@pytest.mark.parametrize(("vector", "axis"), [(1, None), (3, 0), (3, 1), (2, -1)])
def test_palettes_of_ios18_as_coremltools_decompresses(blocks, vector, axis):
    """Tables for blocks of the weights, and of vectors."""
    from coremltools.optimize._utils import lut_to_dense

    indices = RNG.integers(0, 16, (4, 6)).astype(np.uint8)
    lut = RNG.normal(size=(*blocks, 16, vector)).astype(np.float32)
    expected = lut_to_dense(indices, lut, axis if axis is None else axis % 2)
    check("constexpr_lut_to_dense", dict(indices=indices, lut=lut, vector_axis=axis), [expected])


def test_weights_that_are_only_cast():
    check("constexpr_cast", dict(source_val=X, output_dtype="fp32"), [X])
