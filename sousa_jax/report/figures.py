"""The pictures of a report, each a matplotlib figure; drawn once for files and for the page."""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sousa_jax import metrics
from sousa_jax.report.analysis import Findings
from sousa_jax.report.runs import Run
from sousa_jax.rudiments import FAMILIES, NUM_CLASSES, RUDIMENTS

# On the page the first two become the page's own colours, which are others when it is dark.
INK, LINE = "#1d1d26", "#d5d5de"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a63d2", "#6b7a00", "#a0522d", "#7f7f7f")
FAMILY_COLORS = dict(zip(FAMILIES, COLORS, strict=False))
SHOWN_TOGETHER = 4  # runs whose bars or dots stand side by side
STYLE = {
    "font.size": 9, "svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE,
    "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "text.parse_math": False,  # names of runs may have a $
}  # fmt: skip


def draw(findings: Findings) -> dict[str, Figure]:
    """All that these runs have something for, by name."""
    with matplotlib.rc_context(STYLE):
        figures = {
            "leaderboard": _leaderboard(findings),
            "rudiments": _rudiments(findings),
            "confusion": _confusion(findings),
            "calibration": _calibration(findings),
        }
        if findings.groups:
            figures["groups"] = _groups(findings)
        if any(_validation(entry.run) for entry in findings.entries):
            figures["curves"] = _curves(findings)
    return figures


def save(figures: dict[str, Figure], folder: pathlib.Path) -> None:
    """Each as PNG and SVG."""
    folder.mkdir(parents=True)
    for name, figure in figures.items():
        with _style(name):
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})


def inline(name: str, figure: Figure) -> str:
    """SVG to stand in a page, in the page's colours."""
    buffer = io.StringIO()
    with _style(name):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    for side in ("width", "height"):  # the page decides
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    # Identifiers must not be those of another picture on the same page.
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)


@contextlib.contextmanager
def _style(name: str) -> Iterator[None]:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        yield


# --------------------------------------------------------------------------------------------------------- the figures


