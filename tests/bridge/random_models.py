"""Networks with random weights that answer differently to different clips, as trained ones do, made in a moment."""

import functools
import math
from unittest import mock

import jax
import numpy as np
import scipy.special
import torch

from bridge import to_torch
from ports import efficientat, synthetic
from sousa_jax import models
from sousa_jax.checkpoint import Model
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.models import layers
from sousa_jax.models.efficientat import EfficientATConfig
from sousa_jax.models.strokes import StrokesConfig

HEAR_STROKES = {"frontend": FrontendSpec(hop_length=160), "strokes_per_second": 200}


def mn(name="mn01", window_s=2.0, **changes):
    """An EfficientAT for short windows."""
    return EfficientATConfig.preset(name, **changes).for_window(window_s, "fill")


def small_strokes(window_s=1.0):
    """A narrow network of the model `strokes`."""
    return StrokesConfig(width=16, dilations=(1, 2), rhythm_widths=(8, 12)).for_window(window_s, "fill")


@functools.cache
def drawn_model(name, config, seed=0):
    """Biases and norms are drawn, too, so that none can be mixed up. Batch norm has the statistics of two clips: with
    those of the official init every clip would get the same answer."""
    rng = np.random.default_rng(seed)
    params, stats = ({path: leaf.shape for path, leaf in part.items()} for part in models.abstract(name, config))
    params = {path: _drawn(path, shape, rng) for path, shape in params.items()}
    stats = {path: np.full(shape, path.endswith("var"), np.float32) for path, shape in stats.items()}
    model = Model(name, config, params, stats, {}, temperature=1.7)
    return Model(name, config, params, _of_two_clips(model), {}, temperature=1.7) if stats else model


def _drawn(path, shape, rng):
    kind = path.rpartition(".")[2]
    if kind == "kernel":
        fan_in = math.prod(shape[:2] if "depthwise" in path or path.startswith("stem") else shape[:-1])
        gain = 1 if path.startswith(("pyramid", "strokes", "rhythm", "ear")) else 2  # 2 for what rectifies
        return np.float32(rng.normal(0, (gain / fan_in) ** 0.5, shape))
    return np.float32((kind == "scale") + rng.normal(0, 0.1, shape))


def _of_two_clips(model):
    twin = to_torch.listener(model)
    log_mel = torch.cat([twin.frontend(torch.tensor(x)) for x in clips(model.config.frontend, seed=9)])
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():
        x = twin.network.features(log_mel)
        if not model.config.strokes_per_second:
            twin.network.classifier(x)
    state = twin.network.state_dict()
    table = {rule.target: rule.source for rule in efficientat.rules(model.config)}
    return {path: state[table[path]].numpy() for path in model.stats}


def clips(spec, seed=0):
    """Two windows, `(2, n_samples)`."""
    return synthetic.test_batch(seed, spec.sample_rate, spec.window_samples, 2)


def flax_outputs(model, waveforms):
    """`(features, Outputs)` of whole windows by Flax, in float32."""

    @jax.jit
    def run(waveforms):
        features = spectrogram(waveforms, model.config.frontend)
        return features, models.apply_fn(model.name, model.config)(model.params, model.stats, features)[0]

    # The depthwise convolution as one operation: quicker to compile than shifted sums, and no other number.
    with mock.patch.object(layers, "_shifted_conv", layers.grouped_conv), jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, run(waveforms))


def errors(model):
    """Largest error of the twin's logits as a fraction of the spread between two clips: given Flax's spectrogram, and
    from samples; and that of the stroke probabilities, 0 if there are none."""
    waveforms = clips(model.config.frontend)
    features, flax = flax_outputs(model, waveforms)
    spread = np.std(flax.logits[0] - flax.logits[1])
    assert spread > 0.05
    twin = to_torch.listener(model)
    with torch.inference_mode():
        answers = [
            [twin.network(torch.tensor(x)[None, None]) for x in features],
            [twin(torch.tensor(x)) for x in waveforms],
        ]
    of_strokes = 0.0
    if flax.strokes is not None:
        expected = scipy.special.expit(np.stack(flax.strokes, 1))
        heard = np.stack([strokes for _, strokes in answers[0]])
        of_strokes = np.abs(heard - expected).max()
        answers = [[logits for logits, _ in found] for found in answers]
    stored, whole = (np.abs(np.concatenate(found) - flax.logits).max() / spread for found in answers)
    return stored, whole, of_strokes
