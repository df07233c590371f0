"""How well a performance was played: SOUSA's 14 exercise scores, from its strokes alone.

    columns = jax.jit(scores)(strokes, FAMILIES.index("flam"))             one performance
    columns = batched_scores(strokes, families)                            a batch of them

SOUSA publishes the scores, and the formulas of some. The others were recovered from its tables of strokes and of
scores: on all 2,050 clips of `sousa_mini`, in double precision, these formulas give thirteen of the columns to the
last digit. The fourteenth, `groove_feel_proxy`, is our own restatement; see `_groove`.
"""

import jax
import jax.numpy as jnp

from sousa_jax.data.synth.strokes import ACCENT, GRACE, LEFT, TAP, Strokes
from sousa_jax.rudiments import FAMILIES

SCORE_COLUMNS: tuple[str, ...] = (
    "timing_accuracy",
    "timing_consistency",
    "tempo_stability",
    "subdivision_evenness",
    "velocity_control",
    "accent_differentiation",
    "accent_accuracy",
    "hand_balance",
    "weak_hand_index",
    "flam_quality",
    "diddle_quality",
    "roll_sustain",
    "groove_feel_proxy",
    "overall_score",
)

# The score of a performance without any is 80, not 100 and not missing: so it is in SOUSA.
WITHOUT_ACCENT_OR_TAP = WITHOUT_DIDDLE = 80.0
IDEAL_GRACE_MS = 30.0  # a grace note's timing error counts from here, as does a bounce's in SOUSA
OVERALL = {
    "timing_accuracy": 0.20,
    "timing_consistency": 0.15,
    "tempo_stability": 0.10,
    "subdivision_evenness": 0.10,
    "velocity_control": 0.10,
    "accent_differentiation": 0.10,
    "accent_accuracy": 0.10,
    "hand_balance": 0.15,
}


def timing_errors_ms(strokes: Strokes) -> jax.Array:
    """How late each stroke is, in ms: (..., S) float32, of no meaning where not valid.

    Against where it is written; for grace notes and bounces against 30 ms before their primary, where more than 30 ms
    before counts as positive. Source: SOUSA's stroke table, whose `timing_error_ms` this is.
    """
    parent_s = jnp.take_along_axis(strokes.time_s, jnp.maximum(strokes.parent, 0), axis=-1)
    spacing_ms = 1000 * (parent_s - strokes.time_s)
    return jnp.where(strokes.is_grace, spacing_ms - IDEAL_GRACE_MS, 1000 * (strokes.time_s - strokes.written_s))


def scores(strokes: Strokes, family: jax.Array | int) -> dict[str, jax.Array]:
    """The scores of one performance.

    Pure; works under `jit` and `vmap`. Rows that are not valid must come last, and change nothing.

    Args:
      strokes: arrays of (S,), in the written order.
      family: index into `rudiments.FAMILIES`.

    Returns:
      `SCORE_COLUMNS` by name (`jit` sorts them), each a float32 scalar. They go from 0 (bad) to 100, except that
      `weak_hand_index` is the left hand's share of the error, 50 for even hands, and `groove_feel_proxy` ends at 1.
      NaN where SOUSA has none: `flam_quality` outside the flam family, `diddle_quality` outside rolls and diddles,
      `roll_sustain` outside rolls; also `hand_balance`, `weak_hand_index` and `overall_score` of a performance that
      uses one hand only.
    """
    valid, velocity = strokes.valid, strokes.velocity
    error_ms = timing_errors_ms(strokes)
    is_roll, is_flam = family == FAMILIES.index("roll"), family == FAMILIES.index("flam")
    is_diddle = family == FAMILIES.index("diddle")

    columns = {
        "timing_accuracy": _accuracy(_mean(jnp.abs(error_ms), valid)),
        "timing_consistency": 100 * jax.nn.sigmoid((15 - _std(error_ms, valid)) / 8),
        "tempo_stability": _tempo_stability(strokes, error_ms),
        "subdivision_evenness": jnp.maximum(0, 100 - 100 * _gap_spread(strokes)),
        "velocity_control": jnp.maximum(0, 100 - 2 * _std(velocity, valid)),  # accents count as spread
        **_accents(strokes),
        **_hands(strokes, error_ms),
        "flam_quality": jnp.where(is_flam, _flam_quality(strokes), jnp.nan),
        "diddle_quality": jnp.where(is_roll | is_diddle, _diddle_quality(strokes), jnp.nan),
        "roll_sustain": jnp.where(is_roll, _roll_sustain(strokes), jnp.nan),
        "groove_feel_proxy": _groove(strokes),
    }
    columns["overall_score"] = sum(weight * columns[name] for name, weight in OVERALL.items())
    return {name: columns[name].astype(jnp.float32) for name in SCORE_COLUMNS}


batched_scores = jax.jit(jax.vmap(scores))  # (B, S) and (B,) to columns of (B,); compiled once per shape


def _mean(x: jax.Array, among: jax.Array) -> jax.Array:
    """Over the rows where `among`; NaN if there are none."""
    return jnp.sum(jnp.where(among, x, 0)) / jnp.sum(among)


def _std(x: jax.Array, among: jax.Array) -> jax.Array:
    return jnp.sqrt(_mean(jnp.square(x - _mean(x, among)), among))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """The smaller over the larger, 1 where both are 0."""
    larger = jnp.maximum(a, b)
    return jnp.where(larger == 0, 1, jnp.minimum(a, b) / larger)


