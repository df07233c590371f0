"""The package keeps its promises: what goes in, what comes out, what it says of itself; and bad input is refused."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import coremltools as ct
import numpy as np
import pytest
from random_models import HEAR_STROKES, drawn_model, mn, small_strokes

from bridge import audit, to_coreml
from sousa_jax import checkpoint, models
from sousa_jax.errors import InputError
from sousa_jax.models.htsat import HTSATConfig
from sousa_jax.rudiments import SLUGS

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model():
    return drawn_model("efficientat", mn(window_s=1.0))


@pytest.fixture(scope="module")
def package(model):
    return to_coreml.convert(model)


def finished_run(folder, model, **settings):
    """A folder as training leaves it, as far as the bridge reads it."""
    checkpoint.save_model(folder, model)
    scores = dict.fromkeys(("balanced_accuracy", "top1", "top5", "macro_f1", "calibration_error"), 0.5)
    (folder / "results").mkdir()
    (folder / "results" / "test_metrics.json").write_text(json.dumps({"split": "test", "n_clips": 3, **scores}))
    record = {"config": {"data": {"path": "/home/me/sousa"}, **settings}, "seed": 0, "git_commit": "abc"}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def run(capsys, *flags):
    """`(exit code, stdout, stderr)` of the program."""
    code = 0
    try:
        to_coreml.main([str(flag) for flag in flags])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


# ----------------------------------------------------------------------------------------------------------- contract


def test_a_classifier_of_samples(package):
    """SoundAnalysis asks for one float32 input of rank 1, and a class label with a dictionary of probabilities."""
    description = package.get_spec().description
    (heard,) = description.input
    assert heard.name == "audioSamples"
    assert list(heard.type.multiArrayType.shape) == [32_000]
    assert heard.type.multiArrayType.dataType == ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert {output.name: output.type.WhichOneof("Type") for output in description.output} == {
        "classLabel": "stringType",
        "classLabel_probs": "dictionaryType",
    }
    assert description.predictedFeatureName == "classLabel"
    assert description.predictedProbabilitiesName == "classLabel_probs"
    (classify,) = (op for op in _main(package).operations if op.op_type == "classify")
    assert tuple(classify.classes.val) == SLUGS


def test_logits_and_strokes():
    package = to_coreml.convert(drawn_model("strokes", small_strokes()), output="logits", precision="fp32")
    outputs = {output.name: list(output.type.multiArrayType.shape) for output in package.get_spec().description.output}
    assert outputs == {"logits": [1, 40], "strokes": [4, 200]}


def test_a_classifier_that_hears_strokes():
    package = to_coreml.convert(drawn_model("efficientat", mn(window_s=1.0, **HEAR_STROKES)))
    assert {o.name for o in package.get_spec().description.output} == {"classLabel", "classLabel_probs", "strokes"}
    # The ear is in half precision, but all that looks into the past, and the time that it computes, in float32.
    operations = _main(package).operations
    assert {_dtype(op) for op in operations if op.op_type in ("log", "reverse", "pow", "avg_pool")} == {"fp32"}
    assert [_dtype(op) for op in operations if op.op_type == "upsample_nearest_neighbor"] == ["fp16"] * 4


def test_only_the_network_is_in_half_precision(package):
    operations = _main(package).operations
    assert {_dtype(op) for op in operations if op.op_type == "conv"} == {"fp16"}
    assert {_dtype(op) for op in operations if op.op_type in ("matmul", "log", "softmax", "pad")} == {"fp32"}


def test_the_temperature_is_inside(package, model):
    """Logits are multiplied by 1 / 1.7 before the softmax."""
    (softmax,) = (op for op in _main(package).operations if op.op_type == "softmax")
    assert softmax.x.op.op_type == "mul"
    assert softmax.x.op.y.val == pytest.approx(1 / model.temperature)


def _main(package):
    return package._mil_program.functions["main"]


def _dtype(op):
    return op.outputs[0].dtype.__name__


# ------------------------------------------------------------------------------------------------------- quantization


def test_8_bit_weights_spare_the_frontend(model):
    """int8 on convolutions alone: what the frontend multiplies with keeps its float32 constants."""
    small = _main(to_coreml.convert(model, weights="int8")).operations
    assert _compressed(small, "constexpr_affine_dequantize") == {"conv"}
    constants = [op.y for op in small if op.op_type == "matmul" and op.y.val is not None]
    assert {value.val.dtype for value in constants} == {np.dtype(np.float32)}


def test_a_palette_has_as_many_values_as_it_says(model):
    small = _main(to_coreml.convert(model, weights="palette4")).operations
    assert _compressed(small, "constexpr_lut_to_dense") == {"conv"}
    assert {op.lut.val.size for op in small if op.op_type == "constexpr_lut_to_dense"} == {16}


@pytest.mark.parametrize(
    ("weights", "kind"), [("int8", "constexpr_affine_dequantize"), ("palette6", "constexpr_lut_to_dense")]
)
def test_what_gives_strokes_is_made_small_with_its_classes(weights, kind):
    """coremltools 9.0 cannot compress such a package once it is made: it comes back without its classes."""
    package = to_coreml.convert(drawn_model("efficientat", mn(window_s=1.0, **HEAR_STROKES)), weights=weights)
    description = package.get_spec().description
    assert {o.name for o in description.output} == {"classLabel", "classLabel_probs", "strokes"}
    operations = _main(package).operations
    assert _compressed(operations, kind) == {"conv"}
    (classify,) = (op for op in operations if op.op_type == "classify")
    assert tuple(classify.classes.val) == SLUGS


def _compressed(operations, kind):
    """What kinds of operations read weights that are stored in that way."""
    return {child.op_type for op in operations if op.op_type == kind for child in op.outputs[0].child_ops}


# ---------------------------------------------------------------------------------------------------------- a program


def test_from_a_run_to_a_package(model, tmp_path, capsys):
    out = tmp_path / "deep" / "A.mlpackage"
    code, printed, err = run(capsys, f"--workdir={finished_run(tmp_path / 'run7', model)}", f"--out={out}")
    assert (code, "error" in err) == (0, False)
    assert [path.name for path in out.parent.iterdir()] == ["A.mlpackage"]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    assert f"{size:.1f} MB" in printed
    package = ct.models.MLModel(str(out), skip_model_load=True)
    says = package.user_defined_metadata
    assert (says["sampleRate"], says["windowSeconds"], says["temperature"]) == ("32000", "1", "1.7")
    assert says["classes"].split(",") == list(SLUGS)
    assert says["trainingRun"] == "run7"
    assert json.loads(says["metrics"])["balanced_accuracy"] == 0.5
    assert "/home" not in "".join(says.values())
    assert says["weightsSha256"] in printed
    assert (package.author, package.license) == ("The sousa_jax developers", "MIT")
    # Once more: refused, then replaced by another window; the hash is that of the file.
    again = [f"--workdir={tmp_path / 'run7'}", f"--out={out}"]
    code, _, err = run(capsys, *again)
    assert code == 2
    assert "already exists" in err
    code, printed, _ = run(capsys, *again, "--overwrite", "--window=0.5", "--output=logits")
    assert code == 0
    assert "16000 samples" in printed
    assert "conv" in audit.report(audit.operations(out))


def test_other_runs_are_refused(model, tmp_path, capsys):
    def message(folder, *flags):
        code, out, err = run(capsys, f"--workdir={folder}", f"--out={tmp_path / 'A.mlpackage'}", *flags)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert not (tmp_path / "A.mlpackage").exists()
        return err

    assert "is no run" in message(tmp_path / "nowhere")
    unfinished = finished_run(tmp_path / "unfinished", model)
    (unfinished / "results" / "test_metrics.json").unlink()
    assert "is not finished" in message(unfinished)
    hearing = finished_run(tmp_path / "hearing", model, strokes={"stage": "hearing"})
    assert "never learnt to name" in message(hearing)
    assert "between 0.5 and 60" in message(finished_run(tmp_path / "window", model), "--window=0.1")
    half = {path: array.astype(np.float16) for path, array in model.params.items()}
    assert "holds float16, float32, expected float32" in message(
        finished_run(tmp_path / "half", dataclasses.replace(model, params=half))
    )
    config = HTSATConfig(depths=(1, 1, 1, 1), embed_dim=16, heads=(1, 1, 1, 1))
    other = checkpoint.Model("htsat", config, *models.init("htsat", config), {})
    assert "no PyTorch twin of 'htsat'" in message(finished_run(tmp_path / "htsat", other))


def test_names_without_the_suffix_are_refused(tmp_path, capsys):
    code, _, err = run(capsys, f"--workdir={tmp_path}", f"--out={tmp_path / 'A'}")
    assert code == 2
    assert "should end in .mlpackage" in err


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(InputError, match="has 527 classes"):
        to_coreml.convert(drawn_model("efficientat", mn(num_classes=527)))


def test_too_large_packages_are_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(to_coreml, "LARGEST_MB", 0.1)
    with pytest.raises(InputError, match=r"the limit is 0\.1"):
        to_coreml._save(package, tmp_path / "A.mlpackage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["-m", "bridge.to_coreml"], [str(ROOT / "bridge" / "to_coreml.py")]])
def test_both_ways_to_start(command, tmp_path):
    """As a file also from another folder."""
    where = ROOT if command[0] == "-m" else tmp_path
    done = subprocess.run(
        [sys.executable, *command, "--workdir=x", "--out=y"], cwd=where, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --out=y should end in")
