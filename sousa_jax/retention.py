"""What a student keeps of its teachers, and what it saves: `retention.json` and `retention.md` beside its results.

    python -m sousa_jax.retention RUN [--baseline=RUN]

RUN was trained with `config.teachers`; a run writes this at its end, the command makes it again. The baseline is the
same student trained without a teacher. All are tested on the student's test clips: answers that lie in the folder of a
teacher are taken if they are about the same sounds, else the teacher is tested here, under `results/teachers/`.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sousa_jax import checkpoint, cost, predictions, record, significance
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.predictions import Answers
from sousa_jax.significance import Interval, Pair
from sousa_jax.step import make_eval_step

JSON, MARKDOWN = "retention.json", "retention.md"
STUDENT, TOGETHER, BASELINE = "student", "teachers together", "without a teacher"
WARM_UP, REPEATS = 3, 30


class Size(NamedTuple):
    """What a network takes: `multiply_adds` and `milliseconds` are of one window alone, from sound to logits."""

    parameters: int
    multiply_adds: float
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class Network:
    """One that was tested. `role` is what it is to the student; `teacher` of each single one."""

    role: str
    folder: str
    answers: Answers
    size: Size


def measure(model: checkpoint.Model) -> Size:
    """In float32, on the first device; the median of some calls one after another."""
    step = make_eval_step(model.name, model.config)
    params, stats = jax.device_put((model.params, model.stats), jax.devices()[0])
    noise = np.random.default_rng(0).normal(0, 0.1, (1, model.config.frontend.window_samples))
    batch = {"waveform": jnp.asarray(noise, jnp.float32)}
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(step(params, stats, batch))
        seconds.append(time.perf_counter() - started)
    n_parameters = sum(array.size for array in model.params.values())
    adds = cost.multiply_adds(step, model.params, model.stats, model.config.frontend)
    return Size(n_parameters, adds, 1000 * statistics.median(seconds[WARM_UP:]))


def together(answers: list[Answers], weights: list[float]) -> Answers:
    """Several teachers as one: the weighted mean of their probabilities, clip by clip."""
    shared = [heard for heard in answers[0].logits if all(heard in each.logits for each in answers)]

    def log_mean(heard: str) -> np.ndarray:
        parts = [w * np.asarray(jax.nn.softmax(a.logits[heard])) for a, w in zip(answers, weights, strict=True)]
        return np.log(np.maximum(sum(parts), 1e-30)).astype(np.float32)

    return Answers(answers[0].table, {heard: log_mean(heard) for heard in shared})


def write(workdir: pathlib.Path, baseline: str = "") -> dict[str, Any]:
    """Compares a finished run with its teachers, and with `baseline` if that is given; returns what it wrote.

    `InputError` if the run had no teachers, or if one of them or the baseline was tested on other clips and cannot be
    tested on these.
    """
    networks = _networks(workdir, baseline)
    pairs = significance.pairs({network.role: network.answers for network in networks if network.role != "teacher"})
    found = summarize(networks, pairs)
    results = workdir / record.RESULTS
    checkpoint.write_json(results / JSON, found)
    (results / MARKDOWN).write_text(markdown(found), "utf-8")
    return found


def _networks(workdir: pathlib.Path, baseline: str) -> list[Network]:
    """The student, each teacher, all of them as one, and the baseline."""
    config = ConfigDict(_json(workdir / record.CONFIG_JSON)["config"])
    if not config.get("teachers"):
        raise InputError(f"{workdir} was trained without teachers: there is nothing to keep of them")
    student = Network(STUDENT, str(workdir), predictions.read(workdir), measure(checkpoint.load_model(workdir)))
    teachers = []
    for number, folder in enumerate(config.teachers):
        model = checkpoint.load_model(folder)
        answers = _answers(pathlib.Path(folder), model, workdir, config, f"teachers/{number}", student.answers)
        teachers.append(Network("teacher", folder, answers, measure(model)))
    networks = [student, *teachers, _as_one(teachers, config)]
    if baseline:
        model = checkpoint.load_model(baseline)
        answers = _answers(pathlib.Path(baseline), model, workdir, config, "baseline", student.answers)
        networks.append(Network(BASELINE, baseline, answers, measure(model)))
    return networks


def _as_one(teachers: list[Network], config: ConfigDict) -> Network:
    weights = np.array(config.distill.weights or [1.0] * len(teachers), float)
    size = Size(*(sum(part) for part in zip(*(t.size for t in teachers), strict=True)))
    answers = together([t.answers for t in teachers], list(weights / weights.sum()))
    return Network(TOGETHER, ", ".join(t.folder for t in teachers), answers, size)


def _answers(
    folder: pathlib.Path,
    model: checkpoint.Model,
    workdir: pathlib.Path,
    config: ConfigDict,
    name: str,
    student: Answers,
) -> Answers:
    """What a network answers about the student's test clips."""
    from sousa_jax.evaluate import evaluate_split

    results, own = folder / record.RESULTS, workdir / record.RESULTS / name
    told = workdir / record.RESULTS / "test_metrics.json"
    for place in (results, own):
        if (place / predictions.FILE).is_file() and _tested_on(place / "test_metrics.json") == _tested_on(told):
            answers = predictions.read(place)
            if significance.same_clips(answers, student):
                return answers
    evaluate_split(model, config, "test", own, None)
    answers = predictions.read(own)
    if not significance.same_clips(answers, student):
        raise InputError(f"{folder} and {workdir} could use other test clips, so that they cannot be compared")
    return answers


