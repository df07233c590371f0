"""What runs that were tested on the same clips show, as plain numbers and sentences."""

import dataclasses
import itertools
import tomllib
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from sousa_jax import metrics, significance
from sousa_jax.predictions import SHORTCUTS
from sousa_jax.record import FREE, leaves
from sousa_jax.report.runs import Apart, Run
from sousa_jax.rudiments import NUM_CLASSES, RUDIMENTS
from sousa_jax.significance import Interval, Pair

FEW_PLAYERS = 10
HARDEST = 8
MANY = 20  # groups of clips that still make a table
NONE = "\N{EN DASH}"
NOT_SHOWN = ("eval.", "seed", "allow_random_init")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of the leaderboard: scores with intervals by player, and what else was measured on the same clips."""

    run: Run
    whole: Interval  # balanced accuracy over all windows
    first: Interval  # of the first window alone
    padded: Interval | None  # how much the first window gains where it ends in silence instead of going round
    scores: dict[str, float]
    calibration: metrics.Calibration
    errors: dict[str, float]

    @property
    def name(self) -> str:
        return self.run.name


class Group(NamedTuple):
    """Clips that have something in common, and each run's score on them, in the order of the leaderboard."""

    name: str
    n_clips: int
    n_players: int
    scores: list[Interval]


class Confused(NamedTuple):
    """A rudiment that a run takes for another: in `count` of the `n_played` clips of the one."""

    played: int
    named: int
    count: int
    n_played: int


class HeldOut(NamedTuple):
    """Runs that were trained without some groups of clips, beside those that had all. `scores` by the names of the
    groups; `never_heard` those that a run was trained without."""

    run: str
    scores: dict[str, float]
    never_heard: set[str]


