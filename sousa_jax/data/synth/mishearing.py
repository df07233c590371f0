"""What an ear makes of strokes, without sound: the errors of a real one, measured, then drawn at random.

    errors = measure(heard, true)                 of a trained ear, on clips whose strokes are known
    heard = mishear(key, true, errors)            as that ear might hear other strokes; on the device, in a jitted step

So a rhythm head can learn from a thousand performances a second what it would learn from sound, one at a time.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.data.frame_targets import DENSEST_PER_S, DENSITY_WINDOW_S, FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.models.heads import gather

BANDS = 8  # of velocity, and of salience
SALIENCE_DB = (-4.0, 0.0, 3.0, 6.0, 9.0, 12.0, 16.0)  # edges of its bands
RING_S, FLOOR_DB = 0.06, -30.0  # of `salience_db`
BEND_SD = 0.1  # of the logarithm of the exponent by which a drum bends velocities
ONSETS_OF_DENSITY = DENSITY_WINDOW_S * DENSEST_PER_S
QUANTILES = 9
REACH = 2  # frames to either side that belong to a stroke
ALIKE = 0.5  # how much of a stroke's luck is that of its whole clip: a drum that is hard to hear is so all along


@dataclasses.dataclass(frozen=True)
class HearingErrors:
    """How an ear hears strokes; tuples, so that it may be static in a jitted function.

    Attributes:
      certainty: for each of `BANDS` bands of `salience_db`, from masked to free, `QUANTILES` quantiles of the onset's
        probability summed over `2 · REACH + 1` frames around a stroke.
      place: share of that sum in each of these frames, from the earliest.
      velocity_bias, velocity_sd: by `BANDS` bands of velocity, from soft to loud, of the heard velocity, 0 … 1; the
        latter within a clip, for what all of its strokes share says little of a rhythm.
      grace: heard probability of grace of strokes that are none, and of those that are.
      false_alarm_rate: by a frame without a stroke near, how often a peak of something is heard there.
      false_alarm: quantiles of its probability, of three frames together.
      density_sd: of the heard density.
    """

    certainty: tuple[tuple[float, ...], ...]
    place: tuple[float, ...]
    velocity_bias: tuple[float, ...]
    velocity_sd: tuple[float, ...]
    grace: tuple[float, float]
    false_alarm_rate: float
    false_alarm: tuple[float, ...]
    density_sd: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # JSON brings tuples back as lists
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
                object.__setattr__(self, field.name, value)
        lengths = [len(field) for field in (self.place, self.velocity_bias, self.velocity_sd, self.false_alarm)]
        shapes = [len(self.certainty), sorted({len(band) for band in self.certainty}), *lengths]
        if shapes != [BANDS, [QUANTILES], 2 * REACH + 1, BANDS, BANDS, QUANTILES]:
            raise InputError(f"these are no hearing errors of this version: {shapes}; measure them again")


FAINT = 0.02  # a probability below it is nothing


def salience_db(true: FrameTargets, per_second: float) -> jax.Array:
    """How far a stroke in each frame stands out of what still rings of those before, decibels, `(B, T)`.

    A drum in a room dies away, and what is softer than the rest of the last accent cannot be heard. Of the certainty of
    an ear on real clips this explains half of the variance, velocity alone a fifth (ring of 30, 60 and 120 ms and 20,
    40 and 60 dB a decade of velocity were compared).
    """
    decay = math.exp(-1 / (RING_S * per_second))

    def step(ringing, energy):
        return (ringing + energy) * decay, energy / (ringing + 10 ** (FLOOR_DB / 10))

    energy = true.onset * jnp.asarray(true.velocity) ** 4  # 40 dB a decade, as General MIDI has it
    _, ratio = jax.lax.scan(step, jnp.zeros(energy.shape[0]), energy.T)
    return 10 * jnp.log10(jnp.maximum(ratio.T, 1e-9))


def _salience_band(true: FrameTargets, per_second: float) -> jax.Array:
    return jnp.sum(salience_db(true, per_second)[..., None] >= jnp.asarray(SALIENCE_DB), -1)


def measure(
    heard: FrameTargets, true: FrameTargets, per_second: float, lengths: np.ndarray | None = None
) -> HearingErrors:
    """The errors of an ear.

    Args:
      heard, true: its probabilities, and what fell; NumPy, `(clips, T)` each, `per_second` frames a second.
      lengths: `(clips,)`, frames of each clip, behind which there is only silence; by default T.

    Raises:
      InputError: no stroke fell.
    """
    heard, true = (FrameTargets(*(np.asarray(x, np.float64) for x in stream)) for stream in (heard, true))
    if not true.onset.any():
        raise InputError("hearing errors cannot be measured where no stroke falls")
    salience = np.asarray(_salience_band(true, per_second))
    around = _around(heard.onset)  # (clips, T, frames)
    struck = true.onset > 0
    n_frames = struck.shape[1]
    inside = np.arange(n_frames) < (np.full(len(struck), n_frames) if lengths is None else lengths)[:, None]
    # Where strokes are close, what lies between them belongs to both; the sum is cut at one.
    certainty = np.minimum(around.sum(-1), 1)[struck]
    band = np.minimum((true.velocity[struck] * BANDS).astype(int), BANDS - 1)
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    every = np.quantile(certainty, at)
    heard_well = certainty > 0.5
    off_where_well = np.ma.array(heard.velocity - true.velocity, mask=True)
    off_where_well.mask[struck] = ~heard_well
    of_clip = off_where_well.mean(1).filled(0)  # what a clip's strokes share
    off = off_where_well.data[struck]
    off_in_clip = (off_where_well.data - of_clip[:, None])[struck]

    def of_band(b: int, values: np.ndarray, statistic, fallback: float) -> float:
        mine = values[(band == b) & heard_well]
        return float(statistic(mine)) if len(mine) >= 10 else fallback

    alone = struck & (_around(true.onset).sum(-1) == 1)
    place = around[alone].sum(0) if alone.any() else around[struck].sum(0)
    far = (_around(true.onset).sum(-1) == 0) & inside
    faint = np.asarray(gather(FrameTargets(*map(jnp.asarray, heard))).onset)[far]
    alarms = faint[faint > FAINT]
    is_grace = true.grace[struck] > 0
    graces = heard.grace[struck]
    return HearingErrors(
        certainty=tuple(
            tuple(np.quantile(mine, at) if len(mine) >= 20 else every)
            for mine in (certainty[salience[struck] == b] for b in range(BANDS))
        ),
        place=tuple(place / place.sum()),
        velocity_bias=tuple(of_band(b, off, np.mean, 0.0) for b in range(BANDS)),
        velocity_sd=tuple(of_band(b, off_in_clip, np.std, float(off_in_clip.std())) for b in range(BANDS)),
        grace=tuple(float(graces[g].mean()) if g.any() else float(v) for v, g in enumerate((~is_grace, is_grace))),
        false_alarm_rate=len(alarms) / max(1, far.sum()),
        false_alarm=tuple(np.quantile(alarms, at)) if len(alarms) else (FAINT,) * QUANTILES,
        density_sd=float((heard.density - true.density)[inside].std()),
    )


def _around(x: np.ndarray) -> np.ndarray:
    """`(…, T)` to `(…, T, 2 · REACH + 1)`: what lies around each frame, zero outside."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(REACH, REACH)])
    return np.stack([padded[..., i : i + x.shape[-1]] for i in range(2 * REACH + 1)], -1)


