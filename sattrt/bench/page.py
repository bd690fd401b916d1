"""`bench.html`: the report as one page that needs nothing but itself, made from the document of `bench.json` and the pixels of its worst tiles.

html = to_html(report.document, report.worst)
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources
from itertools import compress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import by_reason
from ..html import definitions, facts, figure, source
from ..html import document as whole
from .rows import PERCENTILES
from .tables import (
    AT_LEAST,
    INDICATIVE,
    Cell,
    changes,
    details,
    flips,
    number,
    peer_speed,
    percent,
    percentile,
    rate,
    references,
    said_of_changes,
    said_of_details,
    said_of_flips,
    said_of_speed,
    score_text,
    speed,
)

Document = dict[str, Any]


def to_html(document: Document, worst: NDArray[np.uint8]) -> str:
    """The page, without its charts where matplotlib is missing. worst: the tiles of document["worst_tiles"], uint8 (N, H, W, 3)."""
    charts = _matplotlib()
    names = ", ".join(bundle["name"] for bundle in document["bundles"])
    worst_of = document["worst_tiles"][0]["engine"]
    parts = [
        f"<h1>{escape(names)}: speed and accuracy</h1>",
        f"<p class=faint>{escape(_subtitle(document))}</p>",
        "" if charts else "<p class=faint>Without charts: matplotlib is not installed here (pip install matplotlib).</p>",
        _facts(document),
        f"<h2>Engines</h2><p class=faint>{escape(_marks(document))}</p>",
        _engines(document),
        _list(document["warnings"]),
        _titled("Not measured here", (f"{', '.join(names)}: {reason}" for reason, names in by_reason(document["absent"]).items())),
        _changes(document),
        _titled("What limits them", (f"{row['engine']}: {row['verdict']}" for row in document["engines"] if row["verdict"])),
        "<h2>Speed</h2>",
        _speed(document, charts),
        "<h2>Accuracy</h2>",
        _accuracy(document, charts),
        f"<h2>The {len(worst)} tiles that are hardest for {escape(worst_of)}</h2>"
        "<p class=faint>True class, the probability that the network gave it, and what it answered instead.</p>",
        _worst(document, worst),
        _flips(document),
        "<h2>How this was measured</h2>",
        _method(document),
    ]
    return whole(f"{names}: sattrt bench", parts, resources.files(__package__).joinpath("page.js").read_text(encoding="utf-8"))


def _matplotlib() -> ModuleType | None:
    """What draws the charts, or None: a machine that only runs engines need not have matplotlib."""
    try:
        from . import charts
    except ImportError:
        return None
    return charts


def _subtitle(document: Document) -> str:
    environment, data = document["environment"], document["dataset"]
    return (
        f"{environment['cpu']}, {environment['cores']} cores; GPU: {environment['gpu'] or 'none'}. {data['tiles']:,} test tiles. "
        f"Split: {data['split_description']}. {document['measured_at'][:10]}, sattrt {document['sattrt']}."
    )


def _fastest(document: Document) -> dict[str, Any]:
    """The row of the engine with the most images a second; torch, which the others are compared with, only where it is alone."""
    rows = document["engines"]
    return max([row for row in rows if row["backend"] != "torch"] or rows, key=lambda row: speed(row) or 0)


def _facts(document: Document) -> str:
    """The figures that are looked for first, as the tables have them; of engines, torch's row is what they are compared with."""
    fastest, listed = _fastest(document), []
    engines = [row for row in document["engines"] if row["backend"] != "torch"] or document["engines"]
    alike = [row for row in document["engines"] if all(row[key] == fastest[key] for key in ("bundle", "threads"))]
    torch = next((row for row in alike if row["backend"] == "torch"), None)
    if speed(fastest):
        size = f"batches of {fastest['best_batch']}" if fastest["best_batch"] else "by its own clock"
        times = f", {speed(fastest) / speed(torch):.1f} times PyTorch" if torch and torch is not fastest and speed(torch) else ""
        listed.append((f"{speed(fastest):,.0f}", f"images a second: {fastest['engine']}, {size}{times}"))
    if quick := [row for row in engines if row["single_stream"]]:
        first = min(quick, key=lambda row: row["single_stream"]["latency_ms"]["p90"])
        listed.append((f"{percentile(first['single_stream'], 'p90', 2)[1]} ms", f"latency of one tile, 90th percentile: {first['engine']}"))
    if served := [row for row in engines if row["server"]]:
        first = max(served, key=lambda row: row["server"]["rate"])
        within = (
            f"single tiles at random moments, 99\N{NO-BREAK SPACE}% answered within {first['server']['bound_ms']:g} ms: {first['engine']}"
        )
        listed.append((f"{rate(first['server'])}/s", within))
    score = fastest["accuracy"]
    low, high = score["interval"]
    of = f"of {score['tiles']:,} test tiles right ({100 * low:.1f} to {100 * high:.1f}, 95\N{NO-BREAK SPACE}%): {fastest['engine']}"
    listed.append((percent(score), of))
    return facts(listed)