def _accuracy(mean_abs_error_ms: jax.Array) -> jax.Array:
    return 100 * jax.nn.sigmoid((25 - mean_abs_error_ms) / 10)


def _tempo_stability(strokes: Strokes, error_ms: jax.Array) -> jax.Array:
    """From the least-squares slope of error over written time, in ms per s, of what is neither grace nor bounce."""
    among = strokes.valid & ~strokes.is_grace
    written_s = strokes.written_s - _mean(strokes.written_s, among)
    slope = _mean(written_s * (error_ms - _mean(error_ms, among)), among) / _mean(written_s**2, among)
    return jnp.maximum(0, 100 - 10 * jnp.abs(slope))


def _gap_spread(strokes: Strokes) -> jax.Array:
    """Standard deviation of played over written gap between neighbours, grace notes and bounces included."""
    played, written = jnp.diff(strokes.time_s), jnp.diff(strokes.written_s)
    among = strokes.valid[1:] & strokes.valid[:-1] & (written > 0)
    return _std(played / jnp.where(among, written, 1), among)


def _accents(strokes: Strokes) -> dict[str, jax.Array]:
    velocity = strokes.velocity
    accents, taps = (strokes.valid & (strokes.kind == kind) for kind in (ACCENT, TAP))
    contrast = 8 * 20 * (_mean(velocity, accents) - _mean(velocity, taps)) / 127
    louder = 100 * _mean(velocity > _mean(velocity, strokes.valid), accents)
    any_accent, both = accents.any(), accents.any() & taps.any()
    return {
        "accent_differentiation": jnp.where(both, jnp.clip(contrast, 0, 100), WITHOUT_ACCENT_OR_TAP),
        "accent_accuracy": jnp.where(any_accent, louder, 100),
    }


def _hands(strokes: Strokes, error_ms: jax.Array) -> dict[str, jax.Array]:
    """Half loudness, half timing; of the timing 0.4 is for equal errors and 0.6 for small ones."""
    left = strokes.valid & (strokes.hand == LEFT)
    right = strokes.valid & (strokes.hand != LEFT)
    left_ms, right_ms = (_mean(jnp.abs(error_ms), hand) for hand in (left, right))
    loudness = 100 * _ratio(*(_mean(strokes.velocity, hand) for hand in (left, right)))
    timing = 0.4 * 100 * _ratio(left_ms, right_ms) + 0.6 * _accuracy((left_ms + right_ms) / 2)
    both_ms = left_ms + right_ms
    return {
        "hand_balance": 0.5 * loudness + 0.5 * timing,
        "weak_hand_index": jnp.where(both_ms == 0, 50, 100 * left_ms / both_ms),
    }


def _flam_quality(strokes: Strokes) -> jax.Array:
    """100 for a grace note 20 to 40 ms before its primary, 5 less per ms below that, 3 less per ms above."""
    spacing_ms = timing_errors_ms(strokes) + IDEAL_GRACE_MS
    lost = 5 * jnp.maximum(0, 20 - spacing_ms) + 3 * jnp.maximum(0, spacing_ms - 40)
    return _mean(jnp.maximum(0, 100 - lost), strokes.valid & (strokes.kind == GRACE))


def _diddle_quality(strokes: Strokes) -> jax.Array:
    """From how far the gap inside a double stroke is from its written gap."""
    pairs = strokes.valid[1:] & (strokes.diddle[:-1] == 1) & (strokes.diddle[1:] == 2)
    ratio = jnp.diff(strokes.time_s) / jnp.where(pairs, jnp.diff(strokes.written_s), 1)
    quality = jnp.maximum(0, 100 - 200 * _mean(jnp.abs(ratio - 1), pairs))
    return jnp.where(pairs.any(), quality, WITHOUT_DIDDLE)


def _roll_sustain(strokes: Strokes) -> jax.Array:
    """Mean velocity of the last quarter of the strokes over that of the first, at most 100."""
    count, row = jnp.sum(strokes.valid), jnp.arange(strokes.valid.shape[-1])
    first = _mean(strokes.velocity, strokes.valid & (row < jnp.maximum(count // 4, 1)))
    last = _mean(strokes.velocity, strokes.valid & (row >= 3 * count // 4))
    return jnp.minimum(100, 100 * last / first)


def _groove(strokes: Strokes) -> jax.Array:
    """Ours: falls with the spread of the gaps and with the mean distance from where the strokes are written.

    SOUSA says no more than "0..1". The four constants are a least-squares fit to `sousa_mini`, the only ones here.
    Agreement with SOUSA's column: mean absolute error 0.067, rank correlation 0.75; within a family 0.92 for rolls,
    0.89 for diddles, 0.64 for flams and 0.12, next to none, for drags; within a tier -0.22 for beginners, whose values
    are all near 0, 0.78, 0.92 and 0.96. Good for comparing tiers, not for comparing beginners or drags.
    """
    away_ms = _mean(1000 * jnp.abs(strokes.time_s - strokes.written_s), strokes.valid)
    return jnp.exp(-((_gap_spread(strokes) / 3.774) ** 1.183) - (away_ms / 39.53) ** 1.405)