class Ablation(NamedTuple):
    """Two runs that differ in one respect: `with_it` has it, `without` has not. `also`: settings that had to differ."""

    about: str
    with_it: str
    without: str
    pair: Pair
    also: list[str]


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything that a report shows."""

    entries: list[Entry]  # the best first
    apart: list[Apart]
    shortcuts: dict[str, Interval]
    pairs: dict[tuple[str, str], Pair]  # by both orders of names
    groups: dict[str, list[Group]]  # by what they are about
    hardest: list[Confused]  # of the best run
    held_out: dict[str, list[HeldOut]]  # by the column that was held out
    ablations: list[Ablation]
    settings: dict[str, list[str]]  # that differ between runs, one value a run, in the order of the leaderboard
    published: list[dict[str, Any]]

    @property
    def best(self) -> Entry:
        return self.entries[0]

    @property
    def n_players(self) -> int:
        return len(set(self.best.run.answers.players))


def analyse(runs: list[Run], apart: list[Apart] = ()) -> Findings:
    """What `runs.read` found, compared. At least one run; all tested on the same clips."""
    entries = sorted(map(_entry, runs), key=lambda entry: -entry.whole.value)
    runs = [entry.run for entry in entries]
    found = significance.pairs({run.name: run.answers for run in runs})
    pairs = {(pair.a, pair.b): pair for pair in found} | {(pair.b, pair.a): pair for pair in found}
    return Findings(
        entries=entries,
        apart=list(apart),
        shortcuts=_shortcuts(runs),
        pairs=pairs,
        groups=dict(_groups(runs)),
        hardest=hardest_pairs(metrics.confusion(runs[0].answers.labels, runs[0].answers.named())),
        held_out=_held_out(runs),
        ablations=list(_ablations(runs, pairs)),
        settings=differing_settings([run.config for run in runs]),
        published=tomllib.loads(resources.files("sousa_jax.report").joinpath("published.toml").read_text("utf-8"))[
            "models"
        ],
    )


def _entry(run: Run) -> Entry:
    answers = run.answers
    who = answers.players, answers.labels
    padded = None
    if "first window, padded" in answers.logits:
        padded = significance.difference(*who, answers.correct("first window"), answers.correct("first window, padded"))
    return Entry(
        run=run,
        whole=significance.by_player(*who, answers.correct()),
        first=significance.by_player(*who, answers.correct("first window")),
        padded=padded,
        scores=metrics.scores(answers.labels, answers.logits["all windows"]),
        calibration=metrics.calibration(answers.labels, answers.logits["all windows"]),
        errors=metrics.error_split(answers.labels, answers.named()),
    )


def _shortcuts(runs: list[Run]) -> dict[str, Interval]:
    """Of the run that knows most of them: what they learnt from may differ between runs."""
    found = [{name: run.answers.shortcut(name) for name in SHORTCUTS} for run in runs]
    run, known = max(zip(runs, found, strict=True), key=lambda pair: sum(x is not None for x in pair[1].values()))
    answers = run.answers
    return {
        name: significance.by_player(answers.players, answers.labels, named == answers.labels)
        for name, named in known.items()
        if named is not None
    }


def _groups(runs: list[Run]) -> Iterator[tuple[str, list[Group]]]:
    answers = runs[0].answers
    for about, names in metrics.groups(answers.table, runs[0].window_s).items():
        heard = "first window" if about.startswith(metrics.CYCLES) else "all windows"
        rows = []
        for name in metrics.in_order(names):
            inside = names == name
            players, labels = answers.players[inside], answers.labels[inside]
            scores = [significance.by_player(players, labels, run.answers.correct(heard)[inside]) for run in runs]
            rows.append(Group(name, int(inside.sum()), len(set(players)), scores))
        if len(rows) > 1:
            yield about, rows


def hardest_pairs(matrix: np.ndarray, limit: int = HARDEST) -> list[Confused]:
    """Who is most often taken for whom, by the share of what was played. `matrix` as of `metrics.confusion`."""
    played = matrix.sum(1)
    found = [Confused(int(a), int(b), int(matrix[a, b]), int(played[a])) for a, b in np.argwhere(matrix > 0) if a != b]
    return sorted(found, key=lambda pair: (-pair.count / pair.n_played, -pair.count, pair.played, pair.named))[:limit]


# --------------------------------------------------------------------------------------------------- between the runs


def _held_out(runs: list[Run]) -> dict[str, list[HeldOut]]:
    excluded = {run.name: list(run.config.get("data", {}).get("exclude") or ()) for run in runs}
    columns = sorted({rule.partition("=")[0] for rules in excluded.values() for rule in rules})
    found = {}
    for column in columns:
        if column not in runs[0].answers.table:
            continue
        names = runs[0].answers.table[column].to_numpy(str)
        if len(set(names)) > MANY:
            continue
        rows = []
        for run in runs:
            answers = run.answers
            never = {r.partition("=")[2] for r in excluded[run.name] if r.partition("=")[0] == column}
            scores = {
                name: metrics.balanced_accuracy(answers.labels[names == name], answers.named()[names == name])
                for name in metrics.in_order(names)
            }
            rows.append(HeldOut(run.name, scores, never))
        found[column] = rows
    return found


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in leaves(config) if not key.startswith((*FREE, *NOT_SHOWN))}


def differing_settings(configs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Settings whose values are not all the same, one a config, `–` where it has none."""
    flat = [_settings(config) for config in configs]
    keys = sorted({key for config in flat for key in config})
    rows = {key: [NONE if key not in config else _told(config[key]) for config in flat] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _told(value: Any) -> str:
    return "none" if value in ("", [], None) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class _Respect(NamedTuple):
    """In what two runs may differ: `asked` is the question, `recipe` what may differ beside it. The larger value of
    `has_it` is what has it; runs with None say nothing."""

    about: str
    asked: tuple[str, ...]
    recipe: tuple[str, ...]
    has_it: Callable[[Run], Any]


_RESPECTS = (
    _Respect(
        "pre-training",
        ("strategy", "init_from"),
        ("train.", "lora.", "augment."),
        lambda run: True if run.config["init_from"] else False if run.config["strategy"] == "scratch" else None,
    ),
    _Respect("augmentation", ("augment.",), (), lambda run: _augmented(run.config["augment"])),
    _Respect("synthetic clips", ("data.synth.share",), (), lambda run: run.config["data"]["synth"]["share"]),
    _Respect("strokes", ("model.head", "strokes."), (), lambda run: run.config["model"]["head"] == "strokes"),
    _Respect("size", ("model.variant", "model.settings."), ("train.",), lambda run: run.cost.get("parameters", 0)),
)


def _augmented(augment: dict[str, Any]) -> int:
    return sum(bool(value) for value in augment.values())


def _ablations(runs: list[Run], pairs: dict[tuple[str, str], Pair]) -> Iterator[Ablation]:
    known = [run for run in runs if run.config]
    for respect, (a, b) in itertools.product(_RESPECTS, itertools.combinations(known, 2)):
        settings = _settings(a.config), _settings(b.config)
        changed = sorted(k for k in settings[0] | settings[1] if settings[0].get(k) != settings[1].get(k))
        asked = [key for key in changed if key.startswith(respect.asked)]
        also = [key for key in changed if key not in asked]
        if not asked or not all(key.startswith(respect.recipe) for key in also):
            continue
        has = respect.has_it(a), respect.has_it(b)
        if None in has or has[0] == has[1]:
            continue
        with_it, without = (a, b) if has[0] > has[1] else (b, a)
        yield Ablation(respect.about, with_it.name, without.name, pairs[with_it.name, without.name], also)


# -------------------------------------------------------------------------------------------------------------- words


def percent(score: float) -> str:
    return f"{100 * score:.1f} %"


def verdict(findings: Findings) -> str:
    """The one line that a reader takes home."""
    best, others = findings.best, findings.entries[1:]
    of_all = (
        f"{best.name} names {percent(best.whole.value)} of the rudiments rightly"
        f"{_interval_told(best.whole)}, each rudiment counting alike"
    )
    if not others:
        return f"{of_all}."
    return f"{of_all}. {findings.pairs[best.name, others[0].name].verdict()}."


def questions(findings: Findings) -> list[tuple[str, list[str]]]:
    """The benchmark's three questions and what these runs answer."""
    return [
        ("What works best for drum techniques?", list(_what_is_best(findings))),
        ("What does pre-training bring?", list(_what_pretraining_brings(findings))),
        ("How does this compare with published audio classification?", list(_beside_others(findings))),
    ]


def _what_is_best(findings: Findings) -> Iterator[str]:
    best, pairs = findings.best, findings.pairs
    yield f"{best.name} ({best.run.model}): {percent(best.whole.value)}{_interval_told(best.whole)}."
    beaten = [entry.name for entry in findings.entries[1:] if pairs[best.name, entry.name].better == best.name]
    open_ = [entry.name for entry in findings.entries[1:] if entry.name not in beaten]
    if beaten and not open_:
        yield "It is shown to be better than every other run here."
    elif beaten:
        yield f"It is shown to be better than {_listed(beaten)}, but not than {_listed(open_)}."
    elif open_:
        yield f"It is not shown to be better than {_listed(open_)}: differences this small may be luck."
    for about in ("skill tier", "family"):
        if about in findings.groups:
            ranked = sorted(findings.groups[about], key=lambda group: group.scores[0].value)
            yield (
                f"By {about} it is weakest on {ranked[0].name} ({percent(ranked[0].scores[0].value)}) and strongest on "
                f"{ranked[-1].name} ({percent(ranked[-1].scores[0].value)})."
            )
    if findings.shortcuts:
        told = ", ".join(f"{name} {percent(score.value)}" for name, score in findings.shortcuts.items())
        yield f"Without hearing the rhythm one would have: from {told}; by chance {percent(1 / NUM_CLASSES)}."
    if findings.n_players < FEW_PLAYERS:
        yield f"There are only {findings.n_players} players among the test clips: intervals say little."


def _what_pretraining_brings(findings: Findings) -> Iterator[str]:
    found = [ablation for ablation in findings.ablations if ablation.about == "pre-training"]
    for ablation in found:
        also = f" Other settings had to differ, too: {', '.join(ablation.also)}." if ablation.also else ""
        yield f"{ablation.pair.verdict()}. {ablation.with_it} began from given weights.{also}"
    if not found:
        yield (
            "No two runs here have the same network and data, one from given weights and one from random ones, so this "
            "is not answered."
        )


def _beside_others(findings: Findings) -> Iterator[str]:
    yield (
        "Not directly: published numbers are about sounds in general (AudioSet, ESC-50), which differ in what sounds. "
        "Here the same drum sounds in every class, and only the rhythm tells."
    )
    scores = findings.best.scores
    yield f"The best run here has {percent(scores['top1'])} top-1 and {percent(scores['top5'])} top-5 of {NUM_CLASSES}."


def _interval_told(interval: Interval) -> str:
    return "" if np.isnan(interval.low) else f" (95 % interval {100 * interval.low:.1f} … {100 * interval.high:.1f})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def title(rudiment: int) -> str:
    """A rudiment's name by its class id."""
    return RUDIMENTS[rudiment].name
