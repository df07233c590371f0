"""A clip and what a network answers to it, for a phone to check its installation against.

    python -m bridge.golden --workdir=RUN --out=golden.json [--rudiment=SLUG] [--tempo=BPM] [--seed=N] [--overwrite]

The clip is played by the built-in synthesizer, cut to one window by the policy of training, and heard by the Flax
network, in float32. `GoldenClip.swift` reads the file:

    format         "sousa-golden-1"
    model          name of the network
    clip           what is played, for people
    sample_rate    Hz
    n_samples      length of the model's input
    samples        the window: float32, little-endian, base64
    label          slug of the likeliest rudiment
    probabilities  slug → probability, of logits divided by the model's temperature
    strokes        of a network that hears strokes: `frames_per_second`, `rows` (names of the streams), `frames`, and
                   `values`, probabilities `(rows, frames)` as `samples` are written
"""

import argparse
import base64
import pathlib
from typing import Any

import jax
import numpy as np

from sousa_jax import checkpoint
from sousa_jax.data.clips import loop_fill, trim_tail
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.data.synth.request import Request, perform
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.rudiments import NUM_CLASSES, SLUGS
from sousa_jax.step import make_eval_step

FORMAT = "sousa-golden-1"


def golden(model: checkpoint.Model, request: Request, seed: int) -> dict[str, Any]:
    """The content of `golden.json`. `InputError` if the network does not name the 40 rudiments."""
    spec = model.config.frontend
    if model.config.num_classes != NUM_CLASSES:
        raise InputError(f"the network names {model.config.num_classes} classes, expected the {NUM_CLASSES} rudiments")
    clip, _ = perform(jax.random.key(seed), request, spec.sample_rate)
    window = loop_fill(trim_tail(clip, spec.sample_rate), spec.window_samples, 0)
    with jax.default_matmul_precision("highest"):
        heard = make_eval_step(model.name, model.config)(model.params, model.stats, {"waveform": window[None]})
    strokes = None if heard.strokes is None else FrameTargets(*(np.asarray(stream[0]) for stream in heard.strokes))
    return document(
        model=model.name,
        clip=f"{request.rudiment}, {request.tempo_bpm:g} beats a minute, seed {seed}",
        sample_rate=spec.sample_rate,
        window=window,
        probabilities=np.asarray(jax.nn.softmax(heard.logits[0] / model.temperature)),
        strokes=strokes,
        strokes_per_second=model.config.strokes_per_second,
    )


def document(
    *,
    model: str,
    clip: str,
    sample_rate: int,
    window: np.ndarray,
    probabilities: np.ndarray,
    strokes: FrameTargets | None,
    strokes_per_second: int,
) -> dict[str, Any]:
    """The fields of the module's docstring. `window` is `(n,)`, `probabilities` `(40,)`, `strokes` `(T,)` each."""
    content = {
        "format": FORMAT,
        "model": model,
        "clip": clip,
        "sample_rate": sample_rate,
        "n_samples": len(window),
        "samples": encode(window),
        "label": SLUGS[probabilities.argmax()],
        "probabilities": dict(zip(SLUGS, probabilities.tolist(), strict=True)),
    }
    if strokes is not None:
        content["strokes"] = {
            "frames_per_second": strokes_per_second,
            "rows": list(FrameTargets._fields),
            "frames": len(strokes.onset),
            "values": encode(np.stack(strokes)),
        }
    return content


def encode(values: np.ndarray) -> str:
    """An array of any shape as little-endian float32 in base64, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def decode(text: str) -> np.ndarray:
    """Inverse of `encode`: `(n,)` float32."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bridge.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of a run or model")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="golden.json")
    parser.add_argument("--rudiment", default="single_paradiddle", help="its slug (default: %(default)s)")
    parser.add_argument("--tempo", type=float, default=100, help="beats per minute, 60 ... 180 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.out.exists() and (args.out.is_dir() or not args.overwrite):
            raise InputError(f"{args.out} already exists; choose another --out or add --overwrite to replace a file")
        if not args.out.parent.is_dir():
            raise InputError(f"cannot write {args.out}: there is no folder {args.out.parent}")
        request = Request(args.rudiment, tempo_bpm=args.tempo)
        content = golden(checkpoint.load_model(args.workdir), request, args.seed)
        checkpoint.write_json(args.out, content)
        likeliest = content["probabilities"][content["label"]]
        print(f"{args.out}: {content['clip']}; heard as {content['label']}, {likeliest:.1%}")


if __name__ == "__main__":
    main()
