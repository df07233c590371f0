"""Fits what a model takes for no rudiment, on rudiments and on other sounds, and stores it beside the weights.

    python -m sousa_jax.thresholds --workdir=RUN [--data=PATH]

Rudiments are SOUSA's clips, or the synthesizer's if no data are given; other sounds are those of
`sousa_jax/data/other_sounds.py`. On the validation split and some sounds each limit of `sousa_jax/rejection.py` is put
where it rejects a small share (`STOPS`) of the windows with a rudiment, and half-way to the other sounds if even their
nearest twentieth is further off. The test split, of other players, and other sounds say how often it is right.
`RUN/listening.json` holds the limits and these shares.
"""

import argparse
import dataclasses
import itertools
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

NEAREST = 0.05  # of other sounds' windows
N_SOUNDS, SOUND_S = 100, 7.5  # of each kind
HOP_S, BATCH = 2.5, 4
SPLITS = ("validation", "test")  # to fit, and to see how good it is
SEED_STEP = 1_000  # sounds of neighbouring seeds are others
N_SYNTHETIC = 200  # clips, where no data are given
RUDIMENTS = "rudiments"
# Which sounds a limit is to stop, and the share of the windows with a rudiment that it may reject for it. A slow roll
# has no more strokes than a fast metronome, so few are given up there; doubt tells most, so it may reject most.
STOPS = {
    "probability": (tuple(SOUNDS), 0.005),
    "doubt": (("noise", "speech"), 0.02),
    "strokes_per_s": (("metronome",), 0.005),
}
AT_MOST = ("doubt",)


def table_of_marks(stream: Stream, sounds: Iterable[tuple[str, np.ndarray]]) -> pd.DataFrame:
    """A row for each window that is not silent: its `kind` and its `Marks`, from `(kind, (n,) samples)`."""
    per_second, rows = stream.model.config.strokes_per_second, []
    for kind, wave in sounds:
        state = stream.start()
        for reading in stream.push(state, wave) + stream.finish(state):
            if reading.log_probs is not None:
                found = rejection.marks(reading.log_probs, reading.strokes, per_second)
                rows.append({"kind": kind, **found._asdict()})
    return pd.DataFrame(rows, columns=["kind", *Marks._fields])


def fit(table: pd.DataFrame) -> Limits:
    """The limits for a table of marks."""
    found = {}
    is_rudiment = table["kind"] == RUDIMENTS
    for name, (kinds, rejected) in STOPS.items():
        sign = -1 if name in AT_MOST else 1  # turned so that rudiments are above
        rudiments = sign * table.loc[is_rudiment, name].dropna()
        others = sign * table.loc[table["kind"].isin(kinds), name].dropna()
        if len(rudiments) and len(others):  # a network that hears no strokes has neither
            edge = rudiments.quantile(rejected)
            found[name] = float(sign * (edge - max(0.0, edge - others.quantile(1 - NEAREST)) / 2))
    return Limits(**found)


def passing(table: pd.DataFrame, limits: Limits) -> dict[str, float]:
    """Shares of the windows of each kind that may be a rudiment."""
    passes = [not limits.objection(Marks(*row)) for row in table[list(Marks._fields)].itertuples(index=False)]
    return pd.Series(passes, table.index).groupby(table["kind"]).mean().astype(float).to_dict()


def other_sounds(sample_rate: int, seed: int) -> Iterable[tuple[str, np.ndarray]]:
    for kind, make in SOUNDS.items():
        for i in range(N_SOUNDS):
            rng = np.random.default_rng((seed, i))
            yield kind, make(rng, round(SOUND_S * sample_rate), sample_rate)


def rudiments(data: str, split: str, seed: int, sample_rate: int) -> Iterable[tuple[str, np.ndarray]]:
    from sousa_jax.data import sousa, synth
    from sousa_jax.data.clips import BadClip

    clips = synth.SynthClips(split, N_SYNTHETIC, seed) if data == "synth" else sousa.open_clips(data, split)
    for i in range(len(clips)):
        try:
            yield RUDIMENTS, clips.waveform(i, sample_rate)
        except BadClip as error:
            print(f"left out: {error}")


def report(table: pd.DataFrame, limits: Limits) -> list[str]:
    """For people: how often the limits are right, and which mark tells what apart, on a table that they do not know."""
    from sklearn.metrics import roc_auc_score

    passed, counts = passing(table, limits), table.groupby("kind").size()
    lines = ["limits: " + ", ".join(f"{name} {value:.3g}" for name, value in dataclasses.asdict(limits).items())]
    lines += [f"{kind:<10} {counts[kind]:5d} windows, {passed[kind]:6.1%} pass" for kind in (RUDIMENTS, *SOUNDS)]
    lines += ["", "area under the curve against rudiments; 0.5 tells nothing, 0 and 1 all"]
    for name in Marks._fields:
        known = table[table[name].notna()].assign(mark=table[name].clip(upper=1e3))
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
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    model = checkpoint.load_model(args.workdir)
    stream = Stream(model, Settings(hop_s=HOP_S), batch=BATCH)
    tables = {}
    for number, split in enumerate(SPLITS):
        sounds = itertools.chain(
            rudiments(args.data, split, args.seed, stream.sample_rate),
            other_sounds(stream.sample_rate, SEED_STEP * args.seed + number),
        )
        tables[split] = table_of_marks(stream, sounds)
        missing = sorted({RUDIMENTS, *SOUNDS} - set(tables[split]["kind"]))
        if missing:
            raise InputError(f"{args.data}, {split}: no window of {', '.join(missing)} is loud enough to be heard")
    limits, table = fit(tables["validation"]), tables["test"]
    print("\n".join(report(table, limits)))
    stored: dict[str, Any] = {
        "limits": dataclasses.asdict(limits),
        "passing": {kind: round(share, 4) for kind, share in passing(table, limits).items()},
        "windows": {kind: int(n) for kind, n in table.groupby("kind").size().items()},
        "data": pathlib.PurePath(args.data).name,
        "seed": args.seed,
        "model": checkpoint.digest(model),
    }
    checkpoint.write_json(args.workdir / rejection.FILE, stored)
    print(f"\nwritten to {args.workdir / rejection.FILE}")


if __name__ == "__main__":
    main()
