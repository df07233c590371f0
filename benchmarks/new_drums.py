"""What is a drum that the network has never heard worth, with and without synthetic drums beside the real ones?

    python -m benchmarks.new_drums --data=sousa_mini --rhythm=RHYTHM --out=DIR [--banks A B ...] [--steps=600]

For each sound bank of SOUSA: an ear (`configs/strokes_hearing.py`) learns from all the others, once from real clips
alone and once with half of each batch synthetic, the same number of steps of the same batches; then both hear the test
clips of the bank that was left out. RHYTHM is a run of `configs/strokes_rhythm.py`: it reads the names from the strokes
and has never heard any drum. Runs lie in DIR and are not trained twice; `new_drums.csv` is written there.
"""

import argparse
import dataclasses
import math
import pathlib

import numpy as np
import pandas as pd
from sklearn.metrics import recall_score

from configs import strokes_hearing
from sousa_jax import checkpoint, train
from sousa_jax.data.pipeline import BadClips
from sousa_jax.data.sousa import open_clips
from sousa_jax.data.subset import SubsetClips
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.evaluate_strokes import hear_split, report

WINDOW_S = 5.0  # in which the name is read
SHARES = {"real": 0.0, "real and synth": 0.5}  # of each batch that is synthetic


def train_without(bank: str, share: float, args: argparse.Namespace, workdir: pathlib.Path) -> None:
    """An ear that has not heard this bank."""
    config = strokes_hearing.get_config("small")
    config.data.path, config.data.cache_dir = str(args.data), str(args.out / "cache")
    config.data.exclude = (f"soundfont={bank}",)
    config.data.synth.share = share
    n_clips = len(SubsetClips(open_clips(str(args.data), "train"), config.data.exclude))
    steps_per_epoch = math.ceil(n_clips / round(config.train.batch_size * (1 - share)))
    config.train.epochs = config.train.patience = max(1, round(args.steps / steps_per_epoch))
    config.tracking.wandb = "disabled"
    train.run(config, workdir)


def test_on(bank: str, banks: list[str], args: argparse.Namespace, workdir: pathlib.Path) -> dict[str, float]:
    """How well a run hears the test clips of one bank, the buzz roll left out of the strokes."""
    model, rhythm = checkpoint.load_model(workdir), checkpoint.load_model(args.rhythm)
    params = {path: (rhythm if path.startswith("rhythm.") else model).params[path] for path in model.params}
    model = dataclasses.replace(model, config=model.config.for_window(WINDOW_S, "fill"), params=params)
    others = tuple(f"soundfont={other}" for other in banks if other != bank)
    clips = SubsetClips(open_clips(str(args.data), "test"), others)
    heard = hear_split(model, clips, BadClips(clips, 0.01))
    found = report(heard.rows, clips.table).set_index(["by", "group"])
    strokes, soft = found.loc[("all", "without the buzz roll")], found.loc["velocity"].iloc[0]
    labels, named = clips.table["label"].to_numpy()[heard.clip], heard.log_probs.argmax(1)
    return {
        "clips": len(clips),
        "f1": strokes["f1"],
        "precision": strokes["precision"],
        "recall": strokes["recall"],
        "recall of soft": soft["recall"],
        "accuracy": recall_score(labels, named, labels=np.unique(labels), average="macro"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="SOUSA folder in the Hub's layout")
    parser.add_argument("--rhythm", type=pathlib.Path, required=True, help="a run of stage rhythm")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the runs")
    parser.add_argument("--banks", nargs="*", help="by default all")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    banks = sorted(open_clips(str(args.data), "test").table["soundfont"].unique())
    if unknown := set(args.banks or banks) - set(banks):
        raise InputError(f"{args.data} has no bank {', '.join(sorted(unknown))}; there are: {', '.join(banks)}")
    args.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for bank in args.banks or banks:
        for name, share in SHARES.items():
            workdir = args.out / f"without_{bank}_{name.replace(' ', '_')}"
            train_without(bank, share, args, workdir)
            lines.append({"never heard": bank, "trained on": name, **test_on(bank, banks, args, workdir)})
            print(pd.DataFrame(lines).to_string(index=False, float_format="{:.3f}".format), flush=True)
    table = pd.DataFrame(lines)
    mean = table.groupby("trained on", sort=False)[["f1", "precision", "recall", "recall of soft", "accuracy"]].mean()
    print(f"\nmean over banks\n{mean.to_string(float_format='{:.3f}'.format)}")
    unfinished = args.out / ".new_drums.csv.tmp"
    table.to_csv(unfinished, index=False)
    unfinished.rename(args.out / "new_drums.csv")


if __name__ == "__main__":
    main()
