"""From a finished run to a package for an app, in one go: every variant made and heard, the smallest good one proven.

    python -m bridge.ship --workdir=RUN --out=DIR [--data=PATH] [--lose=1.0] [--variants=fp16,int8,w8a8] [--overwrite]

Each variant is read back from disk and evaluated (`bridge.mil`) on the first window of each test clip. Taken is the
smallest that loses at most `--lose` points of balanced accuracy against the PyTorch twin and stays within the limits of
`bridge.verify`, which then proves it against Flax. DIR appears when all is done:

    RudimentClassifier.mlpackage   the one that was taken
    verification.json              its proof
    golden.json                    a clip and its answer, for a phone to check the installation (`bridge.golden`)
    variants.md, variants.json     size, accuracy and agreement of all
    variants/                      the packages themselves
"""

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
from typing import NamedTuple

from ml_collections import ConfigDict

from bridge import to_coreml
from sousa_jax import publish
from sousa_jax.errors import InputError, nearest, one_line_errors

# Name to precision and quantization of `bridge.to_coreml`.
VARIANTS = {
    "fp32": ("fp32", "none"),
    "fp16": ("fp16", "none"),
    "palette8": ("fp16", "palette8"),
    "int8": ("fp16", "int8"),
    "w8a8": ("fp16", "w8a8"),
    "palette6": ("fp16", "palette6"),
    "palette4": ("fp16", "palette4"),
}
PACKAGE = "RudimentClassifier.mlpackage"
GOLDEN_RUDIMENT, GOLDEN_BPM = "single_paradiddle", 100.0


class Row(NamedTuple):
    """What is told of a variant. balanced_accuracy and agreement, with the PyTorch twin, are 0 … 1; problems are those
    of `bridge.verify`."""

    variant: str
    size_mb: float
    balanced_accuracy: float
    points_lost: float
    agreement: float
    problems: list[str]


def ship(args: argparse.Namespace) -> bool:
    """Makes DIR; whether the package that was taken is proven. `InputError` if nothing is good enough."""
    names = _names(args.variants)
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} already exists; choose another --out, or --overwrite to replace it")
    if args.out.exists() and not (args.out / "variants.json").is_file():
        raise InputError(f"{args.out} is something else than a shipped run; choose another --out")
    record, _ = publish.finished(args.workdir)

    from bridge import golden, verify  # late: errors in the arguments should not wait for JAX and PyTorch
    from sousa_jax import checkpoint
    from sousa_jax.data.synth.request import Request

    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{args.out.name}-", dir=args.out.absolute().parent))
    made = temporary / "new"
    try:
        packages = {name: _convert(name, args, made / "variants" / f"{name}.mlpackage") for name in names}
        rows, twin_accuracy, n_clips = hear(packages, args, ConfigDict(record["config"]))
        chosen = choose(rows, args.lose)
        table = markdown(rows, twin_accuracy, n_clips, chosen, args.lose)
        print(f"\n{table}", flush=True)
        (made / "variants.md").write_text(table, "utf-8")
        told = {"twin_balanced_accuracy": twin_accuracy, "n_clips": n_clips, "chosen": chosen, "lose": args.lose}
        checkpoint.write_json(made / "variants.json", told | {"variants": [row._asdict() for row in rows]})
        shutil.copytree(packages[chosen], made / PACKAGE)
        proof = verify.verify(made / PACKAGE, args.workdir, args.data)
        checkpoint.write_json(made / "verification.json", proof)
        print(verify.table(proof), flush=True)
        clip = Request(GOLDEN_RUDIMENT, tempo_bpm=GOLDEN_BPM)
        checkpoint.write_json(made / "golden.json", golden.golden(checkpoint.load_model(args.workdir), clip, 0))
        if args.out.exists():
            os.replace(args.out, temporary / "old")
        made.chmod(0o755)
        os.replace(made, args.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"written to {args.out}")
    return proof["passed"]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in VARIANTS:
            raise InputError(
                f"--variants: {name!r} is unknown; nearest: {nearest(name, VARIANTS) or ', '.join(VARIANTS)}"
            )
    if not names:
        raise InputError(f"--variants names none; known: {', '.join(VARIANTS)}")
    return names


