"""A picture of what was heard: the sound, its strokes beside the true ones, and how they lie beside the written."""

import dataclasses

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.hearing import HeardStrokes
from sousa_jax.lesson import EXTRA, MISSED, PLAYED, Lesson
from sousa_jax.rudiments import Rudiment, by_slug

DPI = 110
INK, PAPER, FAINT = "#22252b", "#ffffff", "#c9ccd3"
HEARD, TRUE, WRONG = "#1f6feb", "#3f7d54", "#c4432b"
HANDS = {"R": "#d9782d", "L": "#2a7f9e"}
GRACE = 0.5  # a heard stroke that is likelier a grace note than not
OFF_MS = 40.0  # the scale of deviations shows at least so much


def title(names: list[tuple[str, float]], asked: Rudiment | None, taught: Lesson | None) -> str:
    """The answer in one line.

    Args:
      names: slugs and probabilities of the likeliest rudiments, the likeliest first.
      asked: the rudiment that the user named, if any.
      taught: None where too few strokes were heard.
    """
    slug, prob = names[0]
    parts = [f"{by_slug(slug).name}, {prob:.0%}"]
    if asked:
        parts.append(f"beside {asked.name}")
    if taught:
        parts.append(f"{taught.tempo_bpm:.1f} bpm")
        if np.isfinite(taught.summary.sd_ms):
            parts.append(f"± {taught.summary.sd_ms:.0f} ms")
    return "  ·  ".join(parts)


def draw(
    waveform: np.ndarray,
    spec: FrontendSpec,
    heard: HeardStrokes,
    taught: Lesson | None,
    title: str,
    true: ClipStrokes | None = None,
) -> Figure:
    """The picture of a clip; panels from top to bottom share the time.

    Args:
      waveform: `(n,)` float32 at `spec.sample_rate`.
      spec: the model's frontend, whose spectrogram is on top.
      heard: the strokes as stems; opacity is confidence.
      taught: the lesson, whose grid and deviations are at the bottom; None leaves them out.
      title: the answer.
      true: what was struck, if it is known: mirrored below what was heard.
    """
    length_s = len(waveform) / spec.sample_rate
    width = float(np.clip(1.6 * length_s, 11, 40))
    heights = [1.5, 1.7 if true is None else 2.4] + ([1.7] if taught else [])
    figure = Figure(figsize=(width, 1.0 + 1.45 * sum(heights)), layout="constrained", facecolor=PAPER)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    figure.suptitle(title, fontsize=14, color=INK, fontweight="bold")
    log_mel(axes[0], waveform, spec)
    _strokes(axes[1], heard, true, taught)
    if taught:
        _deviations(axes[2], taught)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(FAINT)
        panel.tick_params(colors=INK, labelsize=8)
    axes[-1].set_xlim(-0.01 * length_s, length_s)  # a stroke at 0 is seen
    axes[-1].set_xlabel("seconds", fontsize=9, color=INK)
    return figure


def log_mel(axes: Axes, waveform: np.ndarray, spec: FrontendSpec, start_s: float = 0.0) -> None:
    """A panel with the spectrogram that the network sees of `(n,)` samples, the first of which is at `start_s`."""
    length_s = len(waveform) / spec.sample_rate
    unpadded = dataclasses.replace(spec, target_frames=0)  # AST's fills up to 10 s
    at_least = np.pad(waveform, (0, max(0, spec.n_fft - len(waveform))))  # too few samples have no spectrogram
    bands = np.asarray(spectrogram(at_least[None], unpadded))[0]
    low, high = np.percentile(bands, (5, 99.8))
    n_bands, n_frames = bands.shape
    end_s = start_s + min(n_frames * spec.hop_length / spec.sample_rate, length_s + 0.05)
    axes.imshow(
        bands, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high,
        extent=(start_s, end_s, 0, n_bands), interpolation="nearest",
    )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylabel("log-mel", fontsize=9, color=INK)


