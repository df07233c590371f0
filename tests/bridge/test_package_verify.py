"""The proof of a package: it passes what is right, catches what is wrong and says where, and refuses what does not
belong together. Small networks on eight clips."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
from unittest import mock

import coremltools
import numpy as np
import pytest
from random_models import HEAR_STROKES, drawn_model, mn
from small_sousa import flac, rows, write_hub
from torch import nn

from bridge import listeners, mil, to_coreml, to_torch, verify
from bridge.comparison import Comparison, Limits
from bridge.listeners import Heard
from sousa_jax import checkpoint, step
from sousa_jax.rudiments import SLUGS

SPEC = pathlib.Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = pathlib.Path("Data/com.apple.CoreML/weights/weight.bin")
N_CLIPS = 8


def make_run(folder, model, data, seed=0):
    """What a training run leaves of a model, as far as conversion and proof read it."""
    checkpoint.save_model(folder, model)
    config = {
        "seed": seed,
        "data": {"path": str(data), "revision": "", "streaming": False, "cache_dir": "", "exclude": []},
        "eval": {"batch_size": 4},
    }
    config["data"] |= {"max_bad_fraction": 0.0, "workers": 1}
    scores = dict.fromkeys(("balanced_accuracy", "top1", "top5", "macro_f1", "calibration_error"), 0.5)
    (folder / "results").mkdir()
    checkpoint.write_json(folder / "config.json", {"config": config, "seed": seed, "git_commit": None})
    checkpoint.write_json(folder / "results" / "test_metrics.json", {"split": "test", "n_clips": N_CLIPS, **scores})
    return folder


def make_package(run, path, precision="fp32", output="probabilities", *more):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        to_coreml.main([f"--workdir={run}", f"--out={path}", f"--precision={precision}", f"--output={output}", *more])
    return path


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Each proof compiles the network anew, which takes longer than the proof."""
    with mock.patch.object(step, "make_eval_step", functools.cache(step.make_eval_step)):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Noise at the network's own rate: what is resampled has silent bins, whose logarithm magnifies every rounding."""
    clips = rows("test", N_CLIPS // 2)
    for i, row in enumerate(clips):
        row["audio"]["bytes"] = flac(i, seconds=0.3, rate=32_000)
    return write_hub(tmp_path_factory.mktemp("data") / "hub", {"test": [clips]})


def tame(seed=0, **changes):
    """A random network whose logits, as those of trained ones, are of the order of one; they would be of some tens."""
    model = drawn_model("efficientat", mn("mn01", **changes), seed)
    last = "rhythm.output.kernel" if changes else "head.output.kernel"
    return dataclasses.replace(model, params={**model.params, last: model.params[last] * np.float32(0.03)})


@pytest.fixture(scope="module")
def model():
    return tame()


@pytest.fixture(scope="module")
def run(model, data, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", model, data)


@pytest.fixture(scope="module")
def packages(run, tmp_path_factory):
    """`packages(precision, output)`: a package of the run, each made once. Not to be changed."""

    folder = tmp_path_factory.mktemp("packages")

    def package(precision="fp32", output="probabilities"):
        path = folder / f"{precision}_{output}.mlpackage"
        return path if path.exists() else make_package(run, path, precision, output)

    return package


def prove(capsys, package, run, *more):
    """`(exit code, standard output, standard error)` of the program."""
    with pytest.raises(SystemExit) as stopped:
        verify.main([f"--package={package}", f"--workdir={run}", *more])
    return stopped.value.code, *capsys.readouterr()


def changed(package, folder, edit):
    """A copy of a package whose specification and weights `edit(spec, operations, weights)` changed."""
    out = folder / package.name
    shutil.copytree(package, out)
    spec = coremltools.proto.Model_pb2.Model()
    spec.ParseFromString((out / SPEC).read_bytes())
    (function,) = spec.mlProgram.functions.values()
    weights = np.frombuffer((out / WEIGHTS).read_bytes(), np.uint8).copy()
    edit(spec, function.block_specializations[function.opset].operations, weights)
    (out / SPEC).write_bytes(spec.SerializeToString())
    (out / WEIGHTS).write_bytes(weights.tobytes())
    return out


def stored(operations, weights):
    """The constants in `weight.bin` by name: views of the file's bytes."""
    found = {}
    kinds = {10: np.float16, 11: np.float32}
    for operation in operations:
        value = operation.attributes["val"] if operation.type == "const" else None
        if value is None or not value.HasField("blobFileValue") or value.type.tensorType.dataType not in kinds:
            continue
        start = int(weights[value.blobFileValue.offset :][16:24].view(np.uint64)[0])
        size = int(weights[value.blobFileValue.offset :][8:16].view(np.uint64)[0])
        found[operation.outputs[0].name] = weights[start : start + size].view(kinds[value.type.tensorType.dataType])
    return found


# --------------------------------------------------------------------------------------------------------- it passes


@pytest.mark.parametrize(
    ("precision", "output"),
    [("fp32", "probabilities"), ("fp16", "probabilities"), pytest.param("fp32", "logits", marks=pytest.mark.slow)],
)
def test_a_good_package_passes_and_leaves_a_file(capsys, packages, run, tmp_path, precision, output):
    package = shutil.copytree(packages(precision, output), tmp_path / "x.mlpackage")
    code, out, _ = prove(capsys, package, run)
    assert code == 0, out
    assert "PASSED" in out
    assert "not run: needs macOS" in out
    assert f"only {N_CLIPS} clips" in out
    report = json.loads((tmp_path / "verification.json").read_text())
    assert report["passed"]
    assert report["kind"] == precision
    assert report["problems"] == []
    assert report["core_ml"] == "not run: needs macOS"
    compared = {row["compared"]: row for row in report["comparisons"]}
    assert len(compared) == (2 if precision == "fp32" else 3)
    row = compared["PyTorch and package"]
    assert row["n_clips"] == N_CLIPS
    assert row["top1_agreement"] == 1.0
    assert 0 < row["logits"]["mean_abs_error"] <= row["logits"]["max_abs_error"]
    assert (row["logits"]["max_abs_error"] <= 1e-4) == (precision == "fp32")
    assert row["log_mel_max_abs_error"] < 1e-4  # in half precision, too


@pytest.mark.slow
def test_a_network_that_hears_strokes(capsys, data, tmp_path):
    """Its stroke probabilities are compared as well."""
    run = make_run(tmp_path / "run", tame(**HEAR_STROKES), data)
    package = make_package(run, tmp_path / "x.mlpackage")
    code, out, _ = prove(capsys, package, run)
    assert code == 0, out
    of_flax, of_package = json.loads((tmp_path / "verification.json").read_text())["comparisons"]
    assert 0 < of_flax["strokes_max_abs_error"] < 1e-3
    assert 0 < of_package["strokes_max_abs_error"] < 1e-4


# -------------------------------------------------------------------------------------------------------- it catches


@pytest.mark.parametrize("depth", [0.0, 0.4, 0.9])
def test_a_corrupted_weight_is_caught_and_found(capsys, packages, model, run, tmp_path, depth):
    """One weight of one layer: the program says where it went wrong. And that the file is not what was written."""
    layers = [name for name, layer in to_torch.listener(model).named_modules() if isinstance(layer, nn.Conv2d)]
    of_blocks = [name for name in layers if "block" in name and "se_layers" not in name]
    layer = of_blocks[int(depth * len(of_blocks))]

    def edit(spec, operations, weights):
        convolutions = [operation for operation in operations if operation.type == "conv"]  # in the twin's order
        assert len(convolutions) == len(layers)
        name = convolutions[layers.index(layer)].inputs["weight"].arguments[0].name
        kernel = stored(operations, weights)[name]
        kernel[kernel.size // 2] += 10.0

    package = changed(packages(), tmp_path, edit)
    code, out, _ = prove(capsys, package, run)
    assert code == 1
    assert "FAILED: weights: they are not those that were written" in out
    assert "PyTorch and package: a logit differs by" in out
    where = json.loads((tmp_path / "verification.json").read_text())["where"]
    assert f"from {layer.rpartition('.')[0]}." in where  # convolution, norm and activation are one in the program


@pytest.mark.slow
def test_no_weights_can_change_by_a_tenth_unseen(packages, model, run):
    """Each array of weights in turn, by the largest error of the logits of two windows."""
    program = mil.read(packages())
    hear = listeners.twin(to_torch.listener(model))
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.normal(size=(2, model.config.frontend.window_samples)).astype(np.float32)
    expected = [hear(x) for x in samples]
    unseen = []
    for i, operation in enumerate(program.operations):
        value = operation.arguments.get("val")
        if operation.kind != "const" or not isinstance(value, np.ndarray) or value.dtype != np.float32:
            continue
        operations = list(program.operations)
        operations[i] = operation._replace(arguments={"val": value * np.float32(1.1)})
        comparison = Comparison("", verify.PACKAGE_LIMITS["fp32"])
        ours = listeners.evaluated(program._replace(operations=operations), temperature=model.temperature)
        for x, theirs in zip(samples, expected, strict=True):
            comparison.add(theirs, ours(x))
        if not comparison.problems():
            unseen.append(operation.results[0].name)
    assert unseen == []


def test_other_weights_of_a_run_with_the_same_config_are_caught(capsys, packages, data, tmp_path):
    """Refused by what the package notes; were that forged, by what it answers."""
    model = tame(seed=1)
    other = make_run(tmp_path / "other", model, data)
    package = shutil.copytree(packages("fp16"), tmp_path / "x.mlpackage")
    assert "was made of other arrays than" in refused(capsys, package, other)

    def forge(spec, operations, weights):
        spec.description.metadata.userDefined["networkSha256"] = checkpoint.digest(model)

    code, out, _ = prove(capsys, changed(packages("fp16"), tmp_path / "forged", forge), other)
    assert code == 1
    assert "get the same name" in out


@pytest.mark.slow
def test_a_package_for_longer_windows_than_the_run_was_trained_on(capsys, run, tmp_path):
    """All of them hear windows of the package's length."""
    package = make_package(run, tmp_path / "x.mlpackage", "fp32", "probabilities", "--window=0.96")
    code, out, _ = prove(capsys, package, run)
    assert code == 0, out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_swapped_labels_are_caught(capsys, packages, run, tmp_path, precision):
    def edit(spec, operations, weights):
        (classify,) = (operation for operation in operations if operation.type == "classify")
        names = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
        pair = [names[i].immediateValue.tensor.strings for i in (3, 7)]
        pair[0].values[0], pair[1].values[0] = pair[1].values[0], pair[0].values[0]

    code, out, _ = prove(capsys, changed(packages(precision), tmp_path, edit), run)
    assert code == 1
    assert f"labels: class 3 is called {SLUGS[7]!r}, it is {SLUGS[3]!r}" in out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_changed_mel_constant_is_caught(capsys, packages, run, tmp_path, precision):
    """One weight of the mel bank. In half precision the names may all stay the same; the spectrogram does not."""

    def edit(spec, operations, weights):
        bank, _ = (array for name, array in stored(operations, weights).items() if "bank" in name)
        bank[bank.argmax()] *= 1.05

    code, out, _ = prove(capsys, changed(packages(precision), tmp_path, edit), run)
    assert code == 1
    assert "PyTorch and package: the spectrogram differs by" in out
    assert ("from frontend on they differ" in out) == (precision == "fp32")


def test_another_offset_of_the_logarithm_is_caught(capsys, packages, run, tmp_path):
    def edit(spec, operations, weights):
        for operation in operations:
            floats = operation.attributes["val"].immediateValue.tensor.floats if operation.type == "const" else None
            if floats and len(floats.values) == 1 and abs(floats.values[0] - 1e-5) < 1e-7:
                floats.values[0] = 2e-3

    code, out, _ = prove(capsys, changed(packages("fp16"), tmp_path, edit), run)
    assert code == 1
    assert "the spectrogram differs by" in out


def test_another_temperature_is_caught(capsys, packages, run, tmp_path):
    """The names are the same, the confidence is not."""
    other = shutil.copytree(run, tmp_path / "run")
    checkpoint.keep_temperature(other, 1.0)
    package = shutil.copytree(packages("fp16"), tmp_path / "x.mlpackage")
    code, out, _ = prove(capsys, package, other)
    assert code == 1
    assert "the highest probability differs by" in out


# -------------------------------------------------------------------------------------------------------- it refuses


def refused(capsys, package, run, *more):
    code, out, err = prove(capsys, package, run, *more)
    assert code == 2, out
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_missing_inputs_are_refused(capsys, packages, run, tmp_path):
    assert "does not exist" in refused(capsys, tmp_path / "none.mlpackage", run)
    package = shutil.copytree(packages(), tmp_path / "x.mlpackage")
    assert "no config.json" in refused(capsys, package, tmp_path)
    assert "nowhere" in refused(capsys, package, run, f"--data={tmp_path / 'nowhere'}")
    assert "validation" in refused(capsys, package, run, "--split=validation")
    assert not (tmp_path / "verification.json").exists()


def test_a_verification_is_not_overwritten_unasked(capsys, packages, run, tmp_path):
    package = shutil.copytree(packages(), tmp_path / "x.mlpackage")
    (tmp_path / "verification.json").write_text("mine")
    assert "--overwrite" in refused(capsys, package, run)
    assert (tmp_path / "verification.json").read_text() == "mine"
    assert prove(capsys, package, run, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "verification.json").read_text())["passed"]


def test_another_sample_rate_is_refused(capsys, packages, run, tmp_path):
    def edit(spec, operations, weights):
        spec.description.metadata.userDefined["sampleRate"] = "16000"

    assert "16000 Hz" in refused(capsys, changed(packages(), tmp_path, edit), run)


def test_other_classes_are_refused(capsys, packages, run, tmp_path):
    def edit(spec, operations, weights):
        (classify,) = (operation for operation in operations if operation.type == "classify")
        names = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
        names[0].immediateValue.tensor.strings.values[0] = "humppa"

    assert "humppa" in refused(capsys, changed(packages(), tmp_path, edit), run)


def test_a_package_of_another_run_is_refused(capsys, packages, model, data, tmp_path):
    other = make_run(tmp_path / "other", model, data, seed=1)
    package = shutil.copytree(packages(), tmp_path / "x.mlpackage")
    assert "whose config is not that of" in refused(capsys, package, other)


def test_a_package_that_says_nothing_of_itself_is_refused(capsys, packages, run, tmp_path):
    def edit(spec, operations, weights):
        spec.description.metadata.userDefined.clear()

    assert "does not note its sampleRate" in refused(capsys, changed(packages(), tmp_path, edit), run)


def test_windows_of_another_length_than_noted_are_refused(capsys, packages, run, tmp_path):
    def edit(spec, operations, weights):
        spec.description.metadata.userDefined["windowSeconds"] = "0.96"

    assert "its windows should be" in refused(capsys, changed(packages(), tmp_path, edit), run)


# ------------------------------------------------------------------------------------------------------ what is counted


def heard(*logits, **more):
    return Heard(np.array(logits, np.float32), **more)


ANY = Limits(error=None, agreement=0.0, confidence=np.inf)


def test_errors_and_agreement_by_hand():
    comparison = Comparison("a and b", Limits(error=0.3, agreement=0.6, confidence=np.inf))
    comparison.add(heard(1.0, 2.0), heard(1.25, 2.0))
    comparison.add(heard(1.0, 0.0), heard(1.0, 1.5))
    found = comparison.to_json()
    assert found["logits"] == {"max_abs_error": 1.5, "mean_abs_error": pytest.approx((0.125 + 0.75) / 2)}
    assert found["top1_agreement"] == 0.5
    assert found["problems"] == [
        "a logit differs by 1.5, allowed is 0.3",
        "50.00% of the clips get the same name, at least 60.0%",
    ]


def test_strokes_are_judged_as_logits_are():
    comparison = Comparison("", Limits(error=0.1, agreement=0.0, confidence=np.inf))
    for shift in (0.05, -0.2, 0.1):
        strokes = np.full((4, 3), 0.5, np.float32)
        comparison.add(heard(1.0, strokes=strokes), heard(1.0, strokes=strokes + np.float32(shift)))
    assert comparison.to_json()["strokes_max_abs_error"] == pytest.approx(0.2)
    assert comparison.problems() == ["a stroke probability differs by 0.2, allowed is 0.1"]


def test_a_label_counts_as_the_name():
    """Not the highest logit, which a wrong list of labels would hide."""
    comparison = Comparison("", ANY)
    comparison.add(heard(1.0, 2.0), heard(1.0, 2.0, label=SLUGS[1]))
    assert comparison.agreement == 1
    comparison.add(heard(1.0, 2.0), heard(1.0, 2.0, label=SLUGS[0]))
    assert comparison.agreement == 0.5


@pytest.mark.parametrize("clip", [0, 1])
def test_what_is_not_a_number_is_within_no_limit(clip):
    """Whenever it comes."""
    for limits in (Limits(1.0, 0.0, np.inf), Limits(None, 0.0, 1.0)):
        comparison = Comparison("", limits)
        for i in range(2):
            comparison.add(heard(1.0, 2.0), heard(1.0, np.nan if i == clip else 2.0))
        assert "differs by nan" in comparison.problems()[0]


def test_confidence_is_that_of_the_divided_logits():
    comparison = Comparison("", Limits(None, 0.0, 0.1), temperature=2.0)
    comparison.add(heard(0.0, 4.0), heard(0.0, 2.0))
    expected = 1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(-1))
    assert comparison.to_json()["mean_confidence_error"] == pytest.approx(expected)
    assert len(comparison.problems()) == 1


# ------------------------------------------------------------------------------------------------------------ Core ML


class FakeCoreML:
    """In place of Core ML, which needs macOS: answers as the program says, in its form."""

    def __init__(self, package):
        self._program = mil.read(package)
        self._spec = coremltools.utils.load_spec(package)

    def get_spec(self):
        return self._spec

    def predict(self, inputs):
        found = mil.Evaluator(self._program)(inputs)
        (of_all,) = (value for value in found.values() if isinstance(value, dict))
        (label,) = (value for value in found.values() if isinstance(value, str))
        described = self._spec.description
        return {described.predictedFeatureName: label, described.predictedProbabilitiesName: of_all}


def test_where_core_ml_is_at_hand_it_is_compared(capsys, packages, run, tmp_path, monkeypatch):
    """Its probabilities are turned into logits again."""
    monkeypatch.setattr(listeners, "has_core_ml", lambda: True)
    monkeypatch.setattr(coremltools.models, "MLModel", FakeCoreML)
    package = shutil.copytree(packages(), tmp_path / "x.mlpackage")
    code, out, _ = prove(capsys, package, run)
    assert code == 0, out
    report = json.loads((tmp_path / "verification.json").read_text())
    assert report["core_ml"] == "run"
    row = report["comparisons"][-1]
    assert row["compared"] == "package and Core ML"
    assert row["logits"]["max_abs_error"] < 1e-4
