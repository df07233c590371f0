"""How well strokes are heard: every stroke in one row, every row in its groups, and the files that are promised."""

import json
import types

import numpy as np
import pandas as pd
import pytest
from small_sousa import ClickClips, FakeClips, rows, write_hub, write_strokes

from configs import strokes
from sousa_jax import checkpoint, evaluate_strokes, models, start
from sousa_jax.data.clips import BadClip
from sousa_jax.data.frame_targets import FrameTargets, place_on_frames
from sousa_jax.data.pipeline import BadClips
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.errors import InputError
from sousa_jax.evaluate_strokes import compare, padded, report
from sousa_jax.hearing import HeardStrokes
from sousa_jax.rudiments import by_slug


def fell(*strokes):
    """Strokes from (time, MIDI velocity, is_grace, is_bounce)."""
    time_s, velocity, grace, bounce = zip(*strokes, strict=True) if strokes else ((), (), (), ())
    return ClipStrokes(np.float32(time_s), np.float32(velocity), np.array(grace, bool), np.array(bounce, bool))


def heard(*strokes):
    """Heard strokes from (time, velocity)."""
    time_s, velocity = (np.float32(x) for x in zip(*strokes, strict=True)) if strokes else np.zeros((2, 0), np.float32)
    return HeardStrokes(time_s, velocity, 0 * velocity, 0 * velocity + 1)


# A grace note and its primary, out of order; a buzz with a bounce; a soft stroke; one beyond the end.
FELL = fell(
    (0.130, 127, False, False), (0.100, 30, True, False), (0.500, 64, False, False), (0.504, 60, False, True),
    (0.900, 35, False, False), (2.100, 90, False, False),
)  # fmt: skip
# Both notes of the flam, 5 ms late and 2 ms early; the buzz; not the soft one; two that are wrong; one beyond the end.
HEARD = heard((0.105, 0.2), (0.128, 0.9), (0.500, 0.6), (0.700, 0.3), (1.200, 0.4), (2.100, 0.7))


def test_every_stroke_of_a_clip_by_hand():
    """Three hits, a miss, two false alarms; the bounce and what lies beyond the end are not there."""
    found = compare(7, HEARD, FELL, length_s=2.0)
    true, alarms = (found[found["kind"] == kind] for kind in ("true", "false alarm"))
    assert (found["clip"] == 7).all()
    np.testing.assert_allclose(true["time_s"], [0.1, 0.13, 0.5, 0.9], rtol=1e-6)
    np.testing.assert_allclose(true["velocity"], np.array([30, 127, 64, 35]) / 127, rtol=1e-6)
    assert true["is_grace"].tolist() == [True, False, False, False]
    np.testing.assert_allclose(true["gap_s"], [0.03, 0.03, 0.37, 0.4], atol=1e-6)
    assert true["hit"].tolist() == [True, True, True, False]
    np.testing.assert_allclose(true["late_s"], [0.005, -0.002, 0, np.nan], atol=1e-6)
    np.testing.assert_allclose(true["heard_velocity"], [0.2, 0.9, 0.6, np.nan], rtol=1e-6)
    np.testing.assert_allclose(alarms["time_s"], [0.7, 1.2], rtol=1e-6)
    np.testing.assert_allclose(alarms["heard_velocity"], [0.3, 0.4], rtol=1e-6)
    assert not alarms["hit"].any()


def test_a_bounce_that_is_heard_is_a_false_alarm_if_its_stroke_was_heard_too():
    """One of two strokes 4 ms apart is the stroke itself."""
    found = compare(0, heard((0.500, 0.6), (0.504, 0.4)), FELL, length_s=0.6)
    assert (found["kind"] == "false alarm").sum() == 1
    assert found[found["hit"]]["late_s"].tolist() == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("strokes_heard", "strokes_fell", "kinds"),
    [
        (heard(), FELL, {"true": 4}),
        (HEARD, fell(), {"false alarm": 5}),
        (heard(), fell(), {}),
        (heard((0.1, 0.5)), fell((0.1, 64, False, False)), {"true": 1}),
    ],
    ids=["nothing heard", "nothing fell", "nothing", "one"],
)
def test_clips_in_which_little_happens(strokes_heard, strokes_fell, kinds):
    found = compare(0, strokes_heard, strokes_fell, length_s=2.0)
    assert found["kind"].value_counts().to_dict() == kinds
    assert found["hit"].sum() == (len(strokes_heard.time_s) == len(strokes_fell.time_s) == 1)


# -------------------------------------------------------------------------------------------------------------- report

SLUGS = ["flam", "multiple_bounce_roll", "single_stroke_roll"]


