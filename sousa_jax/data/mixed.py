"""Batches in which recorded and synthetic clips stand side by side."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from sousa_jax.data.pipeline import TrainBatches
    from sousa_jax.data.synth import SynthBatches


class MixedBatches:
    """Each batch is one of `recorded` above one of `synthetic`: `waveform` and `label`, on the device.

    An iterator of `(batch, position)` as both of them are; `position` holds the places of the two.
    """

    def __init__(self, recorded: "TrainBatches", synthetic: "SynthBatches"):
        self._recorded, self._synthetic = recorded, synthetic

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
        batch = {name: jnp.concatenate([given[name], made[name]]) for name in ("waveform", "label")}
        return batch, {"recorded": given_position["sample"], "synthetic": made_position["sample"]}

    def __enter__(self) -> "MixedBatches":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._recorded.__exit__(*exception)
