"""Proves a Core ML package against the run that it was made of, on any machine.

    python -m bridge.verify --package=X.mlpackage --workdir=RUN [--data=PATH] [--split=test]

The package is read back from disk and evaluated operation by operation (`bridge.mil`). The first window of each clip of
a split is heard by Flax, by the PyTorch twin, by the program evaluated (of half precision also with subnormals flushed)
and, on macOS, by Core ML itself. Prints what they differ by, writes `verification.json` beside the package; exit code 1
if a difference is beyond what is allowed, 2 if an input is unusable.

Without macOS this proves what the file says, not what a device makes of it (see `bridge.mil`).
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bridge import listeners
from bridge.comparison import Comparison, Limits
from sousa_jax import checkpoint, publish
from sousa_jax.data import open_split
from sousa_jax.data.pipeline import BadClips, eval_batches
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.rudiments import SLUGS

# What a package's metadata says of where it comes from.
NOTED = ("sampleRate", "windowSeconds", "trainingConfig", "networkSha256", "weightsSha256")
ENOUGH_CLIPS = 400  # for a share of agreement to mean something


# Of a package against PyTorch, by what its weights and results are stored as.
PACKAGE_LIMITS = {
    "fp32": Limits(error=1e-4, agreement=1.0, confidence=1e-5),
    "fp16": Limits(error=None, agreement=0.99, confidence=0.01),
    "compressed": Limits(error=None, agreement=0.98, confidence=0.05),
}
FLAX_LIMITS = Limits(error=1e-3, agreement=0.995, confidence=1e-3)
# A layer differs, to say where a difference begins, by more than that share of its standard deviation.
LAYER_LIMITS = {"fp32": 1e-3, "fp16": 0.1, "compressed": 0.5}
NEARLY = 0.5  # of a standard deviation: two results that are meant to be the same


def kind_of(program: Any) -> str:
    """Which of `PACKAGE_LIMITS` are its."""
    kinds = {operation.kind for operation in program.operations}
    if any(kind.startswith("constexpr_") or kind == "quantize" for kind in kinds):
        return "compressed"
    halves = any(r.type is not None and r.type.data.name == "fp16" for o in program.operations for r in o.results)
    return "fp16" if halves else "fp32"


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------


def model_of(program: Any, workdir: pathlib.Path, record: dict[str, Any]) -> checkpoint.Model:
    """The run's model, for windows as long as the package's.

    `InputError` if the package is of another run, sample rate or other classes.
    """
    missing = [key for key in NOTED if key not in program.metadata]
    if missing:
        raise InputError(f"the package does not note its {', '.join(missing)}; expected one of bridge.to_coreml")
    if json.loads(program.metadata["trainingConfig"]) != publish.without_paths(record["config"]):
        raise InputError(
            f"the package is of run {program.metadata.get('trainingRun')!r}, whose config is not that of {workdir}"
        )
    model = checkpoint.load_model(workdir)
    if program.metadata["networkSha256"] != checkpoint.digest(model):
        raise InputError(f"the package was made of other arrays than {workdir} now holds; convert it again")
    model = dataclasses.replace(model, config=model.config.for_window(float(program.metadata["windowSeconds"]), "fill"))
    spec = model.config.frontend
    if program.metadata["sampleRate"] != str(spec.sample_rate):
        rate = program.metadata["sampleRate"]
        raise InputError(f"the package is for {rate} Hz, the run's model hears {spec.sample_rate} Hz")
    shapes = [kind.shape for kind in program.inputs.values()]
    if shapes != [(spec.window_samples,)]:
        raise InputError(f"the package takes {shapes}, its windows should be [({spec.window_samples},)]")
    if program.labels and (unknown := sorted(set(program.labels) ^ set(SLUGS))):
        raise InputError(f"the package's classes are not the run's; only one of them has {', '.join(unknown[:5])}")
    return model


def package_problems(program: Any, weights: str) -> list[str]:
    """What is wrong with a package before anyone hears with it: other weights than its writer noted, classes in another
    order."""
    found = []
    if weights != program.metadata["weightsSha256"]:
        found.append("weights: they are not those that were written, their sha256 is another")
    for i, (label, slug) in enumerate(zip(program.labels, SLUGS, strict=False)):
        if label != slug:
            return [*found, f"labels: class {i} is called {label!r}, it is {slug!r}"]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Where a difference begins
# ---------------------------------------------------------------------------------------------------------------------


def log_mel_of(program: Any, samples: np.ndarray, expected: np.ndarray) -> str:
    """The program's result that is the spectrogram: the most like the twin's, of those of its size."""
    from bridge.mil import Evaluator

    errors: dict[str, float] = {}

    def see(result: Any, value: Any) -> None:
        if np.size(value) == expected.size:
            errors[result.name] = float(np.abs(np.ravel(value) - expected).max())

    (audio,) = program.inputs
    Evaluator(program)({audio: samples}, see)
    return min(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf), default="")


def first_difference(program: Any, module: Any, samples: np.ndarray, limit: float) -> str:
    """From which layer of the PyTorch twin on the program differs, `""` if that cannot be told.

    A layer is found again in the program by its values: the results of its size, of which one should be the same. Some
    are not there, because the converter made one of two; they are far from all results, as are those that differ much.
    So the difference begins at the first layer that is nearly found, or after the last one that is found.
    """
    import torch

    from bridge.mil import Evaluator

    results: dict[int, list[np.ndarray]] = {}
    (audio,) = program.inputs
    Evaluator(program)(
        {audio: samples}, lambda _, value: results.setdefault(np.size(value), []).append(np.ravel(value))
    )
    errors: dict[str, float] = {}  # by layer, in the order in which they are called

    def compare(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        value = output.numpy().ravel()
        found = [np.abs(other - value).max() for other in results.get(value.size, []) if other.dtype == value.dtype]
        errors[name] = float(np.nanmin([*found, np.inf])) / max(float(value.std()), 1e-12)

    leaves = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(functools.partial(compare, name)) for name, layer in leaves]
    try:
        with torch.no_grad():
            module(torch.from_numpy(samples))
    finally:
        for hook in hooks:
            hook.remove()
    layers = list(errors)
    agree = [i for i, name in enumerate(layers) if errors[name] <= limit]
    nearly = [i for i, name in enumerate(layers) if limit < errors[name] <= NEARLY]
    begins = min([*nearly, max(agree, default=-1) + 1])
    if begins == len(layers):
        return ""
    before = [layers[i] for i in agree if i < begins]
    return f"{f'layers up to {before[-1]} agree, ' if before else ''}from {layers[begins]} on they differ"


# ---------------------------------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """The first window of a clip, `(n_samples,)` float32, and the class id of what is played."""

    samples: np.ndarray
    label: int


def windows(config: ConfigDict, split: str, spec: Any) -> tuple[Any, Iterator[Window]]:
    """The clips of a split, and the first window of each."""
    clips = open_split(config.data, split, seed=config.seed, sample_rate=spec.sample_rate)
    bad = BadClips(clips, config.data.max_bad_fraction)
    batches = eval_batches(
        clips,
        batch_size=config.eval.batch_size,
        sample_rate=spec.sample_rate,
        window_s=spec.window_s,
        bad=bad,
        workers=config.data.workers,
    )
    return clips, (
        Window(batch["waveform"][row], int(batch["label"][row]))
        for batch in batches
        for row in np.flatnonzero(batch["mask"])
    )


def verify(
    package: pathlib.Path, workdir: pathlib.Path, data: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """Compares all of them on the clips of a split of `data`, by default of the run's own; the content of
    `verification.json`.

    `InputError` if the package cannot be read, is not the run's, or if there are no clips.
    """
    from bridge import mil, to_torch

    record, _ = publish.finished(workdir)
    program = mil.read(package)
    model = model_of(program, workdir, record)
    config = ConfigDict(record["config"])
    if data and data != config.data.path:
        config.data.path, config.data.revision = data, ""
    module, kind = to_torch.listener(model), kind_of(program)
    clips, heard_windows = windows(config, split, model.config.frontend)
    first = next(heard_windows, None)
    if first is None:
        raise InputError(f"{config.data.path} has no clips in its {split} split; choose another --data or --split")
    t, limits = model.temperature, PACKAGE_LIMITS[kind]
    twin = listeners.twin(module)
    read = functools.partial(
        listeners.evaluated,
        program,
        temperature=t,
        log_mel=log_mel_of(program, first.samples, twin(first.samples).log_mel),
    )
    heard_by = {"Flax": listeners.flax(model), "PyTorch": twin, "package": read()}
    pairs = [
        ("Flax", "PyTorch", Comparison("Flax and PyTorch", FLAX_LIMITS, t)),
        ("PyTorch", "package", Comparison("PyTorch and package", limits, t)),
    ]
    if kind != "fp32":
        heard_by["flushed"] = read(flush_subnormals=True)
        pairs.append(("PyTorch", "flushed", Comparison("PyTorch and package, subnormals flushed", limits, t)))
    if listeners.has_core_ml():
        heard_by["Core ML"] = listeners.core_ml(package, program.labels, temperature=t)
        comparison = Comparison("package and Core ML", limits, t, centred=bool(program.labels))
        pairs.append(("package", "Core ML", comparison))
    worst, worst_error = first.samples, -1.0
    for samples, _ in itertools.chain([first], heard_windows):
        heard = {name: hear(samples) for name, hear in heard_by.items()}
        for expected, found, comparison in pairs:
            comparison.add(heard[expected], heard[found])
        error = float(np.nan_to_num(np.abs(heard["package"].logits - heard["PyTorch"].logits).max(), nan=np.inf))
        worst, worst_error = (samples, error) if error > worst_error else (worst, worst_error)
    comparisons = [comparison for *_, comparison in pairs]
    weights = weights_sha256(package)
    problems = package_problems(program, weights)
    problems += [f"{comparison.name}: {problem}" for comparison in comparisons for problem in comparison.problems()]
    differs = any(problem.startswith("PyTorch and package") for problem in problems)
    return {
        "package": package.name,
        "weights_sha256": weights,
        "kind": kind,
        "metadata": program.metadata,
        "data": {"path": config.data.path, "split": split, "fingerprint": clips.fingerprint},
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "core_ml": "run" if listeners.has_core_ml() else "not run: needs macOS",
        "problems": problems,
        "where": first_difference(program, module, worst, LAYER_LIMITS[kind]) if differs else "",
        "passed": not problems,
    }


def weights_sha256(package: pathlib.Path) -> str:
    """Of the weights, whose bytes are the same whenever the same model is converted; the specification's are not."""
    return hashlib.sha256((package / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()).hexdigest()


def table(report: dict[str, Any]) -> str:
    """For people: a line for each comparison, what is allowed, and the verdict."""
    rows = [f"{'':42s}{'logits: max':>12s}{'mean':>10s}{'same name':>11s}{'log-mel':>10s}{'strokes':>10s}"]
    for row in report["comparisons"]:
        errors = (row["log_mel_max_abs_error"], row["strokes_max_abs_error"])
        cells = "".join(f"{'-' if error is None else f'{error:.1e}':>10s}" for error in errors)
        logits = row["logits"]
        rows.append(
            f"{row['compared']:42s}{logits['max_abs_error']:12.1e}{logits['mean_abs_error']:10.1e}"
            f"{row['top1_agreement']:11.2%}{cells}"
        )
        allowed = row["allowed"]
        error = "any" if allowed["error"] is None else f"{allowed['error']:.0e}"
        rows.append(f"{'  allowed':42s}{error:>12s}{'':10s}{allowed['agreement']:11.2%}{allowed['log_mel']:10.0e}")
    n_clips = report["comparisons"][0]["n_clips"]
    rows += [f"package and Core ML: {report['core_ml']}"] if report["core_ml"] != "run" else []
    rows += [f"only {n_clips} clips: shares of fewer than {ENOUGH_CLIPS} say little"] if n_clips < ENOUGH_CLIPS else []
    where = f"; {report['where']}" if report["where"] else ""
    verdict = "PASSED" if report["passed"] else f"FAILED: {'; '.join(report['problems'])}{where}"
    return "\n".join([*rows, f"{report['package']} ({report['kind']}), {n_clips} clips: {verdict}"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", required=True, type=pathlib.Path, help="the .mlpackage")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="the run that it was made of")
    parser.add_argument("--data", help="synth, a folder or a Hub id; by default the run's own data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--overwrite", action="store_true", help="replaces a verification.json that is there")
    args = parser.parse_args(argv)
    with one_line_errors():
        out = args.package.parent / "verification.json"
        if out.exists() and not args.overwrite:
            raise InputError(f"{out} already exists; --overwrite replaces it")
        if not args.package.exists():
            raise InputError(f"{args.package} does not exist; expected a .mlpackage that bridge.to_coreml wrote")
        report = verify(args.package, args.workdir, args.data, args.split)
        checkpoint.write_json(out, report)
        print(f"{table(report)}\nwritten to {out}")
        sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
