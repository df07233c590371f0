"""Batches in which recorded and synthetic clips stand side by side."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from sousa_jax.devices import Layout

if TYPE_CHECKING:
    from sousa_jax.data.pipeline import TrainBatches
    from sousa_jax.data.synth import SynthBatches


class MixedBatches:
    """Each batch is one of `recorded` above one of `synthetic`: `waveform`, `label` and, if both have them,
    `stroke_targets`, on the devices, and `clip` of the recorded rows.

    An iterator of `(batch, position)` as both of them are; `position` holds the places of the two.
    """

    def __init__(self, recorded: "TrainBatches", synthetic: "SynthBatches", layout: Layout | None = None):
        self._recorded, self._synthetic, self._layout = recorded, synthetic, layout or Layout()
        self._join = jax.jit(lambda *parts: jax.tree.map(lambda *p: jnp.concatenate(p), *parts))
        if layout is not None:
            self._join = jax.jit(self._join, out_shardings=layout.rows)

    @staticmethod
    def positions(position: dict[str, int] | None) -> tuple[dict[str, int] | None, dict[str, int] | None]:
        """The places of the recorded and of the synthetic batches in a stored `position`."""
        if position is None:
            return None, None
        return {"sample": position["recorded"]}, {"sample": position["synthetic"]}

    def __iter__(self) -> "MixedBatches":
        return self

    def __next__(self) -> tuple[dict[str, jax.Array], dict[str, int]]:
        made, made_position = next(self._synthetic)  # first: the device works while the host waits for its clips
        given, given_position = next(self._recorded)
        shared = [name for name in ("waveform", "label", "stroke_targets") if name in given and name in made]
        parts = ({name: part[name] for name in shared} for part in (self._layout.batch(given), made))
        batch = self._join(*parts) | {"clip": given["clip"]}
        return batch, {"recorded": given_position["sample"], "synthetic": made_position["sample"]}

    def names(self, batch: dict[str, Any], position: dict[str, int]) -> list[str]:
        """What each row of the batch before `position` is, the recorded ones first."""
        given, made = self.positions(position)
        return self._recorded.names(batch, given) + self._synthetic.names(batch, made)

    def __enter__(self) -> "MixedBatches":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._recorded.__exit__(*exception)
