"""Adapters change nothing at first, fold into the weights exactly, and sit where the pattern says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from sousa_jax import lora, models, start, strategies
from sousa_jax.errors import InputError
from sousa_jax.lora import LoRA


@functools.cache
def small(name):
    """A small relative of a network, its adapters, and some features for it."""
    config = common.experiment(name, "lora", "smoke")
    settings = LoRA(config.lora.targets, rank=3, alpha=6.0)
    made = start.network(config)
    shape = (2, made.frontend.n_mels, made.frontend.n_frames(made.frontend.window_samples))
    return made, settings, jax.random.normal(jax.random.key(0), shape)


def outputs(name, params, stats, adapters=None, **options):
    config, _, features = small(name)
    return jax.jit(models.apply_fn(name, config, adapters=adapters))(params, stats, features, **options)[0]


@pytest.mark.parametrize("name", common.VARIANTS)  # `strokes` is no released network: nothing to adapt
def test_adapters_start_as_nothing_and_merge_to_the_same(name):
    config, settings, _ = small(name)
    base, stats = models.init(name, config, 1)
    adapted, _ = models.init(name, config, 1, adapters=settings)
    assert all(jnp.array_equal(adapted[path], base[path]) for path in base)
    added = {path for path in adapted if lora.is_adapter(path)}
    assert added == adapted.keys() - base.keys()
    before = outputs(name, base, stats)
    assert jnp.array_equal(outputs(name, adapted, stats, settings).logits, before.logits)

    keys = jax.random.split(jax.random.key(2), len(added))
    moved = adapted | {
        path: adapted[path] + 0.1 * jax.random.normal(key, adapted[path].shape)
        for path, key in zip(sorted(added), keys, strict=True)
    }
    after = outputs(name, moved, stats, settings)
    assert jnp.abs(after.logits - before.logits).max() > 1e-3 * jnp.abs(before.logits).max()
    merged = lora.merge(moved, settings)
    assert merged.keys() == base.keys()
    scale = float(jnp.abs(after.embedding).max())
    np.testing.assert_allclose(outputs(name, merged, stats).embedding, after.embedding, atol=2e-5 * scale)


def test_targets_say_which_layers():
    config, _, _ = small("ast")
    params, _ = models.abstract("ast", config, adapters=LoRA(r"blocks\.1\.attention\.(query|value)", rank=2))
    assert {path for path in params if lora.is_adapter(path)} == {
        f"blocks.1.attention.{layer}.lora.{part}" for layer in ("query", "value") for part in "ab"
    }
    assert params["blocks.1.attention.query.lora.a"].shape == (64, 2)


# About 0.3 % of the transformers, as the recipe has it.
@pytest.mark.parametrize(("name", "percent"), [("htsat", 0.57), ("beats", 0.37), ("ast", 0.38), ("efficientat", 0.58)])
def test_share_of_the_adapters_in_the_full_networks(name, percent):
    config = common.experiment(name, "lora")
    params, _ = models.abstract(name, start.network(config), adapters=strategies.adapters(config))
    sizes = {True: 0, False: 0}
    for path, array in params.items():
        sizes[lora.is_adapter(path)] += array.size
    assert 100 * sizes[True] / sizes[False] == pytest.approx(percent, abs=0.01)


def test_dropped_features_are_the_same_for_a_whole_batch():
    params = {"x.lora.a": jnp.ones((4000, 2)), "x.lora.b": jnp.ones((2, 3)), "x.kernel": jnp.ones((4000, 3))}
    dropped = lora.drop_features(jax.random.key(0), params, 0.25)
    rows = np.asarray(dropped["x.lora.a"])
    assert (rows[:, 0] == rows[:, 1]).all()
    assert set(np.unique(rows)) == {0, np.float32(1 / 0.75)}
    assert (rows == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert dropped["x.lora.b"] is params["x.lora.b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(targets="("), "no regular expression"),
        (dict(targets="x", rank=0), "rank of LoRA is 0"),
        (dict(targets="x", dropout=1.0), "dropout of LoRA is 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LoRA(**settings)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match=r"no layer's path matches 'attention'; there are blocks\.0\.attention\.key"):
        models.abstract("ast", small("ast")[0], adapters=LoRA("attention"))