@pytest.fixture
def told() -> pd.DataFrame:
    """Three clips: that of above, a buzz roll of which nothing is heard right, and one with one stroke alone."""
    table = pd.DataFrame(
        {"rudiment_slug": SLUGS, "skill_tier": ["advanced", "beginner", "advanced"], "soundfont": ["a", "b", "b"]}
    )
    buzz = fell((0.1, 100, False, False), (0.2, 100, False, False))
    lines = [
        compare(0, HEARD, FELL, 2.0),
        compare(1, heard((0.15, 0.5)), buzz, 2.0),
        compare(2, heard((0.1, 0.4)), fell((0.1, 50, False, False)), 2.0),
    ]
    return report(pd.concat(lines[::-1]), table).set_index(["by", "group"])


def line(told, by, group):
    strokes_, f1, precision, recall = told.loc[(by, group), ["strokes", "f1", "precision", "recall"]]
    return int(strokes_), f1, precision, recall


def test_scores_by_hand(told):
    """Four of seven strokes heard, four of seven heard strokes fell."""
    assert line(told, "all", "") == pytest.approx((7, 8 / 14, 4 / 7, 4 / 7))
    assert line(told, "all", "without the buzz roll") == pytest.approx((5, 8 / 11, 4 / 6, 4 / 5))
    assert line(told, "family", by_slug("flam").family) == pytest.approx((4, 6 / 9, 3 / 5, 3 / 4))
    assert line(told, "tier", "advanced") == pytest.approx((5, 8 / 11, 4 / 6, 4 / 5))
    assert line(told, "tier", "beginner") == pytest.approx((2, 0, 0, 0))
    assert line(told, "bank", "a") == pytest.approx((4, 6 / 9, 3 / 5, 3 / 4))
    assert line(told, "bank", "b") == pytest.approx((3, 2 / 5, 1 / 2, 1 / 3))


def test_lateness_and_velocity_of_what_was_hit(told):
    late = np.array([5, -2, 0, 0])
    assert told.loc[("all", ""), "late_ms"] == pytest.approx(late.mean(), abs=1e-3)
    assert told.loc[("all", ""), "late_sd_ms"] == pytest.approx(late.std(ddof=1), abs=1e-3)
    expected = np.corrcoef([30, 127, 64, 50], [0.2, 0.9, 0.6, 0.4])[0, 1]
    assert told.loc[("all", ""), "velocity_correlation"] == pytest.approx(expected, abs=1e-5)


def test_bands_of_velocity_know_recall_alone(told):
    bands = told.loc["velocity"]
    assert bands.index.tolist() == ["0 … 40", "40 … 60", "60 … 80", "80 … 100", "100 … 128"]
    assert bands["strokes"].tolist() == [2, 1, 1, 0, 3]
    assert bands["recall"].tolist() == pytest.approx([1 / 2, 1, 1, np.nan, 1 / 3], nan_ok=True), "of none: unknown"
    assert bands[["f1", "precision"]].isna().all(axis=None)


def test_bands_of_gaps_know_every_stroke(told):
    """The stroke that is alone in its clip, too: its neighbours are as far as can be."""
    bands = told.loc["gap ms"]
    assert bands.index.tolist() == ["0 … 20", "20 … 40", "40 … 80", "80 … 160", "160 … inf"]
    assert bands["strokes"].tolist() == [0, 2, 0, 2, 3]
    assert bands["recall"].tolist() == pytest.approx([np.nan, 1, np.nan, 0, 2 / 3], nan_ok=True)


# --------------------------------------------------------------------------------------------------------- whole split

RATE = 16_000
NETWORK = types.SimpleNamespace(
    config=types.SimpleNamespace(frontend=types.SimpleNamespace(sample_rate=RATE), strokes_per_second=200)
)


def hear_clicks(model, wave):
    """A perfect ear for `ClickClips`."""
    samples = np.flatnonzero(wave)
    nothing = np.zeros(len(samples), bool)
    struck = (np.float32(samples / RATE), np.float32(127 * wave[samples]), nothing, nothing)
    return place_on_frames(*struck, round(len(wave) / RATE * 200), 200), np.zeros(40)


