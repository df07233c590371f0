"""Which parameters a strategy trains, and when and how fast each layer learns."""

import importlib

import jax
import numpy as np
import pytest

from configs import common, strokes
from sousa_jax import models, start, strategies
from sousa_jax.errors import InputError
from sousa_jax.optim import make_optimizer
from sousa_jax.strategies import Pace


def paths(name):
    config = models.make_config(name, common.VARIANTS[name])
    return models.abstract(name, config)[0]


@pytest.mark.parametrize(
    ("name", "top", "expected"),
    [
        (
            "htsat",
            13,
            {
                "bn0.scale": 0,
                "patch_embed.kernel": 0,
                "stages.0.blocks.1.norm1.scale": 2,
                "stages.0.merge.reduction.kernel": 2,
                "stages.2.blocks.5.mlp.hidden.bias": 10,
                "stages.3.blocks.1.attention.rel_pos_bias": 12,
                "norm.bias": 12,
            },
        ),
        (
            "beats",
            13,
            {
                "patch_norm.scale": 0,
                "proj.kernel": 0,
                "pos_conv.v": 0,
                "encoder_norm.scale": 0,
                "rel_pos_bias": 0,
                "blocks.0.norm1.scale": 1,
                "blocks.11.mlp.output.bias": 12,
            },
        ),
        ("efficientat", 16, {"stem.kernel": 0, "blocks.0.depthwise.kernel": 1, "last.kernel": 15}),
        ("ast", 13, {"positions": 0, "class_token": 0, "blocks.3.attention.query.kernel": 4, "norm.scale": 12}),
    ],
)
def test_depth_of_layers(name, top, expected):
    found = strategies.layers(paths(name))
    assert {path: found[path] for path in expected} == expected
    assert {found[path] for path in found if path.startswith("head.")} == {top}
    assert set(found.values()) == set(range(top + 1))


def test_full_trains_everything_and_head_only_the_head():
    params = paths("ast")
    for strategy in ("full", "scratch"):
        assert strategies.split(strategy, "x", params) == (params, {})
    trained, frozen = strategies.split("head", r"head\..*", params)
    assert sorted(trained) == ["head.norm.bias", "head.norm.scale", "head.output.bias", "head.output.kernel"]
    assert trained.keys() | frozen.keys() == params.keys()
    with pytest.raises(InputError, match=r"no parameter's path matches .*'haed'"):
        strategies.split("head", "haed", params)


def paced(**settings):
    config = common.experiment("ast", "full")
    config.train.update(settings)
    return config, strategies.paces(config, paths("ast"), 100)


def test_unfreezing_goes_from_the_head_down():
    _, found = paced(unfreeze=(0.1, 0.3))
    starts = {path: pace.start for path, pace in found.items()}
    assert {start for path, start in starts.items() if path.startswith("head.")} == {0}
    assert starts["blocks.6.norm1.scale"] == starts["blocks.11.norm1.scale"] == starts["norm.scale"] == 10
    assert starts["blocks.5.norm1.scale"] == starts["positions"] == 30
    assert {pace.factor for pace in found.values()} == {1.0}


def test_layers_below_learn_slower():
    _, found = paced(layer_decay=0.5)
    assert found["head.output.kernel"] == Pace(1.0, 0)
    assert found["blocks.11.norm1.scale"] == Pace(0.5, 0)
    assert found["positions"] == Pace(0.5**13, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"unfreeze": (0.3, 0.1)}, "unfreeze"), ({"unfreeze": (0.0, 1.0)}, "unfreeze"), ({"layer_decay": 0.0}, "decay")],
)
def test_impossible_paces_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        paced(**settings)


def test_an_array_waits_for_its_start_and_then_learns_at_its_pace():
    config = common.experiment("ast", "full")
    config.train.update(learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.1, accumulate=1)
    params = {name: np.ones((2, 2), np.float32) for name in ("now", "later", "slowly")}
    optimizer = make_optimizer(config, 10, {"now": Pace(1.0, 0), "later": Pace(1.0, 3), "slowly": Pace(0.5, 0)})
    state, seen = optimizer.init(params), []
    for _ in range(5):
        updates, state = jax.jit(optimizer.update)(
            {path: np.ones((2, 2), np.float32) for path in params}, state, params
        )
        seen.append({path: float(np.abs(update).max()) for path, update in updates.items()})
    assert [step["later"] > 0 for step in seen] == [False, False, False, True, True]
    assert all(step["slowly"] == pytest.approx(0.5 * step["now"]) for step in seen)
    assert seen[4]["later"] == pytest.approx(seen[4]["now"], rel=1e-5)