def mishear(
    key: jax.Array, true: FrameTargets, errors: HearingErrors, per_second: float, amount: float = 1.0
) -> FrameTargets:
    """Streams as an ear with these errors might hear them: `(B, T)` float32 each, 0 … 1.

    A stroke's certainty is drawn by its salience, its probability falls on one frame mostly, drawn by `place`, or on
    two; velocities of a clip are bent by one curve, as drums and rooms do, and blurred; false alarms sound anywhere.

    Args:
      true: `(B, T)` each, `per_second` frames a second.
      amount: between these errors, 1, and what fell, 0.
    """
    keys = jax.random.split(key, 9)
    shape = true.onset.shape
    clip = (shape[0], 1)
    # Certainty: the luck of the clip and that of the stroke, together normal, then evenly spread over the quantiles.
    luck = ALIKE**0.5 * jax.random.normal(keys[0], clip) + (1 - ALIKE) ** 0.5 * jax.random.normal(keys[1], shape)
    bend = jnp.exp(amount * BEND_SD * jax.random.normal(keys[2], clip))
    velocity = jnp.clip(true.velocity, 1e-3, 1) ** bend
    band = jnp.minimum((true.velocity * BANDS).astype(jnp.int32), BANDS - 1)
    salience = _salience_band(true, per_second)
    certainty = _quantile(jnp.asarray(errors.certainty, jnp.float32)[salience], jax.scipy.stats.norm.cdf(luck))
    certainty = jnp.where(true.onset > 0, 1 + amount * (certainty - 1), 0)

    # Place: a stroke lies between two frames, where the sum of the shares says; its certainty is split among both.
    edges = jnp.cumsum(jnp.asarray(errors.place, jnp.float32))
    share = jax.random.uniform(keys[3], shape)
    where = jnp.sum(share[..., None] >= edges[:-1], -1) - REACH  # -REACH … REACH
    beside = jnp.where(jax.random.uniform(keys[4], shape) < amount, where, 0)
    spread = 0.5 * amount * jax.random.uniform(keys[5], shape)  # stays at the true frame
    onset, weight = jnp.zeros(shape), jnp.zeros(shape)
    heard_velocity, heard_grace = jnp.zeros(shape), jnp.zeros(shape)
    by_band = lambda values: jnp.asarray(values, jnp.float32)[band]  # noqa: E731
    blur = by_band(errors.velocity_sd) * jax.random.normal(keys[6], shape) + by_band(errors.velocity_bias)
    velocity = jnp.clip(velocity + amount * blur, 0.01, 1)
    sure = jnp.asarray(errors.grace, jnp.float32)[true.grace.astype(jnp.int32)]
    grace = true.grace + amount * (sure - true.grace)
    for shift in range(-REACH, REACH + 1):
        part = certainty * (jnp.where(beside == shift, 1 - spread, 0) + jnp.where(shift == 0, spread, 0))
        moved = lambda x, shift=shift: _shift(x, shift)  # noqa: E731
        part, v, g = moved(part), moved(velocity), moved(grace)
        onset, weight = onset + part, weight + part
        heard_velocity, heard_grace = heard_velocity + part * v, heard_grace + part * g

    alarm = jax.random.bernoulli(keys[7], amount * errors.false_alarm_rate, shape) & (onset < FAINT)
    chance = jax.random.uniform(keys[8], (*shape, 3))
    faint = _quantile(
        jnp.broadcast_to(jnp.asarray(errors.false_alarm, jnp.float32), (*shape, QUANTILES)), chance[..., 0]
    )
    faint = jnp.where(alarm, faint, 0)
    onset = jnp.minimum(onset + faint, 1)
    heard_velocity = jnp.where(alarm, 0.5 * chance[..., 1], heard_velocity / jnp.maximum(weight, 1e-6))
    heard_grace = jnp.where(alarm, 0.5 * chance[..., 2], heard_grace / jnp.maximum(weight, 1e-6))
    # Density: of what was heard, or it would tell what was not; a difference of two strokes at a window's edges is no
    # more than rounding. Bounces of a buzz are heard as they fall.
    of_onsets = lambda x: _around_sum(x, round(DENSITY_WINDOW_S / 2 * per_second)) / ONSETS_OF_DENSITY  # noqa: E731
    bounces = true.density - of_onsets(true.onset)
    bounces = jnp.where(bounces > 2.5 / ONSETS_OF_DENSITY, bounces, 0)
    smooth = 1 + amount * errors.density_sd * jax.random.normal(jax.random.fold_in(key, 9), clip)
    density = true.density + amount * ((of_onsets(onset) + bounces) * smooth - true.density)
    return FrameTargets(onset, heard_velocity, heard_grace, jnp.clip(density, 0, 1))


def _around_sum(x: jax.Array, reach: int) -> jax.Array:
    """`(B, T)`, of each frame, `reach` before it and one less behind it."""
    total = jnp.cumsum(jnp.pad(x, ((0, 0), (reach + 1, reach - 1))), 1)
    return total[:, 2 * reach :] - total[:, : -2 * reach]


def _quantile(table: jax.Array, at: jax.Array) -> jax.Array:
    """Interpolates the quantiles `(…, QUANTILES)` at `at` `(…)`, 0 … 1."""
    place = jnp.clip(at * QUANTILES - 0.5, 0, QUANTILES - 1)
    low = jnp.minimum(place.astype(jnp.int32), QUANTILES - 2)
    pick = lambda i: jnp.take_along_axis(table, i[..., None], -1)[..., 0]  # noqa: E731
    return pick(low) + (place - low) * (pick(low + 1) - pick(low))


def _shift(x: jax.Array, by: int) -> jax.Array:
    """`(B, T)` moved by some frames, zero where nothing comes from."""
    if by == 0:
        return x
    zero = jnp.zeros_like(x[:, : abs(by)])
    return jnp.concatenate([zero, x[:, :-by]], 1) if by > 0 else jnp.concatenate([x[:, -by:], zero], 1)
