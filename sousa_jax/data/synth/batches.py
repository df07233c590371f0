"""Training batches made on the device: performances drawn, rendered, cut and labelled in one jitted function.

    batches = SynthBatches(Source(), batch_size=32, sample_rate=32_000, window_s=5.0, seed=0)
    batch, position = next(batches)        # batch["waveform"] (32, 160000), batch["label"] (32,), …

The state is one number, the count of rows made before. A batch is a function of (seed, position), whatever the batch
size and however many devices share it. Clips are cut by the length policy of `sousa_jax.data.clips`: a clip that is
longer than the window is cut at random, a shorter one loses its silent tail and goes round in a circle.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.data.frame_targets import count_frames
from sousa_jax.data.synth.learned_drums import LearnedDrums
from sousa_jax.data.synth.performance import TEMPO_BPM
from sousa_jax.data.synth.render import render_batch
from sousa_jax.data.synth.stream import Performance, Source, draw_row, row_keys, stream_key
from sousa_jax.data.synth.strokes import Strokes
from sousa_jax.data.synth.targets import around_the_loop, frame_targets
from sousa_jax.data.synth.written import SCORES
from sousa_jax.devices import Layout
from sousa_jax.errors import InputError

# A clip sounds for about that long after its last stroke before its level falls below `trim_tail`'s floor: the median
# of real clips.
RING_S = 0.33
TRIM_FLOOR_DB = -40.0  # as `trim_tail`


class SynthBatches:
    """An endless iterator of `(batch, position)`; satisfies what `TrainBatches` does, `position` included.

    A batch is a dict of arrays on the device:

        waveform   (B, n_samples) float32
        label      (B,) int32          class id
        tier       (B,) int32          index into `players.TIERS`
        tempo_bpm  (B,) float32
        strokes    `Strokes` (B, S)    times in seconds from the window's first sample
        stroke_targets                 `FrameTargets` (B, n_frames), if asked for

    Args:
      source: what kind of performances.
      batch_size: at least 1.
      sample_rate: Hz.
      window_s: seconds.
      seed: not negative.
      split: whose players play.
      position: as yielded, to resume there; None starts at the beginning.
      layout: how rows are split among devices, each of which makes its own; None: on the default device.
      bandwidth_hz: nothing sounds above it; 0 is no limit. For recordings of a known, lower sample rate.
      strokes_per_second: as of `TrainBatches`.
      sound: False leaves `waveform` out: hundreds of times faster.
      learned: drums for style `SOUSA`, at `render.inner_rate`; None: random ones alone.

    Raises:
      InputError: a number below its limit, an unknown split, or a batch that does not divide among the devices.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        sample_rate: int,
        window_s: float,
        seed: int,
        split: str = "train",
        position: dict[str, int] | None = None,
        layout: Layout | None = None,
        bandwidth_hz: float = 0.0,
        strokes_per_second: int = 0,
        sound: bool = True,
        learned: LearnedDrums | None = None,
    ):
        if batch_size < 1 or window_s <= 0:
            raise InputError(f"a batch needs batch_size >= 1 and window_s > 0, not {batch_size} and {window_s}")
        self._row, self._batch_size = position["sample"] if position else 0, batch_size
        self._seed, self._split = seed, split
        stream_key(seed, split)  # refuses what is wrong with them
        make = functools.partial(
            make_batch,
            source=source,
            sample_rate=sample_rate,
            window_s=window_s,
            bandwidth_hz=bandwidth_hz,
            strokes_per_second=strokes_per_second,
            sound=sound,
            learned=learned,
        )
        if layout is not None:
            layout.check_rows(batch_size)
            one, each = layout.everywhere.spec, layout.rows.spec
            make = jax.shard_map(make, mesh=layout.mesh, in_specs=(one, each), out_specs=each, check_vma=False)
        self._make = jax.jit(lambda first: make(stream_key(seed, split), first + jnp.arange(batch_size)))

    def __iter__(self) -> "SynthBatches":
        return self

    def __next__(self) -> tuple[dict[str, Any], dict[str, int]]:
        batch = self._make(np.int32(self._row))
        self._row += self._batch_size
        return batch, {"sample": self._row}

    def names(self, _: Any, position: dict[str, int]) -> list[str]:
        """What each row of the batch before `position` is: seed, split and row say it all."""
        rows = range(position["sample"] - self._batch_size, position["sample"])
        return [f"synth seed {self._seed} {self._split} row {row}" for row in rows]

    def __enter__(self) -> "SynthBatches":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def make_batch(
    key: jax.Array,
    rows: jax.Array,
    *,
    source: Source,
    sample_rate: int,
    window_s: float,
    bandwidth_hz: float = 0.0,
    strokes_per_second: int = 0,
    sound: bool = True,
    learned: LearnedDrums | None = None,
) -> dict[str, Any]:
    """The rows `rows`, (B,) int32, of the stream with that key as a batch; see `SynthBatches`.

    To be jitted, all but the first two arguments and `learned`, which holds arrays, static.
    """
    performances = jax.vmap(lambda row: draw_row(key, row, source))(rows)
    _, place_keys, sound_keys = jax.vmap(lambda row: row_keys(key, row))(rows)
    places = jax.vmap(functools.partial(_place, window_s=window_s, endless=not source.num_cycles))(
        place_keys, performances
    )
    n_samples = round(window_s * sample_rate)
    if sound:
        waveform = render_batch(
            sound_keys,
            performances.strokes,
            sample_rate=sample_rate,
            n_samples=n_samples,
            start_s=places.start_s,
            style=performances.take.dialect,  # a dialect is heard in rooms of its own kind
            preset=performances.preset,
            bandwidth_hz=bandwidth_hz,
            learned=learned,
        )
        sounding = jax.vmap(functools.partial(_sounding, sample_rate=sample_rate))(waveform)
    else:
        sounding = jax.vmap(functools.partial(_would_sound, sample_rate=sample_rate))(sound_keys, performances.strokes)
    shortest_s = 60 / TEMPO_BPM[1] * float(SCORES.beats.min()) * max(1, source.num_cycles)
    max_rounds = 1 if not source.num_cycles else 1 + math.ceil(window_s / shortest_s)

    lengths = jnp.where(places.is_short, jnp.minimum(sounding, n_samples), n_samples)
    starts = jnp.where(places.is_short, jnp.floor(places.phase * lengths).astype(jnp.int32), 0)

    def struck(strokes: Strokes, place: _Place, start: jax.Array, length: jax.Array) -> Strokes:
        strokes = strokes._replace(time_s=strokes.time_s - place.start_s, written_s=strokes.written_s - place.start_s)
        strokes = strokes._replace(valid=strokes.valid & (strokes.time_s >= 0))
        return around_the_loop(strokes, start / sample_rate, length / sample_rate, window_s, max_rounds)

    strokes = jax.vmap(struck)(performances.strokes, places, starts, lengths)
    batch = {
        "label": performances.take.rudiment.astype(jnp.int32),
        "tier": performances.player.tier,
        "tempo_bpm": performances.take.tempo_bpm,
        "strokes": strokes,
    }
    if sound:
        around = lambda wave, start, length: wave[(start + jnp.arange(n_samples)) % length]  # noqa: E731
        batch["waveform"] = jax.vmap(around)(waveform, starts, lengths)
    if n_frames := count_frames(window_s, strokes_per_second):
        batch["stroke_targets"] = jax.vmap(lambda s: frame_targets(s, n_frames, strokes_per_second))(strokes)
    return batch


