"""A run leaves what it promises, on every kind of data and with every strategy."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from configs import common, strokes
from sousa_jax import checkpoint, evaluate, models, start, train
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError


def tiny_config(name="efficientat", strategy="scratch", **changes):
    """Two epochs of five steps on half-second windows; a checkpoint at each third step and each epoch's end."""
    config = strokes.get_config("smoke") if name == "strokes" else common.experiment(name, strategy, "smoke")
    config.data.synth.clips = (40, 40, 40)
    config.model.window_s = 0.5
    config.train.batch_size = 8
    config.train.accumulate = 2
    config.train.checkpoint_every_steps = 3
    config.train.log_every_steps = 1
    for key, value in changes.items():
        config[key].update(value) if isinstance(value, dict) else config.update({key: value})
    return config


def last_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by path."""
    import orbax.checkpoint as ocp

    last = workdir / "checkpoints" / "last"
    step = max(int(p.name) for p in last.iterdir() if p.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((last / str(step) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves} | {"at": np.asarray(step)}


@functools.cache  # once a session: other modules compare with it
def finished_run(root: pathlib.Path) -> pathlib.Path:
    """`tiny_config()`, run from start to end in a folder of the session's. Not to be changed."""
    workdir = root / "finished" / "whole"
    assert train.run(tiny_config(), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.getbasetemp())


def test_the_folder_holds_what_is_promised(finished):
    for name in (
        "checkpoints", "logs/training.log", "logs/tensorboard", "config.json", "model.json",
        "results/test_metrics.json", "results/per_rudiment_metrics.csv",
        "results/confusion_matrix.png", "results/predictions.parquet", "results/skill_tier_breakdown.json",
        "results/breakdowns.csv", "results/cost.json",
    ):  # fmt: skip
        assert (finished / name).exists(), name
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["train"]["batch_size"] == 8
    assert record["seed"] == 42
    assert record["packages"]["jax"] == jax.__version__
    assert record["device"]["kind"]
    assert len(record["data"]["fingerprints"]["train"]) == 16
    result = json.loads((finished / "results" / "test_metrics.json").read_text())
    assert result["n_clips"] == 40
    assert result["shortcuts"]["duration"] is not None
    assert result["padded_first_window"]["n_clips"] == 40
    temperature = json.loads((finished / "model.json").read_text())["temperature"]
    assert temperature == checkpoint.load_model(finished).temperature
    assert temperature == result["first_window_calibration"]["temperature"] != 1.0


def test_a_finished_run_only_evaluates_again(finished):
    before = last_state(finished)
    assert train.run(tiny_config(), finished) == 0
    after = last_state(finished)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_another_config_in_the_same_folder_is_refused(finished):
    with pytest.raises(InputError, match=r"train\.learning_rate was 0\.003, is 0\.1"):
        train.run(tiny_config(train={"learning_rate": 0.1}), finished)


def test_other_data_in_the_same_folder_is_refused(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "copy")
    record = json.loads((tmp_path / "copy" / "config.json").read_text())
    record["data"]["fingerprints"]["train"] = "0" * 16
    (tmp_path / "copy" / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="was trained on data"):
        train.run(tiny_config(), tmp_path / "copy")


def test_re_evaluation_gives_the_run_s_own_numbers(finished, capsys, tmp_path):
    evaluate.main([f"--workdir={finished}", f"--out={tmp_path / 'again'}"])
    assert "test: balanced accuracy" in capsys.readouterr().out
    again, first = ((p / "test_metrics.json").read_text() for p in (tmp_path / "again", finished / "results"))
    assert again == first


@pytest.mark.parametrize("wrong", ["nothing there", "a model but no run", "unknown split"])
def test_evaluating_what_cannot_be_is_one_line(finished, tmp_path, capsys, wrong):
    workdir, split = tmp_path, "test"
    if wrong == "a model but no run":
        workdir = tmp_path / "ported"
        checkpoint.save_model(workdir, checkpoint.load_model(finished))
    elif wrong == "unknown split":
        workdir, split = finished, "tset"
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main([f"--workdir={workdir}", f"--split={split}"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("layout", "streaming"), [("hub", False), ("hub", True), ("local", False)], ids=["hub", "streamed", "local"]
)
def test_trains_on_sousa_in_each_layout(sousa_formats, tmp_path, layout, streaming):
    """Real SOUSA files, three clips a split: read, trained on, evaluated, and named in the record."""
    config = tiny_config(data={"path": str(sousa_formats / layout), "streaming": streaming}, train={"epochs": 1})
    assert train.run(config, tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "results" / "test_metrics.json").read_text())
    assert result["n_clips"] == 3
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["clips"] == {"train": 3, "validation": 3, "test": 3}


def test_trains_on_recorded_and_synthetic_clips_together(sousa_formats, tmp_path):
    """Half of each batch is synthetic; an epoch is still what it takes to hear the recorded clips once."""
    config = tiny_config(data={"path": str(sousa_formats / "hub")}, train={"epochs": 2, "batch_size": 4})
    config.data.synth.share = 0.5
    assert train.run(config, tmp_path / "run") == 0
    log = (tmp_path / "run" / "logs" / "training.log").read_text()
    assert "3 training clips, 2 steps an epoch" in log


