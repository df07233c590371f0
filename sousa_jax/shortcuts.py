"""Ways to name a rudiment without hearing it: a model's score means something only above theirs.

In SOUSA every clip is four cycles long, so its duration nearly says what it is; a loud clip may hold more strokes; a
sound bank may have been given to some rudiments more than to others. Each shortcut is a decision tree on that alone.
"""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold
from sklearn.tree import DecisionTreeClassifier

FOLDS = 5


def answers(train: pd.DataFrame | None, test: pd.DataFrame) -> dict[str, np.ndarray]:
    """Class ids that each shortcut answers on the test clips, `(n,)` int32 by its name in `predictions.SHORTCUTS`.

    Duration and sound bank are learnt from the training clips; where these are not known, and for loudness, which
    would need their sound, from the test clips of other players. What cannot be learnt is -1 everywhere.

    Args:
      train, test: one row a clip with `label`, `profile_id`, `duration_sec`, `soundfont`; `test` with `loudness_db`
        if that is known.
    """
    banks = sorted({*test["soundfont"], *(train["soundfont"] if train is not None else ())}, key=str)

    def features(table: pd.DataFrame) -> dict[str, np.ndarray]:
        return {
            "duration": table["duration_sec"].to_numpy(float)[:, None],
            "soundfont": (table["soundfont"].to_numpy()[:, None] == np.array(banks)[None]).astype(float),
        }

    of_test = features(test)
    if train is None:
        found = {name: _of_other_players(x, test) for name, x in of_test.items()}
    else:
        of_train = features(train)
        found = {name: _learnt(of_train[name], train["label"], x) for name, x in of_test.items()}
    loudness = test.get("loudness_db")
    if loudness is None or loudness.isna().any():
        found["loudness"] = _unknown(test)
    else:
        found["loudness"] = _of_other_players(loudness.to_numpy(float)[:, None], test)
    return {name: labels.astype(np.int32) for name, labels in found.items()}


def _of_other_players(features: np.ndarray, test: pd.DataFrame) -> np.ndarray:
    players, labels = test["profile_id"].to_numpy(), test["label"].to_numpy()
    n_players = len(set(players))
    if n_players < 2:
        return _unknown(test)
    found = _unknown(test)
    for known, asked in GroupKFold(min(FOLDS, n_players)).split(features, groups=players):
        found[asked] = _learnt(features[known], labels[known], features[asked])
    return found


def _learnt(features: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0)
    with warnings.catch_warnings():  # a smoke test has hardly more clips than there are classes
        warnings.filterwarnings("ignore", message="The number of unique classes")
        return tree.fit(features, labels).predict(asked)


def _unknown(test: pd.DataFrame) -> np.ndarray:
    return np.full(len(test), -1, np.int32)
