"""Every clip is counted exactly once, padding never, bad clips are named; and a finished run can be re-evaluated."""

import json

import numpy as np
import pandas as pd
import pytest

from sousa_jax import shortcuts
from sousa_jax.data.clips import METADATA_COLUMNS, BadClip
from sousa_jax.data.pipeline import BadClips
from sousa_jax.evaluate import predict, report_line, summarize
from sousa_jax.frontends import FrontendSpec
from sousa_jax.predictions import Answers
from sousa_jax.rudiments import SLUGS
from sousa_jax.step import Heard

RATE = 8_000
SPEC = FrontendSpec(sample_rate=RATE, window_s=0.5)


class TellingClips:
    """Clips whose samples say their label; the second half of a clip says the next label."""

    fingerprint, split = "0" * 16, "test"

    def __init__(self, n: int, bad: tuple[int, ...] = ()):
        self.bad = bad
        self.table = pd.DataFrame({column: [f"{column}{i}" for i in range(n)] for column in METADATA_COLUMNS})
        self.table["label"] = np.arange(n, dtype=np.int32) % 40
        self.table["rudiment_slug"] = [SLUGS[i] for i in self.table["label"]]
        self.table["duration_sec"] = np.linspace(1, 2, n)

    def __len__(self):
        return len(self.table)

    def waveform(self, index, sample_rate):
        if index in self.bad:
            raise BadClip(self.table["sample_id"][index], "broken on purpose")
        said = self.table["label"][index] + 1
        return np.concatenate([np.full(RATE, said / 100), np.full(RATE, (said + 1) / 100)]).astype(np.float32)


def hear(params, stats, batch):
    """A perfect model of `TellingClips`."""
    told = np.round(batch["waveform"][:, 0] * 100).astype(int) - 1
    return Heard(np.eye(41, dtype=np.float32)[told][:, :40] * 5, None)


def _predict(clips, **changes):
    bad = BadClips(clips, 0.5)
    settings = {"batch_size": 8, "workers": 2, "bad": bad, "windows": "all"} | changes
    return predict(hear, {}, {}, clips, SPEC, **settings), bad


@pytest.mark.parametrize("n", [40, 41, 47, 5])
def test_each_clip_once_whatever_the_last_batch(n):
    clips = TellingClips(n)
    predictions, _ = _predict(clips)
    assert predictions.clip.tolist() == list(range(n))
    assert (predictions.first.argmax(1) == clips.table["label"]).all()


def test_windows_are_averaged_and_first_is_first():
    clips = TellingClips(40)
    predictions, _ = _predict(clips)
    second = predictions.mean[np.arange(39), clips.table["label"][:39] + 1]
    assert (second > np.delete(predictions.mean[0], [0, 1]).max()).all()  # the later windows were heard too
    only_first, _ = _predict(clips, windows="first")
    np.testing.assert_array_equal(only_first.first, predictions.first)
    np.testing.assert_allclose(np.exp(only_first.mean).sum(1), 1.0, rtol=1e-5)


def test_bad_clips_are_left_out_and_named():
    clips = TellingClips(20, bad=(3, 11))
    predictions, bad = _predict(clips)
    assert 3 not in predictions.clip
    assert len(predictions.clip) == 18
    assert set(bad.reasons) == {"sample_id3", "sample_id11"}


def test_loudness_is_that_of_the_first_window():
    clips = TellingClips(40)
    predictions, _ = _predict(clips)
    np.testing.assert_allclose(predictions.loudness_db, 20 * np.log10((clips.table["label"] + 1) / 100), atol=1e-3)


def _answers(clips, train_table):
    predictions, _ = _predict(clips)
    table = clips.table.assign(loudness_db=predictions.loudness_db, profile_id=np.arange(len(clips)) % 8)
    found = shortcuts.answers(train_table, table)
    logits = {"all windows": predictions.first, "first window": predictions.first}
    return Answers(table.assign(**{f"by_{name}": labels for name, labels in found.items()}), logits)


def test_summary_says_how_sure_it_is_and_what_shortcuts_give():
    clips = TellingClips(80)
    summary = summarize(_answers(clips, clips.table), clips)
    assert summary["balanced_accuracy"] == 1.0
    assert summary["interval"] == [1.0, 1.0]
    assert summary["n_players"] == 8
    assert summary["errors"] == {"within_family": 0, "between_families": 0}
    assert np.array(summary["family_confusion"]).sum() == 80
    assert 0 < summary["shortcuts"]["duration"] < 1
    assert summary["padded_first_window"] is None
    line = report_line(summary)
    assert "1.000 (1.000 … 1.000 by player)" in line
    assert "duration alone 0." in line
    assert summary["first_window_calibration"]["temperature"] == 1.0
    json.dumps(summary)
    sharper = summarize(_answers(clips, clips.table), clips, temperature=0.1)["first_window_calibration"]
    assert sharper["error_with"] < sharper["error_without"], "it is always right, so the surer the better"


def test_summary_of_one_player_has_no_interval():
    clips = TellingClips(80)
    answers = _answers(clips, None)
    answers.table["profile_id"] = "alone"
    answers.table["by_duration"] = -1
    summary = summarize(answers, clips)
    assert summary["interval"] == [None, None]
    assert "1.000 over all windows" in report_line(summary)
    assert "duration alone not known" in report_line(summary)
