"""What a run answered can be read back exactly, and what is something else is refused in one line."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.report import answers, made_up_clips
from sousa_jax import predictions
from sousa_jax.errors import InputError
from sousa_jax.rudiments import SLUGS


def test_round_trip_in_the_order_of_sample_ids(tmp_path):
    given = answers(made_up_clips(90), 0.5)
    predictions.write(tmp_path, given)
    found = predictions.read(tmp_path)
    order = given.table["sample_id"].argsort()
    pd.testing.assert_frame_equal(found.table, given.table.iloc[order].reset_index(drop=True))
    assert list(found.logits) == list(given.logits) == list(predictions.HEARD)
    for heard in found.logits:
        np.testing.assert_array_equal(found.logits[heard], given.logits[heard][order])
    assert [path.name for path in tmp_path.iterdir()] == [predictions.FILE]


def test_what_was_named_and_what_was_right():
    given = answers(made_up_clips(90), 0.5)
    given.logits["first window"][:] = np.eye(40)[given.labels]
    assert given.correct("first window").all()
    assert given.named("all windows").tolist() == given.logits["all windows"].argmax(1).tolist()


def test_a_shortcut_that_cannot_answer_is_none():
    given = answers(made_up_clips(90), 0.5)
    assert given.shortcut("duration") is not None
    given.table["by_loudness"] = -1
    assert given.shortcut("loudness") is None
    assert predictions.Answers(given.table.drop(columns="by_duration"), given.logits).shortcut("duration") is None


def test_predictions_of_before_have_neither_padded_windows_nor_shortcuts(tmp_path):
    given = answers(made_up_clips(90), 0.5)
    del given.logits["first window, padded"]
    old = given.table.drop(columns=["by_duration", "by_soundfont", "by_loudness", "loudness_db"])
    predictions.write(tmp_path, predictions.Answers(old, given.logits))
    assert list(predictions.read(tmp_path).logits) == ["all windows", "first window"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("no folder", "does not exist"),
        ("missing", "has no predictions.parquet"),
        ("damaged", "is damaged"),
        ("empty", "holds no predictions"),
        ("no logits", "has no column 'logits'"),
        ("39 classes", "is about 39 classes, not the 40 rudiments"),
        ("another order", f"has another list of classes: there {SLUGS[1]} is number 0"),
        ("number 40", "has another list of classes"),
    ],
)
def test_refusals(tmp_path, wrong, says):
    run = tmp_path / "run"
    if wrong != "no folder":
        run.mkdir()
        given = answers(made_up_clips(90), 0.5)
        predictions.write(run, given)
        path = run / predictions.FILE
        table = pd.read_parquet(path)
        if wrong == "missing":
            path.unlink()
        elif wrong == "damaged":
            path.write_bytes(b"PAR1 and no more")
        else:
            if wrong == "empty":
                table = table[:0]
            elif wrong == "no logits":
                table = table.drop(columns="logits")
            elif wrong == "39 classes":
                table["logits"] = [row[:39] for row in table["logits"]]
            elif wrong == "another order":
                table["rudiment_slug"] = [SLUGS[1] if label == 0 else SLUGS[label] for label in table["label"]]
            elif wrong == "number 40":
                table.loc[0, "label"] = 40
            table.to_parquet(path)
    with pytest.raises(InputError, match=says) as error:
        predictions.read(run)
    assert "\n" not in str(error.value)
