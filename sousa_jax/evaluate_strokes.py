"""How well a network hears strokes: F1 at ±20 ms on a whole split, by rudiment family, tier, sound bank, loudness, gap.

    python -m sousa_jax.evaluate_strokes --workdir=RUN [--data=PATH] [--split=test] [--out=DIR] [--errors=FILE]

Writes `strokes.csv` (every stroke that fell or was heard) and `stroke_report.csv` into DIR; `--errors` the errors of
this ear, measured on the split, for `config.strokes.errors` of the stage `rhythm`.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tqdm
from ml_collections import ConfigDict

from sousa_jax import checkpoint
from sousa_jax.data import open_split
from sousa_jax.data.clips import BadClip
from sousa_jax.data.frame_targets import FrameTargets, place_on_frames
from sousa_jax.data.pipeline import BadClips
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.data.synth.mishearing import measure
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.hearing import HeardStrokes, match, pick
from sousa_jax.rudiments import by_slug
from sousa_jax.strokes import hear

BUZZ_ROLL = "multiple_bounce_roll"
VELOCITY_BANDS = (0, 40, 60, 80, 100, 128)
GAP_BANDS_MS = (0, 20, 40, 80, 160, np.inf)


def compare(clip: int, heard: HeardStrokes, true: ClipStrokes, length_s: float) -> pd.DataFrame:
    """Every stroke of a clip that fell or was heard, one row each: what `report` counts.

    The bounces of a buzz stroke after its first, 2 to 5 ms apart, are not asked for; grace notes are. What is heard
    beyond `length_s` does not count.
    """
    asked = ~true.is_bounce & (true.time_s < length_s)
    order = np.argsort(true.time_s[asked], kind="stable")
    time_s, velocity, is_grace = (column[asked][order] for column in true[:3])
    heard = HeardStrokes(*(column[heard.time_s < length_s] for column in heard))
    of_true, of_heard = match(time_s, heard.time_s)
    gap_s = np.minimum(np.diff(time_s, prepend=-np.inf), np.diff(time_s, append=np.inf))
    fell = pd.DataFrame({"time_s": time_s, "velocity": velocity / 127, "is_grace": is_grace, "gap_s": gap_s})
    fell[["late_s", "heard_velocity"]] = np.nan
    fell.loc[of_true, "late_s"] = heard.time_s[of_heard] - time_s[of_true]
    fell.loc[of_true, "heard_velocity"] = heard.velocity[of_heard]
    wrong = np.setdiff1d(np.arange(len(heard.time_s)), of_heard)
    alarms = pd.DataFrame({"time_s": heard.time_s[wrong], "heard_velocity": heard.velocity[wrong]})
    rows = pd.concat([fell.assign(kind="true"), alarms.assign(kind="false alarm")], ignore_index=True)
    return rows.assign(clip=clip, hit=rows["late_s"].notna())


def report(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """F1, precision, recall, correlation of velocities and lateness, of all strokes and by group.

    Args:
      rows: of `compare`, all clips.
      table: of the clips; `clip` counts its rows. `rudiment_slug`, `skill_tier`, and `soundfont` name groups.

    Returns:
      One row for each `(by, group)`. Groups of single strokes (velocity, gap) have no precision: nobody knows what a
      false alarm was meant to be.
    """
    clips = table.iloc[rows["clip"]].reset_index(drop=True)
    rows = rows.reset_index(drop=True).assign(
        family=clips["rudiment_slug"].map(lambda slug: by_slug(slug).family),
        tier=clips["skill_tier"],
        bank=clips["soundfont"],
        buzz=clips["rudiment_slug"] == BUZZ_ROLL,
    )
    lines = [_line("all", "", rows), _line("all", "without the buzz roll", rows[~rows["buzz"]])]
    for by in ("family", "tier", "bank"):
        lines += [_line(by, name, group) for name, group in rows.groupby(by)]
    true = rows[rows["kind"] == "true"]
    for by, value, edges in (
        ("velocity", true["velocity"] * 127, VELOCITY_BANDS),
        ("gap ms", true["gap_s"] * 1000, GAP_BANDS_MS),
    ):
        for low, high in itertools.pairwise(edges):
            inside = true[(value >= low) & ((value < high) | (high == np.inf))]  # alone in a clip: infinitely far
            lines.append(_line(by, f"{low:g} … {high:g}", inside) | {"f1": np.nan, "precision": np.nan})
    return pd.DataFrame(lines)


def _line(by: str, group: str, rows: pd.DataFrame) -> dict[str, Any]:
    true = rows[rows["kind"] == "true"]
    hits = true[true["hit"]]
    n_heard = len(hits) + (rows["kind"] == "false alarm").sum()
    return {
        "by": by,
        "group": group,
        "strokes": len(true),
        "f1": 2 * len(hits) / max(1, len(true) + n_heard),
        "precision": len(hits) / max(1, n_heard),
        "recall": len(hits) / len(true) if len(true) else np.nan,
        "velocity_correlation": hits["velocity"].corr(hits["heard_velocity"]),
        "late_ms": hits["late_s"].mean() * 1000,
        "late_sd_ms": hits["late_s"].std() * 1000,
    }


class HeardSplit(NamedTuple):
    """What a network hears in a split.

    rows: of `compare`, of all clips.
    heard, fell: of each usable clip the stream that was heard, and the one that fell; `(T,)` probabilities each.
    clip: `(n,)`, the rows of these clips in the split's table.
    log_probs: `(n, num_classes)`, of the rudiments.
    """

    rows: pd.DataFrame
    heard: list[FrameTargets]
    fell: list[FrameTargets]
    clip: np.ndarray
    log_probs: np.ndarray


def hear_split(model: checkpoint.Model, clips: Any, bad: BadClips) -> HeardSplit:
    """Hears every clip of a split whole, one after another; bad ones are left out and counted."""
    spec, per_second = model.config.frontend, model.config.strokes_per_second
    rows, heard, fell, used, names = [], [], [], [], []
    for clip in tqdm.trange(len(clips), desc=f"hearing {clips.split}", disable=None):
        try:
            wave, true = clips.waveform(clip, spec.sample_rate), clips.clip_strokes(clip)
        except BadClip as error:
            bad.add(error)
            continue
        stream, log_probs = hear(model, wave)
        n_frames, length_s = len(stream.onset), len(wave) / spec.sample_rate
        rows.append(compare(clip, pick(stream, per_second), true, length_s))
        heard.append(stream)
        fell.append(place_on_frames(*true, n_frames, per_second))
        used.append(clip)
        names.append(log_probs)
    return HeardSplit(pd.concat(rows, ignore_index=True), heard, fell, np.array(used), np.stack(names))


def padded(streams: list[FrameTargets], n_frames: int) -> FrameTargets:
    """The streams of all clips one below another, silence behind: `(T,)` each to `(clips, n_frames)`."""
    return FrameTargets(
        *(np.stack([np.pad(x, (0, n_frames - len(x))) for x in parts]) for parts in zip(*streams, strict=True))
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a finished run's folder")
    parser.add_argument("--data", help="synth, a folder or a Hub id; by default the run's own data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=pathlib.Path, help="by default WORKDIR/results/strokes_SPLIT_on_DATA")
    parser.add_argument("--errors", type=pathlib.Path, help="a JSON file for the errors of this ear")
    args = parser.parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    model = checkpoint.load_model(args.workdir)
    if not model.config.strokes_per_second:
        raise InputError(f"{args.workdir} holds a network that hears no strokes (config.model.head was plain)")
    if not (args.workdir / "config.json").is_file():
        raise InputError(f"{args.workdir} holds a model but no config.json; expected the folder of a training run")
    config = ConfigDict(json.loads((args.workdir / "config.json").read_text("utf-8"))["config"])
    if args.data and args.data != config.data.path:
        config.data.path, config.data.revision = args.data, ""
    clips = open_split(config.data, args.split, seed=config.seed, sample_rate=model.config.frontend.sample_rate)
    bad = BadClips(clips, config.data.max_bad_fraction)
    heard = hear_split(model, clips, bad)
    found = report(heard.rows, clips.table)
    print(found.to_string(index=False, float_format=lambda x: "" if np.isnan(x) else f"{x:.3f}"))
    name = pathlib.PurePath(config.data.path).name
    out = args.out or args.workdir / "results" / f"strokes_{args.split}_on_{name}"
    out.mkdir(parents=True, exist_ok=True)
    for frame, file in ((heard.rows, "strokes.csv"), (found, "stroke_report.csv")):
        unfinished = out / f".{file}.tmp"
        frame.to_csv(unfinished, index=False)
        os.replace(unfinished, out / file)
    print(f"written to {out}")
    if args.errors:
        lengths = np.array([len(stream.onset) for stream in heard.fell])
        streams = (padded(part, lengths.max()) for part in (heard.heard, heard.fell))
        errors = measure(*streams, model.config.strokes_per_second, lengths)
        checkpoint.write_json(args.errors, dataclasses.asdict(errors))
        print(f"hearing errors written to {args.errors}")
    if bad.report():
        print(bad.report())


if __name__ == "__main__":
    main()
