"""BEATs in Flax NNX: a transformer on 16 × 16 patches of a spectrogram, 160 ms a step.

Paper: S. Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023 (arXiv:2212.09058).
Official code: github.com/microsoft/unilm, `beats/{BEATs,backbone}.py`; released weights come in through `ports`.
It has no training code, so what it does while it trains is read off the modules.

Positions come in twice: by a convolution over 128 tokens in front of the transformer, and by a bias on the attention
scores that depends on the distance of two tokens, shared by all layers and gated by the query in each.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from scipy.fft import next_fast_len

from sousa_jax.errors import InputError, nearest
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.heads import StrokeHead, stream_frames, stream_frames_per_step
from sousa_jax.models.layers import Outputs, Recomputable
from sousa_jax.models.transformer import MLP, LayerNorm, Linear, dropout, gelu, layer_rng, project, split_heads

# One network in all released files, iterations 1 to 3+; they differ in their weights, and in having classes.
PRESETS: dict[str, dict[str, Any]] = {
    "beats": {},
    "beats_iter3_plus_as2m": {"num_classes": 0},
    "beats_iter3_plus_as2m_ft": {"num_classes": 527},
}
_EPSILON = 1e-5
_GATE_FEATURES = 8  # two sums of four
_MAY_BE_ZERO = ("num_classes", "time_stride", "strokes_per_second")


@dataclasses.dataclass(frozen=True)
class BEATsConfig:
    """Shape of a BEATs network, and what it does in training.

    Attributes:
      num_classes: size of the logits; 0 leaves the class layer out, as in the files before fine-tuning.
      patch_size: frames and mel bands of a patch; bands do not overlap.
      time_stride: frames from patch to patch, at most `patch_size`; 0: patch_size, as released. A smaller one gives
        more steps a second from the same parameters: positions count tokens, whatever time lies between them.
      patch_features: of the patch embedding. features, hidden_features: of the transformer and of its MLPs.
      n_layers, n_heads: of the transformer.
      conv_kernel, conv_groups: of the convolution for positions, in tokens.
      n_buckets: rows of the table of relative positions. A quarter is for the distances 0, 1, 2, ... to earlier tokens,
        a quarter for logarithmic steps beyond, and half the same for later tokens.
      max_distance: where the logarithmic steps end, in tokens.
      dropout: in front of the layers and after each of their two branches.
      input_dropout, attention_dropout, activation_dropout, head_dropout: on the projected patches, the attention
        weights, the hidden values of the MLPs and the tokens that the class layer reads. All rates are 0 in the files.
      layer_drop: probability with which training skips a layer, for the whole batch.
      gradient_decay: in training, gradients are multiplied by it on their way back through each layer; values stay as
        they are. At the official 0.6 the patch embedding receives 0.6^12, 0.2 %, of its gradient. Adam hardly notices
        the factor (its epsilon does), gradient clipping and stochastic gradient descent do.
      strokes_per_second: frames a second of the strokes that it is taught to hear beside the name; 0: none. A step says
        what falls within its stride, 160 ms as released, and itself hears `patch_size` frames, 175 ms from the same
        beginning. Of what follows the last whole patch nothing is said.
      frontend: what turns samples into the network's input.
    """

    num_classes: int = 40
    patch_size: int = 16
    time_stride: int = 0
    patch_features: int = 512
    features: int = 768
    hidden_features: int = 3072
    n_layers: int = 12
    n_heads: int = 12
    conv_kernel: int = 128
    conv_groups: int = 16
    n_buckets: int = 320
    max_distance: int = 800
    dropout: float = 0.0
    input_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    head_dropout: float = 0.0
    layer_drop: float = 0.05
    gradient_decay: float = 0.6
    strokes_per_second: int = 0
    frontend: FrontendSpec = dataclasses.field(default_factory=FrontendSpec.beats)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in _MAY_BE_ZERO else 1
            if field.type is int and value < least:
                raise InputError(f"{field.name} is {value}, expected at least {least}")
            is_rate = field.type is float and field.name != "gradient_decay"
            if is_rate and not 0.0 <= value < 1.0:
                raise InputError(f"{field.name} is {value}, expected at least 0 and less than 1")
        if not 0.0 < self.gradient_decay <= 1.0:
            raise InputError(f"gradient_decay is {self.gradient_decay}, expected more than 0 and at most 1")
        for name in ("n_heads", "conv_groups"):
            if self.features % getattr(self, name):
                raise InputError(f"{self.features} features do not split into {name} = {getattr(self, name)}")
        if self.n_buckets % 4 or self.max_distance <= self.n_buckets // 4:
            raise InputError(
                f"n_buckets {self.n_buckets} must be a multiple of 4 and a quarter of it below max_distance "
                f"{self.max_distance}"
            )
        spec = self.frontend
        if spec.n_mels % self.patch_size:
            raise InputError(f"{spec.n_mels} mel bands are no multiple of patch_size {self.patch_size}")
        if self.time_stride > self.patch_size:
            raise InputError(f"time_stride is {self.time_stride}, expected at most patch_size = {self.patch_size}")
        self.steps(spec.n_frames(spec.window_samples))
        _ = self.strokes_per_step

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "BEATsConfig":
        """A released variant by name (`PRESETS`); `beats` is the network with as many classes as here."""
        if name not in PRESETS:
            raise InputError(f"unknown BEATs variant {name!r}; nearest: {nearest(name, PRESETS) or ', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def for_window(self, window_s: float, length: str) -> "BEATsConfig":
        """The same network on windows of `window_s` seconds. It takes any number of frames from 16 on and leaves the
        remainder of 16 out, the official code as well: both of `LENGTHS` are the same."""
        return dataclasses.replace(self, frontend=dataclasses.replace(self.frontend, window_s=window_s))

    @property
    def step_frames(self) -> int:
        """Frames from patch to patch."""
        return self.time_stride or self.patch_size

    @property
    def strokes_per_step(self) -> int:
        """Frames of the stroke stream from patch to patch; `InputError` if they are not whole."""
        return stream_frames_per_step(self.frontend, self.step_frames, self.strokes_per_second)

    def steps(self, n_frames: int) -> int:
        """Patches along a spectrogram of so many frames; `InputError` if not one fits."""
        if n_frames < self.patch_size:
            raise InputError(
                f"a spectrogram of {n_frames} frames is shorter than a patch, at least {self.patch_size} needed"
            )
        return (n_frames - self.patch_size) // self.step_frames + 1

    @property
    def alpha(self) -> float:
        """Deep norm's factor on the residual (arXiv:2203.00555); 2.2134 for 12 layers."""
        return (2 * self.n_layers) ** 0.25

    @property
    def beta(self) -> float:
        """Deep norm's gain of the initial value, output and MLP kernels; 0.3195 for 12 layers."""
        return (8 * self.n_layers) ** -0.25