def _strokes(axes: Axes, heard: HeardStrokes, true: ClipStrokes | None, taught: Lesson | None) -> None:
    stems(axes, heard)
    low = -0.06
    if true is not None:
        struck = ~true.is_bounce
        velocity = -true.velocity[struck] / 127
        _stems(axes, true.time_s[struck], velocity, true.is_grace[struck], TRUE, np.ones(struck.sum()))
        axes.annotate(
            "struck", (1, 0), (-4, 6), xycoords="axes fraction", textcoords="offset points", color=TRUE, fontsize=9,
            ha="right",
        )  # fmt: skip
        low = -1.12
    axes.annotate(
        "heard", (1, 1), (-4, -6), xycoords="axes fraction", textcoords="offset points", color=HEARD, fontsize=9,
        ha="right", va="top",
    )  # fmt: skip
    if taught:
        extra = taught.table[taught.table["status"] == EXTRA]
        axes.scatter(extra["time_s"], np.full(len(extra), 1.1), marker="v", s=16, color=WRONG, linewidths=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylim(low, 1.18)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1] if true is not None else [0, 0.5, 1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value) * 100:.0f}")
    axes.set_ylabel("velocity", fontsize=9, color=INK)


def stems(axes: Axes, heard: HeardStrokes) -> None:
    """A stem for each stroke that was heard, as high as its velocity; opacity is confidence, a ring is a grace note."""
    _stems(axes, heard.time_s, heard.velocity, heard.grace > GRACE, HEARD, 0.25 + 0.75 * heard.confidence)


def _stems(
    axes: Axes, time_s: np.ndarray, height: np.ndarray, is_grace: np.ndarray, colour: str, opacity: np.ndarray
) -> None:
    """A stem for each stroke; a ring on top is a grace note."""
    colours = np.tile(to_rgba(colour), (len(time_s), 1))
    colours[:, 3] = np.clip(opacity, 0, 1)
    axes.vlines(time_s, 0, height, colors=colours, linewidth=np.where(is_grace, 1.0, 1.8))
    plain = ~is_grace
    axes.scatter(time_s[plain], height[plain], s=20, c=colours[plain], linewidths=0, zorder=3)
    axes.scatter(
        time_s[is_grace],
        height[is_grace],
        s=22,
        facecolors=PAPER,
        edgecolors=colours[is_grace],
        linewidths=1.2,
        zorder=3,
    )


def _deviations(axes: Axes, taught: Lesson) -> None:
    """The written grid, accents in bold, and what was played beside it: above the line is late."""
    table = taught.table
    written = table[table["status"] != EXTRA]
    firm = written[~written["leans"]]
    axes.vlines(
        firm["written_s"], -1, 1, colors=FAINT, linewidth=np.where(firm["is_accent"], 2.0, 0.7), zorder=0,
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    downbeats = firm.groupby("cycle")["written_s"].min()[firm.groupby("cycle")["slot"].min() == firm["slot"].min()]
    for number, at_s in enumerate(downbeats, 1):
        axes.annotate(
            str(number), (at_s, 1), (2, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            fontsize=7, color="0.45", va="top",
        )  # fmt: skip
    played = written[written["status"] == PLAYED]
    reach = max(OFF_MS, 1.15 * played["deviation_ms"].abs().max()) if len(played) else OFF_MS
    for hand, colour in HANDS.items():
        mine = played[played["hand"] == hand]
        x, y = mine["time_s"].to_numpy(), mine["deviation_ms"].to_numpy()
        axes.vlines(x, 0, y, colors=colour, linewidth=1.2, alpha=0.6)
        for rows, style in (
            (mine["is_accent"].to_numpy(), {"s": 44, "color": colour}),
            ((~mine["is_accent"] & ~mine["leans"]).to_numpy(), {"s": 16, "color": colour}),
            (mine["leans"].to_numpy(), {"s": 16, "facecolors": PAPER, "edgecolors": colour}),
        ):
            axes.scatter(x[rows], y[rows], linewidths=1.0, zorder=3, **style)
    missed = written[written["status"] == MISSED]
    axes.scatter(missed["written_s"], np.zeros(len(missed)), marker="x", s=26, color=WRONG, linewidths=1.4, zorder=4)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("late, ms", fontsize=9, color=INK)
    key = (("right", HANDS["R"]), ("left", HANDS["L"]), ("✕ missed", WRONG), ("▾ not written", WRONG))
    for i, (text, colour) in enumerate(key):
        axes.annotate(
            text, (1, 0), (-4 - 62 * (len(key) - 1 - i), 4), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, color=colour, ha="right", zorder=5,
            bbox={"boxstyle": "square,pad=0.2", "facecolor": PAPER, "alpha": 0.9, "linewidth": 0},
        )  # fmt: skip
