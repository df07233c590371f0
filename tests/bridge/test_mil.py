"""The interpreter on packages that coremltools wrote: what is read is what was stored, what is computed is what torch
computes, half precision is rounded where the program says so, and what is not understood is refused."""

import pathlib
import shutil

import coremltools
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bridge import mil
from bridge.mil_values import Blobs, unpack_bits
from sousa_jax.errors import InputError

WEIGHTS = pathlib.Path("Data/com.apple.CoreML/weights/weight.bin")
SPEC = pathlib.Path("Data/com.apple.CoreML/model.mlmodel")


class Small(nn.Module):
    """What a student is made of, on 256 samples: strided frames, logarithm, convolutions of all kinds, gates, norms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frames = nn.Conv1d(1, 12, 16, stride=4, bias=False)
        self.wide = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16, eps=1e-3)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=(2, 1), dilation=(2, 1), groups=16)
        self.gate, self.layer_norm, self.output = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 40)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, samples):
        x = nn.functional.pad(samples[None, None], (6, 6), mode="reflect")
        x = torch.log(self.frames(x) ** 2 + 1e-5)[:, None]  # (1, 1, 12, T)
        x = nn.functional.hardswish(self.norm(self.wide(x)))
        x = x + torch.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = torch.repeat_interleave(x.mean(2), 2, dim=2)[:, :, :30].swapaxes(1, 2)  # (1, T, 16)
        x = nn.functional.gelu(self.layer_norm(x))
        x = torch.where(x > 0.1, x, 0.0).cumsum(1)
        return self.output(torch.logsumexp(x, 1) / 30)


def convert(module, path, *, precision="fp16", target="iOS17", n=256, labels=None):
    """Traces a module that takes `(n,)` samples, and writes the package."""
    traced = torch.jit.trace(module.eval(), torch.rand(n))
    package = coremltools.convert(
        traced,
        inputs=[coremltools.TensorType("samples", (n,), np.float32)],
        outputs=[coremltools.TensorType("logits", dtype=np.float32)],
        classifier_config=coremltools.ClassifierConfig(labels) if labels else None,
        compute_precision=coremltools.precision.FLOAT16 if precision == "fp16" else coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target[target],
        skip_model_load=True,
    )
    package.save(str(path))
    return path


@pytest.fixture(scope="module")
def small():
    return Small().eval()


@pytest.fixture(scope="module")
def packages(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    return {p: convert(small, folder / f"{p}.mlpackage", precision=p) for p in ("fp16", "fp32")}


@pytest.fixture
def samples():
    return torch.from_numpy(np.random.default_rng(1).normal(size=256).astype(np.float32))


def outputs_of(path, samples, **settings_):
    (found,) = mil.Evaluator(mil.read(path), **settings_)({"samples": samples.numpy()}).values()
    return found


@torch.no_grad()
def test_a_program_in_float32_is_what_torch_computes(small, packages, samples):
    expected = small(samples).numpy()
    np.testing.assert_allclose(outputs_of(packages["fp32"], samples), expected, atol=2e-6)


@torch.no_grad()
def test_a_program_in_half_precision_is_near_and_not_the_same(small, packages, samples):
    expected = small(samples).numpy()
    found = outputs_of(packages["fp16"], samples)
    error = np.abs(found - expected).max()
    assert 1e-5 < error < 0.02 * expected.std()


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
@torch.no_grad()
def test_programs_for_other_systems(small, samples, target, tmp_path):
    """The same operations of older and newer opsets."""
    path = convert(small, tmp_path / "x.mlpackage", precision="fp32", target=target)
    np.testing.assert_allclose(outputs_of(path, samples), small(samples).numpy(), atol=2e-6)


# ------------------------------------------------------------------------------------------------------ half precision


class Powers(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x):
        return (x * self.factor) * 2.0


def halves(path, x, **settings_):
    return outputs_of(path, torch.as_tensor(x, dtype=torch.float32), **settings_)


def test_results_are_rounded_to_the_nearest_half(tmp_path):
    """Ties to even; what is too large is infinite; the digits of a float32 are gone, in inputs and constants too."""
    path = convert(Powers([1.0, 1.0, 1.0, 3.0001]), tmp_path / "x.mlpackage", n=4)
    x = [1 + 2**-11, 1 + 3 * 2**-11, 40_000.0, 1.0]
    np.testing.assert_array_equal(halves(path, x), [2.0, 2 * (1 + 2**-9), np.inf, 6.0])


def test_every_operation_is_rounded_not_only_the_last(tmp_path):
    """1/3 · 3 in halves is not 1 + anything that float32 would have kept; 2¹⁵ · 2 · ½ is lost on the way."""

    class Detour(nn.Module):
        def forward(self, x):
            return torch.sin(x * 4.0) * 0.25  # neither factor can be folded into the other

    path = convert(Detour(), tmp_path / "x.mlpackage", n=4)
    x = np.array([0.1, 0.2, 0.3, 0.7], np.float32)
    half = lambda y: np.float16(y).astype(np.float32)  # noqa: E731
    expected = half(half(np.sin(half(half(x) * 4))) * np.float32(0.25))
    np.testing.assert_array_equal(halves(path, x), expected)
    assert (expected != np.float16(np.sin(x * 4) * 0.25)).any()


def test_subnormal_halves_are_kept_or_flushed(tmp_path):
    """Below 2⁻¹⁴ a half has fewer digits, and on some hardware none: in constants, inputs and results."""
    path = convert(Powers([1.0, 1.0, 2**-15, 1.0]), tmp_path / "x.mlpackage", n=4)
    x = [2**-14, 2**-16, 1.0, -(2**-15)]
    np.testing.assert_array_equal(halves(path, x), [2**-13, 2**-15, 2**-14, -(2**-14)])
    np.testing.assert_array_equal(halves(path, x, flush_subnormals=True), [2**-13, 0, 0, 0])


# ------------------------------------------------------------------------------------------------- compressed weights


def linear_quantized(path, out, **settings_):
    import coremltools.optimize.coreml as compress

    config = compress.OptimizationConfig(global_config=compress.OpLinearQuantizerConfig(**settings_))
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    compress.linear_quantize_weights(model, config).save(str(out))
    return out


def palettized(path, out, **settings_):
    import coremltools.optimize.coreml as compress

    config = compress.OptimizationConfig(global_config=compress.OpPalettizerConfig(mode="uniform", **settings_))
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    compress.palettize_weights(model, config).save(str(out))
    return out


COMPRESSIONS = [
    ("iOS17", linear_quantized, dict(mode="linear_symmetric", weight_threshold=0)),
    ("iOS17", linear_quantized, dict(mode="linear", dtype="uint8", weight_threshold=0)),
    ("iOS17", palettized, dict(nbits=6, weight_threshold=0)),
    ("iOS17", palettized, dict(nbits=4, weight_threshold=0)),
    ("iOS18", linear_quantized, dict(mode="linear_symmetric", weight_threshold=0)),
    ("iOS18", linear_quantized, dict(dtype="int4", granularity="per_block", block_size=4, weight_threshold=0)),
    ("iOS18", palettized, dict(nbits=4, granularity="per_grouped_channel", group_size=4, weight_threshold=0)),
    ("iOS18", palettized, dict(nbits=3, weight_threshold=0)),
]


class Layers(nn.Module):
    """Weights to compress."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(1, 16, 3), nn.Linear(16, 40)

    def forward(self, samples):
        return self.linear(torch.relu(self.conv(samples.reshape(1, 1, 16, 16))).mean((2, 3)))