@pytest.mark.parametrize(
    ("name", "compute_dtype"), [*((name, "float32") for name in models.MODEL_NAMES), ("efficientat", "bfloat16")]
)
def test_a_step_lowers_the_loss_and_counts(name, compute_dtype):
    """Twenty steps on one batch: the loss falls, the step number rises, statistics move, parameters stay float32."""
    import jax.numpy as jnp

    from sousa_jax.optim import make_optimizer
    from sousa_jax.step import TrainState, make_train_step

    settings = {"accumulate": 1, "learning_rate": 3e-3, "label_smoothing": 0.0, "compute_dtype": compute_dtype}
    config = tiny_config(name, train=settings)
    config.augment.update({"mixup_alpha": 0.0, "freq_masks": 0, "time_masks": 0, "tempo_stretch": 0.0, "gain_db": 0.0})
    model_config = start.network(config)
    optimizer = make_optimizer(config, 30)
    state = TrainState.create(*models.init(name, model_config), optimizer)
    stats_before = jax.device_get(state.stats)
    step = make_train_step(name, model_config, optimizer, config)
    n_samples = model_config.frontend.window_samples
    batch = {"waveform": jax.random.normal(jax.random.key(0), (8, n_samples)) * 0.1, "label": jnp.arange(8)}
    if rate := model_config.strokes_per_second:
        zeros = jnp.zeros((8, round(config.model.window_s * rate)))
        batch["stroke_targets"] = FrameTargets(zeros.at[:, ::20].set(1.0), zeros + 0.5, zeros, zeros)
    losses = []
    for _ in range(20):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 20
    assert losses[-1] < 0.8 * losses[0]
    assert all(not np.array_equal(before, state.stats[path]) for path, before in stats_before.items())
    assert {p.dtype for p in state.params.values()} == {np.dtype("float32")}


# ---------------------------------------------------------------------------------------------------------- strategies


def lora_config(init_from="", **changes):
    return tiny_config("ast", "lora", init_from=str(init_from), allow_random_init=not init_from, **changes)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder as `ports.convert` writes it."""
    folder = tmp_path_factory.mktemp("pretrained") / "ast"
    model_config = start.network(tiny_config("ast"))
    checkpoint.save_model(folder, checkpoint.Model("ast", model_config, *models.init("ast", model_config, 7), {}))
    return folder


@pytest.fixture(scope="module")
def adapted(pretrained, tmp_path_factory):
    """A finished run with adapters."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    assert train.run(lora_config(pretrained), workdir) == 0
    return workdir


def test_lora_keeps_only_what_it_trains(adapted):
    """Neither checkpoints nor the optimizer's moments hold a frozen array."""
    state = last_state(adapted)
    paths = {key for key in state if "blocks" in key or "head" in key or "positions" in key}
    assert paths
    assert all(".lora." in key or "head." in key for key in paths)
    assert "in adapters" in (adapted / "logs" / "training.log").read_text()


def test_lora_changes_adapted_kernels_alone(adapted, pretrained):
    before, after = checkpoint.load_model(pretrained).params, checkpoint.load_model(adapted).params
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    layers = [f"attention.{name}" for name in ("query", "key", "value", "output")] + ["mlp.hidden", "mlp.output"]
    wanted = {f"blocks.{i}.{layer}.kernel" for i in range(2) for layer in layers}
    assert changed == wanted | {path for path in before if path.startswith("head.")}


def test_a_lora_run_evaluates_alike_from_its_folder(adapted, tmp_path):
    """The rest of the weights is found again, and the adapters folded in."""
    evaluate.main([f"--workdir={adapted}", f"--out={tmp_path / 'again'}"])
    found, again = (
        json.loads((folder / "test_metrics.json").read_text()) for folder in (adapted / "results", tmp_path / "again")
    )
    assert again["first_window"] == pytest.approx(found["first_window"])


def test_a_lora_run_without_its_base_says_what_is_missing(adapted, pretrained, tmp_path):
    import shutil

    copy = shutil.copytree(adapted, tmp_path / "copy")
    stored = json.loads((copy / "model.json").read_text())
    stored["partly"]["base"] = str(tmp_path / "gone")
    (copy / "model.json").write_text(json.dumps(stored))
    with pytest.raises(
        InputError, match=r"holds only what was trained, the rest is missing: .*gone holds no model\.json"
    ):
        checkpoint.load_model(copy)


def test_full_goes_on_from_a_lora_run(adapted, tmp_path):
    settings = {"unfreeze": (0.2, 0.4), "layer_decay": 0.8}
    assert train.run(tiny_config("ast", "full", init_from=str(adapted), train=settings), tmp_path / "run") == 0


def test_weight_decay_leaves_biases_and_norms_alone():
    from sousa_jax.optim import make_optimizer

    config = tiny_config(train={"accumulate": 1, "weight_decay": 0.5, "warmup_fraction": 0.0, "learning_rate": 0.1})
    params = {"kernel": np.ones((2, 2), np.float32), "norm.scale": np.ones(2, np.float32)}
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    zeros = jax.tree.map(np.zeros_like, params)
    for _ in range(2):
        updates, state = optimizer.update(zeros, state, params)
    assert (np.asarray(updates["kernel"]) < 0).all()
    assert (np.asarray(updates["norm.scale"]) == 0).all()
