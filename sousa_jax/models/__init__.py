"""The backbones, by name, and their parameters as flat dictionaries.

Outside `sousa_jax.models` a network is three things: its config, and two dictionaries from dotted paths
(`blocks.3.project.kernel`) to arrays: what gradients train (`params`) and what batch norm tracks (`stats`).
Filters, ports, checkpoints and error messages all speak in these paths.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx

from sousa_jax import lora
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError, nearest
from sousa_jax.frontends import FrontendSpec
from sousa_jax.lora import LoRA
from sousa_jax.models.ast import AST, ASTConfig
from sousa_jax.models.beats import BEATs, BEATsConfig
from sousa_jax.models.efficientat import EfficientAT, EfficientATConfig
from sousa_jax.models.htsat import HTSAT, HTSATConfig
from sousa_jax.models.layers import Outputs, Recomputable
from sousa_jax.models.strokes import Strokes, StrokesConfig

Arrays = dict[str, jax.Array]

_MODELS: dict[str, tuple[type, type]] = {
    "htsat": (HTSATConfig, HTSAT),
    "beats": (BEATsConfig, BEATs),
    "efficientat": (EfficientATConfig, EfficientAT),
    "ast": (ASTConfig, AST),
    "strokes": (StrokesConfig, Strokes),
}
MODEL_NAMES = tuple(_MODELS)
HEADS = ("plain", "strokes")


def _entry(name: str) -> tuple[type, type]:
    if name not in _MODELS:
        raise InputError(f"unknown model {name!r}, known: {', '.join(MODEL_NAMES)}")
    return _MODELS[name]


def make_config(name: str, variant: str, **changes: Any) -> Any:
    """The config of a released variant (`mn10`) of a model (`efficientat`), with some fields changed."""
    config_class, _ = _entry(name)
    fields = [field.name for field in dataclasses.fields(config_class)]
    for key in changes:
        if key not in fields:
            raise InputError(f"model {name!r} has no setting {key!r}; nearest: {nearest(key, fields) or fields}")
    return config_class.preset(variant, **changes)


def config_to_json(name: str, config: Any) -> dict[str, Any]:
    """What a checkpoint stores beside its arrays, the frontend included."""
    return {"model": name, "config": dataclasses.asdict(config)}


def config_from_json(stored: dict[str, Any]) -> tuple[str, Any]:
    """Inverse of `config_to_json`: `(name, config)`. `InputError` for a network of another version."""
    config_class, _ = _entry(stored["model"])
    fields = dict(stored["config"])
    if unknown := sorted(set(fields) - {field.name for field in dataclasses.fields(config_class)}):
        raise InputError(
            f"this {stored['model']} has the setting {unknown[0]!r}, which none of this version has: it "
            "was made by another version of sousa_jax, whose networks differ; train it again"
        )
    return stored["model"], config_class(**{**fields, "frontend": FrontendSpec(**fields["frontend"])})


def _make(name: str, config: Any, adapters: LoRA | None, seed: int) -> nnx.Module:
    rngs = nnx.Rngs(seed)
    model = _entry(name)[1](config, rngs=rngs)
    if adapters is not None:
        lora.attach(model, adapters, rngs=rngs)
    return model


def init(
    name: str, config: Any, seed: int = 0, *, adapters: LoRA | None = None, only: Collection[str] | None = None
) -> tuple[Arrays, Arrays]:
    """Freshly initialized `(params, stats)`, as the paper initializes; deterministic in the seed.

    `adapters` adds those of LoRA. `only` names the paths that are wanted: nothing else is computed. Neither changes the
    others' values.
    """

    @jax.jit  # one compiled program instead of an eager call per array
    def create():
        parts = _flatten(nnx.state(_make(name, config, adapters, seed)))
        return tuple({path: array for path, array in part.items() if only is None or path in only} for part in parts)

    return create()


def apply_fn(
    name: str, config: Any, *, adapters: LoRA | None = None, recompute: bool = False
) -> Callable[..., tuple[Outputs, Arrays]]:
    """The network as a pure function, with adapters or without; `recompute` for gradient checkpointing.

    Returns `apply(params, stats, features, *, train=False, rng=None) -> (Outputs, new_stats)`; the new
    statistics equal the old ones unless `train`.
    """
    graphdef, template = _abstract(name, config, adapters)

    def apply(params, stats, features, *, train=False, rng=None):
        model = _unflatten(graphdef, template, {**params, **stats})
        for _, node in nnx.iter_graph(model) if recompute else ():
            if isinstance(node, Recomputable):
                node.recompute = True
        outputs = model(features, train=train, rng=rng)
        return outputs, _flatten(nnx.state(model))[1]

    return apply


def rhythm_fn(name: str, config: Any) -> Callable[[Arrays, FrameTargets], jax.Array]:
    """The rhythm head alone: `rhythm(params, heard) -> logits` from a stream of strokes that somebody else heard.

    `InputError` if the network has none.
    """
    graphdef, template = _abstract(name, config)
    if not any(path[0] == "rhythm" for path, _ in nnx.to_flat_state(template)):
        raise InputError(f"{name} has no rhythm head; config.strokes.stage='rhythm' needs one")

    def rhythm(params, heard):
        # What is not the head's own stays abstract: nobody reads it.
        flat = [(p, v.replace(params[_dotted(p)]) if p[0] == "rhythm" else v) for p, v in nnx.to_flat_state(template)]
        return nnx.merge(graphdef, nnx.from_flat_state(flat)).rhythm(heard)[0]

    return rhythm


def module(name: str, config: Any, params: Arrays, stats: Arrays) -> nnx.Module:
    """The network as an NNX module holding these arrays, for a look inside (`EfficientAT.stages`)."""
    graphdef, template = _abstract(name, config)
    return _unflatten(graphdef, template, {**params, **stats})


def abstract(
    name: str, config: Any, *, adapters: LoRA | None = None
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]]:
    """Shapes and dtypes of `(params, stats)` without making them."""
    return jax.eval_shape(lambda: _flatten(nnx.state(_make(name, config, adapters, 0))))


def _abstract(name, config, adapters=None):
    return nnx.split(nnx.eval_shape(lambda: _make(name, config, adapters, 0)))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _flatten(state: nnx.State) -> tuple[Arrays, Arrays]:
    params, stats = {}, {}
    for path, variable in nnx.to_flat_state(state):
        (params if isinstance(variable, nnx.Param) else stats)[_dotted(path)] = variable.get_value()
    return params, stats


def _unflatten(graphdef: nnx.GraphDef, template: nnx.State, arrays: Arrays) -> nnx.Module:
    flat = [(path, variable.replace(arrays[_dotted(path)])) for path, variable in nnx.to_flat_state(template)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))
