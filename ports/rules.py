"""Ports as data: an ordered table of rules, each a source key, a target path and a change of layout.

`apply` takes an official state dict to our arrays, `invert` takes them back. Both are strict: every key
of the source is used or ignored for a stated reason, every target is filled or fresh for a stated reason.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sousa_jax.errors import InputError

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout that loses nothing, for example `OI11->IO`.

    A letter names an axis and appears once on either side; `1` on the left is an axis of size one that
    our layout leaves out.
    """

    layout: str

    def __post_init__(self) -> None:
        letters, target = self._axes()
        if len(set(target)) != len(target) or sorted(letters) != sorted(target):
            raise ValueError(f"{self.layout!r} is not a change of layout")

    def _axes(self) -> tuple[str, str]:
        source, target = self.layout.split("->")
        return source.replace("1", ""), target

    def source_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The official shape of what has `target_shape` here."""
        sizes = dict(zip(self._axes()[1], target_shape, strict=True)) | {"1": 1}
        return tuple(sizes[axis] for axis in self.layout.split("->")[0])

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Official layout to ours."""
        letters, target = self._axes()
        kept = [size for axis, size in zip(self.layout.split("->")[0], array.shape, strict=True) if axis != "1"]
        return np.ascontiguousarray(array.reshape(kept).transpose([letters.index(axis) for axis in target]))

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """Our layout to the official one."""
        letters, target = self._axes()
        official = array.transpose([target.index(axis) for axis in letters])
        return np.ascontiguousarray(official).reshape(self.source_shape(array.shape))


VECTOR = Transform("C->C")
LINEAR = Transform("OI->IO")
CONV = Transform("OIHW->HWIO")
CONV_ONE_INPUT = Transform("O1HW->HWO")
POINTWISE = Transform("OI11->IO")
DEPTHWISE = Transform("C1HW->HWC")


