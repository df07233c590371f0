"""Play, and it tells you: what was played in recordings, from when to when.

    python -m sousa_jax.listen FILE [FILE ...] [--json | --csv] [--plot=OUT.png] [--workdir=RUN] [--top=5]
    python -m sousa_jax.listen --mic

FILE is a recording of a snare drum: wav, flac, ogg or mp3, any rate, any number of channels, any length. By the network
that comes with the package, or by that of a run. `--mic` listens to the microphone until Ctrl-C.

Windows of 5 s, one every `--hop` seconds, are heard; their answers are joined to a timeline (`timeline.py`). What is
silent or no rudiment (`rejection.py`) gets no name. A file that cannot be read is told in a line, the others are heard,
and the exit code is 2.
"""

import argparse
import contextlib
import csv
import io
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sousa_jax import checkpoint, files, recording, rejection
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.rejection import Limits
from sousa_jax.rudiments import RUDIMENTS, by_slug
from sousa_jax.stream import Latency, Reading, Settings, Stream
from sousa_jax.strokes import likeliest
from sousa_jax.take import Listener, Played, Take

BATCH = 4  # windows of a recording that are heard at once, on all cores
SHOWN_PAUSE_S = 0.5  # a shorter silence is not a line of its own

# ---------------------------------------------------------------------------------------------------------------------
# Hearing
# ---------------------------------------------------------------------------------------------------------------------


def hear_file(path: pathlib.Path, stream: Stream, limits: Limits) -> Take:
    """What is heard in a recording, which is read a piece at a time. `InputError` if it cannot be used."""
    listener = Listener(stream, limits)
    for samples in recording.blocks(path, stream.sample_rate):
        listener.push(samples)
    return listener.finish()


def hear_microphone(stream: Stream, limits: Limits) -> Take:
    """What the microphone hears until Ctrl-C; each window is told as soon as it is complete."""
    listener = Listener(stream, limits)
    with recording.microphone() as (rate_hz, pieces):
        print("listening; Ctrl-C ends", file=sys.stderr)
        resampler, delay_s = recording.Resampler(rate_hz, stream.sample_rate), 0.0
        with contextlib.suppress(KeyboardInterrupt):
            for samples in pieces:
                for reading, objection in listener.push(resampler.push(samples)):
                    print(_reading_line(reading, objection, stream.sample_rate), file=sys.stderr)
                delay_s = max(delay_s, resampler.delay_s)
        listener.push(resampler.push(np.zeros(0, np.float32), last=True))
    take = listener.finish()
    if take.latency:
        print(latency_line(take.latency, delay_s, stream.settings), file=sys.stderr)
    return take


def _reading_line(reading: Reading, objection: str, sample_rate: int) -> str:
    told = "silence"
    if objection:
        told = f"no rudiment: {objection}"
    elif reading.smoothed is not None:
        best = int(reading.smoothed.argmax())
        told = f"{RUDIMENTS[best].name}, {reading.smoothed[best]:.0%}"
    return f"{reading.end / sample_rate:8.1f} s  {told}"


# ---------------------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------------------


def latency_line(latency: Latency, resampler_s: float, settings: Settings) -> str:
    """From the last sample of a window to its answer, and from a change of the playing."""
    parts_s = {"buffer": latency.buffering_s, "resampler": resampler_s, "network": latency.inference_s}
    named = ", ".join(f"{name} {1000 * part_s:.0f}" for name, part_s in parts_s.items())
    total_ms, change_s = 1000 * sum(parts_s.values()), latency.until_change_is_heard_s(settings) + resampler_s
    return f"latency {total_ms:.0f} ms ({named}); a change of rudiment is heard after about {change_s:.1f} s"


def _top(take: Take, count: int) -> list[tuple[str, float]]:
    """The slugs of the likeliest rudiments and their probabilities; nothing of silence."""
    return [] if take.overall is None else likeliest(np.log(take.overall), count)


def text(name: str, take: Take, seconds: float, top: int) -> str:
    """A take for people."""
    fast = take.duration_s / max(seconds, 1e-9)
    lines = [f"{name}: {take.duration_s:.1f} s, heard in {seconds:.1f} s ({fast:.0f} times real time)"]
    if not any(played.segment.rudiment for played in take.played):
        lines.append("  no rudiment" + ("; if it is one after all:" if take.overall is not None else ": silence"))
    lines += [f"  {probability:6.1%}  {by_slug(slug).name}" for slug, probability in _top(take, top)]
    if take.played:
        lines.append("")
    at_s = 0.0
    for played in take.played:
        lines += _silence(at_s, played.segment.start_s)
        lines.append(_line(played))
        at_s = played.segment.end_s
    lines += _silence(at_s, take.duration_s) if take.played else []
    return "\n".join(lines)


def _silence(start_s: float, end_s: float) -> list[str]:
    return [f"{start_s:8.1f} … {end_s:6.1f} s  silence"] if end_s - start_s >= SHOWN_PAUSE_S else []


def _line(played: Played) -> str:
    segment = played.segment
    when = f"{segment.start_s:8.1f} … {segment.end_s:6.1f} s  "
    if not segment.rudiment:
        return f"{when}no rudiment: {segment.objection}"
    rudiment = by_slug(segment.rudiment)
    tempo = f"{played.tempo_bpm:5.1f} bpm" if played.tempo_bpm else ""
    return f"{when}{rudiment.name:<24} {segment.probability:4.0%}  {tempo:<9}  {rudiment.notation}"


