"""Fits what a model takes for no rudiment, on rudiments and on other sounds, and stores it beside the weights.

    python -m sousa_jax.thresholds --workdir=RUN [--data=PATH] [--split=validation]

Rudiments are the clips of a split of SOUSA, of the synthesizer by default; other sounds are those of
`sousa_jax/data/other_sounds.py`. On one half (of the players, of the sounds) each limit of `sousa_jax/rejection.py` is
put where it rejects one of 200 windows with a rudiment, and half-way to the other sounds if even their nearest twentieth
is further off. The other half says how often it is right. `RUN/listening.json` holds the limits and these shares.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sousa_jax import checkpoint, rejection
from sousa_jax.data.other_sounds import SOUNDS
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.rejection import Limits, Marks
from sousa_jax.stream import Settings, Stream

REJECTED = 0.005  # of the windows with a rudiment, by each limit
NEAREST = 0.05  # of other sounds' windows
N_SOUNDS, SOUND_S = 100, 7.5  # of each kind
N_SYNTHETIC = 200  # clips, where no data are given
RUDIMENTS = "rudiments"
# Which sounds a limit is to stop, and on which side of it rudiments are.
STOPS = {"probability": tuple(SOUNDS), "doubt": ("noise", "speech"), "strokes_per_s": ("metronome",)}
AT_MOST = ("doubt",)


def table_of_marks(stream: Stream, sounds: Iterable[tuple[str, str, np.ndarray]]) -> pd.DataFrame:
    """A row for each window that is not silent: `Marks`, `kind` and `who`, from `(kind, who, (n,) samples)`."""
    per_second, rows = stream.model.config.strokes_per_second, []
    for kind, who, wave in sounds:
        state = stream.start()
        for reading in stream.push(state, wave) + stream.finish(state):
            if reading.log_probs is not None:
                found = rejection.marks(reading.log_probs, reading.strokes, per_second)
                rows.append({"kind": kind, "who": who, **found._asdict()})
    return pd.DataFrame(rows, columns=["kind", "who", *Marks._fields])


def in_halves(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables without a `who` in common, of each kind half."""
    names = table.drop_duplicates(["kind", "who"]).groupby("kind")["who"]
    first = {kind: set(sorted(group)[::2]) for kind, group in names}
    is_first = np.array([who in first[kind] for kind, who in zip(table["kind"], table["who"], strict=True)], bool)
    return table[is_first], table[~is_first]


def fit(table: pd.DataFrame) -> Limits:
    """The limits for a table of marks."""
    found = {}
    is_rudiment = table["kind"] == RUDIMENTS
    for name, kinds in STOPS.items():
        sign = -1 if name in AT_MOST else 1  # turned so that rudiments are above
        rudiments = sign * table.loc[is_rudiment, name].dropna()
        others = sign * table.loc[table["kind"].isin(kinds), name].dropna()
        if len(rudiments) and len(others):  # a network that hears no strokes has neither
            edge = rudiments.quantile(REJECTED)
            found[name] = float(sign * (edge - max(0.0, edge - others.quantile(1 - NEAREST)) / 2))
    return Limits(**found)


def passing(table: pd.DataFrame, limits: Limits) -> dict[str, float]:
    """Shares of the windows of each kind that may be a rudiment."""
    passes = [not limits.objection(Marks(*row)) for row in table[list(Marks._fields)].itertuples(index=False)]
    return pd.Series(passes, table.index).groupby(table["kind"]).mean().astype(float).to_dict()


def other_sounds(sample_rate: int, seed: int) -> Iterable[tuple[str, str, np.ndarray]]:
    for kind, make in SOUNDS.items():
        for i in range(N_SOUNDS):
            rng = np.random.default_rng((seed, i))
            yield kind, f"{i:03d}", make(rng, round(SOUND_S * sample_rate), sample_rate)


def rudiments(data: str, split: str, seed: int, sample_rate: int) -> Iterable[tuple[str, str, np.ndarray]]:
    from sousa_jax.data import sousa, synth
    from sousa_jax.data.clips import BadClip

    if data == "synth":
        clips = synth.SynthClips(split, N_SYNTHETIC, seed)
    else:
        clips = sousa.open_clips(data, split)
    for i, who in enumerate(clips.table["profile_id"]):
        try:
            yield RUDIMENTS, str(who), clips.waveform(i, sample_rate)
        except BadClip as error:
            print(f"left out: {error}")


def report(half: pd.DataFrame, limits: Limits) -> list[str]:
    """For people: how often the limits are right, and which mark tells what apart, on a half that they do not know."""
    from sklearn.metrics import roc_auc_score

    passed, counts = passing(half, limits), half.groupby("kind").size()
    lines = ["limits: " + ", ".join(f"{name} {value:.3g}" for name, value in dataclasses.asdict(limits).items())]
    lines += [f"{kind:<10} {counts[kind]:5d} windows, {passed[kind]:6.1%} pass" for kind in (RUDIMENTS, *SOUNDS)]
    lines += ["", "area under the curve against rudiments; 0.5 tells nothing, 0 and 1 all"]
    for name in Marks._fields:
        known = half[half[name].notna()].assign(mark=half[name].clip(upper=1e3))
        areas = {}
        for kind in SOUNDS:
            some = known[known["kind"].isin([RUDIMENTS, kind])]
            if some["kind"].nunique() == 2:
                areas[kind] = roc_auc_score(some["kind"] == RUDIMENTS, some["mark"])
        if areas:
            lines.append(f"{name:<16}" + "".join(f"{kind:>10} {area:.2f}" for kind, area in areas.items()))
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.thresholds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of a run or model")
    parser.add_argument("--data", default="synth", help="synth, a folder with SOUSA or a Hub id (default: %(default)s)")
    parser.add_argument("--split", default="validation", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    model = checkpoint.load_model(args.workdir)
    stream = Stream(model, Settings(hop_s=2.5), batch=4)
    clips = rudiments(args.data, args.split, args.seed, stream.sample_rate)
    sounds = other_sounds(stream.sample_rate, args.seed)
    table = pd.concat([table_of_marks(stream, clips), table_of_marks(stream, sounds)], ignore_index=True)
    missing = sorted({RUDIMENTS, *SOUNDS} - set(table["kind"]))
    if missing:
        raise InputError(f"no window of {', '.join(missing)} is loud enough to be heard; give other --data")
    first, second = in_halves(table)
    limits = fit(first)
    print("\n".join(report(second, limits)))
    stored: dict[str, Any] = {
        "limits": dataclasses.asdict(limits),
        "passing": {kind: round(share, 4) for kind, share in passing(second, limits).items()},
        "windows": {kind: int(n) for kind, n in second.groupby("kind").size().items()},
        "data": f"{pathlib.PurePath(args.data).name} {args.split}",
        "seed": args.seed,
        "model": checkpoint.digest(model),
    }
    checkpoint.write_json(args.workdir / rejection.FILE, stored)
    print(f"\nwritten to {args.workdir / rejection.FILE}")


if __name__ == "__main__":
    main()
