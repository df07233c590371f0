"""A network that hears strokes, trained in stages: each trains its part alone, reads its own input, and goes on."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
from small_sousa import rows, write_hub, write_strokes
from test_resume import assert_equal_runs
from test_train import tiny_config as plain_config

from configs import common, strokes
from sousa_jax import checkpoint, evaluate, models, start, strategies, train
from sousa_jax.data.synth import batches as synth_batches
from sousa_jax.data.synth.mishearing import BANDS, QUANTILES, HearingErrors
from sousa_jax.errors import InputError

CONFIGS = {"hearing": "strokes_hearing", "rhythm": "strokes_rhythm", "joint": "strokes"}
N_STEPS = 4
ERRORS = HearingErrors(
    certainty=((0.5,) * QUANTILES,) * BANDS, place=(0.0, 0.2, 0.6, 0.2, 0.0), velocity_bias=(0.0,) * BANDS,
    velocity_sd=(0.1,) * BANDS, grace=(0.1, 0.8), false_alarm_rate=0.01, false_alarm=(0.3,) * QUANTILES, density_sd=0.1,
)  # fmt: skip


def tiny_config(stage, clips="synth", **changes):
    """Four steps of a tiny network on one-second windows of recorded clips; a checkpoint at the second and the last."""
    config = strokes.stage(stage, "smoke")
    config.data.path = str(clips)
    config.data.synth.update(share=0.0, clips=(16, 8, 8))  # the stage rhythm's are synthetic all the same
    config.model.window_s = 1.0
    config.model.settings.update(width=8, dilations=(1, 2), rhythm_widths=(8, 8))
    config.eval.batch_size = 4
    config.train.update(batch_size=4, epochs=1, log_every_steps=1, checkpoint_every_steps=2)
    for key, value in changes.items():
        config[key].update(value) if isinstance(value, dict) else config.update({key: value})
    return config


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Recorded clips, 16 / 4 / 4, of a tenth of a second and more, with three strokes each."""
    made = {split: rows(split, n) for split, n in (("train", 8), ("validation", 2), ("test", 2))}
    folder = write_hub(tmp_path_factory.mktemp("clips") / "hub", {split: [shard] for split, shard in made.items()})
    table = [
        (row["sample_id"], at_ms, velocity, at_ms == 40, "tap")
        for shard in made.values()
        for row in shard
        for at_ms, velocity in ((5.0, 100), (40.0, 60), (70.0, 30))
    ]
    write_strokes(folder / "auxiliary/strokes.parquet", table)
    return folder


@pytest.fixture(scope="module")
def errors_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("errors") / "errors.json"
    checkpoint.write_json(path, dataclasses.asdict(ERRORS))
    return path


@pytest.fixture(scope="module")
def stages(clips, errors_file, tmp_path_factory):
    """Folders of three runs, each of which starts from the one before. Nothing is rendered in any of them."""
    root, before, done = tmp_path_factory.mktemp("stages"), "", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth_batches, "render_batch", lambda *_, **__: pytest.fail("sound was rendered"))
        for stage in CONFIGS:
            config = tiny_config(stage, clips, init_from=before)
            if stage == "rhythm":
                config.strokes.errors = str(errors_file)
            assert train.run(config, root / stage) == 0
            done[stage], before = root / stage, str(root / stage)
    return done


def parameters(stages, stage):
    """`(before, after)` of a stage."""
    after = checkpoint.load_model(stages[stage])
    names = list(CONFIGS)
    if stage == names[0]:
        return jax.device_get(models.init("strokes", after.config, 42)[0]), after.params
    return checkpoint.load_model(stages[names[names.index(stage) - 1]]).params, after.params


def scalars(workdir):
    lines = (workdir / "logs" / "scalars.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)}


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_stage_trains_its_own_part_and_leaves_the_other_bit_for_bit(stages, stage):
    before, after = parameters(stages, stage)
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path].tobytes() != np.asarray(after[path]).tobytes()}
    of_rhythm = {path for path in before if path.startswith("rhythm.")}
    of_ear = before.keys() - of_rhythm
    assert of_rhythm
    assert of_ear
    assert changed == {"hearing": of_ear, "rhythm": of_rhythm, "joint": of_ear | of_rhythm}[stage]


