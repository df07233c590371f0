"""What a step does beside lowering the loss: accumulation, averages, gradient checkpointing, norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_train import tiny_config

from sousa_jax import models, start, strategies
from sousa_jax.frontends import spectrogram
from sousa_jax.models.efficientat import EfficientATConfig, InvertedResidual
from sousa_jax.optim import make_optimizer
from sousa_jax.step import TrainState, make_train_step

OFF = {"mixup_alpha": 0.0, "freq_masks": 0, "time_masks": 0, "tempo_stretch": 0.0, "gain_db": 0.0, "mel_jitter": False}


def plain_config(name="ast", **train):
    """No randomness but the weights: no augmentation, no dropout."""
    config = tiny_config(name, train={"accumulate": 1, "warmup_fraction": 0.0, "learning_rate": 1e-3} | train)
    config.augment.update(OFF)
    if name != "strokes":  # which has none
        config.model.settings.dropout = 0.0
    return config


def training(config, n_updates=10, averaged=False):
    """`(step, state)` of a config, jitted."""
    name, network = config.model.name, start.network(config)
    optimizer = make_optimizer(config, n_updates)
    state = TrainState.create(*models.init(name, network, config.seed), optimizer, averaged)
    return make_train_step(name, network, optimizer, config), state


def noise(config, n_rows=8, seed=0):
    n_samples = start.network(config).frontend.window_samples
    wave = np.random.default_rng(seed).normal(scale=0.1, size=(n_rows, n_samples))
    return {"waveform": jnp.asarray(wave, jnp.float32), "label": jnp.arange(n_rows) % 40}


def test_accumulated_micro_batches_are_one_batch():
    """Twice four batches of two rows, then two of eight: the same parameters, up to rounding. AST has no batch norm."""
    whole, parts = plain_config(), plain_config(accumulate=4)
    step, one = training(whole)
    for seed in range(2):
        one, _ = step(one, {}, noise(whole, seed=seed))
    step, four = training(parts)
    for i in range(8):
        before = jax.device_get(four.params)
        rows = slice(2 * (i % 4), 2 * (i % 4) + 2)
        four, _ = step(four, {}, jax.tree.map(lambda a, rows=rows: a[rows], noise(parts, seed=i // 4)))
        same = all(np.array_equal(before[path], four.params[path]) for path in before)
        assert same == (i < 7)  # warm-up begins at zero: the first update is none
    assert max(np.abs(four.params[path] - before[path]).max() for path in before) > 1e-4
    for path in before:
        # AdamW's step hardly depends on the gradient's size. Where gradients are zero but for rounding (a softmax does
        # not see the keys' biases) it makes steps out of noise.
        if not path.endswith("attention.key.bias"):
            np.testing.assert_allclose(four.params[path], one.params[path], atol=2e-5, err_msg=path)


def test_the_average_follows_the_published_formula_once_an_update():
    """d = min(0.9, (1 + n) / (10 + n)); statistics are averaged, too; between updates nothing moves."""
    config = plain_config("efficientat", accumulate=2, ema=0.9)
    step, state = training(config, averaged=True)
    wanted = jax.device_get({**state.params, **state.stats})
    for i in range(4):
        state, _ = step(state, {}, noise(config, seed=i))
        if i % 2:
            n = (i + 1) // 2
            decay = min(0.9, (1 + n) / (10 + n))
            now = jax.device_get({**state.params, **state.stats})
            wanted = {path: decay * wanted[path] + (1 - decay) * now[path] for path in wanted}
        for path, array in wanted.items():
            np.testing.assert_allclose(state.ema[path], array, rtol=1e-5, atol=1e-6, err_msg=path)
    params, stats = state.evaluated()
    assert params.keys() == state.params.keys()
    assert stats.keys() == state.stats.keys()
    assert all(params[path] is state.ema[path] for path in params)


def test_without_an_average_the_weights_themselves_are_evaluated():
    _, state = training(plain_config())
    assert state.ema == {}
    assert state.evaluated() == (state.params, state.stats)


@pytest.mark.parametrize("name", models.MODEL_NAMES)
def test_gradient_checkpointing_keeps_less(name):
    """Of what lies between forward and backward pass, parameters included: less than two thirds in these small
    networks. In the full ones it is a sixth to a sixteenth."""
    network = start.network(plain_config(name))
    params, stats = models.abstract(name, network)
    wave = jax.ShapeDtypeStruct((8, network.frontend.window_samples), jnp.float32)
    x = jax.eval_shape(lambda wave: spectrogram(wave, network.frontend), wave)

    def kept(recompute):
        apply = models.apply_fn(name, network, recompute=recompute)

        def residuals(params, stats, x):
            return jax.vjp(lambda p: apply(p, stats, x, train=True, rng=jax.random.key(1))[0].logits, params)[1]

        return sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(residuals, params, stats, x))
        )

    assert kept(True) < 2 / 3 * kept(False)


def test_gradient_checkpointing_changes_no_number():
    """Gradients of AST with dropout, whose draws are made again; of one block with batch norm its statistics, too."""
    config = plain_config()
    config.model.settings.dropout = 0.3
    network = start.network(config)
    params, stats = models.init("ast", network, 0)
    x = spectrogram(noise(config)["waveform"], network.frontend)

    def whole_network(recompute):
        apply = models.apply_fn("ast", network, recompute=recompute)
        loss = lambda p: jnp.sum(apply(p, stats, x, train=True, rng=jax.random.key(1))[0].logits ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    def one_block(recompute):
        block = InvertedResidual(8, 3, 16, 8, "relu", 1, None, EfficientATConfig(), rngs=nnx.Rngs(0))
        block.recompute = recompute
        loss = lambda block, x: jnp.sum(block(x, True) ** 2)  # noqa: E731
        gradients = nnx.grad(loss)(block, jax.random.normal(jax.random.key(0), (4, 6, 7, 8)))
        return gradients, nnx.state(block)

    for made in (whole_network, one_block):
        with_all, with_less = (jax.tree.leaves(made(recompute)) for recompute in (False, True))
        assert len(with_all) == len(with_less)
        for a, b in zip(with_all, with_less, strict=True):
            largest = max(1.0, float(np.abs(b).max()))  # sums of terms as large as that are rounded
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)
    moved = nnx.state(InvertedResidual(8, 3, 16, 8, "relu", 1, None, EfficientATConfig(), rngs=nnx.Rngs(0)))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(one_block(True)[1]), strict=True)
    )


def test_norms_are_those_of_gradients_updates_and_parameters():
    config = plain_config()
    step, state = training(config)
    state, _ = step(state, {}, noise(config))  # warm-up begins at zero
    before = jax.device_get(state.params)
    after, found = step(state, {}, noise(config))
    moved = optax.tree.norm(optax.tree.sub(after.params, before))
    assert moved > 0.01
    np.testing.assert_allclose(found["update_norm"], moved, rtol=1e-3)
    np.testing.assert_allclose(found["parameter_norm"], optax.tree.norm(after.params), rtol=1e-5)
    assert 0 < found["gradient_norm"] < 1e4


def test_moments_are_kept_for_adapters_and_head_alone():
    """Of AST with adapters: two moments for what is trained, nothing for the rest."""
    config = tiny_config("ast", "lora", train={"accumulate": 1})
    adapters = strategies.adapters(config)
    params, _ = models.init("ast", start.network(config), adapters=adapters)
    trained, frozen = strategies.split("lora", config.train.head, params)
    state = make_optimizer(config, 10).init(trained)
    n_moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert n_moments == 2 * sum(array.size for array in trained.values())
    assert sum(array.size for array in trained.values()) < 0.3 * sum(array.size for array in frozen.values())