def _convert(name: str, args: argparse.Namespace, package: pathlib.Path) -> pathlib.Path:
    precision, quantization = VARIANTS[name]
    given = [f"--workdir={args.workdir}", f"--out={package}", f"--precision={precision}", f"--quantize={quantization}"]
    given += [f"--data={args.data}"] if args.data else []
    to_coreml.write(to_coreml.parser().parse_args(given))
    return package


def hear(
    packages: dict[str, pathlib.Path], args: argparse.Namespace, config: ConfigDict
) -> tuple[list[Row], float, int]:
    """All variants and the PyTorch twin on the first window of each test clip: a row a variant, the twin's balanced
    accuracy, and how many clips it were."""
    import numpy as np
    import tqdm

    from bridge import listeners, mil, to_torch, verify
    from bridge.comparison import Comparison, name_of
    from sousa_jax import checkpoint, metrics
    from sousa_jax.rudiments import CLASS_IDS

    model = checkpoint.load_model(args.workdir)
    if args.data and args.data != config.data.path:
        config.data.path, config.data.revision = args.data, ""
    clips, windows = verify.windows(config, "test", model.config.frontend)
    programs = {name: mil.read(package) for name, package in packages.items()}
    twin = listeners.twin(to_torch.listener(model))
    variants = {name: listeners.evaluated(p, temperature=model.temperature) for name, p in programs.items()}
    compared = {
        name: Comparison(name, verify.PACKAGE_LIMITS[verify.kind_of(program)], model.temperature)
        for name, program in programs.items()
    }
    labels: list[int] = []
    named: dict[str, list[int]] = {name: [] for name in ("", *variants)}
    for window in tqdm.tqdm(windows, "hearing test clips", len(clips), unit="clip", disable=None):
        expected = twin(window.samples)
        labels.append(window.label)
        named[""].append(CLASS_IDS[name_of(expected)])
        for name, listen in variants.items():
            found = listen(window.samples)
            named[name].append(CLASS_IDS[name_of(found)])
            compared[name].add(expected, found)
    if not labels:
        raise InputError(f"{config.data.path} has no clips in its test split; choose another --data")
    scores = {name: metrics.balanced_accuracy(np.array(labels), np.array(given)) for name, given in named.items()}
    rows = [
        Row(
            name,
            sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) / 1e6,
            scores[name],
            100 * (scores[""] - scores[name]),
            compared[name].agreement,
            compared[name].problems(),
        )
        for name, package in packages.items()
    ]
    return rows, scores[""], len(labels)


def choose(rows: list[Row], lose: float) -> str:
    """The smallest variant that loses at most `lose` points and has no problems. `InputError` if there is none."""
    good = [row for row in rows if row.points_lost <= lose and not row.problems]
    if not good:
        told = "; ".join(f"{row.variant} loses {row.points_lost:.1f} points {row.problems}" for row in rows)
        raise InputError(f"no variant loses at most {lose:g} points within the limits: {told}")
    return min(good, key=lambda row: row.size_mb).variant


def markdown(rows: list[Row], twin_accuracy: float, n_clips: int, chosen: str, lose: float) -> str:
    """The rows for people."""
    lines = [
        f"First windows of {n_clips} test clips; balanced accuracy of the PyTorch twin: {twin_accuracy:.3f}.",
        "",
        "| variant | MB | balanced accuracy | points lost | same name as the twin | within limits |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "**" if row.variant == chosen else ""
        within = "no: " + "; ".join(row.problems) if row.problems else "yes"
        lines.append(
            f"| {mark}{row.variant}{mark} | {row.size_mb:.2f} | {row.balanced_accuracy:.3f} | {row.points_lost:+.1f} | "
            f"{row.agreement:.2%} | {within} |"
        )
    lines += ["", f"Taken: {chosen}, the smallest that loses at most {lose:g} points."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bridge.ship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a finished run's folder")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the folder to make")
    parser.add_argument("--data", help="test clips, and those that w8a8 is calibrated on; by default the run's own")
    parser.add_argument("--lose", type=float, default=1.0, help="points that may be lost (default: %(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="with commas (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier call made")
    args = parser.parse_args(argv)
    to_coreml.quiet()
    with one_line_errors():
        sys.exit(0 if ship(args) else 1)


if __name__ == "__main__":
    main()