def _engines(document: Document) -> str:
    columns = [
        "engine",
        "on",
        "accuracy % (95 %)",
        "flips",
        "against",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "images/s",
        "file to label/s",
        "server/s",
    ]
    body, against = [], references(document)
    several_devices = len({row["device"] for row in document["engines"]}) > 1
    for i, row in enumerate(document["engines"]):
        found, single = row["accuracy"], row["single_stream"]
        body.append(
            [
                (row["engine"], f'<i class=look{i // 10 % 4} style="background:var(--s{i % 10})"></i>{escape(row["engine"])}'),
                (row["device"], escape(row["device"])) if several_devices else ("", ""),
                (found["accuracy"], score_text(found)),
                ("", "") if found["flips"] is None else (len(found["flips"]), str(len(found["flips"]))),
                (against[row["engine"]], escape(against[row["engine"]])),
                *(percentile(single, f"p{each}", 2) for each in PERCENTILES),
                number(speed(row) if row["best_batch"] else None, 0),
                number(row["clocks"] and row["clocks"]["file_to_label"]["images_per_second"], 0),
                (served["rate"], rate(served)) if (served := row["server"]) else ("", ""),
            ]
        )
    for peer in document["peers"]:
        blank: list[Cell] = [("", "")] * 5
        body.append(
            [
                (
                    peer["command"],
                    f'<span title="{escape(peer["command"], quote=True)}">peer: <code>{escape(peer["command"])}</code></span>',
                ),
                ("", ""),
                (peer["accuracy"], score_text(peer)),
                *blank,
                (peer["images_per_second"], peer_speed(peer)),
                *blank[:2],
            ]
        )
    used = [any(text for _, text in column) for column in zip(*body, strict=True)]  # nobody was asked for the others
    return _table("engines", list(compress(columns, used)), [list(compress(row, used)) for row in body])


def _marks(document: Document) -> str:
    """What the table's words and marks mean."""
    rows, served = document["engines"], [row["server"] for row in document["engines"] if row["server"]]
    bound = f" {AT_LEAST.strip()}: no trial failed above it." if any(found["at_least"] for found in served) else ""
    return (
        f"{said_of_flips(document)} {said_of_speed(document)} {INDICATIVE}: indicative, fewer than ten samples lie beyond it.{bound}"
        + f" All on {rows[0]['device']}." * (len({row["device"] for row in rows}) == 1)
        + " Click a heading to sort."
    )


def _flips(document: Document) -> str:
    columns, body = flips(document)
    said = "" if body else " There are none."
    return f"<h2>Flips</h2><p class=faint>{escape(said_of_flips(document) + said)}</p>" + (
        _table("flips", columns, _escaped(body), "scroll long") if body else ""
    )


def _changes(document: Document) -> str:
    if not document.get("changes"):
        return ""
    columns, body = changes(document)
    said = f"<p class=faint>{escape(said_of_changes(document))}</p>"
    return f"<h2>Against the baseline</h2>{said}" + _table("changes", columns, _escaped(body), "scroll long")


def _speed(document: Document, charts: ModuleType | None) -> str:
    drawn = []
    if charts and any(row["single_stream"] for row in document["engines"]):
        drawn.append(
            (
                "Latency of one tile",
                charts.latency(document),
                "Boxes: 25th to 75th percentile; line: median; whiskers: 1st to 99th percentile.",
            )
        )
    if charts and any(row["clocks"] for row in document["engines"]):
        drawn.append(
            (
                "From file to label",
                charts.clocks(document),
                "Decoding may run in parallel with the engine; then a bar is longer than the time it took.",
            )
        )
    if charts and any(row["offline"] for row in document["engines"]):
        drawn.append(
            ("Throughput over batch size", charts.throughput(document), "All images over all seconds; from host array to host array.")
        )
    if charts:
        best = [row["engine"] for row in charts.front(document)]
        alone = "".join(f"No other engine beats {name} in either." for name in best)
        front = "Dotted: what no other engine beats in both." if len(best) > 1 else alone
        drawn.append(("Accuracy against speed", charts.pareto(document), f"Bars: 95 % intervals. {front}"))
    columns, body = details(document)
    said = escape(said_of_details(document))
    return (
        _charts(drawn)
        + f"<h2>Clocks, and the machine's ceilings</h2><p class=faint>{said}</p>"
        + _table("details", columns, _escaped(body))
    )


def _accuracy(document: Document, charts: ModuleType | None) -> str:
    fastest = _fastest(document)
    engine = fastest["engine"]
    drawn = []
    if charts:
        drawn = [
            (
                "Accuracy against confidence",
                charts.reliability(document, tuple({fastest["reference"], engine})),
                "On the diagonal a probability is the share that is right. Bars: 95 % intervals; larger dots: more tiles. After the names: "
                "expected calibration error.",
            ),
            (
                "Accuracy with rejection",
                charts.selective(document),
                "Accuracy of the answers that remain when the least certain tiles are rejected.",
            ),
            (
                f"Confusion, {engine}",
                charts.confusion(document, engine),
                f"The fastest engine. Counts; red: errors. {_differs(fastest)}",
            ),
        ]
    rows = document["engines"]
    body = [
        [(name, escape(name)), (tiles := rows[0]["accuracy"]["per_class"][name]["tiles"], str(tiles))]
        + [number(row["accuracy"]["per_class"][name]["f1"] if tiles else None, 1, 100) for row in rows]
        for name in document["dataset"]["classes"]
    ]
    found = fastest["accuracy"]["per_class"]
    own = [
        [
            (name, escape(name)),
            *(number(found[name][key] if found[name]["tiles"] else None, 1, 100) for key in ("precision", "recall", "f1")),
        ]
        for name in document["dataset"]["classes"]
    ]
    drawn.append((f"By class, {engine}", _table("classes", ["class", "precision %", "recall %", "F1 %"], own), "The fastest engine."))
    return _charts(drawn) + "<h2>F1 by class, every engine</h2>" + _table("f1", ["class", "tiles", *(row["engine"] for row in rows)], body)


