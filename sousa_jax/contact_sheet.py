"""A sheet of clips before and after augmentation: a row for every stage of `sousa_jax.augment` alone, one for all."""

import argparse
import pathlib
import runpy
from typing import TYPE_CHECKING, Any, NamedTuple

from sousa_jax.errors import InputError, one_line_errors

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from sousa_jax.frontends import FrontendSpec

N_CLIPS = 4


class Row(NamedTuple):
    """One row of the sheet: `images` (B, n_mels, n_frames), and a text for each of them, "" for none."""

    title: str
    subtitle: str
    images: "np.ndarray"
    notes: list[str]


def main(argv: list[str] | None = None) -> None:
    """The program behind `python -m sousa_jax.augment`."""
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.augment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", type=pathlib.Path, required=True, help="the picture, OUT.png")
    parser.add_argument(
        "--config", default="configs/efficientat_scratch.py:smoke", help="FILE.py[:preset] (default: %(default)s)"
    )
    parser.add_argument("--data", default="synth", help="synth, or a folder with SOUSA (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips and the draws (default: %(default)s)")
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.plot.suffix != ".png":
            raise InputError(f"cannot write {args.plot}: the picture's name ends in .png")
        if not args.plot.parent.is_dir():
            raise InputError(f"cannot write {args.plot}: there is no folder {args.plot.parent}")
        if args.seed < 0:
            raise InputError(f"--seed must not be negative; found {args.seed}")
        config = _load_config(args.config)
        config.data.path, config.data.streaming = args.data, False
        print(write_sheet(args.plot, config, args.seed))


def write_sheet(path: pathlib.Path, config: "ConfigDict", seed: int) -> pathlib.Path:
    """Draws some clips of `config.data` before and after each stage, as the first step of a training with this seed.

    A stage that the config leaves out is shown with its usual setting; the last row is without it. Returns the path.
    """
    from sousa_jax import start

    spec = start.network(config).frontend
    waveform, labels = _some_clips(config, spec, seed)
    rows = augmented_rows(config, spec, waveform, labels, seed)
    _draw(path, rows, labels, spec, waveform.shape[1] / spec.sample_rate)
    return path


def augmented_rows(
    config: "ConfigDict", spec: "FrontendSpec", waveform: "np.ndarray", labels: "np.ndarray", seed: int
) -> list[Row]:
    """The rows of the sheet, the first without any augmentation, the last with all that `config.augment` turns on.

    Args:
      waveform: `(B, n_samples)` float32.
      labels: `(B,)` int32.
    """
    import jax
    import numpy as np

    from sousa_jax.augment import STAGES, features_and_targets, stage_key
    from sousa_jax.rudiments import NUM_CLASSES, RUDIMENTS

    rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))[0]  # as `make_train_step` in its first step
    batch = {"waveform": waveform, "label": labels}
    plain = {stage.switch: type(stage.usual)() for stage in STAGES}  # (), False, 0: off

    def row(title: str, subtitle: str, settings: dict[str, Any]) -> Row:
        changed = config.copy_and_resolve_references()
        changed.train.label_smoothing = 0.0  # targets then tell which clips are mixed
        changed.augment.update(settings)
        images, targets = features_and_targets(rng, batch, NUM_CLASSES, spec, changed)
        on = [stage for stage in STAGES if stage.drawn and changed.augment[stage.switch]]
        drawn = [stage.drawn(stage_key(rng, stage), len(labels), changed.augment) for stage in on]
        mixed = [_mixed(RUDIMENTS, own, given) for own, given in zip(labels, np.asarray(targets), strict=True)]
        notes = [", ".join(filter(None, texts)) for texts in zip(*drawn, mixed, strict=True)]
        return Row(title, subtitle, np.asarray(images), notes)

    rows = [row("before", "", plain)]
    for stage in STAGES:
        given = config.augment[stage.switch]
        shown = given or stage.usual
        subtitle = f"{stage.switch} = {shown}" + ("" if given else "\n(off in this config)")
        rows.append(row(stage.name, subtitle, plain | {stage.switch: shown}))
    on = sum(bool(config.augment[stage.switch]) for stage in STAGES)
    together = row("in training", f"{on} of {len(STAGES)} together", {})
    return [*rows, together._replace(notes=[""] * len(labels))]  # they are those of the rows above