@pytest.mark.slow  # all of them together
@pytest.mark.parametrize(("target", "compress", "settings_"), COMPRESSIONS)
def test_compressed_weights_are_those_that_coremltools_decompresses(samples, tmp_path, target, compress, settings_):
    """Every kind of compression: the program evaluated with its small weights, and with those that coremltools made
    dense again, is the same to the last bit; and it is not the program from before."""
    import coremltools.optimize.coreml as optimize

    plain = convert(Layers(), tmp_path / "plain.mlpackage", target=target)
    packed = compress(plain, tmp_path / "packed.mlpackage", **settings_)
    kinds = {operation.kind for operation in mil.read(packed).operations}
    assert any(kind.startswith("constexpr_") for kind in kinds)
    dense = optimize.decompress_weights(coremltools.models.MLModel(str(packed), skip_model_load=True))
    dense.save(str(tmp_path / "dense.mlpackage"))
    found = outputs_of(packed, samples)
    np.testing.assert_array_equal(found, outputs_of(tmp_path / "dense.mlpackage", samples))
    assert np.abs(found - outputs_of(plain, samples)).max() > 0


# ------------------------------------------------------------------------------------------------------------ reading


def test_blobs_are_what_coremltools_reads(packages):
    """Each weight of the file, by its record's offset."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    spec = coremltools.utils.load_spec(str(packages["fp32"]))
    (function,) = spec.mlProgram.functions.values()
    reader = _BlobStorageReader(str(packages["fp32"] / WEIGHTS))
    stored = {
        operation.outputs[0].name: operation.attributes["val"].blobFileValue.offset
        for operation in function.block_specializations[function.opset].operations
        if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue")
    }
    assert len(stored) > 3
    ours = {o.results[0].name: o.arguments["val"] for o in mil.read(packages["fp32"]).operations if o.kind == "const"}
    for name, offset in stored.items():
        np.testing.assert_array_equal(ours[name].ravel(), reader.read_float_data(offset))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_packed_bits_are_what_coremltools_unpacks(bits, count, signed, seed):
    from coremltools.optimize._utils import pack_elements_into_bits

    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    numbers = np.random.default_rng(seed).integers(low, high, count).astype(np.int8 if signed else np.uint8)
    packed = pack_elements_into_bits(numbers, bits)
    np.testing.assert_array_equal(unpack_bits(packed.tobytes(), bits, count, signed=signed), numbers)


def test_a_classifier_gives_a_label_and_the_probability_of_each(samples, tmp_path):
    class Classifier(Small):
        def forward(self, samples):
            return torch.softmax(super().forward(samples) * 3, -1)

    model, labels = Classifier().eval(), [f"rudiment {i}" for i in range(40)]
    program = mil.read(convert(model, tmp_path / "x.mlpackage", precision="fp32", labels=labels))
    assert program.labels == labels
    found = mil.Evaluator(program)({"samples": samples.numpy()})
    probabilities = next(value for value in found.values() if isinstance(value, dict))
    with torch.no_grad():
        expected = model(samples).numpy()[0]
    np.testing.assert_allclose([probabilities[label] for label in labels], expected, atol=1e-6)
    assert [value for value in found.values() if isinstance(value, str)] == [labels[expected.argmax()]]


def test_all_results_can_be_seen(packages, samples):
    """With their declared types, the last being what the program returns."""
    seen = []
    evaluator = mil.Evaluator(mil.read(packages["fp16"]))
    found = evaluator({"samples": samples.numpy()}, see=lambda result, value: seen.append((result, value)))
    assert all(result.type.fits(value.shape) for result, value in seen)
    np.testing.assert_array_equal(seen[-1][1], next(iter(found.values())))
    assert {result.type.data.name for result, _ in seen} == {"bool", "fp16", "fp32"}


# ----------------------------------------------------------------------------------------------------------- refusals


def edited(path, out, edit):
    """A copy of a package with another specification."""
    shutil.copytree(path, out)
    spec = coremltools.proto.Model_pb2.Model()
    spec.ParseFromString((out / SPEC).read_bytes())
    (function,) = spec.mlProgram.functions.values()
    edit(spec, function.block_specializations[function.opset])
    (out / SPEC).write_bytes(spec.SerializeToString())
    return out


def find(block, kind):
    return next(operation for operation in block.operations if operation.type == kind)


def test_an_unknown_operation_is_an_error_with_its_name(packages, tmp_path):
    def edit(spec, block):
        find(block, "cumsum").type = "made_up"

    program = mil.read(edited(packages["fp32"], tmp_path / "x.mlpackage", edit))
    with pytest.raises(InputError, match="made_up"):
        mil.Evaluator(program)


def test_a_result_that_is_not_as_declared_is_an_error(packages, samples, tmp_path):
    def edit(spec, block):
        find(block, "cumsum").outputs[0].type.tensorType.dimensions[1].constant.size = 29

    program = mil.read(edited(packages["fp32"], tmp_path / "x.mlpackage", edit))
    with pytest.raises(ValueError, match=r"cumsum .*gave \(1, 30, 16\), the program declares fp32\(1, 29, 16\)"):
        mil.Evaluator(program)({"samples": samples.numpy()})


def test_an_operation_that_fails_is_named(packages, samples, tmp_path):
    def edit(spec, block):
        find(block, "cumsum").inputs["surprise"].CopyFrom(find(block, "cumsum").inputs["x"])

    program = mil.read(edited(packages["fp32"], tmp_path / "x.mlpackage", edit))
    with pytest.raises(ValueError, match=r"cumsum .*cannot be evaluated.*surprise"):
        mil.Evaluator(program)({"samples": samples.numpy()})


def test_other_inputs_are_refused(packages, samples):
    evaluator = mil.Evaluator(mil.read(packages["fp32"]))
    with pytest.raises(InputError, match=r"takes \['samples'\], not \['audio'\]"):
        evaluator({"audio": samples.numpy()})
    with pytest.raises(InputError, match=r"fp32\(256\), not \(255,\)"):
        evaluator({"samples": samples.numpy()[1:]})


def test_what_is_no_package_is_refused(packages, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.mlpackage is no Core ML package"):
        mil.read(tmp_path / "nothing.mlpackage")
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(packages["fp32"], broken)
    (broken / SPEC).write_bytes((broken / SPEC).read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        mil.read(broken)


def test_a_model_of_the_old_kind_is_refused(packages, tmp_path):
    def edit(spec, block):
        spec.neuralNetwork.SetInParent()

    with pytest.raises(InputError, match="holds a neuralNetwork, expected an ML Program"):
        mil.read(edited(packages["fp32"], tmp_path / "x.mlpackage", edit))


def test_several_functions_are_refused(packages, tmp_path):
    def edit(spec, block):
        spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["main"])

    with pytest.raises(InputError, match=r"\['main', 'other'\]"):
        mil.read(edited(packages["fp32"], tmp_path / "x.mlpackage", edit))


def test_control_flow_is_refused(packages, tmp_path):
    def edit(spec, block):
        find(block, "cumsum").blocks.add()

    with pytest.raises(InputError, match="control flow"):
        mil.read(edited(packages["fp32"], tmp_path / "x.mlpackage", edit))


def test_weights_that_are_missing_or_cut_off_are_refused(packages, tmp_path):
    broken = tmp_path / "x.mlpackage"
    shutil.copytree(packages["fp32"], broken)
    whole = (broken / WEIGHTS).read_bytes()
    (broken / WEIGHTS).write_bytes(whole[:-500])
    with pytest.raises(InputError, match="cut off or damaged"):
        mil.read(broken)
    (broken / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"weight\.bin is missing"):
        mil.read(broken)


def test_a_record_that_is_none_is_refused(tmp_path):
    (tmp_path / "weight.bin").write_bytes(bytes(200))
    for offset in (0, 64, 190):
        with pytest.raises(InputError, match=f"no blob of 8 bytes at {offset}"):
            Blobs(tmp_path).read("weight.bin", offset, 8)