@pytest.mark.parametrize("model", common.VARIANTS)
@pytest.mark.parametrize("strategy", common.LEARNING_RATES)
def test_every_experiment_builds(model, strategy):
    get_config = importlib.import_module(f"configs.{model}_{strategy}").get_config
    for preset in ("", *common.PRESETS):
        config = get_config(preset)
        assert (config.strategy, config.model.name) == (strategy, model)
        assert start.network(config).num_classes == 40
        assert config.allow_random_init == (preset == "smoke")
    config = get_config("smoke")
    params, _ = models.abstract(model, start.network(config), adapters=strategies.adapters(config))
    trained, frozen = strategies.split(config.strategy, config.train.head, params)
    assert bool(frozen) == (strategy == "lora")
    assert strategies.paces(config, trained, 100).keys() == trained.keys()
    with pytest.raises(InputError, match="unknown preset 'smok'"):
        get_config("smok")


def test_an_unknown_strategy_is_refused():
    config = common.experiment("ast", "full")
    config.strategy = "ful"
    with pytest.raises(InputError, match=r"config\.strategy='ful' is unknown, expected one of \('lora', 'full'"):
        strategies.adapters(config)


# --------------------------------------------------------------------------------------------------- stages of strokes


def stroke_paths():
    return models.abstract("strokes", start.network(strokes.get_config("smoke")))[0]


@pytest.mark.parametrize(
    ("stage", "learns"),
    [("hearing", {"ear", "strokes"}), ("rhythm", {"rhythm"}), ("joint", {"ear", "strokes", "rhythm"})],
)
def test_a_stage_is_a_pace_of_zero_for_what_it_leaves_alone(stage, learns):
    found = strategies.paces(strokes.stage(stage, "smoke"), stroke_paths(), 100)
    assert {path.split(".")[0] for path, pace in found.items() if pace == Pace(1.0, 0)} == learns
    assert {pace for path, pace in found.items() if path.split(".")[0] not in learns} <= {Pace(0.0, 0)}


def test_an_array_of_another_stage_stays_bit_for_bit():
    """Whatever its gradient, moments and weight decay say."""
    config = strokes.stage("hearing", "smoke")
    config.train.update(learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.1)
    params = {path: np.ones((2, 2), np.float32) for path in ("ear.flat.kernel", "rhythm.stem.kernel")}
    optimizer = make_optimizer(config, 10, strategies.paces(config, params, 10))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(3):
        updates, state = update({path: np.ones((2, 2), np.float32) for path in params}, state, params)
        assert (np.asarray(updates["rhythm.stem.kernel"]) == 0).all()
        assert (np.asarray(updates["ear.flat.kernel"]) != 0).all() == (step > 0)  # warm-up begins at zero


def test_stages_and_layer_decay_go_together():
    """Of a backbone with a stroke head: in the stage hearing layers below learn slower, the rhythm not at all."""
    config = common.experiment("efficientat", "full")
    config.model.head, config.strokes.stage, config.train.layer_decay = "strokes", "hearing", 0.5
    found = strategies.paces(config, models.abstract("efficientat", start.network(config))[0], 100)
    assert found["strokes.linear.kernel"] == Pace(1.0, 0)
    assert found["rhythm.stem.kernel"] == Pace(0.0, 0)
    assert found["stem.kernel"].factor < 1e-4
    assert found["blocks.14.project.kernel"] == Pace(0.5, 0)


def test_what_lies_above_the_blocks_is_of_the_head():
    """The pyramid, too, is fresh where a plain network begins to hear strokes: it learns from the start."""
    config = common.experiment("efficientat", "full")
    config.model.head = "strokes"
    found = strategies.layers(models.abstract("efficientat", start.network(config))[0])
    top = max(found.values())
    for part in ("pyramid.", "strokes.", "rhythm."):
        assert {layer for path, layer in found.items() if path.startswith(part)} == {top}, part


@pytest.mark.parametrize("name", ["tempo_stretch", "mixup_alpha", "time_masks"])
def test_augmentations_that_move_strokes_are_refused(name):
    config = strokes.get_config()
    strategies.check_augmentation_keeps_strokes(config)
    config.augment[name] = common.base("ast", "ast", "full").augment[name]
    message = rf"^config\.augment\.{name}={config.augment[name]} moves, mixes or hides strokes.*set it to 0, or"
    with pytest.raises(InputError, match=message) as error:
        strategies.check_augmentation_keeps_strokes(config)
    assert "\n" not in str(error.value)
