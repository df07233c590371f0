"""What is played in a recording: each stroke, the rudiment, the tempo, and how a stroke lies beside the written one.

    python -m sousa_jax.strokes FILE [--workdir=RUN] [--rudiment=SLUG] [--dialect=sousa|notated] [--plot=OUT.png]
        [--csv=OUT.csv]
    python -m sousa_jax.strokes --sousa=FOLDER --clip=SAMPLE_ID [--workdir=RUN] ...     a clip whose strokes are known

RUN is the folder of a run, or of a model, that hears strokes. Without `--rudiment` the strokes are compared with the
rudiment that is likeliest, without `--dialect` with the rhythm that fits better, SOUSA's or the printed one.
"""

import argparse
import itertools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pandas as pd

from sousa_jax import checkpoint, files, lesson
from sousa_jax.data import layouts
from sousa_jax.data.clips import BadClip, loop_fill, trim_tail, window_starts
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.data.sousa import open_clips
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.data.synth.written import DIALECTS
from sousa_jax.errors import InputError, nearest, one_line_errors
from sousa_jax.hearing import HeardStrokes, pick, seam
from sousa_jax.lesson import EXTRA, MISSED, Lesson, Summary
from sousa_jax.recording import read_audio
from sousa_jax.rudiments import RUDIMENTS, by_slug
from sousa_jax.stream import hear_windows

BATCH = 4  # windows heard at once: one compiled program for clips of any length
BARS = " ▏▎▍▌▋▊▉█"

# ---------------------------------------------------------------------------------------------------------------------
# From sound to strokes
# ---------------------------------------------------------------------------------------------------------------------


