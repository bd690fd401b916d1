"""The charts of a report as SVG, by matplotlib; colours are CSS variables, so that the page decides between light and dark.

The first sentence of a chart's docstring is its text for who can't see it.

svg = latency(document)
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..accuracy import wilson
from ..figure import short, without_glyphs
from .tables import speed

# what matplotlib draws with, and what the page puts in its place
_INK, _GRID, _PAPER = "#0a0b01", "#0a0b02", "#0a0b03"
_SERIES = tuple(f"#0a0c{i:02x}" for i in range(10))
_MARKERS, _DASHES = "os^D", ("-", "--", "-.", ":")  # of the first ten engines, the second, ...
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
_WIDTH = 4.7  # inches, in half the page's width; a phone scrolls a chart (page.css)
_LEGEND_LINE = 0.17  # inches
_NUMBER = mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}")


def _drawn(draw: Callable[..., Figure]) -> Callable[..., str]:
    """A function that draws a figure, as one that gives it as SVG."""

    @functools.wraps(draw)
    def svg(*arguments: Any) -> str:
        with mpl.rc_context(_STYLE):
            return _svg(draw(*arguments), draw.__name__, str(draw.__doc__).partition(":")[0].partition(";")[0].rstrip("."))

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
        medianprops={"linewidth": 1.4, "color": _INK},
        boxprops={"linewidth": 0},
        whiskerprops={"color": _INK, "linewidth": 0.8},
        capprops={"color": _INK, "linewidth": 0.8},
    )
    for patch, row in zip(drawn["boxes"], rows, strict=True):
        patch.set_facecolor(_colour(document, row))
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
            markersize=3.5,
            label=row["engine"],
            **_look(document, row),
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_NUMBER)
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.yaxis.set_major_formatter(_NUMBER)
    axes.set(xlabel="batch size", ylabel="images a second", ylim=(0, None))
    _legend_below(axes)
    return figure


@_drawn
def pareto(document: dict[str, Any]) -> Figure:
    """Accuracy with its interval against images a second; a line joins what no other engine beats in both."""
    figure, axes = _figure(3.1)
    for row in document["engines"]:
        if (images := speed(row)) is None:
            continue
        low, high = (100 * bound for bound in row["accuracy"]["interval"])
        percent = 100 * row["accuracy"]["accuracy"]
        look = _look(document, row) | {"linestyle": ""}
        axes.errorbar(images, percent, [[percent - low], [high - percent]], elinewidth=0.8, markersize=5, label=row["engine"], **look)
    points = sorted((speed(row), 100 * row["accuracy"]["accuracy"]) for row in front(document))
    axes.plot(*np.transpose(points), color=_INK, linewidth=0.9, linestyle=":", zorder=0)
    axes.xaxis.set_major_formatter(_NUMBER)
    swept = any(row["best_batch"] for row in document["engines"])
    axes.set(xlabel=f"images a second, {'best batch size' if swept else 'the engine alone'}", ylabel="accuracy, %", xlim=(0, None))
    _legend_below(axes)
    return figure


def front(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that no other beats in both accuracy and speed."""
    rows = [row for row in document["engines"] if speed(row) is not None]

    def beaten(row: dict[str, Any], by: dict[str, Any]) -> bool:
        return bool(speed(by) > speed(row) and by["accuracy"]["accuracy"] >= row["accuracy"]["accuracy"])

    return [row for row in rows if not any(beaten(row, other) for other in rows)]


@_drawn
def clocks(document: dict[str, Any]) -> Figure:
    """Where the time from file to label goes, in microseconds a tile."""
    rows = [row for row in document["engines"] if row["clocks"]][::-1]
    figure, axes = _figure(1.1 + 0.28 * len(rows))
    left = np.zeros(len(rows))
    for part, shade in {"decode": 0.25, "copy": 0.95, "engine": 0.5, "host": 0.75}.items():  # the colours are those of engines
        widths = np.array([1e6 * row["clocks"]["shares"][part] / row["clocks"]["file_to_label"]["images_per_second"] for row in rows])
        axes.barh(range(len(rows)), widths, 0.55, left, color=_INK, alpha=shade, linewidth=0, label=part)
        left += widths
    axes.set_yticks(range(len(rows)), [row["engine"] for row in rows])
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    axes.set_xlabel(f"µs a tile, batches of {document['method']['clock_batch']}")
    axes.xaxis.set_major_formatter(_NUMBER)
    axes.grid(visible=False)
    _legend_below(axes, 4)
    return figure


