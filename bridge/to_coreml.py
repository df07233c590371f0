"""Turns a finished run into a Core ML package for an iPhone.

    python bridge/to_coreml.py --workdir=RUN --out=RudimentClassifier.mlpackage
    python bridge/to_coreml.py --workdir=RUN --out=Small.mlpackage --quantize=int8
    python bridge/to_coreml.py --workdir=RUN --out=Eight.mlpackage --quantize=w8a8 --data=SOUSA
    python bridge/to_coreml.py --workdir=RUN --out=Logits.mlpackage --output=logits --precision=fp32

The run may have trained or distilled EfficientAT, with a plain head or with strokes, or the model `strokes`. The
package takes raw samples: the frontend lies inside it, in float32.

    in    audioSamples     (window · sample rate,) float32 in about [-1, 1], mono
    out   classLabel       the likeliest of the 40 slugs
          classLabel_probs slug → probability, calibrated by the run's temperature
          strokes          (4, T) float32, of networks that hear strokes: onset, velocity, grace, density, 0 … 1

With `--output=logits`, `logits` `(1, 40)` takes the place of the first two.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file: the packages lie beside its folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from sousa_jax import publish
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.rudiments import NUM_CLASSES, SLUGS

if TYPE_CHECKING:
    import coremltools as ct
    from torch import nn

    from sousa_jax.checkpoint import Model

INPUT, LABEL, PROBABILITIES, LOGITS, STROKES = "audioSamples", "classLabel", "probabilities", "logits", "strokes"
PRECISIONS, OUTPUTS, TARGETS = ("fp16", "fp32"), ("probabilities", "logits"), ("iOS16", "iOS17", "iOS18")
QUANTIZATIONS = ("none", "int8", "w8a8", "palette4", "palette6", "palette8")
# Parts of the network that half precision would spoil: see `bridge.mel` and `torch_strokes.RhythmHead`.
FLOAT32_PARTS = ("frontend", "rhythm")
LARGEST_MB = 50


def parser() -> argparse.ArgumentParser:
    """The arguments of `write`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a finished run's folder")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the package to write, NAME.mlpackage")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none", help="weights; w8a8: activations, too")
    parser.add_argument("--output", choices=OUTPUTS, default="probabilities")
    parser.add_argument("--window", type=float, help="seconds heard at a time, by default what the run was trained on")
    parser.add_argument("--target", choices=TARGETS, default="iOS17", help="the oldest system that has to run it")
    parser.add_argument("--data", help="clips that w8a8 is calibrated on, by default those that the run was trained on")
    parser.add_argument("--overwrite", action="store_true", help="replace a package that is there")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    quiet()
    with one_line_errors():
        write(args)


