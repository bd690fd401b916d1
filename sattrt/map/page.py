"""The report of a map: one HTML page that needs nothing but itself.

html = to_html(map, statistics, *scene_picture(scene), map_picture(path, by_value), colours)
"""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from ..html import definitions, document, facts, figure, source
from .colours import Colour
from .mapfile import MapFile, Statistics

_BARS = 20


def to_html(found: MapFile, statistics: Statistics, scene: Image.Image, caption: str, drawn: Image.Image, colours: list[Colour]) -> str:
    """The page. scene, caption: a picture of the scene, and what it shows. drawn: that of the map. colours: of the classes, in index order."""
    parts = [
        f"<h1>{escape(found.made['scene'])}: land cover</h1>",
        f"<p class=faint>{escape(_subtitle(found))}</p>",
        *(f"<p class=note>{escape(text[:1].upper() + text[1:])}.</p>" for text in found.made["says"]),
        _facts(found, statistics),
        "<div class=charts>",
        figure("The scene", _picture(scene, "the scene"), caption),
        figure("The map", _picture(_of_scene(found, drawn), "the map"), "Hatched: no data." if statistics.nothing else ""),
        "</div>",
        "<h2>Area by class</h2>",
        _areas(found, statistics, colours),
        f"<p class=faint>{escape(_of_areas(found))}</p>",
        "<h2>Confidence</h2>",
        figure(
            "Area by confidence",
            _histogram(found, statistics),
            "Confidence: mean probability of the winning class, not the chance of being right.",
        ),
        "<h2>How this was made</h2>",
        _made(found),
    ]
    return document(f"{found.path.name}: sattrt map", parts)


def _subtitle(found: MapFile) -> str:
    made = found.made
    return f"{made['kind']}, {made['width']:,} x {made['height']:,} pixels. Map of {found.width:,} x {found.height:,} cells, sattrt {made['sattrt']}."


def _facts(found: MapFile, statistics: Statistics) -> str:
    mapped = float(statistics.area.sum())
    listed = [(f"{mapped:,.0f}", f"{_unit(found)} mapped, {statistics.nothing:,.0f} without data")]
    if mapped:
        first = int(statistics.area.argmax())
        percents = np.arange(101)
        confidence = float((statistics.histogram * percents).sum() / mapped)
        weak = float(statistics.histogram[:50].sum() / mapped)
        listed += [
            (f"{100 * statistics.area[first] / mapped:.1f} %", f"of it {found.classes[first]}, the largest class"),
            (f"{confidence:.0f} %", "mean confidence"),
            (f"{100 * weak:.1f} %", "of the area with a confidence below 50 %"),
        ]
    return facts(listed)


def _areas(found: MapFile, statistics: Statistics, colours: list[Colour]) -> str:
    lines = []
    for colour, each in sorted(zip(colours, found.shares(statistics), strict=True), key=lambda line: -line[1].area):
        chip = f'<i style="background:rgb{colour}"></i>'
        sure = "" if each.confidence is None else f"{each.confidence:.1f}"
        lines.append(f"<tr><td>{chip}{escape(each.name)}</td><td>{each.area:,.1f}</td><td>{each.share:.1f}</td><td>{sure}</td></tr>")
    lines.append(f"<tr><td>all</td><td>{statistics.area.sum():,.1f}</td><td>100.0</td><td></td></tr>" * bool(statistics.area.sum()))
    lines.append(f"<tr><td>no data</td><td>{statistics.nothing:,.1f}</td><td></td><td></td></tr>" * bool(statistics.nothing))
    head = "".join(f"<th>{escape(text)}</th>" for text in ("class", f"area, {_unit(found)}", "share %", "mean confidence %"))
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _of_areas(found: MapFile) -> str:
    if found.unit == "pixels":
        return "The scene lacks a usable georeference: areas are in pixels."
    return "Areas are sums of cells as classified, edge cells by their share inside the scene; misclassification is not corrected."


def _histogram(found: MapFile, statistics: Statistics) -> str:
    """Bars of 5 percent each."""
    edges = np.linspace(0, 100, _BARS + 1)
    heights = np.histogram(np.arange(101), edges, weights=statistics.histogram)[0]
    most = float(heights.max()) or 1.0
    step = 100 / _BARS
    bars = "".join(
        f'<rect x="{i * step + 0.1:.1f}" y="{100 - height / most * 100:.1f}" width="{step - 0.2:.1f}" height="{height / most * 100:.1f}" fill="var(--s0)">'
        f"<title>{edges[i]:.0f} to {edges[i + 1]:.0f} %: {height:,.1f} {_unit(found)}</title></rect>"
        for i, height in enumerate(heights)
    )
    ticks = "".join(f'<span style="left: {percent}%">{percent} %</span>' for percent in (0, 25, 50, 75, 100))
    # the bars are stretched to the page's width, the text is not
    drawn = f'<svg class=bars viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="area by confidence">{bars}</svg>'
    return f"{drawn}<p class=ticks>{ticks}</p>"


def _made(found: MapFile) -> str:
    made = found.made
    settings = ", ".join(f"{name} {value}" for name, value in made["settings"].items() if value not in (None, ""))
    entries: dict[str, object] = {
        "engine": f"{made['engine']} on {made['device']}",
        "bundle": made["bundle"],
        "windows": f"{made['tile'][1]} x {made['tile'][0]} pixels, {made['stride']} apart; a cell is {made['stride']} x {made['stride']} pixels",
        "settings": settings,
        "CRS": found.crs.split('"')[1] if '"' in found.crs else "none",
    }
    return definitions(entries)


def _unit(found: MapFile) -> str:
    return "hectares" if found.unit == "ha" else found.unit


def _of_scene(found: MapFile, drawn: Image.Image) -> Image.Image:
    """The picture without what the cells at its right and lower edge show beyond the scene: it lies beside that of the scene."""
    pixel = drawn.width / (found.width * found.made["stride"])
    return drawn.crop((0, 0, max(1, round(found.made["width"] * pixel)), max(1, round(found.made["height"] * pixel))))


def _picture(image: Image.Image, what: str) -> str:
    return f'<img src="{source(image)}" alt="{what}">'