@_drawn
def reliability(document: dict[str, Any], engines: tuple[str, ...]) -> Figure:
    """Accuracy over confidence of some engines, with 95 % intervals: on the diagonal a probability means what it says."""
    figure, axes = _figure(3.1)
    axes.plot([0, 100], [0, 100], color=_INK, linewidth=0.9, linestyle=":", zorder=0)
    rows = [row for row in document["engines"] if row["engine"] in engines]
    lowest = min(point["confidence"] for row in rows for point in row["accuracy"]["reliability"])
    for i, row in enumerate(rows):
        curve = row["accuracy"]["reliability"]
        sure, right = (np.array([100 * point[key] for point in curve]) for key in ("confidence", "accuracy"))
        bounds = 100 * np.array([wilson(round(point["accuracy"] * point["tiles"]), point["tiles"]) for point in curve])
        look = _look(document, row)
        label = f"{row['engine']}: {100 * row['accuracy']['ece']:.1f} %"
        beside = sure + 0.7 * (i - (len(rows) - 1) / 2)  # their bars stand beside each other
        bars = np.abs(bounds.T - right)  # to both sides; of all or none, rounding may lie beyond
        axes.errorbar(beside, right, bars, color=look["color"], fmt="none", elinewidth=0.9)
        sizes = [10 + 110 * point["tiles"] / row["accuracy"]["tiles"] for point in curve]
        axes.scatter(beside, right, sizes, color=look["color"], marker=look["marker"])
        axes.plot([], [], label=label, **look | {"linestyle": ""})
    axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(10 * np.floor(10 * lowest) - 3, 103), ylim=(-3, 106))
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
            label=row["engine"],
            **_look(document, row) | {"marker": ""},
        )
    curves = [row["accuracy"]["selective"] for row in document["engines"]]
    flat = min(max((point["accuracy"], point["coverage"]) for point in curve)[1] for curve in curves)  # beyond it nothing is gained
    axes.set(xlabel="tiles answered, %", ylabel="of those right, %", xlim=(100.5, min(90, max(0, 100 * flat - 5))))
    _legend_below(axes)
    return figure


@_drawn
def confusion(document: dict[str, Any], engine: str) -> Figure:
    """Counts by true class (rows) and answer (columns); the darker, the larger the share of the row."""
    classes = document["dataset"]["classes"]
    [row] = [row for row in document["engines"] if row["engine"] == engine]
    matrix = np.array(row["accuracy"]["confusion"])
    count = len(classes)
    side = 1.3 + 0.34 * count
    figure, axes = _figure(side, max(_WIDTH, side + 0.7))
    axes.grid(visible=False)
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    for i, j in np.ndindex(count, count):
        if matrix[i, j]:
            colour, shade = (_SERIES[0] if i == j else _SERIES[9]), 0.15 + 0.85 * float(shares[i, j]) ** 0.5  # one error is seen
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, alpha=shade, linewidth=0))
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=7, color=_PAPER if shade > 0.7 else _INK)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), xlabel="answer", ylabel="true class")
    names = [short(name) for name in classes]
    axes.set_xticks(range(count), names, rotation=45, ha="right")
    axes.set_yticks(range(count), names)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _colour(document: dict[str, Any], row: dict[str, Any]) -> str:
    place: int = document["engines"].index(row)
    return _SERIES[place % len(_SERIES)]


def _look(document: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Colour, marker and dashes of an engine: what has the colour of another has another shape."""
    again = document["engines"].index(row) // len(_SERIES) % len(_DASHES)
    return {"color": _colour(document, row), "marker": _MARKERS[again], "linestyle": _DASHES[again]}


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Any]:
    figure = Figure((width, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.subplots()


def _legend_below(axes: Any, columns: int = 2) -> None:
    lines = -(-len(axes.get_legend_handles_labels()[0]) // columns)
    axes.figure.set_figheight(axes.figure.get_figheight() + _LEGEND_LINE * max(0, lines - 4))  # many engines leave the chart its height
    axes.figure.legend(ncols=columns, loc="outside lower center", handlelength=1.2, columnspacing=1.2)


def _svg(figure: Figure, name: str, said: str) -> str:
    buffer = io.StringIO()
    with without_glyphs():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    start = text.index("<svg")
    end = text.index(">", start)
    head = re.sub(r' (?:width|height)="[^"]*"', "", text[start:end]) + f' role="img" aria-label="{escape(said, quote=True)}"'
    text = head + text[end:]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)  # a page has several: each id once
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
