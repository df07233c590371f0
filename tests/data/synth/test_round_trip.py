"""What is heard is what was played: onsets found in the sound by librosa are the strokes of the table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onsets import onset_times

from sousa_jax.data.synth.players import TIERS, draw_player
from sousa_jax.data.synth.presets import PRESET_NAMES
from sousa_jax.data.synth.render import render_batch
from sousa_jax.data.synth.stream import Source, draw_performance
from sousa_jax.data.synth.written import DIALECTS
from sousa_jax.rudiments import FAMILIES, NUM_CLASSES, RUDIMENTS

RATE, WINDOW_S, TOLERANCE_S = 16_000, 5.0, 0.03
TAKES = 4  # of each rudiment


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_onsets_are_where_the_strokes_are(dialect, capsys):
    """Professionals, close to the microphone, no room. Recall is of strokes other than grace notes, which a detector
    made for music takes as one with the stroke they lead to; precision is against all strokes."""
    source = Source(dialect, num_cycles=0, window_s=WINDOW_S)

    @functools.partial(jax.vmap, in_axes=(0, 0))
    def draw(key, rudiment):
        player_key, key = jax.random.split(key)
        player = draw_player(player_key, jnp.int32(TIERS.index("professional")))
        return draw_performance(key, source, rudiment, player)

    n = TAKES * NUM_CLASSES
    rudiments = jnp.arange(n) % NUM_CLASSES
    p = jax.jit(draw)(jax.random.split(jax.random.key(3), n), rudiments)
    waves = render_batch(
        jax.random.split(jax.random.key(4), n), p.strokes, sample_rate=RATE, n_samples=round(WINDOW_S * RATE),
        start_s=p.start_s, style=jnp.full(n, DIALECTS.index(dialect)),
        preset=jnp.full(n, PRESET_NAMES.index("clean_close")),
    )  # fmt: skip
    p, waves = jax.device_get((p, waves))
    rates: dict[str, list[tuple[float, float]]] = {family: [] for family in FAMILIES}
    for i, wave in enumerate(waves):
        time_s = p.strokes.time_s[i] - p.start_s[i]
        inside = p.strokes.valid[i] & (time_s >= 0) & (time_s < WINDOW_S - 0.05)
        # Compared over two frames, 8 ms, and with the band above: ringing modes do not count as new strokes.
        heard_s = onset_times(wave, RATE, 64, delta=0.04, wait_s=0.016, lag=2, max_size=3)
        distance_s = np.abs(time_s[inside][:, None] - heard_s[None])
        main = ~p.strokes.is_grace[i][inside]
        recall = (distance_s[main].min(1) < TOLERANCE_S).mean()
        precision = (distance_s.min(0) < TOLERANCE_S).mean()
        rates[RUDIMENTS[i % NUM_CLASSES].family].append((recall, precision))
    with capsys.disabled():
        for family, rows in rates.items():
            recall, precision = np.mean(rows, 0)
            print(f"\n  {dialect}, {family}: recall {recall:.3f}, precision {precision:.3f}, {len(rows)} clips", end="")
    for family, rows in rates.items():
        recall, precision = np.mean(rows, 0)
        assert recall > 0.85, family
        assert precision > 0.93, family
