"""Split → predictions → metrics → files.

Re-evaluates any finished run on any data:

    python -m sousa_jax.evaluate --workdir=RUN [--data=PATH] [--split=test] [--out=DIR]
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from sousa_jax import checkpoint, hearing, metrics, models, shortcuts, significance
from sousa_jax.data import open_split
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.data.pipeline import BadClips, eval_batches
from sousa_jax.devices import Layout, is_main
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.frontends import FrontendSpec
from sousa_jax.predictions import SHORTCUTS, Answers
from sousa_jax.rudiments import NUM_CLASSES
from sousa_jax.step import make_eval_step


class Predictions(NamedTuple):
    """Logits of the usable clips of a split, in its order.

    clip: `(n,)` rows of the split's table. first, mean: `(n, NUM_CLASSES)` logits of the clip's first
    window, and log-probabilities averaged over its windows. loudness_db: `(n,)` RMS of its first window, dB of full
    scale, NaN where strokes were read instead of sound.
    """

    clip: np.ndarray
    first: np.ndarray
    mean: np.ndarray
    loudness_db: np.ndarray


def predict(
    eval_step: Callable,
    params: models.Arrays,
    stats: models.Arrays,
    clips: Any,
    spec: FrontendSpec,
    *,
    batch_size: int,
    workers: int,
    bad: BadClips,
    windows: str = "all",
    layout: Layout | None = None,
    strokes_per_second: int = 0,
) -> Predictions:
    """Hears every clip once; padding rows are never counted. `windows` is as of `eval_batches`. With
    `strokes_per_second` above 0 `eval_step` reads the strokes that fell, not the sound.

    Several processes share the clips, and each gets all predictions. `params` and `stats` lie as `layout` says.
    """
    layout = layout or Layout()
    rows, logits, loudness = [], [], []
    batches = eval_batches(
        clips,
        batch_size=batch_size,
        sample_rate=spec.sample_rate,
        window_s=spec.window_s,
        bad=bad,
        windows=windows,
        workers=workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        strokes_per_second=strokes_per_second,
    )
    read = "stroke_targets" if strokes_per_second else "waveform"
    for batch in batches:
        shared = layout.batch({name: batch[name] for name in (read, "clip", "mask")})
        out = eval_step(params, stats, {read: shared[read]}).logits
        # What is not known lies on the devices as the rows do: several processes gather both.
        rms_db = out[:, 0] * jnp.nan if strokes_per_second else _loudness_db(shared["waveform"])
        out, clip, mask, rms_db = layout.gather((out, shared["clip"], shared["mask"], rms_db))
        rows.append(clip[mask])
        logits.append(out[mask])
        loudness.append(rms_db[mask])
    rows, logits, loudness = (np.concatenate(parts) for parts in (rows, logits, loudness))
    clip, first, window_of = np.unique(rows, return_index=True, return_inverse=True)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    mean = np.zeros((len(clip), logits.shape[1]), np.float32)
    np.add.at(mean, window_of, log_probs)
    return Predictions(clip, logits[first], mean / np.bincount(window_of)[:, None], loudness[first])


@jax.jit
def _loudness_db(waveform: jax.Array) -> jax.Array:
    """RMS of each row of `(B, n_samples)`, dB of full scale, at least -120."""
    return 10 * jnp.log10(jnp.maximum(jnp.square(waveform).mean(1), 1e-12))


def hear_strokes(
    eval_step: Callable,
    params: models.Arrays,
    stats: models.Arrays,
    clips: Any,
    model_config: Any,
    config: ConfigDict,
    bad: BadClips,
    layout: Layout | None = None,
) -> dict[str, float]:
    """How well the strokes of each clip's first window are heard: F1, precision and recall at ±20 ms."""
    layout = layout or Layout()
    spec, per_second = model_config.frontend, model_config.strokes_per_second
    total = hearing.StrokeCounts()
    for batch in eval_batches(
        clips,
        batch_size=config.eval.batch_size,
        sample_rate=spec.sample_rate,
        window_s=spec.window_s,
        bad=bad,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        strokes_per_second=per_second,
    ):
        shared = layout.batch({name: batch[name] for name in ("waveform", "stroke_targets", "mask")})
        heard = eval_step(params, stats, {"waveform": shared["waveform"]}).strokes
        heard, true, mask = layout.gather((heard, shared["stroke_targets"], shared["mask"]))
        total = total.plus(hearing.count(*(FrameTargets(*(x[mask] for x in s)) for s in (heard, true)), per_second))
    return {"stroke_f1": total.f1, "precision": total.hits / max(1, total.heard), "recall": total.hits / total.true}