def test_a_perfect_ear_hears_a_whole_split(monkeypatch):
    monkeypatch.setattr(evaluate_strokes, "hear", hear_clicks)
    clips = ClickClips([[0.0, 0.3, 0.5], [0.1, 1.51], [0.07]], [[127, 60, 20], [90, 40], [100]])
    lines, streams, true, clip, log_probs = evaluate_strokes.hear_split(NETWORK, clips, BadClips(clips, 0.5))
    assert clip.tolist() == [0, 1, 2]
    assert log_probs.shape == (3, 40)
    assert lines["hit"].all()
    assert lines["clip"].tolist() == [0, 0, 0, 1, 1, 2]
    np.testing.assert_allclose(lines["heard_velocity"], lines["velocity"], atol=1e-5)
    assert lines["late_s"].abs().max() <= 0.0025 + 1e-6
    for one, other in zip(streams, true, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    told = report(lines, clips.table)
    assert told["f1"][0] == 1


def test_bad_clips_are_left_out_and_named(monkeypatch):
    class Clips(ClickClips):
        def clip_strokes(self, index):
            if index == 1:
                raise BadClip(self.table["sample_id"][1], "no strokes")
            return super().clip_strokes(index)

    monkeypatch.setattr(evaluate_strokes, "hear", hear_clicks)
    clips = Clips([[0.0, 0.3], [0.1], [0.07]])
    bad = BadClips(clips, 0.5)
    lines, streams, _, clip, _ = evaluate_strokes.hear_split(NETWORK, clips, bad)
    assert clip.tolist() == [0, 2]
    assert set(lines["clip"]) == {0, 2}
    assert len(streams) == 2
    assert list(bad.reasons) == ["sample_id1"]


# --------------------------------------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A folder as a run of a tiny network leaves it, which learned nothing; its data are six recorded clips."""
    root = tmp_path_factory.mktemp("heard")
    made = {split: rows(split, n, 1) for split, n in (("train", 2), ("validation", 2), ("test", 2))}
    write_hub(root / "hub", {split: [shard] for split, shard in made.items()})
    ids = [row["sample_id"] for shard in made.values() for row in shard]
    write_strokes(
        root / "hub/auxiliary/strokes.parquet", [(i, ms, 90, False, "tap") for i in ids for ms in (5.0, 60.0)]
    )
    config = strokes.get_config("smoke")
    config.model.window_s = 0.5
    config.model.settings.update(width=8, dilations=(1, 2), rhythm_widths=(8, 8))
    config.data.path = str(root / "hub")
    network = start.network(config)
    model = checkpoint.Model("strokes", network, *models.init("strokes", network, 0), {})
    checkpoint.save_model(root / "run", model)
    checkpoint.write_json(root / "run" / "config.json", {"config": json.loads(config.to_json())})
    return root / "run"


def test_files_and_errors_of_a_run(workdir, tmp_path, capsys):
    """Tables of both kinds, and errors that the stage rhythm reads; a second time nothing is in the way."""
    for _ in range(2):
        evaluate_strokes.main([f"--workdir={workdir}", "--split=validation", f"--errors={tmp_path / 'errors.json'}"])
    out = workdir / "results" / "strokes_validation_on_hub"
    assert {path.name for path in out.iterdir()} == {"strokes.csv", "stroke_report.csv"}
    lines = pd.read_csv(out / "strokes.csv", dtype={"kind": str})
    assert (lines["kind"] == "true").sum() == 4
    assert pd.read_csv(out / "stroke_report.csv")["strokes"][0] == 4
    config = strokes.stage("rhythm", "smoke")
    config.strokes.errors = str(tmp_path / "errors.json")
    assert 0 <= start.hearing_errors(config).certainty[5][4] <= 1
    said = capsys.readouterr().out
    assert "without the buzz roll" in said
    assert f"written to {out}" in said


@pytest.mark.parametrize("wrong", ["plain", "no run", "no folder", "split"])
def test_what_cannot_be_evaluated_is_one_line(workdir, tmp_path, capsys, wrong):
    folder, arguments, message = workdir, [], "tset"
    if wrong == "plain":
        folder, message = tmp_path / "plain", "hears no strokes"
        network = models.make_config("ast", "ast", width=16, depth=1, n_heads=2, mlp_width=32)
        checkpoint.save_model(folder, checkpoint.Model("ast", network, *models.init("ast", network, 0), {}))
    elif wrong == "no run":
        folder, message = tmp_path / "ported", "holds a model but no config.json"
        checkpoint.save_model(folder, checkpoint.load_model(workdir))
    elif wrong == "no folder":
        folder, message = tmp_path / "nowhere", "nowhere"
    else:
        arguments = ["--split=tset"]
    with pytest.raises(SystemExit) as exit_info:
        evaluate_strokes.main([f"--workdir={folder}", *arguments])
    assert exit_info.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert message in said[-1]


def test_clips_that_are_all_bad_are_one_line(monkeypatch):
    """At any share of bad clips that is allowed."""
    monkeypatch.setattr(evaluate_strokes, "hear", hear_clicks)
    clips = FakeClips(2, bad=(0, 1))
    with pytest.raises(InputError) as error:
        evaluate_strokes.hear_split(NETWORK, clips, BadClips(clips, 1.0))
    assert "\n" not in str(error.value)


def test_streams_are_padded_with_silence():
    streams = [FrameTargets(*np.full((4, n), n, np.float32)) for n in (2, 3)]
    assert padded(streams, 4).onset.tolist() == [[2, 2, 0, 0], [3, 3, 3, 0]]
