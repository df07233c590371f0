"""Synthetic clips as files.

A data set in the Hub's layout, which `datasets.load_dataset(DIR)` opens, its splits with players of their own:

    python -m sousa_jax.data.synth --out=DIR --clips=1200 --seed=42 [--sample_rate=44100]

One clip, with `--plot` also a picture beside it: waveform, mel spectrogram, and every stroke:

    python -m sousa_jax.data.synth --rudiment=pataflafla --tempo=90 --tier=beginner --out=x.wav [--plot]

The drums of recorded clips, on which training can play (`config.data.synth.drums`; see `learned_drums.py`):

    python -m sousa_jax.data.synth --drums_of=DATA --out=drums.npz
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator

from sousa_jax.data.synth.presets import PRESET_NAMES
from sousa_jax.errors import InputError, one_line_errors

SPLIT_SHARES = {"train": 0.68, "validation": 0.13, "test": 0.19}  # as on the Hub


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.data.synth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="a new folder; one clip: x.wav or x.flac; drums: x.npz"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--sample_rate", type=int, default=44_100, help="Hz (default: %(default)s)")
    parser.add_argument("--dialect", default="sousa", help="sousa, notated or mixed (default: %(default)s)")
    parser.add_argument("--num_cycles", type=int, default=4, help="repetitions of the pattern (default: %(default)s)")
    many = parser.add_argument_group("a data set")
    many.add_argument("--clips", type=int, default=1200, help="of all splits together (default: %(default)s)")
    one = parser.add_argument_group("one clip")
    one.add_argument("--rudiment", help="its slug; makes one clip instead of a data set")
    one.add_argument("--tempo", type=int, default=100, help="beats per minute, 60 ... 180 (default: %(default)s)")
    one.add_argument("--tier", default="professional", help="skill of the player (default: %(default)s)")
    one.add_argument("--duration", type=float, help="seconds, instead of --num_cycles")
    one.add_argument("--preset", default="clean_studio", help=f"recording, dialect sousa: {', '.join(PRESET_NAMES)}")
    one.add_argument("--left_lead", action="store_true", help="begin with the other hand")
    one.add_argument("--plot", action="store_true", help="also draw x.png")
    drums = parser.add_argument_group("drums")
    drums.add_argument("--drums_of", help="a folder or a Hub id, from whose training clips drums are learnt")
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.drums_of and args.rudiment:
            raise InputError("--rudiment makes a clip and --drums_of learns drums; give one of them")
        (write_drums if args.drums_of else write_clip if args.rudiment else write_folder)(args)


# --------------------------------------------------------------------------------------------------------------- drums


def write_drums(args: argparse.Namespace) -> None:
    from sousa_jax.data import sousa
    from sousa_jax.data.synth import learned_drums
    from sousa_jax.files import check_writable

    check_writable(args.out, ".npz")
    names, learned = learned_drums.learn(sousa.open_clips(args.drums_of, "train"))
    learned_drums.save(args.out, names, learned)
    for name, exponent in zip(names, learned.exponent, strict=True):
        print(f"{name}: level (velocity / 127) ** {exponent:.2f}")


# ------------------------------------------------------------------------------------------------------------ one clip


def write_clip(args: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from sousa_jax.data.synth.picture import check_name, draw_clip, write_audio
    from sousa_jax.data.synth.request import Request, perform

    check_name(args.out)
    request = Request(
        rudiment=args.rudiment,
        tempo_bpm=args.tempo,
        tier=args.tier,
        dialect=args.dialect,
        num_cycles=args.num_cycles,
        duration_s=args.duration,
        preset=args.preset,
        left_lead=args.left_lead,
    )
    wave, strokes = perform(jax.random.key(args.seed), request, args.sample_rate)
    write_audio(args.out, wave, args.sample_rate)
    print(f"{args.out}: {len(wave) / args.sample_rate:.1f} s, {int(np.sum(strokes.valid))} strokes")
    if args.plot:
        room = args.preset if args.dialect == "sousa" else "a random room"
        title = f"{args.rudiment}, {args.tempo} BPM, {args.tier}, {args.dialect}, {room}"
        print(draw_clip(args.out.with_suffix(".png"), wave, args.sample_rate, strokes, title))


# ---------------------------------------------------------------------------------------------------------- a data set


def write_folder(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sousa_jax.data.synth.clips import SynthClips
    from sousa_jax.data.synth.export import ExportClip, write_hub_folder
    from sousa_jax.data.synth.stream import Source

    if args.out.suffix in (".wav", ".flac"):
        raise InputError(f"{args.out} is the name of one clip, which needs --rudiment; a data set needs a folder")
    if args.num_cycles < 1:
        raise InputError(f"--num_cycles must be at least 1; found {args.num_cycles}")
    source = Source(args.dialect, args.num_cycles)
    counts = split_counts(args.clips)
    splits = {split: SynthClips(split, n, args.seed, source) for split, n in counts.items() if n}

    def clips(split: str) -> Iterator[ExportClip]:
        made = splits[split]
        for i in range(len(made)):
            yield ExportClip(made.row(i), made.strokes(i), made.waveform(i, args.sample_rate))
            bar.update()

    with tqdm(total=sum(counts.values()), unit="clip", disable=not sys.stderr.isatty()) as bar:
        write_hub_folder(
            args.out,
            {split: clips(split) for split in splits},
            sample_rate=args.sample_rate,
            description=f"python -m sousa_jax.data.synth --clips={args.clips} --seed={args.seed} "
            f"--sample_rate={args.sample_rate} --dialect={args.dialect} --num_cycles={args.num_cycles}",
        )
    print(f"{args.out}: " + ", ".join(f"{n} {split}" for split, n in counts.items()) + " clips")


def split_counts(clips: int) -> dict[str, int]:
    """How many of `clips` clips each split has; `InputError` if one would have none."""
    counts = {split: round(share * clips) for split, share in SPLIT_SHARES.items()}
    counts["train"] += clips - sum(counts.values())
    if min(counts.values()) < 1:
        raise InputError(f"--clips={clips} leaves a split empty; at least 5 are needed, 300 for every class in each")
    return counts


if __name__ == "__main__":
    main()