def test_results_say_what_was_read(stages):
    """After the stage rhythm the name was read from true strokes: no number to compare with the others'."""
    for stage, read in (("hearing", "sound"), ("rhythm", "strokes"), ("joint", "sound")):
        assert json.loads((stages[stage] / "results" / "test_metrics.json").read_text())["read"] == read


def test_logs_name_the_losses_and_the_score_that_counts(stages):
    parts = {"train/class_loss", "train/stroke_loss"}
    assert parts <= scalars(stages["joint"])
    for stage in ("hearing", "rhythm"):
        assert not parts & scalars(stages[stage]), "there is one loss: the loss"
    assert {"validation/stroke_f1", "validation/precision", "validation/recall"} <= scalars(stages["hearing"])
    for stage in ("rhythm", "joint"):
        assert "validation/balanced_accuracy" in scalars(stages[stage])
        assert "validation/stroke_f1" not in scalars(stages[stage])


def test_the_parts_of_the_loss_add_up_by_their_weight(stages):
    for line in (stages["joint"] / "logs" / "scalars.jsonl").read_text().splitlines():
        if "train/loss" in (said := json.loads(line)):
            total = said["train/class_loss"] + strokes.get_config().strokes.weight * said["train/stroke_loss"]
            assert said["train/loss"] == pytest.approx(total, rel=1e-5)


def test_a_run_of_the_stage_rhythm_evaluates_alike_from_its_folder(stages, tmp_path):
    evaluate.main([f"--workdir={stages['rhythm']}", f"--out={tmp_path / 'again'}"])
    again, first = (p / "test_metrics.json" for p in (tmp_path / "again", stages["rhythm"] / "results"))
    assert again.read_text() == first.read_text()


def test_an_interrupted_stage_goes_on_bit_for_bit(stages, clips, errors_file, tmp_path, monkeypatch):
    """Misheard strokes are drawn again as they would have been."""
    config = tiny_config("rhythm", clips, init_from=str(stages["hearing"]))
    config.strokes.errors = str(errors_file)
    with monkeypatch.context() as patch:
        patch.setattr(train._StopSignal, "agreed", lambda self, step, every: step == 3)
        assert train.run(config, tmp_path / "run") == 0
    assert not (tmp_path / "run" / "results").exists()
    assert train.run(config, tmp_path / "run") == 0
    assert f"resumed at step 3 of {N_STEPS}" in (tmp_path / "run" / "logs" / "training.log").read_text()
    assert_equal_runs(stages["rhythm"], tmp_path / "run")


def test_a_rhythm_head_comes_from_a_run_of_its_own(stages):
    """So that the stages hearing and rhythm can run side by side; the ear stays what `init_from` gives, or random."""
    config = tiny_config("joint")
    config.strokes.rhythm_from = str(stages["rhythm"])
    network = start.network(config)
    given = checkpoint.load_model(stages["rhythm"]).params
    for init_from in ("", str(stages["hearing"])):
        config.init_from = init_from
        made, _ = start.arrays(config, network, None)
        ear = checkpoint.load_model(init_from).params if init_from else models.init("strokes", network, config.seed)[0]
        assert made.keys() == ear.keys()
        for path, array in made.items():
            np.testing.assert_array_equal(array, (given if path.startswith("rhythm.") else ear)[path], err_msg=path)