def _tested_on(path: pathlib.Path) -> str | None:
    return _json(path).get("data_fingerprint") if path.is_file() else None


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected the folder of a finished run") from error


# --------------------------------------------------------------------------------------------------------------- words


def summarize(networks: list[Network], pairs: list[Pair]) -> dict[str, Any]:
    """The content of `retention.json`. Ratios are of the teachers together to the student, above 1 where it saves."""
    of = {network.role: network for network in networks}
    student, teachers = of[STUDENT], of[TOGETHER]
    who = student.answers.players, student.answers.labels
    kept = {
        heard: significance.ratio(*who, student.answers.correct(heard), teachers.answers.correct(heard))
        for heard in ("all windows", "first window")
    }
    return {
        "networks": [_row(network) for network in networks],
        "retention": {heard: _ends(interval) for heard, interval in kept.items()},
        "ratios": {
            name: getattr(teachers.size, name) / getattr(student.size, name) if getattr(student.size, name) else None
            for name in Size._fields
        },
        "pairs": [
            {**pair._asdict(), "difference": _ends(pair.difference), "verdict": pair.verdict()} for pair in pairs
        ],
        "device": jax.devices()[0].device_kind,
    }


def _row(network: Network) -> dict[str, Any]:
    answers = network.answers
    scores = {
        heard: _ends(significance.by_player(answers.players, answers.labels, answers.correct(heard)))
        for heard in ("all windows", "first window")
    }
    return {"role": network.role, "folder": network.folder, **scores, **network.size._asdict()}


def _ends(interval: Interval) -> list[float | None]:
    return [None if np.isnan(end) else float(end) for end in interval]


def markdown(found: dict[str, Any]) -> str:
    """The same as a table for people."""
    lines = [
        "| network | all windows | first window | parameters, M | multiply-adds, G | ms a window |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["networks"]:
        name = f"{row['role']}, {row['folder']}"
        scores = " | ".join(_told(row[heard]) for heard in ("all windows", "first window"))
        sizes = f"{row['parameters'] / 1e6:.3f} | {row['multiply_adds'] / 1e9:.3f} | {row['milliseconds']:.1f}"
        lines.append(f"| {name} | {scores} | {sizes} |")
    kept, ratios = found["retention"], found["ratios"]
    of_size = {name: "not known" if ratio is None else f"{ratio:.1f}" for name, ratio in ratios.items()}
    lines += [
        "",
        f"The student keeps {_told(kept['all windows'])} of its teachers' balanced accuracy, of the first window "
        f"{_told(kept['first window'])}, with {of_size['parameters']} times fewer parameters, "
        f"{of_size['multiply_adds']} times fewer multiply-adds, {of_size['milliseconds']} times as fast "
        f"(one window at a time, {found['device']}).",
        "",
        *(f"- {pair['verdict']}" for pair in found["pairs"]),
    ]
    return "\n".join(lines) + "\n"


def _told(ends: list[float | None]) -> str:
    value, low, high = ends
    if value is None:
        return "not known"
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} … {high:.3f})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=pathlib.Path)
    parser.add_argument("--baseline", default="", metavar="RUN", help="the same student trained without a teacher")
    args = parser.parse_args(argv)
    with one_line_errors():
        print(markdown(write(args.run, args.baseline)))


if __name__ == "__main__":
    main()