def summarize(answers: Answers, clips: Any, temperature: float = 1.0) -> dict[str, Any]:
    """The content of `test_metrics.json`: scores over all windows and of the first window alone, how sure they are and
    how far the confidence is to be trusted, which families are confused, and what shortcuts would give (None where it
    is not known). `temperature` is what the model's logits are divided by."""
    labels, named, logits = answers.labels, answers.named(), answers.logits
    found = {name: answers.shortcut(name) for name in SHORTCUTS}
    padded = logits.get("first window, padded")
    interval = significance.by_player(answers.players, labels, answers.correct())
    return {
        **metrics.scores(labels, logits["all windows"]),
        "interval": [None if np.isnan(end) else end for end in interval[1:]],
        "n_players": len(set(answers.players)),
        "first_window": metrics.scores(labels, logits["first window"]),
        "padded_first_window": None if padded is None else metrics.scores(labels, padded),
        "calibration_error": metrics.calibration(labels, logits["all windows"]).error,
        "first_window_calibration": {
            "temperature": temperature,
            "error_without": metrics.calibration(labels, logits["first window"]).error,
            "error_with": metrics.calibration(labels, logits["first window"] / temperature).error,
        },
        "errors": metrics.error_split(labels, named),
        "family_confusion": metrics.family_confusion(labels, named).tolist(),
        "shortcuts": {
            name: None if label is None else metrics.balanced_accuracy(labels, label) for name, label in found.items()
        },
        "chance": 1 / NUM_CLASSES,
        "split": clips.split,
        "data_fingerprint": clips.fingerprint,
    }


def report_line(summary: dict[str, Any]) -> str:
    """One line for people."""
    low, high = summary["interval"]
    interval = "" if low is None else f" ({low:.3f} … {high:.3f} by player)"
    shortcuts_told = ", ".join(
        f"{name} alone {'not known' if score is None else f'{score:.3f}'}"
        for name, score in summary["shortcuts"].items()
    )
    return (
        f"{summary['split']}: balanced accuracy {summary['balanced_accuracy']:.3f}{interval} over all windows, "
        f"{summary['first_window']['balanced_accuracy']:.3f} on the first; top-5 {summary['top5']:.3f}, "
        f"macro F1 {summary['macro_f1']:.3f}, {summary['n_clips']} clips; "
        f"{shortcuts_told}, chance {summary['chance']:.3f}"
    )


def evaluate_split(
    model: checkpoint.Model,
    config: ConfigDict,
    split: str,
    out: pathlib.Path,
    train_table: pd.DataFrame | None,
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Evaluates a model on a split of `config.data` and writes the result files into `out`."""
    layout = layout or Layout()
    params, stats = layout.place((model.params, model.stats))
    spec = model.config.frontend
    clips = open_split(config.data, split, seed=config.seed, sample_rate=spec.sample_rate)
    bad = BadClips(clips, config.data.max_bad_fraction)
    from_strokes = config.get("strokes", {}).get("stage") == "rhythm"
    hear = functools.partial(
        predict,
        make_eval_step(model.name, model.config, config.train.compute_dtype, from_strokes=from_strokes),
        params,
        stats,
        clips,
        spec,
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        bad=bad,
        layout=layout,
        strokes_per_second=model.config.strokes_per_second if from_strokes else 0,
    )
    predicted = hear()
    logits = {"all windows": predicted.mean, "first window": predicted.first}
    table = clips.table.iloc[predicted.clip]
    if not from_strokes:
        logits["first window, padded"] = hear(windows="padded").first
        table = table.assign(loudness_db=predicted.loudness_db)
    found = shortcuts.answers(train_table, table)
    answers = Answers(table.assign(**{f"by_{name}": labels for name, labels in found.items()}), logits)
    summary = summarize(answers, clips, model.temperature)
    summary |= {"read": "strokes" if from_strokes else "sound", "bad_clips": bad.reasons}
    if is_main():
        metrics.write_results(out, summary, answers, spec.window_s)
    return summary


def known_table(clips: Any) -> pd.DataFrame | None:
    """The metadata of a split, or None for a stream that has not been read to its end."""
    return clips.table if hasattr(clips, "waveform") else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a finished run's folder")
    parser.add_argument("--data", help="synth, a folder or a Hub id; by default the run's own data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=pathlib.Path, help="by default WORKDIR/results/SPLIT_on_DATA")
    args = parser.parse_args(argv)
    with one_line_errors():
        model = checkpoint.load_model(args.workdir)
        if not (args.workdir / "config.json").is_file():
            raise InputError(f"{args.workdir} holds a model but no config.json; expected the folder of a training run")
        stored = json.loads((args.workdir / "config.json").read_text("utf-8"))
        config = ConfigDict(stored["config"])
        if args.data and args.data != config.data.path:
            config.data.path, config.data.revision = args.data, ""
        train = open_split(config.data, "train", seed=config.seed, sample_rate=model.config.frontend.sample_rate)
        name = pathlib.PurePath(config.data.path).name
        out = args.out or args.workdir / "results" / f"{args.split}_on_{name}"
        summary = evaluate_split(model, config, args.split, out, known_table(train))
        print(report_line(summary))
        print(f"written to {out}")


if __name__ == "__main__":
    main()