# ------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("model", "folder", "message"),
    [
        ("strokes", "nowhere", r"there is no folder .*nowhere; config\.strokes\.rhythm_from is that of a run"),
        ("wider", "rhythm", r"config\.strokes\.rhythm_from=.* does not fit: \d+ wrong shape \(rhythm\."),
        ("ast", "rhythm", r"config\.strokes\.rhythm_from=.* does not fit: ast has no rhythm head"),
    ],
)
def test_a_rhythm_head_that_does_not_fit_is_refused(stages, tmp_path, model, folder, message):
    config = tiny_config("joint") if model != "ast" else plain_config("ast")
    if model == "wider":
        config.model.settings.rhythm_widths = (8, 16)
    config.strokes.rhythm_from = str(stages.get(folder, tmp_path / folder))
    with pytest.raises(InputError, match=message) as error:
        start.arrays(config, start.network(config), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "head", "stage", "message"),
    [
        ("efficientat", "plain", "hearing", r"stage='hearing' with config\.model\.head='plain': expected one of \(''"),
        ("strokes", "strokes", "", r"stage='' with .*head='strokes': expected one of \('hearing', 'rhythm', 'joint'\)"),
        ("strokes", "strokes", "hear", r"stage='hear' with .*'strokes': expected one of \('hearing', "),
        ("efficientat", "stroke", "", r"config\.model\.head='stroke' is unknown, expected one of \('plain', 'strokes'"),
        ("strokes", "plain", "joint", r"stage='joint' with config\.model\.head='plain'"),
        ("strokes", "plain", "", r"head='plain': model strokes knows no other head than 'strokes'"),
    ],
)
def test_a_stage_that_does_not_go_with_the_head_is_refused(name, head, stage, message, tmp_path):
    config = tiny_config("joint") if name == "strokes" else plain_config(name)
    config.model.head, config.strokes.stage = head, stage
    with pytest.raises(InputError, match=message) as error:
        train.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def damaged(**changes):
    return json.dumps({**dataclasses.asdict(ERRORS), **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"holds no hearing errors \(.*No such file.*evaluate_strokes --workdir=RUN --errors=.*e\.json. measures",
        ),
        ("", r"holds no hearing errors \("),
        ("[1, 2]", r"holds no hearing errors \("),
        ('{"place": [1]}', r"holds no hearing errors \(.*missing"),
        (damaged(certainyt=1), r"holds no hearing errors \(.*'certainyt'"),
        (damaged(place=[1.0]), r"no hearing errors of this version: .*measure them again"),
        (damaged(certainty=[[1, 2], [1]]), r"hearing errors"),
    ],
    ids=["missing", "empty", "a list", "incomplete", "misspelt", "another version", "ragged"],
)
def test_a_file_without_hearing_errors_is_refused(content, message, tmp_path):
    config = tiny_config("rhythm")
    config.strokes.errors = str(tmp_path / "e.json")
    if content is not None:
        (tmp_path / "e.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        start.hearing_errors(config)
    assert "\n" not in str(error.value)


def test_hearing_errors_are_those_of_the_file_or_none(errors_file):
    config = tiny_config("rhythm")
    assert start.hearing_errors(config) is None
    config.strokes.errors = str(errors_file)
    assert start.hearing_errors(config) == HearingErrors(**json.loads(errors_file.read_text())) == ERRORS


@pytest.mark.parametrize("wrong", ["errors", "augmentation", "no rhythm head"])
def test_what_a_stage_cannot_do_is_refused_before_anything_is_written(wrong, clips, tmp_path):
    """Or the folder would hold the config that was refused, and refuse the corrected one."""
    config = tiny_config("rhythm", clips)
    if wrong == "errors":
        config.strokes.errors = str(tmp_path / "nowhere.json")
    elif wrong == "augmentation":
        config = tiny_config("joint", clips, augment={"mixup_alpha": 0.2})
    else:
        config = plain_config("ast", data={"path": str(clips)}, model={"head": "strokes"}, strokes={"stage": "rhythm"})
    with pytest.raises(InputError) as error:
        train.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_stages_configs_build(stage):
    get_config = importlib.import_module(f"configs.{CONFIGS[stage]}").get_config
    for preset in ("", *common.PRESETS):
        config = get_config(preset)
        assert (config.model.name, config.model.head, config.strokes.stage) == ("strokes", "strokes", stage)
        start.check_stage(config)
        network = start.network(config)
        assert (network.num_classes, network.strokes_per_second) == (40, 200)
        strategies.check_augmentation_keeps_strokes(config)
        assert config.data.path == {"full": "zkeown/sousa"}.get(preset, "synth")
        paths, _ = models.abstract("strokes", network)
        assert strategies.paces(config, paths, 100).keys() == paths.keys()
    assert strategies.adapters(config) is None
    with pytest.raises(InputError, match="unknown preset 'smok'"):
        get_config("smok")


@pytest.mark.slow
def test_a_smoke_config_runs_on_synthetic_clips(tmp_path):
    """Of the last stage, with a tenth of the clips: rendered on the device with their strokes, mixed with nothing."""
    config = strokes.get_config("smoke")
    config.data.synth.clips = (32, 8, 8)
    config.train.update(batch_size=8, epochs=1)
    assert train.run(config, tmp_path / "run") == 0
    assert checkpoint.load_model(tmp_path / "run").config == start.network(config)