def _differs(row: dict[str, Any]) -> str:
    """How an engine's answers differ from those of its reference."""
    if row["accuracy"]["flips"] is None:
        return ""
    if row["engine"] == row["reference"]:
        return "The others are compared with it."
    count, tiles = len(row["accuracy"]["flips"]), row["accuracy"]["tiles"]
    return f"{count or 'None'} of its {tiles:,} answers differ from those of {row['reference']}."


def _worst(document: Document, worst: NDArray[np.uint8]) -> str:
    figures = []
    for tile, image in zip(document["worst_tiles"], worst, strict=True):
        kind = "" if tile["class"] == tile["answer"] else " class=wrong"
        caption = f"{escape(tile['class'])} {100 * tile['probability']:.0f}&nbsp;%" + (
            "" if not kind else f"<br>→ {escape(tile['answer'])}"
        )
        name = escape(tile["tile"], quote=True)
        figures.append(
            f'<figure{kind}><img src="{source(Image.fromarray(image))}" alt="{name}" title="{name}"><figcaption>{caption}</figcaption></figure>'
        )
    return f"<div class=tiles>{''.join(figures)}</div>"


def _method(document: Document) -> str:
    method, environment, data = document["method"], document["environment"], document["dataset"]
    text = (
        f"Warm-up until three windows agree within 5 %, then {method['seconds']:g} s for each engine, in turns, in a shuffled order (seed "
        f"{method['seed']}). Latency is a host array of one tile in, host arrays out; images a second the best of batches of {method['batches']}; file "
        f"to label begins with the encoded file, decoded by {data['decoder']}. Scenarios: {method['scenarios']}."
    )
    state = environment["gpu_state"]
    entries = {
        "CPU": f"{environment['cpu']} ({', '.join(environment['cpu_features'])})",
        "cores": environment["cores"],
        "GPU": environment["gpu"] or "none",
        "GPU state": state if isinstance(state, str) else ", ".join(f"{key} {value}" for key, value in state.items()),
        "energy": environment["energy"],
        "system": f"{environment['system']}, Python {environment['python']}",
        "libraries": ", ".join(f"{name} {version}" for name, version in environment["libraries"].items()),
        "sattrt": f"{document['sattrt']}, commit {environment['commit'] or 'unknown'}",
        "dataset": f"split {data['split']}, seed {data['seed']}, digest {data['digest']}",
        "bundles": ", ".join(f"{bundle['name']} {bundle['digest']}" for bundle in document["bundles"]),
    }
    for device, found in document["ceilings"].items():
        rates = [
            f"{name} {rate / 1e9:,.0f} {'GOP/s' if name == 'int8' else 'GFLOP/s'}" for name, rate in found["operations_per_second"].items()
        ]
        memory = found["memory_bytes_per_second"]
        rates += [f"memory {memory / 1e9:.1f} GB/s"] if memory else []
        entries[f"ceiling, {device}"] = ", ".join(rates) or "not measured: it takes PyTorch"
    return f"<p>{escape(text)}</p>{definitions(entries)}"


def _titled(title: str, lines: Iterable[str]) -> str:
    """A list under its heading; nothing where it is empty."""
    listed = _list(lines)
    return listed and f"<h2>{title}</h2>{listed}"


def _escaped(body: Iterable[Iterable[Cell]]) -> list[list[Cell]]:
    return [[(value, escape(text)) for value, text in row] for row in body]


def _table(name: str, columns: Iterable[str], body: list[list[Cell]], box: str = "scroll") -> str:
    kinds = [" class=text" if any(isinstance(value, str) and value for value, _ in column) else "" for column in zip(*body, strict=True)]
    head = "".join(f"<th{kind}><button>{escape(column)}</button></th>" for column, kind in zip(columns, kinds, strict=True))
    lines = "".join("<tr>" + "".join(map(_cell, row, kinds)) + "</tr>" for row in body)
    return f'<div class="{box}"><table class=sorts id="{name}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(cell: Cell, kind: str) -> str:
    value, text = cell
    return f'<td{kind} data-value="{escape(str(value), quote=True)}">{text}</td>'


def _charts(drawn: list[tuple[str, str, str]]) -> str:
    return f"<div class=charts>{''.join(figure(*each) for each in drawn)}</div>"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line).replace(' %', '&nbsp;%')}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
