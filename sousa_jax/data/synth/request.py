"""One performance as asked for by name, instead of drawn at random."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.data.synth.performance import TEMPO_BPM, Take, cycle_s, play, room_for_cycles, room_for_seconds
from sousa_jax.data.synth.players import TIERS, draw_player
from sousa_jax.data.synth.presets import PRESET_NAMES
from sousa_jax.data.synth.render import render
from sousa_jax.data.synth.strokes import Strokes
from sousa_jax.data.synth.written import DIALECTS
from sousa_jax.errors import InputError, nearest
from sousa_jax.rudiments import by_slug

SILENCE_S = 1.0  # after the last stroke
LONGEST_S = 600.0


@dataclasses.dataclass(frozen=True)
class Request:
    """What is wanted. `InputError` naming what is allowed, for anything unknown or out of range.

    Attributes:
      rudiment: a slug. tempo_bpm: 60 … 180. tier: of `players.TIERS`. dialect: `sousa` or `notated`.
      num_cycles: repetitions, at least 1. duration_s: seconds, in place of `num_cycles`; the clip is that long.
      preset: a name of `presets.PRESETS`, for dialect `sousa`; a notated clip is heard in a room drawn at random.
      left_lead: hands exchanged.
    """

    rudiment: str
    tempo_bpm: float = 100
    tier: str = "professional"
    dialect: str = "sousa"
    num_cycles: int = 4
    duration_s: float | None = None
    preset: str = "clean_studio"
    left_lead: bool = False

    def __post_init__(self) -> None:
        by_slug(self.rudiment)
        low, high = TEMPO_BPM
        if not low <= self.tempo_bpm <= high:
            raise InputError(f"the tempo must be {low} to {high} beats per minute; found {self.tempo_bpm:g}")
        for what, value, known in (
            ("skill tier", self.tier, TIERS),
            ("dialect", self.dialect, DIALECTS),
            ("preset", self.preset, PRESET_NAMES),
        ):
            if value not in known:
                hint = nearest(value, known)
                raise InputError(
                    f"unknown {what} {value!r}; "
                    + (f"did you mean {hint}? " if hint else "")
                    + f"known: {', '.join(known)}"
                )
        if self.duration_s is None and self.num_cycles < 1:
            raise InputError(f"num_cycles must be at least 1; found {self.num_cycles}")
        if self.duration_s is not None and not 0 < self.duration_s <= LONGEST_S:
            raise InputError(f"the duration must be above 0 and at most {LONGEST_S:g} s; found {self.duration_s:g}")


def perform(key: jax.Array, request: Request, sample_rate: int) -> tuple[np.ndarray, Strokes]:
    """Plays and renders a request on a random drum.

    Returns:
      The clip, (n,) float32 mono, and its strokes, NumPy arrays, times in seconds from the clip's first sample.

    Raises:
      InputError: too low a sample rate, or a clip that would be longer than ten minutes.
    """
    player_key, play_key, sound_key = jax.random.split(key, 3)
    player = draw_player(player_key, jnp.int32(TIERS.index(request.tier)))
    take = Take(
        rudiment=jnp.int32(by_slug(request.rudiment).id),
        dialect=jnp.int32(DIALECTS.index(request.dialect)),
        tempo_bpm=jnp.float32(request.tempo_bpm),
        num_cycles=jnp.int32(request.num_cycles),
        left_lead=jnp.bool_(request.left_lead),
    )
    one_cycle_s = float(cycle_s(take))
    if request.duration_s is not None:
        take = take._replace(num_cycles=jnp.int32(math.ceil(request.duration_s / one_cycle_s)))
    if int(take.num_cycles) * one_cycle_s > 2 * LONGEST_S:
        raise InputError(f"{request.num_cycles} cycles last longer than {LONGEST_S:g} s; ask for fewer")
    # By the duration it is that of any rudiment and tempo: one compiled program for all clips of a length.
    room = room_for_cycles(request.num_cycles) if request.duration_s is None else room_for_seconds(request.duration_s)
    strokes = jax.jit(play, static_argnums=3)(play_key, take, player, room)
    last_s = float(np.asarray(strokes.time_s)[np.asarray(strokes.valid)].max())
    length_s = last_s + SILENCE_S if request.duration_s is None else request.duration_s
    n_samples = max(1, round(length_s * sample_rate))
    wave = jax.jit(render, static_argnames=("sample_rate", "n_samples"))(
        sound_key,
        strokes,
        sample_rate=sample_rate,
        n_samples=n_samples,
        start_s=0.0,
        style=take.dialect,
        preset=jnp.int32(PRESET_NAMES.index(request.preset)),
    )
    heard = jax.device_get(strokes)
    return np.asarray(wave), heard._replace(valid=heard.valid & (heard.time_s < length_s))