def _torch_default(fan_in: int) -> jax.nn.initializers.Initializer:
    """PyTorch's initialization of linear layers and convolutions: uniform in ± 1 / sqrt(fan_in)."""
    return lambda rng, shape, dtype: jax.random.uniform(rng, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)


def _xavier(gain: float) -> jax.nn.initializers.Initializer:
    return nnx.initializers.variance_scaling(gain**2, "fan_avg", "normal")


# ----------------------------------------------------------------------------------------------------- patches, padding


class PatchEmbed(nnx.Module):
    """Every patch times one matrix: a convolution whose stride is its size, but for `time_stride`."""

    def __init__(self, config: BEATsConfig, *, rngs: nnx.Rngs):
        shape = (config.patch_size, config.patch_size, config.patch_features)  # frame, mel, feature
        self.kernel = nnx.Param(_torch_default(config.patch_size**2)(rngs.params(), shape, jnp.float32))
        self.config = config

    def __call__(self, features: jax.Array) -> jax.Array:
        """`(B, n_mels, n_frames)` to `(B, tokens, patch_features)`, token = step · bands + band."""
        size, stride = self.config.patch_size, self.config.step_frames
        batch, bands, steps = len(features), features.shape[1] // size, self.config.steps(features.shape[2])
        if stride == size:
            patches = features[:, :, : steps * size]
        else:  # first frames of all patches, second ones, ...
            span = (steps - 1) * stride + 1
            patches = jnp.stack([features[:, :, i : i + span : stride] for i in range(size)], axis=-1)
        patches = patches.reshape(batch, bands, size, steps, size)
        patches = patches.transpose(0, 3, 1, 4, 2).reshape(batch, steps * bands, size * size)
        return project(patches, self.kernel[...].reshape(size * size, -1))


def reduce_padding(padding: jax.Array, count: int) -> jax.Array:
    """`(B, n)` bool, true where padded, to `(B, count)`, for samples to frames and for frames to tokens.

    As official: n // count neighbours make one, padded if all of them are, and the remainder is cut. The groups only
    approximate the frames and patches. A frame's 400 samples count as its 160 or few more; and the eight tokens of a
    step, which all hear the same 16 frames, get two frames each, in the order of their mel bands.
    """
    size = padding.shape[1] // count
    return padding[:, : size * count].reshape(len(padding), count, size).all(-1)


