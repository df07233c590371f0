"""A window as the network saw it, narrow enough for a phone."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sousa_jax import strokes_picture
from sousa_jax.demo.answer import Window
from sousa_jax.frontends import FrontendSpec
from sousa_jax.report import figures
from sousa_jax.report.figures import INK, LINE

WIDTH, HEIGHT = 4.4, 3.5  # inches; a phone shows it at about life size
DPI = 200  # of the log-mel in it
POINTS = 1000  # of the waveform's outline
WAVE, AGAIN = "#9aa0ac", "#c4432b"  # seen on light and on dark paper


def draw(window: Window, spec: FrontendSpec) -> Figure:
    """The waveform with its strokes, above its log-mel. `spec` is the network's frontend."""
    rate = spec.sample_rate
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    sound, bands = figure.subplots(2, 1, sharex=True)
    _outline(sound, window.wave, window.start_s, rate)
    strokes_picture.stems(sound, window.strokes)
    strokes_picture.log_mel(bands, window.wave, spec, window.start_s)
    titles = ("the strokes that were heard; rings are grace notes", "log-mel: what the network sees")
    for panel, title in zip((sound, bands), titles, strict=True):
        panel.set_title(title, fontsize=9, color=INK, loc="left")
        panel.set_ylabel("")
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(LINE)
        panel.tick_params(colors=INK, labelsize=8)
    sound.set_yticks([0, 1], ["soft", "hard"])
    bands.set_xlim(window.start_s, window.start_s + len(window.wave) / rate)
    bands.set_xlabel("seconds", fontsize=8, color=INK)
    if window.n_sound < len(window.wave):
        again_s = window.start_s + window.n_sound / rate
        for panel in (sound, bands):
            panel.axvline(again_s, color=AGAIN, linestyle="--", linewidth=1)
        sound.annotate(
            "again from the start", (again_s, 0), (3, 3), xycoords=("data", "axes fraction"), fontsize=8, color=AGAIN,
            textcoords="offset points",
        )  # fmt: skip
    return figure


def _outline(axes: Axes, wave: np.ndarray, start_s: float, sample_rate: int) -> None:
    """The waveform, its loudest sample as high as the hardest stroke can be."""
    n = max(1, len(wave) // POINTS)
    pieces = np.pad(wave, (0, -len(wave) % n), mode="edge").reshape(-1, n)
    time_s = start_s + (np.arange(len(pieces)) + 0.5) * n / sample_rate
    scale = max(np.abs(wave).max(), 1e-9)
    axes.fill_between(time_s, pieces.min(1) / scale, pieces.max(1) / scale, color=WAVE, alpha=0.6, linewidth=0)
    axes.set_ylim(-1.05, 1.1)


def as_svg(figure: Figure) -> str:
    """To stand in a page, in the page's colours `--ink` and `--line`."""
    return f'<div class="picture">{figures.inline("demo", figure)}</div>'