def _mixed(rudiments: tuple, own: int, targets: "np.ndarray") -> str:
    """`+ 12% Flam Tap`: what else than its own class is in a clip's targets `(classes,)`; "" if next to nothing."""
    others = [i for i in targets.argsort()[::-1] if i != own and targets[i] >= 0.005]
    return "".join(f"+ {targets[i]:.0%} {rudiments[i].name}" for i in others)


def _load_config(argument: str) -> "ConfigDict":
    path, _, preset = argument.partition(":")
    if not pathlib.Path(path).is_file():
        raise InputError(f"there is no config file {path!r} in {pathlib.Path.cwd()}")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise InputError(f"{path} defines no get_config()")
    return get_config(preset) if preset else get_config()


def _some_clips(config: "ConfigDict", spec: "FrontendSpec", seed: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Windows `(N_CLIPS, n_samples)` of training clips, of different rudiments if there are, and their labels."""
    import numpy as np

    from sousa_jax.data import open_split
    from sousa_jax.data.clips import BadClip, random_window, trim_tail

    config.data.synth.clips = (40, 1, 1)  # one of each rudiment
    clips = open_split(config.data, "train", seed=seed, sample_rate=spec.sample_rate)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(clips))
    all_labels = clips.table["label"].to_numpy()
    first = np.sort(np.unique(all_labels[order], return_index=True)[1])  # the first of each class, then all others
    order = [*order[first], *np.delete(order, first)]
    windows, labels = [], []
    for i in order:
        try:
            wave = trim_tail(clips.waveform(int(i), spec.sample_rate), spec.sample_rate)
        except BadClip:
            continue
        windows.append(random_window(wave, spec.window_samples, rng))
        labels.append(all_labels[i])
        if len(windows) == N_CLIPS:
            break
    if not windows:
        raise InputError(f"{config.data.path}: no training clip can be read")
    return np.stack(windows), np.array(labels, np.int32)


def _draw(path: pathlib.Path, rows: list[Row], labels: "np.ndarray", spec: "FrontendSpec", duration_s: float) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from sousa_jax.rudiments import RUDIMENTS

    figure, grid = plt.subplots(
        len(rows), len(labels), figsize=(1.6 + 3.3 * len(labels), 0.6 + 1.15 * len(rows)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.01, hspace=0.01)
    for axes, label in zip(grid[0], labels, strict=True):
        axes.set_title(RUDIMENTS[label].name, fontsize=11)
    for row, line in zip(rows, grid, strict=True):
        line[0].annotate(
            row.title, (0, 0.5), (-10, 1 if row.subtitle else -4), xycoords="axes fraction",
            textcoords="offset points", ha="right", fontsize=11,
        )  # fmt: skip
        line[0].annotate(
            row.subtitle, (0, 0.5), (-10, -4), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="top", fontsize=8, color="0.45",
        )  # fmt: skip
        for column, axes in enumerate(line):
            before = rows[0].images[column]  # one scale for a clip in all rows
            axes.imshow(
                row.images[column], origin="lower", aspect="auto", cmap="magma", interpolation="nearest",
                extent=(0, duration_s, 0, spec.n_mels), vmin=before.min(), vmax=before.max(),
            )  # fmt: skip
            axes.set_yticks([])
            axes.tick_params(labelsize=8, length=2 if row is rows[-1] else 0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row.notes[column]:
                note = axes.annotate(
                    row.notes[column], (1, 1), (-4, -4), xycoords="axes fraction", textcoords="offset points",
                    ha="right", va="top", fontsize=8, color="white",
                    bbox={"boxstyle": "round,pad=0.25", "facecolor": "black", "alpha": 0.6, "linewidth": 0},
                )  # fmt: skip
                note.set_in_layout(False)  # a long one must not push the columns apart
    figure.supxlabel("seconds", fontsize=9)
    unfinished = path.with_name(f".{path.name}.tmp")
    figure.savefig(unfinished, dpi=100, format="png")
    plt.close(figure)
    unfinished.rename(path)
