"""Findings as a page that stands alone, as Markdown, and as a table."""

import json
import pathlib
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sousa_jax import metrics
from sousa_jax.report import analysis, figures
from sousa_jax.report.analysis import Entry, Findings
from sousa_jax.report.audio import Example
from sousa_jax.rudiments import FAMILIES, RUDIMENTS
from sousa_jax.significance import Interval

HTML, MARKDOWN, TABLE, FIGURES = "report.html", "report.md", "leaderboard.csv", "figures"


def write(
    folder: pathlib.Path, findings: Findings, drawn: dict[str, Figure], sounds: list[list[Example]], no_sound: str
) -> None:
    """Writes the files of a report into a folder: the page needs nothing else, not even the figures beside it."""
    figures.save(drawn, folder / FIGURES)
    leaderboard(findings).to_csv(folder / TABLE, index=False)
    shown = {
        "findings": findings,
        "verdict": analysis.verdict(findings),
        "questions": analysis.questions(findings),
        "families": FAMILIES,
        "best_families": metrics.family_confusion(
            findings.best.run.answers.labels, findings.best.run.answers.named()
        ).tolist(),
        "sounds": sounds,
        "no_sound": no_sound,
        "title": analysis.title,
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sousa_jax.report", "templates"),
        autoescape=jinja2.select_autoescape(("html",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ends": _ends_told, "interval": _interval, "number": _number, "signed": _signed, "p": _p}
    environment.filters["percent"] = analysis.percent
    (folder / MARKDOWN).write_text(environment.get_template("report.md").render(shown), "utf-8")
    drawings = {name: figures.inline(name, figure) for name, figure in drawn.items() if name != "confusion"}
    page = environment.get_template("report.html").render(shown, drawings=drawings, confusions=_confusions(findings))
    (folder / HTML).write_text(page, "utf-8")


def leaderboard(findings: Findings) -> pd.DataFrame:
    """A row a run, the best first, then the shortcuts; scores 0 … 1."""
    rows: list[dict[str, Any]] = [_row(entry) for entry in findings.entries]
    for name, score in findings.shortcuts.items():
        rows.append({"run": f"({name} alone)", **_ends("balanced_accuracy", score)})
    return pd.DataFrame(rows).round(5)


def _row(entry: Entry) -> dict[str, Any]:
    run, cost = entry.run, entry.run.cost
    return {
        "run": entry.name,
        "model": run.model,
        "strategy": run.config.get("strategy"),
        **_ends("balanced_accuracy", entry.whole),
        **_ends("first_window", entry.first),
        "top1": entry.scores["top1"],
        "top5": entry.scores["top5"],
        "macro_f1": entry.scores["macro_f1"],
        "calibration_error": entry.calibration.error,
        "errors_within_family": entry.errors["within_family"],
        "errors_between_families": entry.errors["between_families"],
        "n_clips": entry.scores["n_clips"],
        "parameters": cost.get("parameters"),
        "multiply_adds": cost.get("multiply_adds"),
        "training_minutes": cost.get("training_minutes"),
        "training_clips_per_second": cost.get("training_clips_per_second"),
        "device": cost.get("device"),
    }


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _confusions(findings: Findings) -> str:
    """For the page's script: names in the order of families, and a matrix of counts a run."""
    order = metrics.BY_FAMILY
    matrices = {}
    for entry in findings.entries:
        answers = entry.run.answers
        matrices[entry.name] = metrics.confusion(answers.labels, answers.named())[np.ix_(order, order)].tolist()
    told = {
        "names": [RUDIMENTS[i].name for i in order],
        "families": [RUDIMENTS[i].family for i in order],
        "runs": matrices,
    }
    # Inside a script element nothing may look like its end.
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")


def _interval(interval: Interval) -> str:
    told = "" if np.isnan(interval.low) else f" ({interval.low:.3f} … {interval.high:.3f})"
    return f"{interval.value:.3f}{told}"


def _ends_told(ends: list[float | None]) -> str:
    """Of an interval as JSON has it."""
    return _interval(Interval(*(np.nan if end is None else end for end in ends)))


def _signed(interval: Interval) -> str:
    value, low, high = (100 * end for end in interval)
    return f"{value:+.1f}" + ("" if np.isnan(low) else f" ({low:+.1f} … {high:+.1f})")


def _number(value: float | None, digits: int = 1, scale: float = 1.0) -> str:
    return analysis.NONE if value is None else f"{value / scale:,.{digits}f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 1e-3 else f"{p:.2g}"
