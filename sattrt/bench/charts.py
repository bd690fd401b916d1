"""The charts of a report as SVG, by matplotlib; colours are CSS variables, so that the page decides between light and dark.

svg = latency(document)
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# what matplotlib draws with, and what the page puts in its place
_INK, _GRID, _PAPER = "#0a0b01", "#0a0b02", "#0a0b03"
_SERIES = tuple(f"#0a0c{i:02x}" for i in range(10))
_VARIABLES = {_INK: "ink", _GRID: "grid", _PAPER: "paper", **{colour: f"s{i}" for i, colour in enumerate(_SERIES)}}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sattrt",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a $ in a name is a $
}
_WIDTH = 4.7  # inches: text is readable where the page is as narrow as a phone


def _drawn(draw: Callable[..., Figure]) -> Callable[..., str]:
    """A function that draws a figure, as one that gives it as SVG."""

    @functools.wraps(draw)
    def svg(*arguments: Any) -> str:
        with mpl.rc_context(_STYLE):
            return _svg(draw(*arguments))

    return svg


@_drawn
def latency(document: dict[str, Any]) -> Figure:
    """Distribution of single-stream latency: boxes from the quartiles, whiskers from the 1st to the 99th percentile."""
    rows = [row for row in document["engines"] if row["single_stream"]][::-1]
    figure, axes = _figure(0.8 + 0.28 * len(rows))
    drawn = axes.boxplot(
        [1e3 * np.asarray(row["single_stream"]["seconds"]) for row in rows],
        orientation="horizontal",
        whis=(1, 99),
        showfliers=False,
        patch_artist=True,
        widths=0.55,
        medianprops={"linewidth": 3},
        boxprops={"linewidth": 0},
        whiskerprops={"color": _INK, "linewidth": 0.8},
        capprops={"color": _INK, "linewidth": 0.8},
    )
    for patch, median, row in zip(drawn["boxes"], drawn["medians"], rows, strict=True):
        patch.set_facecolor(_colour(document, row))
        median.set_color(_colour(document, row))
    axes.set_yticks(range(1, len(rows) + 1), [row["engine"] for row in rows])
    axes.set(xlabel="ms for one tile", xlim=(0, None))
    axes.grid(axis="y", visible=False)
    return figure


@_drawn
def throughput(document: dict[str, Any]) -> Figure:
    """Images a second over the batch size."""
    figure, axes = _figure(3.1)
    for row in document["engines"]:
        sizes = [int(size) for size in row["offline"]]
        axes.plot(
            sizes,
            [found["images_per_second"] for found in row["offline"].values()],
            marker="o",
            markersize=3.5,
            color=_colour(document, row),
            label=row["engine"],
        )
    axes.set_xscale("log", base=2)
    _plain_numbers(axes.xaxis)
    axes.set(xlabel="tiles a batch", ylabel="images a second", ylim=(0, None))
    _legend_below(axes)
    return figure


@_drawn
def pareto(document: dict[str, Any]) -> Figure:
    """Accuracy with its interval against images a second; a line joins what nothing beats in both."""
    figure, axes = _figure(3.1)
    points = []
    for row in document["engines"]:
        found = row["accuracy"]
        speed = (
            row["offline"][str(row["best_batch"])]["images_per_second"]
            if row["best_batch"]
            else row["clocks"]["engine"]["images_per_second"]
        )
        low, high = (100 * bound for bound in found["interval"])
        percent = 100 * found["accuracy"]
        colour = _colour(document, row)
        axes.errorbar(
            speed, percent, [[percent - low], [high - percent]], fmt="o", color=colour, elinewidth=0.8, markersize=5, label=row["engine"]
        )
        points.append((speed, percent))
    front = sorted(point for point in points if not any(other[0] > point[0] and other[1] >= point[1] for other in points))
    axes.plot(*zip(*front, strict=True), color=_INK, linewidth=0.9, linestyle=":", zorder=0)
    axes.set(xlabel="images a second, best batch size", ylabel="accuracy, %", xlim=(0, None))
    _legend_below(axes)
    return figure


@_drawn
def clocks(document: dict[str, Any]) -> Figure:
    """Where the time from file to label goes, in microseconds a tile."""
    rows = [row for row in document["engines"] if row["clocks"]][::-1]
    figure, axes = _figure(1.1 + 0.28 * len(rows))
    left = np.zeros(len(rows))
    for i, part in enumerate(("decode", "copy", "engine", "host")):
        widths = np.array([1e6 * row["clocks"]["shares"][part] / row["clocks"]["file_to_label"]["images_per_second"] for row in rows])
        axes.barh(range(len(rows)), widths, 0.55, left, color=_SERIES[i], label=part)
        left += widths
    axes.set_yticks(range(len(rows)), [row["engine"] for row in rows])
    axes.set_xlabel(f"µs a tile, batches of {document['method']['clock_batch']}")
    axes.grid(axis="y", visible=False)
    _legend_below(axes, 4)
    return figure


@_drawn
def reliability(document: dict[str, Any]) -> Figure:
    """Accuracy over confidence, of every engine: on the diagonal a probability means what it says."""
    figure, axes = _figure(3.1)
    axes.plot([0, 100], [0, 100], color=_GRID, linewidth=1)
    for row in document["engines"]:
        curve = row["accuracy"]["reliability"]
        sure, right = ([100 * point[key] for point in curve] for key in ("confidence", "accuracy"))
        axes.plot(sure, right, color=_colour(document, row), linewidth=0.7, label=f"{row['engine']}: {100 * row['accuracy']['ece']:.1f} %")
        axes.scatter(sure, right, [6 + 120 * point["tiles"] / row["accuracy"]["tiles"] for point in curve], color=_colour(document, row))
    axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 103), ylim=(0, 106))
    _legend_below(axes)
    return figure


@_drawn
def selective(document: dict[str, Any]) -> Figure:
    """Accuracy of the answers that are kept, when the least certain are rejected."""
    figure, axes = _figure(3.1)
    for row in document["engines"]:
        curve = row["accuracy"]["selective"]
        axes.plot(
            [100 * point["coverage"] for point in curve],
            [100 * point["accuracy"] for point in curve],
            color=_colour(document, row),
            label=row["engine"],
        )
    axes.set(xlabel="tiles answered, %", ylabel="of those right, %")
    axes.invert_xaxis()
    _legend_below(axes)
    return figure


@_drawn
def confusion(document: dict[str, Any], engine: str) -> Figure:
    """Counts by true class (rows) and answer (columns); the shade is the share of the row."""
    classes = document["dataset"]["classes"]
    [row] = [row for row in document["engines"] if row["engine"] == engine]
    matrix = np.array(row["accuracy"]["confusion"])
    count = len(classes)
    figure, axes = _figure(1.3 + 0.34 * count)
    axes.grid(visible=False)
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    for i, j in np.ndindex(count, count):
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_SERIES[0], alpha=float(shares[i, j]), linewidth=0))
        if matrix[i, j]:
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=7, color=_PAPER if shares[i, j] > 0.55 else _INK)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), xlabel="answer", ylabel="true class")
    axes.set_xticks(range(count), classes, rotation=45, ha="right")
    axes.set_yticks(range(count), classes)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _colour(document: dict[str, Any], row: dict[str, Any]) -> str:
    place: int = document["engines"].index(row)
    return _SERIES[place % len(_SERIES)]


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure((_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.subplots()


def _legend_below(axes: Any, columns: int = 2) -> None:
    axes.figure.legend(ncols=columns, loc="outside lower center", handlelength=1.2, columnspacing=1.2)


def _plain_numbers(axis: Any) -> None:
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