@dataclasses.dataclass(frozen=True)
class Rule:
    """`source`: key in the official state dict. `target`: our dotted path (`sousa_jax.models`).

    `part`: (i, n) takes the i-th of n equal parts of the source's first axis, before the transform. Fused
    projections (`qkv`) are n such rules of one source.
    """

    source: str
    target: str
    transform: Transform
    part: tuple[int, int] = (0, 1)

    def source_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the whole source if the target has this shape."""
        first, *others = self.transform.source_shape(target_shape)
        return first * self.part[1], *others

    def forward(self, array: np.ndarray) -> np.ndarray:
        """The source's array as the target's."""
        i, n = self.part
        return self.transform.forward(array if n == 1 else np.split(array, n)[i])


def weight_and_bias(
    source: str, target: str, kernel: Transform = LINEAR, part: tuple[int, int] = (0, 1)
) -> Iterator[Rule]:
    """The two arrays of a linear layer or convolution."""
    yield Rule(f"{source}.weight", f"{target}.kernel", kernel, part)
    yield Rule(f"{source}.bias", f"{target}.bias", VECTOR, part)


def norm(source: str, target: str) -> Iterator[Rule]:
    """The two arrays of a layer norm, or those of a batch norm that are trained."""
    yield Rule(f"{source}.weight", f"{target}.scale", VECTOR)
    yield Rule(f"{source}.bias", f"{target}.bias", VECTOR)


def shape(state: Mapping[str, np.ndarray], key: str, n_axes: int) -> tuple[int, ...]:
    """The shape of an array that tells a size of the network; `InputError` if it is missing or has other axes."""
    if key not in state:
        raise InputError(f"has no {key!r}, which tells a size of the network: the file is not complete")
    if state[key].ndim != n_axes:
        raise InputError(f"{key} has shape {state[key].shape}, expected {n_axes} axes")
    return state[key].shape


class Inferred(NamedTuple):
    """The network that an official file holds.

    config: of our network. variant: the released variant that it is. evidence: where each part of the config was
    read. table: the rules for the names that this very file uses.
    """

    config: Any
    variant: str
    evidence: str
    table: list[Rule]


@dataclasses.dataclass(frozen=True)
class PortReport:
    """What a port did with every key.

    Attributes:
      n_ported, n_values: arrays taken over, and the numbers in them.
      ignored: source key to the reason why it is not used.
      fresh: target path to the reason why it is not filled from the file.
      sha256: of the source file, hexadecimal; empty if it did not come from one.
    """

    n_ported: int
    n_values: int
    ignored: dict[str, str]
    fresh: dict[str, str]
    sha256: str = ""

    def __str__(self) -> str:
        lines = [f"sha256   {self.sha256}"] if self.sha256 else []
        lines.append(f"ported   {self.n_ported} arrays, {self.n_values:,} values")
        for label, entries in (("ignored", self.ignored), ("fresh", self.fresh)):
            lines.append(f"{label:8s} {len(entries)} {'keys of the file' if label == 'ignored' else 'arrays'}")
            for reason in dict.fromkeys(entries.values()):
                lines.append(f"         {_listed([key for key in entries if entries[key] == reason], 3)}: {reason}")
        return "\n".join(lines)


def apply(
    rules: Iterable[Rule],
    state: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    *,
    ignored: Mapping[str, str],
    fresh: Mapping[str, str],
    sha256: str = "",
) -> tuple[Arrays, PortReport]:
    """Takes an official state dict to our arrays, strictly.

    Args:
      rules: the table.
      state: official key to array.
      expected: our dotted path to something with a `shape`: every array of the model.
      ignored: pattern (`*.num_batches_tracked`) of source keys to leave out, with the reason. A key that
        a rule names is used all the same.
      fresh: paths in `expected` that the caller initializes itself, with the reason.
      sha256: of the file, for the report.

    Returns:
      `(arrays, report)`: float32 arrays for all of `expected` but the fresh ones.

    Raises `InputError` naming every kind of misfit: missing and unused source keys, unfilled targets,
    shapes, types and values that are not finite.
    """
    rules = list(rules)
    _check_table(rules, expected, fresh)
    used = {rule.source for rule in rules}
    left_out = {key: _reason(key, ignored) for key in state if key not in used}
    present = [rule for rule in rules if rule.source in state and rule.part[0] == 0]  # one complaint a key
    filled = {rule.target for rule in rules} | fresh.keys()
    _raise_misfits(
        {
            "missing in the file": [f"{rule.source} (for {rule.target})" for rule in rules if rule.source not in state],
            "not used by the model": [key for key, reason in left_out.items() if reason is None],
            "not filled by any key": [path for path in expected if path not in filled],
            "unlike the model's": [wrong for rule in present if (wrong := _mismatch(rule, state, expected))],
        }
    )
    arrays = {rule.target: rule.forward(state[rule.source]) for rule in rules}
    n_values = sum(array.size for array in arrays.values())
    return arrays, PortReport(len(arrays), n_values, left_out, dict(fresh), sha256)


def invert(rules: Iterable[Rule], arrays: Mapping[str, Any]) -> Arrays:
    """Takes our arrays back to the official state dict: the inverse of `apply` on every key that it used.

    Ignored keys (counters) are not made up. Raises `InputError` if a path is missing or left over.
    """
    rules = list(rules)
    targets = {rule.target for rule in rules}
    _raise_misfits(
        {
            "missing": [path for path in targets if path not in arrays],
            "without a rule": [path for path in arrays if path not in targets],
        }
    )
    parts: dict[str, list[np.ndarray]] = {}
    for rule in sorted(rules, key=lambda rule: rule.part):  # stable: keeps the table's order of sources
        parts.setdefault(rule.source, []).append(rule.transform.inverse(np.asarray(arrays[rule.target])))
    return {rule.source: np.concatenate(parts[rule.source]) for rule in rules}


def _check_table(rules: list[Rule], expected: Mapping[str, Any], fresh: Mapping[str, str]) -> None:
    """The table's own mistakes, which no input can cause."""
    targets = {rule.target for rule in rules}
    parts: dict[str, list[tuple[int, int]]] = {}
    for rule in rules:
        parts.setdefault(rule.source, []).append(rule.part)
    whole = all(sorted(found) == [(i, len(found)) for i in range(len(found))] for found in parts.values())
    if len(targets) != len(rules) or not whole:
        raise ValueError("two rules share a target, or a source other than in its parts: the table is not bijective")
    if unknown := (targets | fresh.keys()) - expected.keys():
        raise ValueError(f"the table names arrays that the model does not have: {_listed(sorted(unknown))}")
    if both := targets & fresh.keys():
        raise ValueError(f"both ported and fresh: {_listed(sorted(both))}")


def _reason(key: str, ignored: Mapping[str, str]) -> str | None:
    return next((reason for pattern, reason in ignored.items() if fnmatch.fnmatchcase(key, pattern)), None)


def _mismatch(rule: Rule, state: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> str | None:
    array, shape = state[rule.source], rule.source_shape(tuple(expected[rule.target].shape))
    if array.shape != shape:
        return f"{rule.source} has shape {array.shape}, expected {shape}"
    if array.dtype != np.float32:
        return f"{rule.source} is {array.dtype}, expected float32"
    if not np.isfinite(array).all():
        return f"{rule.source} holds values that are not finite"
    return None


def _raise_misfits(kinds: Mapping[str, list[str]]) -> None:
    parts = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if parts:
        raise InputError(f"does not fit the model: {'; '.join(parts)}")


def _listed(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
