"""Runs side by side as one page that opens from disk.

    python -m sousa_jax.report RUN [RUN ...] --out=DIR [--data=PATH]

A RUN is a run's folder or one with a `predictions.parquet`. DIR will hold `report.html`, which needs nothing else,
`report.md`, `leaderboard.csv`, and `figures/` as PNG and SVG; an earlier report there is replaced.
"""

import argparse
import os
import pathlib
import shutil
import tempfile

from sousa_jax.errors import InputError, one_line_errors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the folder to write")
    parser.add_argument("--data", help="where the test clips are, to hear examples; by default where the runs had them")
    args = parser.parse_args(argv)
    with one_line_errors():
        report(args.runs, args.out, args.data)


def report(folders: list[pathlib.Path], out: pathlib.Path, data: str | None = None) -> pathlib.Path:
    """Writes a report as a whole or not at all, and says what it found; returns `out`.

    `InputError` if no run can be read, or if `out` holds something else.
    """
    from sousa_jax.report import analysis, audio, figures, page, runs  # late: errors in the arguments should not wait

    out = pathlib.Path(out).absolute()
    if out.exists() and not (out / page.HTML).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is no report; choose another --out")
    compared, apart = runs.read(folders)
    for run in apart:
        print(f"not compared: {run.name}: {run.reason}")
    print(f"comparing {len(compared)} runs", flush=True)
    findings = analysis.analyse(compared, apart)
    sounds, no_sound = audio.examples(findings, data)
    if no_sound:
        print(f"without examples to hear: {no_sound}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        (temporary / "new").mkdir()
        page.write(temporary / "new", findings, figures.draw(findings), sounds, no_sound)
        if out.exists():
            os.replace(out, temporary / "old")
        os.replace(temporary / "new", out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(analysis.verdict(findings))
    print(f"written to {out / page.HTML}")
    return out


if __name__ == "__main__":
    main()
