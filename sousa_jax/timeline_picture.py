"""A picture of a take: how loud it is, its strokes, and what was played from when to when."""

import numpy as np
from matplotlib.figure import Figure

from sousa_jax.rudiments import FAMILIES, by_slug
from sousa_jax.strokes_picture import DPI, FAINT, INK, PAPER
from sousa_jax.take import Take
from sousa_jax.timeline import PER_SECOND

__all__ = ["DPI", "draw"]

COLOURS = dict(zip(FAMILIES, ("#2a7f9e", "#d9782d", "#3f7d54", "#8a5aa8"), strict=True))
NO_RUDIMENT = "#9a9da4"
QUIETEST_DB = -60.0
POINTS = 4000  # of the curve at most: a longer take shows the loudest of several frames


def draw(name: str, take: Take) -> Figure:
    """The picture of a take; both panels share the time. Each rudiment is a bar in the colour of its family, as high as
    it is likely."""
    width = float(np.clip(0.5 * take.duration_s, 11, 40))
    figure = Figure(figsize=(width, 4.6), layout="constrained", facecolor=PAPER)
    sound, bars = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    figure.suptitle(name, fontsize=13, color=INK, fontweight="bold")
    _sound(sound, take)
    _bars(bars, take)
    for panel in (sound, bars):
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(FAINT)
        panel.tick_params(colors=INK, labelsize=8)
    bars.set_xlim(0, max(take.duration_s, 1e-3))
    bars.set_xlabel("seconds", fontsize=9, color=INK)
    return figure


def _sound(axes, take: Take) -> None:
    n = max(1, -(-len(take.power) // POINTS))
    padded = np.pad(take.power, (0, -len(take.power) % n)).reshape(-1, n).max(1)
    level_db = 10 * np.log10(np.maximum(padded, 10 ** (QUIETEST_DB / 10)))
    axes.fill_between(np.arange(len(level_db)) * n / PER_SECOND, QUIETEST_DB, level_db, color=FAINT, linewidth=0)
    for played in take.played:
        axes.vlines(
            played.strokes.time_s, QUIETEST_DB, QUIETEST_DB * (1 - played.strokes.velocity), color=INK, linewidth=0.6
        )
    axes.set_ylim(QUIETEST_DB, 0)
    axes.set_ylabel("level, dB", fontsize=9, color=INK)


def _bars(axes, take: Take) -> None:
    for played in take.played:
        segment = played.segment
        length_s = segment.end_s - segment.start_s
        rudiment = by_slug(segment.rudiment) if segment.rudiment else None
        height = segment.probability if rudiment else 1.0
        colour = COLOURS[rudiment.family] if rudiment else NO_RUDIMENT
        axes.bar(segment.start_s, height, length_s, align="edge", color=colour, alpha=0.35, edgecolor=colour)
        words = [f"no rudiment: {segment.objection}"]
        if rudiment:
            tempo = f"  {played.tempo_bpm:.0f} bpm" if played.tempo_bpm else ""
            words = [f"{rudiment.name}  {segment.probability:.0%}{tempo}", rudiment.notation]
        axes.annotate(
            "\n".join(words), (segment.start_s, 0), (3, 4), textcoords="offset points", fontsize=8, color=INK,
            rotation=90 if length_s < take.duration_s / 8 else 0, va="bottom",
        )  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.set_ylabel("probability", fontsize=9, color=INK)
