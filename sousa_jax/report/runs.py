"""Finished runs, read back from their folders, and which of them can be compared."""

import dataclasses
import json
import pathlib
from typing import Any

import pandas as pd

from sousa_jax import predictions, significance
from sousa_jax.errors import InputError
from sousa_jax.predictions import Answers
from sousa_jax.publish import NAMES


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or the results of one.

    Attributes:
      name: shown; no two of a report are alike.
      folder: the run's, or the one that holds its `predictions.parquet`.
      answers: on its test split.
      record: `config.json`; empty where it is missing.
      cost: `cost.json`, the same.
      curves: a row a step that was noted, with `step` and a column a number; the same.
      summary: `test_metrics.json`, the same.
      retention: `retention.json`, of a run that had teachers; else empty.
    """

    name: str
    folder: pathlib.Path
    answers: Answers
    record: dict[str, Any]
    cost: dict[str, Any]
    curves: pd.DataFrame
    summary: dict[str, Any]
    retention: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def hears(self) -> bool:
        """Not so a rhythm head that was told what fell."""
        return self.summary.get("read", "sound") == "sound"

    @property
    def config(self) -> dict[str, Any]:
        return self.record.get("config", {})

    @property
    def model(self) -> str:
        """What it is, for people: `EfficientAT mn04, strokes`."""
        model = self.config.get("model")
        if not model:
            return "not recorded"
        name, variant = NAMES.get(model["name"], model["name"]), model["variant"]
        parts = [name] if variant == model["name"] else [f"{name} {variant}"]
        if model.get("head") == "strokes" and model["name"] != "strokes":
            parts.append("strokes")
        return ", ".join(parts)

    @property
    def window_s(self) -> float:
        return float(self.config.get("model", {}).get("window_s", 5.0))


@dataclasses.dataclass(frozen=True)
class Apart:
    """A run that is not compared, and why. `score` of its own test clips, if there is one."""

    name: str
    reason: str
    score: significance.Interval | None = None
    n_clips: int = 0


def read(folders: list[pathlib.Path]) -> tuple[list[Run], list[Apart]]:
    """The runs that can be compared, in the order given, and the others.

    Compared are those that hear sound and were tested on the same clips; where several sets of clips were tested, the
    one with most runs. `InputError` if nothing is left.
    """
    once = {_place(folder): folder for folder in reversed(folders)}
    apart = [Apart(str(f), "it was given twice") for f in folders if once[_place(f)] is not f]
    found = []
    for place, name in zip(reversed(once), _names([*reversed(once)]), strict=True):
        try:
            found.append(_read(place, name))
        except InputError as error:
            apart.append(Apart(name, str(error)))
    told = [run for run in found if not run.hears]
    apart += [_apart(run, "it was told the strokes instead of hearing them") for run in told]
    groups: list[list[Run]] = []
    for run in (run for run in found if run.hears):
        like = next((group for group in groups if significance.same_clips(group[0].answers, run.answers)), None)
        groups.append([run]) if like is None else like.append(run)
    if not groups:
        raise InputError("; ".join(f"{run.name}: {run.reason}" for run in apart) or "no run was given")
    compared = max(groups, key=len)  # the first of equals
    for group in groups:
        if group is not compared:
            reason = f"it was tested on other clips ({_set_name(group[0])}) than those here ({_set_name(compared[0])})"
            apart += [_apart(run, reason) for run in group]
    return compared, apart


def _place(folder: pathlib.Path) -> pathlib.Path:
    """A run's folder, also where that of its own results was given."""
    place = folder.resolve()
    return place.parent if place.name == "results" and (place.parent / "config.json").is_file() else place


def _read(folder: pathlib.Path, name: str) -> Run:
    answers = predictions.read(folder)
    results = predictions.find(folder).absolute().parent
    # Of a run, or of results on other data within them.
    home = next((place for place in (results, *results.parents[:2]) if (place / "config.json").is_file()), results)
    curves = _curves(home / "logs" / "scalars.jsonl")
    record, cost = _json(home / "config.json"), _json(home / "results" / "cost.json")
    summary, retention = _json(results / "test_metrics.json"), _json(results / "retention.json")
    return Run(name, folder, answers, record, cost, curves, summary, retention)


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object")
    return found


def _curves(path: pathlib.Path) -> pd.DataFrame:
    """Of a step that was noted twice, after the run had been killed, the later line counts."""
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            noted = json.loads(line)
            rows.setdefault(int(noted["step"]), {}).update(noted)
        except (ValueError, KeyError, TypeError, AttributeError):  # the last line of a run that was killed
            continue
    return pd.DataFrame([rows[step] for step in sorted(rows)])


def _names(folders: list[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without `results`, which all have."""
    parts = [[part for part in folder.parts if part not in (folder.anchor, "results")] for folder in folders]
    depth = [2 if folder.parent.name == "results" else 1 for folder in folders]
    names = [""] * len(folders)
    for _ in range(max(map(len, parts), default=0)):
        names = ["/".join(p[-d:]) for p, d in zip(parts, depth, strict=True)]
        alike = [names.count(name) > 1 for name in names]
        if not any(alike):
            break
        depth = [d + more for d, more in zip(depth, alike, strict=True)]
    return names


def _set_name(run: Run) -> str:
    told = [f"{len(run.answers):,} clips"]
    told += [str(run.summary[key]) for key in ("split", "data_fingerprint") if key in run.summary]
    return ", ".join(told)


def _apart(run: Run, reason: str) -> Apart:
    answers = run.answers
    score = significance.by_player(answers.players, answers.labels, answers.correct())
    return Apart(run.name, reason, score, len(answers))