# ---------------------------------------------------------------------------------------------------------------------
# For programs
# ---------------------------------------------------------------------------------------------------------------------


def as_json(name: str, take: Take, top: int) -> dict[str, Any]:
    """An entry of `--json`: plain values, None for what is not known."""
    strokes = [
        {"time_s": _rounded(time_s), "velocity": _rounded(velocity), "deviation_ms": _rounded(deviation_ms, 1)}
        for played in take.played
        for time_s, velocity, deviation_ms in zip(
            played.strokes.time_s, played.strokes.velocity, played.deviation_ms, strict=True
        )
    ]
    return {
        "file": name,
        "duration_s": _rounded(take.duration_s),
        "overall": [
            {"rudiment": slug, "probability": _rounded(probability, 4)} for slug, probability in _top(take, top)
        ],
        "segments": [
            {
                "start_s": _rounded(played.segment.start_s),
                "end_s": _rounded(played.segment.end_s),
                "rudiment": played.segment.rudiment,
                "probability": _rounded(played.segment.probability, 4),
            }
            for played in take.played
            if played.segment.rudiment
        ],
        "tempo_bpm": None if take.tempo_bpm is None else _rounded(take.tempo_bpm, 2),
        "strokes": strokes,
    }


def _rounded(value: float, digits: int = 3) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


COLUMNS = ("file", "start_s", "end_s", "rudiment", "probability", "tempo_bpm", "sticking", "no_rudiment_because")


def csv_rows(name: str, take: Take) -> Iterator[tuple[Any, ...]]:
    """A row of `COLUMNS` for each segment."""
    for played in take.played:
        segment, slug = played.segment, played.segment.rudiment
        tempo = round(played.tempo_bpm, 2) if played.tempo_bpm else ""
        probability, sticking = (round(segment.probability, 4), by_slug(slug).notation) if slug else ("", "")
        when = (_rounded(segment.start_s), _rounded(segment.end_s))
        yield (name, *when, slug, probability, tempo, sticking, segment.objection)


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.listen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="FILE", help="recordings")
    parser.add_argument("--mic", action="store_true", help="the microphone instead")
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=checkpoint.SHIPPED,
        help="folder of a run or model; default: the shipped one",
    )
    parser.add_argument("--hop", type=float, default=Settings.hop_s, help="seconds from window to window (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="likeliest rudiments that are told (%(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list, one entry a file")
    form.add_argument("--csv", action="store_true", help="print a table, one row a segment")
    parser.add_argument("--plot", type=pathlib.Path, help="a picture of one take, OUT.png")
    args = parser.parse_args(argv)
    with one_line_errors():
        if not run(args):
            sys.exit(2)


def run(args: argparse.Namespace) -> bool:
    """False if a file could not be read."""
    if args.mic == bool(args.files):
        raise InputError("give recordings, or --mic")
    if args.plot and len(args.files) > 1:
        raise InputError(f"--plot draws one take, not {len(args.files)}")
    if not 1 <= args.top <= len(RUDIMENTS):
        raise InputError(f"--top must be 1 to {len(RUDIMENTS)}; found {args.top}")
    files.check_writable(args.plot, ".png")
    model, limits = checkpoint.load_model(args.workdir), rejection.load(args.workdir)
    if limits is None:
        print(
            f"{args.workdir} has no {rejection.FILE}: every sound gets a name; fit what is no rudiment with "
            f"python -m sousa_jax.thresholds --workdir={args.workdir}",
            file=sys.stderr,
        )
    stream = Stream(model, Settings(hop_s=args.hop), batch=1 if args.mic else BATCH)
    takes, is_good = [], True
    for name, hear in _sources(args, stream, limits or Limits()):
        begin_s = time.perf_counter()
        try:
            take = hear()
        except InputError as error:
            if args.mic:
                raise
            print(f"error: {error}", file=sys.stderr)
            is_good = False
            continue
        takes.append((name, take))
        if not (args.json or args.csv):
            seconds = time.perf_counter() - begin_s
            print(text(name, take, seconds, args.top), end="\n\n", flush=True)
    if args.json:
        print(json.dumps([as_json(name, take, args.top) for name, take in takes], indent=1, allow_nan=False))
    if args.csv:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(
            [COLUMNS, *(row for name, take in takes for row in csv_rows(name, take))]
        )
        print(table.getvalue(), end="")
    if args.plot and takes:
        from sousa_jax import timeline_picture

        figure = timeline_picture.draw(*takes[0])
        with files.finished(args.plot) as unfinished:
            figure.savefig(unfinished, format="png", dpi=timeline_picture.DPI)
        print(f"written to {args.plot}", file=sys.stderr)
    return is_good


def _sources(args: argparse.Namespace, stream: Stream, limits: Limits) -> Iterator[tuple[str, Any]]:
    """Names of takes, and how each is heard."""
    if args.mic:
        yield "microphone", lambda: hear_microphone(stream, limits)
    for path in args.files:
        yield str(path), lambda path=path: hear_file(path, stream, limits)


if __name__ == "__main__":
    main()
