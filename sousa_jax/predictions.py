"""What a run answered on the test clips: `predictions.parquet`, which gives all results again without the model.

One row a clip: its metadata (`METADATA_COLUMNS`), `label`, and

    logits         over all windows: log-probabilities averaged over them
    first_logits   of the first window alone
    padded_logits  of the first window, where a shorter clip ends in silence instead of going round in a circle
    loudness_db    RMS of the first window, dB of full scale
    by_duration, by_soundfont, by_loudness    class ids that a shortcut answers (`shortcuts.py`); -1: it cannot

The last five may be missing: those of before, and of runs that read strokes instead of sound, have none of them.
"""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from sousa_jax.errors import InputError
from sousa_jax.rudiments import NUM_CLASSES, SLUGS

FILE = "predictions.parquet"
HEARD = {"all windows": "logits", "first window": "first_logits", "first window, padded": "padded_logits"}
SHORTCUTS = ("duration", "soundfont", "loudness")
NEEDED = ("sample_id", "profile_id", "rudiment_slug", "label", "logits", "first_logits")


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of one run, `n` clips.

    Attributes:
      table: `n` rows of metadata, without the logits.
      logits: by the keys of `HEARD`, `(n, NUM_CLASSES)` float32 each; the padded ones may be missing.
    """

    table: pd.DataFrame
    logits: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        return self.table["label"].to_numpy()

    @property
    def players(self) -> np.ndarray:
        return self.table["profile_id"].to_numpy()

    def named(self, heard: str = "all windows") -> np.ndarray:
        """Class ids that the run answered, `(n,)`."""
        return self.logits[heard].argmax(1)

    def correct(self, heard: str = "all windows") -> np.ndarray:
        """Which clips are named rightly, `(n,)` bool."""
        return self.named(heard) == self.labels

    def shortcut(self, name: str) -> np.ndarray | None:
        """Class ids that a shortcut answers, `(n,)`; None if it cannot."""
        column = self.table.get(f"by_{name}")
        return None if column is None or (column < 0).any() else column.to_numpy()


def write(folder: pathlib.Path, answers: Answers) -> None:
    """Writes `predictions.parquet` into a folder, whole or not at all."""
    columns = {HEARD[heard]: list(logits) for heard, logits in answers.logits.items()}
    unfinished = folder / f".{FILE}.tmp"
    answers.table.assign(**columns).to_parquet(unfinished, index=False)
    unfinished.rename(folder / FILE)


def find(run: pathlib.Path) -> pathlib.Path:
    """The file of a run's folder, or of one that holds it; `InputError` if there is none."""
    for path in (run / FILE, run / "results" / FILE):
        if path.is_file():
            return path
    if not run.is_dir():
        raise InputError(f"{run} does not exist; expected a run's folder or one with a {FILE}")
    raise InputError(f"{run} has no {FILE}; `python -m sousa_jax.evaluate --workdir={run}` writes one")


def read(run: pathlib.Path) -> Answers:
    """The answers of a run on its test split, sorted by `sample_id`.

    `InputError` for a file that is missing, damaged, empty, or about other classes than the 40 rudiments.
    """
    path = find(run)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or of another kind ({str(error).splitlines()[0]})") from error
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}: it was not written by an evaluation")
    if table.empty:
        raise InputError(f"{path} holds no predictions")
    table = table.sort_values("sample_id", ignore_index=True)
    logits = {heard: table[column] for heard, column in HEARD.items() if column in table}
    table = table.drop(columns=[column for column in HEARD.values() if column in table])
    for column in logits.values():
        widths = {len(row) for row in column}
        if widths != {NUM_CLASSES}:
            raise InputError(f"{path} is about {max(widths)} classes, not the {NUM_CLASSES} rudiments")
    known = table["label"].between(0, NUM_CLASSES - 1)
    expected = [SLUGS[label] if ok else None for label, ok in zip(table["label"], known, strict=True)]
    wrong = table["rudiment_slug"].to_numpy() != np.array(expected, object)
    if wrong.any():
        first = table[wrong].iloc[0]
        raise InputError(
            f"{path} has another list of classes: there {first['rudiment_slug']} is number {first['label']}"
        )
    return Answers(table, {heard: np.stack(column.to_numpy()).astype(np.float32) for heard, column in logits.items()})