def quiet() -> None:
    """Leaves out coremltools' progress bars, and what it warns of on every Linux machine: it has no runtime there, and
    was not tested with this PyTorch, which our tests do. Before it is imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("coremltools").setLevel(logging.ERROR)


def write(args: argparse.Namespace) -> None:
    """Reads a run, converts it, and writes the package as a whole or not at all. `InputError` says what is wrong."""
    _check_out(args.out, args.overwrite)
    record, summary = publish.finished(args.workdir)
    if (stage := record["config"].get("strokes", {}).get("stage")) in ("hearing", "rhythm"):
        raise InputError(f"{args.workdir} is of stage {stage!r}: it never learnt to name what sounds; expected 'joint'")

    from bridge import quantize, to_torch  # late: errors in the arguments should not wait for JAX and PyTorch
    from sousa_jax import checkpoint

    model = checkpoint.load_model(args.workdir)
    digest = checkpoint.digest(model)
    if args.window is not None:
        model = _with_window(model, args.window)
    twin = to_torch.listener(model)
    if args.quantize == "w8a8":
        clips = quantize.calibration_clips(record, args.data, model.config.frontend)
        twin = quantize.with_8_bit_activations(twin, clips)
    package = convert(
        model, precision=args.precision, output=args.output, target=args.target, twin=twin, weights=args.quantize
    )
    describe(package, model, args, record, summary)
    package.user_defined_metadata["networkSha256"] = digest
    size_mb = _save(package, args.out)
    spec = model.config.frontend
    print(f"{args.out}  {size_mb:.1f} MB, {args.precision}, quantized: {args.quantize}")
    print(f"weights  sha256 {package.user_defined_metadata['weightsSha256']}")
    print(f"hears    {spec.window_s:g} s at {spec.sample_rate} Hz: {spec.window_samples} samples as {INPUT!r}")


def _check_out(out: pathlib.Path, overwrite: bool) -> None:
    if out.suffix != ".mlpackage":
        raise InputError(f"--out={out} should end in .mlpackage, by which Xcode knows what it is")
    if out.exists() and not overwrite:
        raise InputError(f"{out} already exists; choose another --out, or --overwrite to replace it")


def _with_window(model: "Model", window_s: float) -> "Model":
    if not 0.5 <= window_s <= 60:
        raise InputError(f"--window={window_s:g} should be between 0.5 and 60 seconds")
    return dataclasses.replace(model, config=model.config.for_window(window_s, "fill"))


def convert(
    model: "Model", *, precision: str = "fp16", output: str = "probabilities", target: str = "iOS17",
    twin: "nn.Module | None" = None, weights: str = "none",
) -> "ct.models.MLModel":  # fmt: skip
    """The Core ML program of a model, in memory.

    Args:
      model: one that bridge/ has a twin of, with 40 classes.
      precision: of weights and activations; `FLOAT32_PARTS` stay in float32.
      output: `probabilities`, a classifier of the 40 slugs, or `logits`.
      target: the oldest system that has to run it.
      twin: what to convert in place of `to_torch.listener(model)`, with the same inputs and outputs.
      weights: in how many bits they are stored, one of `QUANTIZATIONS`; see `quantize.packing`.

    Raises `InputError` for a model that cannot be converted.
    """
    import coremltools as ct
    import numpy as np
    import torch

    from bridge import quantize, to_torch

    if model.config.num_classes != NUM_CLASSES:
        raise InputError(f"the model has {model.config.num_classes} classes, expected the {NUM_CLASSES} rudiments")
    twin = to_torch.listener(model) if twin is None else twin
    n_samples = model.config.frontend.window_samples
    as_classes = output == "probabilities"
    names = [PROBABILITIES if as_classes else LOGITS, *([STROKES] if model.config.strokes_per_second else [])]
    with torch.no_grad():
        answer = _answer(twin, model.temperature if as_classes else None)
        traced = torch.jit.trace(answer, torch.zeros(n_samples), check_trace=False)
    system = {"minimum_deployment_target": getattr(ct.target, target)}
    program = ct.convert(
        traced,
        convert_to="milinternal",
        inputs=[ct.TensorType(INPUT, shape=(n_samples,), dtype=np.float32)],
        outputs=[ct.TensorType(name, dtype=np.float32) for name in names],
        compute_precision=_half_precision() if precision == "fp16" else ct.precision.FLOAT32,
        **system,
    )
    # Label and dictionary come in a second step: coremltools 9.0 gives a classifier's further outputs the wrong types.
    program.functions["main"].set_output_types(None)
    return ct.convert(
        program,
        convert_to="mlprogram",
        classifier_config=ct.ClassifierConfig(list(SLUGS), LABEL, PROBABILITIES) if as_classes else None,
        compute_precision=ct.precision.FLOAT32,  # as it is
        pass_pipeline=quantize.packing(weights),
        skip_model_load=True,
        **system,
    )


def _answer(twin: "nn.Module", temperature: float | None) -> "nn.Module":
    """The twin, whose logits become probabilities if there is a temperature. Its parts keep their names."""
    import torch

    class Answer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frontend, self.network = twin.frontend, twin.network

        def forward(self, samples):
            outputs = self.network(self.frontend(samples))
            logits, *strokes = outputs if isinstance(outputs, tuple) else (outputs,)
            if temperature is None:
                return (logits, *strokes) if strokes else logits
            probabilities = torch.softmax(logits * (1 / temperature), 1)
            return (probabilities, *strokes) if strokes else probabilities

    return Answer().eval()


def _half_precision() -> "ct.transform.FP16ComputePrecision":
    """Half precision for the network but for `FLOAT32_PARTS`; frontend, temperature and softmax are no part of it."""
    import coremltools as ct
    from coremltools.converters.mil.mil.scope import ScopeSource

    def is_half(op) -> bool:
        names = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME) or ()
        return "network" in names and not any(part in names for part in FLOAT32_PARTS)

    return ct.transform.FP16ComputePrecision(op_selector=is_half)


# ------------------------------------------------------------------------------------------------------ what it says


def describe(
    package: "ct.models.MLModel", model: "Model", args: argparse.Namespace, record: dict[str, Any],
    summary: dict[str, Any],
) -> None:  # fmt: skip
    """Fills in what Xcode and an app read: author, licence, version, and under `user_defined_metadata` what the package
    hears, where it comes from and how good it was. All values there are strings."""
    spec = model.config.frontend
    package.author = "The sousa_jax developers"
    package.license = "MIT"
    package.version = importlib.metadata.version("sousa-jax")
    package.short_description = (
        f"Names which of the {NUM_CLASSES} PAS snare rudiments is played for {spec.window_s:g} s."
    )
    package.input_description[INPUT] = (
        f"{spec.window_samples} mono samples at {spec.sample_rate} Hz in about -1 … 1; a shorter clip is repeated"
    )
    for name, text in _OUTPUT_DESCRIPTIONS.items():
        if name in package.output_description:
            package.output_description[name] = text
    scores = {key: summary[key] for key in ("balanced_accuracy", "top1", "top5", "macro_f1", "calibration_error")}
    package.user_defined_metadata.update(
        {
            "sampleRate": str(spec.sample_rate),
            "windowSeconds": f"{spec.window_s:g}",
            "lengthPolicy": spec.length_policy,
            "classes": ",".join(SLUGS),
            "temperature": str(model.temperature),
            "model": model.name,
            "precision": args.precision,
            "quantization": args.quantize,
            "trainingRun": args.workdir.resolve().name,
            "trainingConfig": json.dumps(publish.without_paths(record["config"])),
            "trainingCommit": str(record.get("git_commit") or ""),
            "metrics": json.dumps({"split": summary["split"], "n_clips": summary["n_clips"], **scores}),
            "weightsSha256": _weights_sha256(package),
        }
    )
    if STROKES in package.output_description:
        package.user_defined_metadata["strokesPerSecond"] = str(model.config.strokes_per_second)
        package.user_defined_metadata["strokeStreams"] = ",".join(FrameTargets._fields)


_OUTPUT_DESCRIPTIONS = {
    LABEL: "slug of the likeliest rudiment",
    f"{LABEL}_probs": "slug to calibrated probability",
    LOGITS: "in the order of the metadata's classes, before temperature and softmax",
    STROKES: "probabilities of onset, velocity, grace, density in each frame",
}


def _weights_sha256(package: "ct.models.MLModel") -> str:
    """Of the weights' file. The specification beside it is not the same each time."""
    return hashlib.sha256(pathlib.Path(package.weights_dir, "weight.bin").read_bytes()).hexdigest()


def _save(package: "ct.models.MLModel", out: pathlib.Path) -> float:
    """Writes the package under a temporary name and renames it; returns its size in MB."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        made = temporary / "new.mlpackage"
        package.save(str(made))
        size_mb = sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) / 1e6
        if size_mb >= LARGEST_MB:
            raise InputError(
                f"the package would have {size_mb:.0f} MB, the limit is {LARGEST_MB}; "
                "choose --precision=fp16, --quantize=int8 or a narrower network"
            )
        if out.exists():
            os.replace(out, temporary / "old")  # a folder cannot be renamed onto one that is not empty
        os.replace(made, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size_mb


if __name__ == "__main__":
    main()