def _leaderboard(findings: Findings) -> Figure:
    entries = findings.entries[::-1]
    rows = [("chance", 1 / NUM_CLASSES, None)]
    rows += [(f"{name} alone", score.value, score) for name, score in findings.shortcuts.items()]
    rows += [(entry.name, entry.whole.value, entry.whole) for entry in entries]
    figure = Figure(figsize=(6, 1 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, value, interval) in enumerate(rows):
        color = COLORS[0] if y >= len(rows) - len(entries) else "#7f7f7f"
        if interval is not None and np.isfinite(interval.low):
            axes.plot([interval.low, interval.high], [y, y], color=color, linewidth=3, alpha=0.4, solid_capstyle="butt")
        axes.plot(value, y, "o", color=color)
        axes.annotate(f"{value:.3f}", (value, y), (0, 5), textcoords="offset points", ha="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_xlabel("balanced accuracy over all windows, 95 % interval by player")
    axes.grid(axis="y", visible=False)
    return figure


def _rudiments(findings: Findings) -> Figure:
    entries = findings.entries[:SHOWN_TOGETHER]
    f1 = [metrics.per_rudiment(e.run.answers.labels, e.run.answers.named()) for e in entries]
    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots()
    y = np.arange(NUM_CLASSES)
    colors = [FAMILY_COLORS[RUDIMENTS[i].family] for i in metrics.BY_FAMILY]
    axes.barh(y, f1[0]["f1"].to_numpy()[metrics.BY_FAMILY], color=colors, alpha=0.75, height=0.75)
    markers = [
        axes.plot(table["f1"].to_numpy()[metrics.BY_FAMILY], y, marker, color=INK, markersize=4, linestyle="none")[0]
        for table, marker in zip(f1[1:], ("o", "^", "x"), strict=False)
    ]
    axes.set_yticks(y, [RUDIMENTS[i].name for i in metrics.BY_FAMILY], fontsize=7)
    axes.invert_yaxis()
    axes.set_ylim(NUM_CLASSES - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(f"F1 of each rudiment: bars {entries[0].name}, coloured by family")
    axes.grid(axis="y", visible=False)
    if markers:
        names = [entry.name for entry in entries[1:]]
        figure.legend(markers, names, loc="outside upper center", ncols=len(names), fontsize=7)
    return figure


def _confusion(findings: Findings) -> Figure:
    answers = findings.best.run.answers
    figure = Figure(figsize=(12, 11), layout="constrained")
    with matplotlib.rc_context({"axes.grid": False}):
        metrics.draw_confusion(figure, metrics.confusion(answers.labels, answers.named()))
    figure.suptitle(f"{findings.best.name}: played and heard, by family ({', '.join(FAMILIES)})")
    return figure


def _calibration(findings: Findings) -> Figure:
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.2)
    for entry, color in zip(findings.entries[: len(COLORS)], COLORS, strict=False):
        found = entry.calibration
        axes.plot(found.confidence, found.accuracy, color=color, linewidth=1, alpha=0.7)
        size = 8 + 120 * found.count / found.count.sum()
        axes.scatter(found.confidence, found.accuracy, s=size, color=color, label=f"{entry.name}: {found.error:.3f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("how sure it was (dots as large as the share of clips)")
    axes.set_ylabel("how often it was right")
    figure.legend(title="expected calibration error", fontsize=7, title_fontsize=7, loc="outside upper center", ncols=2)
    return figure


def _groups(findings: Findings) -> Figure:
    entries = findings.entries[:SHOWN_TOGETHER]
    panels = list(findings.groups.items())
    heights = [len(groups) for _, groups in panels]
    figure = Figure(figsize=(8, 1 + 0.34 * sum(heights) + 0.45 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (about, groups) in zip(all_axes, panels, strict=True):
        for k, (entry, color) in enumerate(zip(entries, COLORS, strict=False)):
            for row, group in enumerate(groups):
                score, y = group.scores[k], row + 0.16 * (k - (len(entries) - 1) / 2)
                if np.isfinite(score.low):
                    axes.plot([score.low, score.high], [y, y], color=color, linewidth=2, alpha=0.4)
                axes.plot(score.value, y, "o", color=color, markersize=4, label=entry.name if row == 0 else None)
        axes.set_yticks(range(len(groups)), [f"{group.name} ({group.n_clips})" for group in groups], fontsize=8)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_title(about)
        axes.grid(axis="y", visible=False)
    all_axes[-1].set_xlim(0, 1)
    all_axes[-1].set_xlabel("balanced accuracy, 95 % interval by player (number of clips)")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(2, len(labels)), fontsize=7)
    return figure


def _validation(run: Run) -> str:
    """The column of its curve that training raised."""
    columns = [name for name in run.curves.columns if name.startswith("validation/")]
    wanted = ("validation/balanced_accuracy", "validation/stroke_f1")
    return next((name for name in wanted if name in columns), "")


def _curves(findings: Findings) -> Figure:
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    loss_axes, score_axes = figure.subplots(2, 1, sharex=True)
    for entry, color in zip(findings.entries[: len(COLORS)], COLORS, strict=False):
        curves = entry.run.curves
        for axes, column in ((loss_axes, "train/loss"), (score_axes, _validation(entry.run))):
            if column in curves:
                known = curves[["step", column]].dropna()
                of_all = known["step"] / curves["step"].max()
                axes.plot(of_all, known[column], color=color, linewidth=1.2, label=entry.name)
    loss_axes.set_ylabel("training loss")
    score_axes.set_ylabel("balanced accuracy, validation")
    score_axes.set_xlabel("share of the training that was done")
    handles, labels = (loss_axes if loss_axes.lines else score_axes).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels) or 1), fontsize=7)
    return figure
