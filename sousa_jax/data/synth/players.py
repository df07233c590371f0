"""Simulated players: a skill tier, a dominant hand, and seventeen numbers that say how they play.

The numbers restate SOUSA's player profiles (MIT, Copyright (c) 2025 Zak Keown). Players are drawn before clips, so that
a split can have players of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TIERS = ("beginner", "intermediate", "advanced", "professional")
TIER_SHARES = (0.25, 0.35, 0.25, 0.15)
LEFT_HANDED = 0.1  # share of the players

# trait: means by tier, standard deviations by tier, allowed range
TRAITS = {
    "timing_sd_ms": ((50, 28, 14, 7), (10, 8, 4, 2), (0, 100)),
    "timing_inconsistency": ((0.60, 0.35, 0.15, 0.08), (0.15, 0.10, 0.05, 0.03), (0, 1)),  # x 10 ms of extra error
    "tempo_drift": ((0.025, 0.012, 0.006, 0.002), (0.015, 0.008, 0.004, 0.002), (-0.5, 0.5)),  # beats per beat
    "velocity_sd": ((0.12, 0.15, 0.10, 0.07), (0.04, 0.04, 0.03, 0.02), (0, 0.5)),  # relative
    "accent_differentiation": ((6, 10, 14, 16), (2, 2, 2, 1.5), (0, 20)),
    "accent_accuracy": ((0.70, 0.88, 0.96, 0.99), (0.10, 0.05, 0.02, 0.005), (0, 1)),  # a probability
    "weak_hand_velocity": ((0.72, 0.85, 0.94, 0.98), (0.08, 0.05, 0.03, 0.015), (0.5, 1)),  # weak / strong
    "weak_hand_late_ms": ((8, 4, 1.5, 0.5), (5, 3, 1.5, 0.5), (-20, 20)),
    "weak_hand_velocity_sd": ((0.15, 0.08, 0.03, 0.01), (0.05, 0.03, 0.015, 0.005), (0, 0.3)),
    "flam_spacing_ms": ((50, 35, 28, 25), (15, 8, 4, 2), (10, 80)),
    "flam_spacing_sd": ((0.30, 0.15, 0.08, 0.04), (0.10, 0.05, 0.03, 0.015), (0, 0.5)),  # relative
    "diddle_ratio": ((0.75, 0.90, 0.97, 0.99), (0.15, 0.08, 0.03, 0.01), (0.6, 1.4)),  # gap of the pair / written gap
    "diddle_ratio_sd": ((0.20, 0.10, 0.05, 0.02), (0.05, 0.03, 0.02, 0.01), (0, 0.3)),
    "roll_decay": ((0.30, 0.15, 0.05, 0.02), (0.10, 0.05, 0.03, 0.01), (0, 0.5)),
    "buzz_density": ((0.50, 0.75, 0.90, 0.96), (0.15, 0.10, 0.05, 0.02), (0, 1)),
    "fatigue": ((0.15, 0.08, 0.03, 0.01), (0.05, 0.03, 0.02, 0.005), (0, 0.3)),
}
# Traits of one player go together; the pairs that SOUSA states. All others are independent here.
CORRELATIONS = {
    ("timing_sd_ms", "timing_inconsistency"): 0.7,
    ("timing_sd_ms", "diddle_ratio"): -0.4,
    ("timing_sd_ms", "weak_hand_velocity"): -0.4,
}
COMFORT_BPM = ((60, 100), (70, 150), (60, 180), (50, 220))  # outside it the timing error grows


class Player(NamedTuple):
    """One player, or a batch of them: every field is an array `(...,)`.

    tier: int32, index into `TIERS`. left_handed: bool. comfort_low_bpm, comfort_high_bpm: float32.
    traits: float32 of each of `TRAITS`.
    """

    tier: jax.Array
    left_handed: jax.Array
    comfort_low_bpm: jax.Array
    comfort_high_bpm: jax.Array
    traits: dict[str, jax.Array]


def _correlated() -> np.ndarray:
    """A matrix that turns independent draws into correlated ones, (n_traits, n_traits)."""
    names = list(TRAITS)
    matrix = np.eye(len(names))
    for (a, b), r in CORRELATIONS.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = r
    return np.linalg.cholesky(matrix).astype(np.float32)


_MEAN, _SD, _LIMITS = (np.array(column, np.float32) for column in zip(*TRAITS.values(), strict=True))
_CORRELATED = _correlated()
_COMFORT_BPM = np.array(COMFORT_BPM, np.float32)


def draw_player(key: jax.Array, tier: jax.Array) -> Player:
    """A random player of tier `TIERS[tier]`, a scalar int32 that may be traced. Source: SOUSA's player profiles."""
    hand_key, trait_key = jax.random.split(key)
    z = jnp.asarray(_CORRELATED) @ jax.random.normal(trait_key, (len(TRAITS),))
    values = jnp.asarray(_MEAN)[:, tier] + jnp.asarray(_SD)[:, tier] * z
    values = jnp.clip(values, _LIMITS[:, 0], _LIMITS[:, 1])
    comfort = jnp.asarray(_COMFORT_BPM)[tier]
    return Player(
        tier=jnp.asarray(tier, jnp.int32),
        left_handed=jax.random.bernoulli(hand_key, LEFT_HANDED),
        comfort_low_bpm=comfort[0],
        comfort_high_bpm=comfort[1],
        traits=dict(zip(TRAITS, values, strict=True)),
    )


def tier_of_player(number: jax.Array) -> jax.Array:
    """The tier of player `number` (≥ 0) of a split, int32.

    Tiers are dealt out by `TIER_SHARES`, not drawn: the multiples of the golden ratio lie evenly on the circle, so that
    a split of five players has all four tiers.
    """
    # 2^32 / golden ratio; the products wrap around, which is the fractional part.
    fraction = jnp.asarray(number, jnp.uint32) * jnp.uint32(2654435769) + jnp.uint32(0x40000000)
    return (
        jnp.searchsorted(jnp.cumsum(jnp.array(TIER_SHARES)), fraction.astype(jnp.float32) / 2.0**32, side="right")
        .astype(jnp.int32)
        .clip(0, len(TIERS) - 1)
    )
