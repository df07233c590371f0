"""How long a report of many runs takes, and its memory. The runs are made up: answers are drawn instead of heard.

    python -m benchmarks.report [--clips=20000] [--runs=12]

Beside it: reading the same files with pandas and the four scores of scikit-learn for each, without any interval, test
or picture.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time

import numpy as np
import pandas as pd

from configs import common
from sousa_jax import predictions
from sousa_jax.predictions import Answers
from sousa_jax.rudiments import NUM_CLASSES, SLUGS

TIERS = ("beginner", "intermediate", "advanced", "professional")
BANKS = ("Douglas", "FluidR3", "Marching_Snare")


def made_up_clips(n: int, n_players: int = 20, seed: int = 0) -> pd.DataFrame:
    """Metadata of `n` clips; players in turn, each with rudiments from another place in the list on."""
    rng = np.random.default_rng(seed)
    player = np.arange(n) % n_players
    label = (np.arange(n) // n_players + 7 * player) % NUM_CLASSES
    return pd.DataFrame({
        "sample_id": [f"clip{i:05d}" for i in rng.permutation(n)],
        "profile_id": [f"player{p:03d}" for p in player],
        "rudiment_slug": [SLUGS[i] for i in label],
        "tempo_bpm": rng.integers(60, 181, n),
        "duration_sec": rng.uniform(2, 12, n),
        "num_cycles": 4,
        "skill_tier": [TIERS[p % 4] for p in player],
        "dominant_hand": np.where(player % 5 == 0, "left", "right"),
        "soundfont": [BANKS[i] for i in rng.integers(0, len(BANKS), n)],
        "augmentation_preset": np.where(rng.random(n) < 0.5, "gym", "garage"),
        "augmentation_group_id": [f"group{i}" for i in range(n)],
        "label": label.astype(np.int32),
        "loudness_db": rng.normal(-20, 3, n),
    })  # fmt: skip


def answers(table: pd.DataFrame, skill: float, seed: int = 0) -> Answers:
    """Those of a run that names about `skill` of the clips rightly, and else often the rudiment next in the list."""
    rng = np.random.default_rng(seed)

    def logits(skill: float) -> np.ndarray:
        found = rng.normal(0, 1, (len(table), NUM_CLASSES)).astype(np.float32)
        right = rng.random(len(table)) < skill
        wrong = (table["label"].to_numpy() + rng.integers(1, 4, len(table))) % NUM_CLASSES
        found[np.arange(len(table)), np.where(right, table["label"], wrong)] += 6
        return found

    heard = {
        "all windows": logits(skill),
        "first window": logits(skill - 0.03),
        "first window, padded": logits(skill - 0.1),
    }
    shortcuts = {
        f"by_{name}": rng.integers(0, NUM_CLASSES, len(table)).astype(np.int32) for name in predictions.SHORTCUTS
    }
    return Answers(table.assign(**shortcuts), heard)


def make(
    folder: pathlib.Path, table: pd.DataFrame, skill: float, seed: int = 0, name: str = "efficientat_scratch", **changes
) -> pathlib.Path:
    """A finished run; `changes` of its config by paths such as `train.learning_rate`."""
    (folder / "results").mkdir(parents=True)
    predictions.write(folder / "results", answers(table, skill, seed))
    config = common.experiment(*name.split("_"), "smoke")
    for key, value in changes.items():
        *path, last = key.split(".")
        part = config
        for step in path:
            part = part[step]
        part[last] = value
    (folder / "config.json").write_text(json.dumps({"config": json.loads(config.to_json())}))
    summary = {"read": "sound", "split": "test", "data_fingerprint": "0" * 16}
    (folder / "results" / "test_metrics.json").write_text(json.dumps(summary))
    cost = {
        "parameters": 1_000_000 + seed, "trained_parameters": 1_000_000, "multiply_adds": 2.5e8, "window_s": 2.5,
        "training_steps": 100, "training_minutes": 12.5, "training_clips_per_second": 90.0, "device": "cpu",
        "devices": 1,
    }  # fmt: skip
    (folder / "results" / "cost.json").write_text(json.dumps(cost))
    (folder / "logs").mkdir()
    lines = [{"step": step, "train/loss": 4 * 0.9**step} for step in range(1, 20)]
    lines += [{"step": step, "validation/balanced_accuracy": skill * (1 - 0.8**step)} for step in range(5, 20, 5)]
    (folder / "logs" / "scalars.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=12)
    args = parser.parse_args()
    from sousa_jax import metrics
    from sousa_jax.report.__main__ import report

    with tempfile.TemporaryDirectory() as root:
        table = made_up_clips(args.clips, n_players=19)
        names = [f"{model}_{strategy}" for model in common.VARIANTS for strategy in ("scratch", "full", "lora")]
        runs = [
            make(pathlib.Path(root, f"run{i}"), table, 0.8 - 0.03 * i, i, names[i % len(names)])
            for i in range(args.runs)
        ]
        started = time.perf_counter()
        for run in runs:
            found = pd.read_parquet(run / "results" / predictions.FILE)
            metrics.scores(found["label"].to_numpy(), np.stack(found["logits"].to_numpy()))
        scores_s = time.perf_counter() - started
        started = time.perf_counter()
        report(runs, pathlib.Path(root, "report"))
        report_s = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    ratio = report_s / scores_s
    print(
        f"{args.runs} runs of {args.clips:,} clips: report {report_s:.1f} s, bare scores {scores_s:.1f} s, {ratio:.0f}x"
    )
    print(f"at most {peak_gb:.2f} GB of memory")


if __name__ == "__main__":
    main()