class _Place(NamedTuple):
    """Where the window lies: where in the performance it begins, in seconds; for a clip that is too short to fill it,
    `phase`, 0 … 1, of the circle."""

    start_s: jax.Array
    is_short: jax.Array
    phase: jax.Array


def _place(key: jax.Array, performance: Performance, window_s: float, endless: bool) -> _Place:
    if endless:
        return _Place(performance.start_s, jnp.bool_(False), jnp.float32(0))
    strokes = performance.strokes
    rest_s = jnp.max(jnp.where(strokes.valid, strokes.time_s, 0)) + RING_S - window_s
    place = jax.random.uniform(key)
    return _Place(jnp.maximum(rest_s, 0) * place, rest_s < 0, place)


def _would_sound(key: jax.Array, strokes: Strokes, sample_rate: int) -> jax.Array:
    """How many samples would be left of a clip that is not rendered; rooms differ. int32 ≥ 1."""
    last_s = jnp.max(jnp.where(strokes.valid, strokes.time_s, 0))
    ring_s = RING_S * 2.5 ** jax.random.uniform(key, minval=-1.0, maxval=1.0)
    return jnp.maximum(1, (last_s + ring_s) * sample_rate).astype(jnp.int32)


def _sounding(wave: jax.Array, sample_rate: int) -> jax.Array:
    """How many samples are left of a clip without its silent tail, int32 ≥ 1; see `clips.trim_tail`."""
    frame = max(1, sample_rate // 100)
    n_frames = -(-wave.shape[0] // frame)
    framed = jnp.pad(wave, (0, n_frames * frame - wave.shape[0])).reshape(n_frames, frame)
    power = jnp.sum(framed**2, -1)
    loud = power >= jnp.max(power) * 10 ** (TRIM_FLOOR_DB / 10)
    last = n_frames - 1 - jnp.argmax(loud[::-1])
    return jnp.clip((last + 1) * frame, 1, wave.shape[0])