def hear(model: checkpoint.Model, waveform: np.ndarray) -> tuple[FrameTargets, np.ndarray]:
    """What a network hears in a clip of any length.

    The clip goes through the windows of the evaluation, half a window apart, moved by less than a frame so that they
    begin on one.

    Args:
      model: one that hears strokes.
      waveform: `(n,)` float32 at the model's sample rate, n ≥ 1.

    Returns:
      The stream of the whole clip, `(T,)` float32 probabilities each, `T` the clip's length in frames: each frame from
      the window in whose middle it lies most nearly, of a clip that goes in a circle from the first round; nothing is
      heard in the silent tail. And log-probabilities of the rudiments, `(num_classes,)`, the mean over windows.

    Raises:
      InputError: the network hears no strokes.
    """
    spec, per_second = model.config.frontend, model.config.strokes_per_second
    if not per_second:
        raise InputError(f"this {model.name} hears no strokes (config.model.head was plain); train one that does")
    wave = trim_tail(waveform, spec.sample_rate)
    at_least = window_starts(len(wave), spec.window_samples, spec.window_samples // 2)
    first_frames = [start * per_second // spec.sample_rate for start in at_least]
    windows = [loop_fill(wave, spec.window_samples, f * spec.sample_rate // per_second) for f in first_frames]
    heard = hear_windows(model, np.stack(windows), BATCH)
    stream = _stitched(heard.strokes, first_frames, _n_frames(len(wave), model), _n_frames(len(waveform), model))
    return stream, np.asarray(jax.nn.log_softmax(heard.logits).mean(0))


def _n_frames(n_samples: int, model: checkpoint.Model) -> int:
    """Frames in so many samples, at least one."""
    return max(1, round(n_samples * model.config.strokes_per_second / model.config.frontend.sample_rate))


def _stitched(windows: FrameTargets, first_frames: list[int], n_heard: int, n_frames: int) -> FrameTargets:
    """One stream of `n_frames`, of which the windows `(W, T)` that begin at these frames fill the first `n_heard`."""
    per_window = windows.onset.shape[1]
    seams = [seam(a, b, per_window) for a, b in itertools.pairwise(first_frames)]
    edges = [0, *seams, min(n_heard, first_frames[-1] + per_window)]
    rest = (0, n_frames - edges[-1])

    def joined(x: np.ndarray) -> np.ndarray:
        spans = zip(x, first_frames, edges[:-1], edges[1:], strict=True)
        parts = [row[a - begin : b - begin] for row, begin, a, b in spans]
        return np.pad(np.concatenate(parts).astype(np.float32), rest)

    return FrameTargets(*map(joined, windows))


# ---------------------------------------------------------------------------------------------------------------------
# What is heard
# ---------------------------------------------------------------------------------------------------------------------


def sousa_clip(folder: str, sample_id: str, sample_rate: int) -> tuple[np.ndarray, ClipStrokes]:
    """A clip of a SOUSA folder, and the strokes that were struck. `InputError` if it has none of that name."""
    known: list[str] = []
    for split in layouts.SPLITS:
        try:
            clips = open_clips(folder, split)
        except InputError:
            if split == layouts.SPLITS[-1] and not known:
                raise
            continue  # a split may be missing
        ids = clips.table["sample_id"]
        (found,) = np.nonzero((ids == sample_id).to_numpy())
        if len(found):
            try:
                return clips.waveform(int(found[0]), sample_rate), clips.clip_strokes(int(found[0]))
            except BadClip as error:
                raise InputError(f"{folder}: {error}") from None
        known += list(ids)
    hint = nearest(sample_id, known)
    raise InputError(f"{folder} has no clip {sample_id!r}; " + (f"did you mean {hint}?" if hint else "see its table"))


def without_pattern(heard: HeardStrokes) -> pd.DataFrame:
    """A table of strokes that are too few for a lesson, with its columns: what could not be compared is NaN."""
    table = pd.DataFrame(heard._asdict()).reindex(columns=lesson.COLUMNS)
    nothing = {"kind": "", "hand": "", "is_accent": False, "leans": False, "cycle": -1, "slot": -1, "status": EXTRA}
    return table.assign(**nothing)


# ---------------------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------------------


def likeliest(log_probs: np.ndarray, count: int = 3) -> list[tuple[str, float]]:
    """The slugs of the likeliest rudiments and their probabilities."""
    probs = np.exp(log_probs - np.logaddexp.reduce(log_probs))  # a mean of log-probabilities does not sum to one
    return [(RUDIMENTS[i].slug, float(probs[i])) for i in np.argsort(-probs, kind="stable")[:count]]


def table_lines(table: pd.DataFrame) -> list[str]:
    """A lesson's table for people, a line for each stroke."""
    lines = ["  time s  hand  stroke  loud              sure    off"]
    for row in table.itertuples():
        what = f"{row.hand:<4}  {row.kind:<6}"
        if row.status == MISSED:
            lines.append(f"{row.written_s:8.3f}  {what}  {'':24} missed")
            continue
        off = "extra" if row.status == EXTRA else f"{row.deviation_ms:+.0f} ms"
        if row.status == EXTRA:
            what = f"{'':4}  {'grace' if row.grace > 0.5 else '':<6}"
        loud = f"{_bar(row.velocity):<10} {100 * row.velocity:3.0f}"
        lines.append(f"{row.time_s:8.3f}  {what}  {loud}    {row.confidence:4.0%}  {off:>7}")
    return lines


def _bar(value: float, width: int = 10) -> str:
    """0 … 1 as a bar of eighths of a letter."""
    eighths = round(float(np.clip(value, 0, 1)) * width * 8)
    return (BARS[-1] * (eighths // 8) + BARS[eighths % 8]).rstrip()


def sentences(taught: Lesson) -> list[str]:
    """The summary of a lesson, for a drummer."""
    s = taught.summary
    written = {"sousa": "SOUSA's even slots", "notated": "the printed rhythm"}[taught.dialect]
    lines = [f"Tempo {taught.tempo_bpm:.1f} beats a minute, {taught.rudiment.name} in {written}."]
    if np.isfinite(s.sd_ms):
        lines.append(
            f"Timing: strokes lie {s.sd_ms:.0f} ms (standard deviation) around the written ones"
            + "".join(_hand_sentence(taught.table, s))
            + "."
        )
    if np.isfinite(s.accent_contrast):
        even = f"; evenness {s.accent_evenness:.2f} of 1" if np.isfinite(s.accent_evenness) else ""
        lines.append(f"Accents: {s.accent_contrast:.2f} times as hard as the other strokes{even}.")
    if np.isfinite(s.tap_evenness):
        lines.append(f"Unaccented strokes: evenness {s.tap_evenness:.2f} of 1" + _balance(s) + ".")
    if np.isfinite(s.grace_spacing_ms):
        spread = f", give or take {s.grace_spacing_sd_ms:.0f}" if np.isfinite(s.grace_spacing_sd_ms) else ""
        lines.append(f"Grace notes: {s.grace_spacing_ms:.0f} ms before their primary{spread}.")
    n_missed, n_extra = ((taught.table["status"] == status).sum() for status in (MISSED, EXTRA))
    lines.append(
        f"Heard {s.n_strokes} of {s.n_strokes + n_missed} written strokes ({s.missed:.0%} missed), and {n_extra} that "
        "are not written."
    )
    return lines


def _hand_sentence(table: pd.DataFrame, s: Summary) -> Iterator[str]:
    for hand, late, sd in (("right", s.late_right_ms, s.sd_right_ms), ("left", s.late_left_ms, s.sd_left_ms)):
        if np.isfinite(late) and np.isfinite(sd):
            yield f"; {hand} hand {abs(late):.0f} ms {'late' if late > 0 else 'early'}, give or take {sd:.0f}"


def _balance(s: Summary) -> str:
    if not np.isfinite(s.hand_balance):
        return ""
    louder, share = ("right", s.hand_balance) if s.hand_balance >= 1 else ("left", 1 / s.hand_balance)
    return "; both hands alike" if share < 1.01 else f"; the {louder} hand {share - 1:.0%} harder"


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.strokes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=pathlib.Path, help="a recording")
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=checkpoint.SHIPPED,
        help="folder of a run or model; default: the shipped one",
    )
    parser.add_argument("--sousa", metavar="FOLDER", help="instead of FILE: a folder with SOUSA")
    parser.add_argument("--clip", metavar="SAMPLE_ID", help="of the clip in it")
    parser.add_argument("--rudiment", metavar="SLUG", help="what was meant, instead of what is heard")
    parser.add_argument("--dialect", choices=DIALECTS, help="default: what fits better; with --sousa: sousa")
    parser.add_argument("--plot", type=pathlib.Path, help="a picture, OUT.png")
    parser.add_argument("--csv", type=pathlib.Path, help="the table, OUT.csv")
    args = parser.parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    if (args.file is None) == (args.sousa is None):
        raise InputError("give either a recording or --sousa=FOLDER --clip=SAMPLE_ID")
    if (args.sousa is None) != (args.clip is None):
        raise InputError("--sousa=FOLDER and --clip=SAMPLE_ID belong together")
    for path, ending in ((args.plot, ".png"), (args.csv, ".csv")):
        files.check_writable(path, ending)
    asked = by_slug(args.rudiment) if args.rudiment else None
    model = checkpoint.load_model(args.workdir)
    sample_rate = model.config.frontend.sample_rate
    if args.file:
        wave, true = read_audio(args.file, sample_rate), None
    else:
        wave, true = sousa_clip(args.sousa, args.clip, sample_rate)

    stream, log_probs = hear(model, wave)
    heard = pick(stream, model.config.strokes_per_second)
    names = likeliest(log_probs)
    rudiment = asked or by_slug(names[0][0])
    print("\n".join(f"{prob:6.1%}  {by_slug(slug).name}" for slug, prob in names), end="\n\n")
    taught = None
    if len(heard.time_s) >= lesson.FEWEST:
        taught = lesson.teach(heard, rudiment, args.dialect or ("sousa" if args.sousa else None))
    table = taught.table if taught else without_pattern(heard)
    print("\n".join(table_lines(table)), end="\n\n")
    few = f"{len(heard.time_s)} strokes heard, too few for a tempo: at least {lesson.FEWEST} are needed."
    print("\n".join(sentences(taught) if taught else [few]))

    if args.csv:
        with files.finished(args.csv) as unfinished:
            table.to_csv(unfinished, index=False, float_format="%.6g")
    if args.plot:
        from sousa_jax import strokes_picture

        title = strokes_picture.title(names, asked, taught)
        figure = strokes_picture.draw(wave, model.config.frontend, heard, taught, title, true)
        with files.finished(args.plot) as unfinished:
            figure.savefig(unfinished, format="png", dpi=strokes_picture.DPI)
    for path in filter(None, (args.csv, args.plot)):
        print(f"written to {path}")


if __name__ == "__main__":
    main()
