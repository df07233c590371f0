"""The endless stream of performances: which player plays which rudiment, how fast, in which room.

What row p of a split holds is a function of (seed, split, p) alone: no state, any batch size, any number of devices.
Every 40 consecutive rows hold each rudiment once. Splits have players of their own.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sousa_jax.data.synth.performance import TEMPO_BPM, Room, Take, cycle_s, play, room_for_cycles, room_for_seconds
from sousa_jax.data.synth.players import Player, draw_player, tier_of_player
from sousa_jax.data.synth.presets import HUB_PRESETS, PRESETS
from sousa_jax.data.synth.strokes import Strokes
from sousa_jax.data.synth.written import DIALECTS, NOTATED, SOUSA
from sousa_jax.errors import InputError
from sousa_jax.rudiments import NUM_CLASSES

SPLITS = ("train", "validation", "test")
RARE_PRESETS = 0.15  # share of the clips that have one of the presets which SOUSA's published part does not use
STOPS = 0.25  # share of the endless performances that stop: what follows is room, noise, silence
EARLIEST_STOP = 0.4  # of the window
# Independent streams of random numbers.
_PLAYER, _ORDER, _ROW = range(3)


@dataclasses.dataclass(frozen=True)
class Source:
    """What kind of performances. Static: it may be closed over by a jitted function.

    Attributes:
      dialect: `sousa`, `notated`, or `mixed`, which draws one of them for each clip.
      num_cycles: repetitions of the rudiment in a clip, 4 in SOUSA. 0: the player goes on, and a clip is a window of
        `window_s` seconds that begins anywhere. In some of them (`STOPS`) the player stops before the end.
      window_s: only for `num_cycles` 0.
      clips_per_player: how many consecutive rows one player plays.
    """

    dialect: str = "sousa"
    num_cycles: int = 4
    window_s: float = 0.0
    clips_per_player: int = 1

    def __post_init__(self) -> None:
        if self.dialect not in (*DIALECTS, "mixed"):
            raise InputError(f"unknown dialect {self.dialect!r}; known: {', '.join(DIALECTS)}, mixed")
        if self.num_cycles < 0 or self.clips_per_player < 1:
            raise InputError(
                f"a synthetic clip needs num_cycles >= 0 and clips_per_player >= 1, not {self.num_cycles} and "
                f"{self.clips_per_player}"
            )
        if not self.num_cycles and self.window_s <= 0:
            raise InputError("an endless performance (num_cycles 0) needs window_s > 0")

    @functools.cached_property
    def room(self) -> Room:
        dialects = [i for i, name in enumerate(DIALECTS) if self.dialect in (name, "mixed")]
        if self.num_cycles:
            return room_for_cycles(self.num_cycles, dialects)
        return room_for_seconds(self.window_s, dialects)


class Performance(NamedTuple):
    """One clip before it sounds; every field is an array, with a leading axis if there are many.

    player: who. take: what is asked. strokes: what is played. preset: int32, index into `presets.PRESETS`.
    start_s: float32, where the clip begins: 0, or for an endless performance anywhere in its first cycle.
    """

    player: Player
    take: Take
    strokes: Strokes
    preset: jax.Array
    start_s: jax.Array


def draw_performance(
    key: jax.Array, source: Source, rudiment: jax.Array | None = None, player: Player | None = None
) -> Performance:
    """A random performance, of a random rudiment by a random player if they are not given."""
    player_key, take_key, play_key = jax.random.split(key, 3)
    if player is None:
        tier_key, player_key = jax.random.split(player_key)
        player = draw_player(player_key, tier_of_player(jax.random.bits(tier_key)))
    keys = jax.random.split(take_key, 9)
    if rudiment is None:
        rudiment = jax.random.randint(keys[0], (), 0, NUM_CLASSES)
    notated = {"sousa": False, "notated": True}.get(source.dialect, jax.random.bernoulli(keys[1]))
    take = Take(
        rudiment=rudiment,
        dialect=jnp.where(notated, NOTATED, SOUSA),
        tempo_bpm=jax.random.randint(keys[2], (), TEMPO_BPM[0], TEMPO_BPM[1] + 1).astype(jnp.float32),
        num_cycles=jnp.int32(source.num_cycles),
        left_lead=notated & jax.random.bernoulli(keys[3]),  # SOUSA has no pattern with its hands exchanged
    )
    start_s, stop_s = jnp.float32(0), jnp.float32(jnp.inf)
    if not source.num_cycles:
        start_s = jax.random.uniform(keys[4]) * cycle_s(take)
        take = take._replace(num_cycles=jnp.ceil((start_s + source.window_s) / cycle_s(take)).astype(jnp.int32))
        stops = jax.random.bernoulli(keys[7], STOPS)
        stop_s = start_s + source.window_s * jax.random.uniform(keys[8], minval=EARLIEST_STOP, maxval=1.0)
        stop_s = jnp.where(stops, stop_s, jnp.inf)
    rare = jax.random.bernoulli(keys[5], RARE_PRESETS)
    preset = jax.random.randint(
        keys[6], (), jnp.where(rare, HUB_PRESETS, 0), jnp.where(rare, len(PRESETS), HUB_PRESETS)
    )
    strokes = play(play_key, take, player, source.room)
    strokes = strokes._replace(valid=strokes.valid & (strokes.time_s < stop_s))
    return Performance(player, take, strokes, preset, start_s)


def stream_key(seed: int, split: str) -> jax.Array:
    """The key of all rows of a split. `InputError` for an unknown split or a negative seed."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if seed < 0:
        raise InputError(f"a seed must not be negative; found {seed}")
    return jax.random.fold_in(jax.random.key(seed), SPLITS.index(split))


def row_keys(key: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three independent keys of a row: how it is played, where a window is cut, how it sounds."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _ROW), row), 3))


def draw_row(key: jax.Array, row: jax.Array, source: Source) -> Performance:
    """The performance of row `row` (int32 scalar, ≥ 0) of the split with that `stream_key`. Both may be traced."""
    block_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), row // NUM_CLASSES)
    rudiment = jax.random.permutation(block_key, NUM_CLASSES)[row % NUM_CLASSES]
    number = player_number(row, source)
    player_key = jax.random.fold_in(jax.random.fold_in(key, _PLAYER), number)
    player = draw_player(player_key, tier_of_player(number))
    return draw_performance(row_keys(key, row)[0], source, rudiment, player)


def player_number(row: jax.Array, source: Source) -> jax.Array:
    """Which player of the split plays that row, counted from 0."""
    return row // source.clips_per_player
