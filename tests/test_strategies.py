"""Which parameters a strategy trains, and when and how fast each layer learns."""

import importlib

import jax
import numpy as np
import pytest

from configs import common
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
