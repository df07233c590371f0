"""A shortcut finds what there is to find, from other clips than those it is asked about, and else nothing."""

import numpy as np
import pandas as pd
import pytest

from sousa_jax import shortcuts


def table(n: int, seed: int = 0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    known = {
        "profile_id": [f"player{i % 10}" for i in range(n)],
        "label": (np.arange(n) // 10 % 4).astype(np.int32),
        "duration_sec": rng.uniform(2, 10, n),
        "soundfont": rng.choice(["a", "b"], n),
        "loudness_db": rng.normal(-20, 3, n),
    }
    return pd.DataFrame(known | columns)


def right(name: str, train: pd.DataFrame | None, test: pd.DataFrame) -> float:
    return float((shortcuts.answers(train, test)[name] == test["label"]).mean())


@pytest.mark.parametrize("name", ["duration", "soundfont", "loudness"])
@pytest.mark.parametrize("trained", [True, False])
def test_finds_a_leak_and_nothing_else(name, trained):
    train, test = table(400, 1), table(400, 2)
    assert right(name, train if trained else None, test) < 0.4, "a quarter is chance"
    for clips in (train, test):
        leak = clips["label"] + 0.2 * np.random.default_rng(3).random(len(clips))
        if name == "duration":
            clips["duration_sec"] = leak
        elif name == "loudness":
            clips["loudness_db"] = leak
        else:
            clips["soundfont"] = [f"bank{label}" for label in clips["label"]]
    assert right(name, train if trained else None, test) > 0.95


def test_learns_from_the_training_clips_where_they_are_known():
    """There a long clip is another rudiment than among the test clips: what was learnt there is wrong here."""
    train, test = table(400, 1), table(400, 2)
    train["duration_sec"], test["duration_sec"] = train["label"] + 0.0, 3.0 - test["label"]
    assert right("duration", train, test) == 0
    assert right("duration", None, test) == 1


def test_never_learns_from_the_player_who_is_asked_about():
    """Each player gives every rudiment a loudness of their own; from the same player's clips all would be known."""
    clips = table(400)
    player = clips["profile_id"].str[-1].astype(int)
    clips["loudness_db"] = 10.0 * player + (clips["label"] + player) % 4
    assert right("loudness", None, clips) < 0.5


@pytest.mark.parametrize("why", ["one player", "not measured", "no column"])
def test_what_cannot_be_learnt_is_said(why):
    clips = table(40)
    if why == "one player":
        clips["profile_id"] = "alone"
    elif why == "not measured":
        clips.loc[3, "loudness_db"] = np.nan
    else:
        clips = clips.drop(columns="loudness_db")
    found = shortcuts.answers(None, clips)
    assert (found["loudness"] == -1).all()
    assert (found["duration"] == -1).all() == (why == "one player")
    assert all(labels.dtype == np.int32 for labels in found.values())


def test_a_sound_bank_that_training_never_had():
    train, test = table(200, 1), table(200, 2)
    test["soundfont"] = "new"
    assert (shortcuts.answers(train, test)["soundfont"] >= 0).all()