# ------------------------------------------------------------------------------------------------------------ positions


class PositionConv(nnx.Module):
    """Grouped convolution over the tokens, then GELU. Its weights have one gain a tap:
    `kernel[k] = g[k] · v[k] / ‖v[k]‖`."""

    def __init__(self, config: BEATsConfig, *, rngs: nnx.Rngs):
        shape = (config.conv_kernel, config.features // config.conv_groups, config.features)
        v = jax.random.normal(rngs.params(), shape) * (4.0 / (config.conv_kernel * config.features)) ** 0.5
        self.v = nnx.Param(v)
        self.g = nnx.Param(jnp.sqrt(jnp.square(v).sum((1, 2))))
        self.bias = nnx.Param(jnp.zeros(config.features))

    def kernel(self) -> jax.Array:
        """`(taps, features / groups, features)` float32."""
        v = self.v[...]
        return v * (self.g[...] / jnp.sqrt(jnp.square(v).sum((1, 2))))[:, None, None]

    def __call__(self, x: jax.Array) -> jax.Array:
        convolved = position_conv(x, self.kernel())
        return gelu(convolved + self.bias[...].astype(x.dtype))


def position_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(B, T, channels)` convolved along T, with `taps // 2` zeros in front and the length kept.

    Args:
      kernel: `(taps, channels / groups, channels)` float32.

    On CPUs the gradient of a grouped convolution is slow: for 8 clips of 248 tokens 1.3 s on two cores. Fourier
    transforms take 0.12 s; forward both take under 0.1 s. Matrix products over 8 or 16 taps at a time came between.
    """
    return (_fourier_conv if jax.default_backend() == "cpu" else _grouped_conv)(x, kernel)


def _grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    taps, group_size, channels = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1,),
        padding=((taps // 2, taps - 1 - taps // 2),),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=channels // group_size,
    )


def _fourier_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """In float32, whatever the input's dtype, which the output keeps."""
    batch, length, channels = x.shape
    taps, group_size, _ = kernel.shape
    # The reversed kernel turns correlation into convolution, whose output T' = length + taps - 1 is wanted from `first`
    # on only: what wraps around in a shorter transform falls before that.
    first = taps - 1 - taps // 2
    n = 2 * next_fast_len(-(-max(taps, length + taps - 1 - first) // 2), real=True)
    spectrum = jnp.fft.rfft(x.astype(jnp.float32), n, axis=1).reshape(batch, n // 2 + 1, -1, group_size)
    response = jnp.fft.rfft(kernel[::-1].transpose(1, 2, 0), n).transpose(2, 0, 1)  # (n / 2 + 1, in, channels)
    response = response.reshape(n // 2 + 1, group_size, -1, group_size)
    product = jnp.einsum("bfgi,figo->bfgo", spectrum, response).reshape(batch, n // 2 + 1, channels)
    return jnp.fft.irfft(product, n, axis=1)[:, first : first + length].astype(x.dtype)


def buckets(distance: np.ndarray, n_buckets: int, max_distance: int) -> np.ndarray:
    """Row of the table of relative positions for `key - query`, in tokens: exact up to a quarter of the rows, then
    logarithmic up to `max_distance`, one row for all beyond; later keys have the second half of the rows."""
    half, exact = n_buckets // 2, n_buckets // 4
    far = np.abs(distance)
    # In float32, as officially: a distance at the edge of a bucket falls on the side that rounding puts it.
    part = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(max_distance / exact))
    logarithmic = np.minimum(exact + (part * np.float32(half - exact)).astype(int), half - 1)
    return half * (distance > 0) + np.where(far < exact, far, logarithmic)


def relative_bias(table: jax.Array, n_tokens: int, max_distance: int) -> jax.Array:
    """`(heads, query, key)` from `(n_buckets, heads)`.

    It depends on `key - query` only: 2 T - 1 values a head are looked up, and a reshape shifts T copies of them (rows
    of 2 T values, read as rows of 2 T - 1, move on by one), without a table of T² indices or a scatter backwards.
    """
    span = 2 * n_tokens - 1
    rows = buckets(np.arange(-n_tokens + 1, n_tokens), table.shape[0], max_distance)
    values = jnp.pad(table[rows].T, ((0, 0), (0, 1)))  # (heads, 2 T)
    shifted = jnp.tile(values, (1, n_tokens))[:, : n_tokens * span].reshape(-1, n_tokens, span)
    return shifted[:, :, n_tokens - 1 :]


# ---------------------------------------------------------------------------------------------------------- transformer


class Attention(nnx.Module):
    """Multi-head attention whose relative bias is gated by the query ("gated relative position bias", WavLM,
    arXiv:2110.13900). The official code also guards half precision against overflow; here scores are float32."""

    def __init__(self, config: BEATsConfig, *, rngs: nnx.Rngs):
        self.n_heads, self.dropout = config.n_heads, config.attention_dropout
        linear = functools.partial(Linear, config.features, config.features, rngs=rngs)
        self.query, self.key = linear(kernel_init=_xavier(1.0)), linear(kernel_init=_xavier(1.0))
        self.value, self.output = linear(kernel_init=_xavier(config.beta)), linear(kernel_init=_xavier(config.beta))
        self.gate = Linear(config.features // config.n_heads, _GATE_FEATURES, rngs=rngs)
        self.gate_scale = nnx.Param(jnp.ones(config.n_heads))

    def gates(self, query: jax.Array) -> jax.Array:
        """`(B, heads, T, D)` to `(B, heads, T)` float32, between 1 and 2 at first."""
        sums = self.gate(query).astype(jnp.float32).reshape(*query.shape[:-1], 2, _GATE_FEATURES // 2).sum(-1)
        a, b = jnp.moveaxis(jax.nn.sigmoid(sums), -1, 0)
        return a * (b * self.gate_scale[...][:, None] - 1.0) + 2.0

    def __call__(self, x: jax.Array, bias: jax.Array, hidden: jax.Array | None, rng: jax.Array | None) -> jax.Array:
        """`(B, T, features)` to the same; bias: `(heads, T, T)` float32; hidden: `(B, T)`, keys that nobody sees."""
        query, key, value = (split_heads(part(x), self.n_heads) for part in (self.query, self.key, self.value))
        scores = jnp.einsum("bhqd,bhkd->bhqk", query * query.shape[-1] ** -0.5, key).astype(jnp.float32)
        scores = scores + self.gates(query)[..., None] * bias
        if hidden is not None:
            scores = jnp.where(hidden[:, None, None, :], -jnp.inf, scores)
        weights = dropout(jax.nn.softmax(scores, axis=-1), self.dropout, rng, 0).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
        return self.output(jnp.swapaxes(mixed, 1, 2).reshape(x.shape))


class Block(Recomputable):
    """Attention and MLP, each normalized after it is added to `alpha` times its input (deep norm)."""

    def __init__(self, config: BEATsConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs=rngs)
        self.norm1 = LayerNorm(config.features, epsilon=_EPSILON)
        self.mlp = MLP(config.features, config.hidden_features, kernel_init=_xavier(config.beta), rngs=rngs)
        self.norm2 = LayerNorm(config.features, epsilon=_EPSILON)

    def forward(self, x: jax.Array, bias: jax.Array, hidden: jax.Array | None, rng: jax.Array | None) -> jax.Array:
        rates, alpha = self.config, self.config.alpha
        attended = self.attention(x, bias, hidden, rng)
        x = self.norm1(alpha * x + dropout(attended, rates.dropout, rng, 1))
        # Not `mlp(x)`: its two dropouts have one rate there.
        inner = dropout(gelu(self.mlp.hidden(x)), rates.activation_dropout, rng, 2)
        return self.norm2(alpha * x + dropout(self.mlp.output(inner), rates.dropout, rng, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """x, whose gradient is multiplied by `factor` on its way back."""
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, grad: ((grad * factor).astype(grad.dtype),))


class BEATs(nnx.Module):
    """`model(features) -> Outputs`. Compute runs in the dtype of the features (float32 or bfloat16); parameters,
    norms, softmax, pooling and logits are float32.

    Initialization is the official one: deep norm's xavier-normal kernels in attention and MLP, N(0, 0.02) for gates and
    relative bias, N(0, 4 / (taps · features)) for the convolution, PyTorch's default for patches, projection and class
    layer. Biases start at zero; the official projection and class layer have PyTorch's uniform ones.
    """

    def __init__(self, config: BEATsConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.patch_norm = LayerNorm(config.patch_features, epsilon=_EPSILON)
        init = _torch_default(config.patch_features)
        self.proj = Linear(config.patch_features, config.features, kernel_init=init, rngs=rngs)
        self.pos_conv = PositionConv(config, rngs=rngs)
        self.encoder_norm = LayerNorm(config.features, epsilon=_EPSILON)
        self.rel_pos_bias = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.n_buckets, config.n_heads)))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])
        init = _torch_default(config.features)
        self.head = (
            Linear(config.features, config.num_classes, kernel_init=init, rngs=rngs) if config.num_classes else None
        )
        per_step = config.strokes_per_step
        self.strokes = StrokeHead(config.features, per_step, rngs=rngs) if per_step else None

    def _grid(self, features: jax.Array) -> tuple[int, int]:
        """Patches of a spectrogram: `(bands, steps)`."""
        return features.shape[1] // self.config.patch_size, self.config.steps(features.shape[2])

    def token_padding(self, features: jax.Array, padding: jax.Array) -> jax.Array:
        """`(B, tokens)` of `(B, n_frames)`, both true where padded; `InputError` where patches overlap."""
        if self.config.step_frames != self.config.patch_size:
            raise InputError(f"padding does not go with time_stride {self.config.time_stride}: patches overlap")
        bands, steps = self._grid(features)
        return reduce_padding(padding, bands * steps)

    def stages(
        self,
        features: jax.Array,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
        token_padding: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """What the network computes on its way, each `(B, tokens, channels)`, by its name in the reference
        activations: `patch_embed`, `layer_norm`, `proj`, `pos_conv`, `encoder_in`, `layer00`, `layer01`, ..."""
        config, rng = self.config, rng if train else None
        around = layer_rng(rng, config.n_layers)
        stages = {"patch_embed": self.patch_embed(features)}
        stages["layer_norm"] = self.patch_norm(stages["patch_embed"])
        stages["proj"] = self.proj(stages["layer_norm"])
        x, hidden = dropout(stages["proj"], config.input_dropout, around, 0), None
        if token_padding is not None:
            x = jnp.where(token_padding[..., None], 0, x)
            # A clip of nothing but padding attends to it: a softmax over nothing would be NaN.
            hidden = token_padding & ~token_padding.all(1, keepdims=True)
        stages["pos_conv"] = self.pos_conv(x)
        stages["encoder_in"] = self.encoder_norm(x + stages["pos_conv"])
        x = dropout(stages["encoder_in"], config.dropout, around, 1)
        bias = relative_bias(self.rel_pos_bias[...], x.shape[1], config.max_distance)
        for i, block in enumerate(self.blocks):
            key = layer_rng(rng, i)
            x = scale_gradient(x, config.gradient_decay) if train else x
            y = block(x, bias, hidden, key)
            if key is not None and config.layer_drop:
                y = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 4), config.layer_drop), x, y)
            x = stages[f"layer{i:02d}"] = y
        return stages

    def __call__(
        self,
        features: jax.Array,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
        padding: jax.Array | None = None,
    ) -> Outputs:
        """
        Args:
          features: `(batch, n_mels, n_frames)`, the frontend's spectrogram; any number of frames from 16 on, the
            remainder of 16 is left out.
          train: layer drop and dropouts, and the decay of gradients.
          rng: key for the former, needed when training.
          padding: `(batch, n_frames)` bool, true where a frame is padding (`reduce_padding` says what becomes of the
            tokens). Padded tokens are seen by no other and not averaged; frames still hold them. A clip of nothing but
            padding has the embedding zero, and the class layer's bias as logits.

        Raises:
          InputError: fewer frames than a patch has, or padding where patches overlap.
        """
        bands, steps = self._grid(features)
        token_padding = None if padding is None else self.token_padding(features, padding)
        stages = self.stages(features, train=train, rng=rng, token_padding=token_padding)
        tokens = stages[f"layer{self.config.n_layers - 1:02d}"]
        embedding = _mean_of_tokens(tokens, token_padding)
        frames = tokens.reshape(len(tokens), steps, bands, -1).mean(2, dtype=jnp.float32)  # (B, T / 16, C)
        strokes = None
        if self.strokes is not None:
            n_stream = stream_frames(self.config.frontend, features.shape[2], self.config.strokes_per_second)
            strokes = self.strokes(frames, n_stream)
        # The official class layer acts on each token and its outputs are averaged: the same, once a clip instead.
        around = layer_rng(rng if train else None, self.config.n_layers)
        pooled = _mean_of_tokens(dropout(tokens, self.config.head_dropout, around, 2), token_padding)
        logits = jnp.zeros((len(tokens), 0)) if self.head is None else self.head(pooled)
        return Outputs(logits, embedding, frames, strokes)


def _mean_of_tokens(tokens: jax.Array, padding: jax.Array | None) -> jax.Array:
    """`(B, T, C)` to `(B, C)` float32; zeros if all are padded."""
    if padding is None:
        return tokens.mean(1, dtype=jnp.float32)
    total = jnp.where(padding[..., None], 0.0, tokens.astype(jnp.float32)).sum(1)
    return total / jnp.maximum((~padding).sum(1), 1)[:, None]
