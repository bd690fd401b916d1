"""The tables of a report, made from its document: for the screen, and as `bench.md`."""

from __future__ import annotations

from itertools import compress
from typing import Any

from ..errors import by_reason
from .rows import PERCENTILES

Row = dict[str, Any]
Cell = tuple[Any, str]  # the value that is sorted by, and its text
INDICATIVE = "~"  # before a percentile that fewer than ten samples lie beyond
AT_LEAST = "≥ "  # before a rate that no trial failed above
CLOCKS = {"engine": "engine alone", "host_to_host": "host to host", "file_to_label": "file to label"}
_MOST_FLIPS = 20  # of an engine that bench.md lists
_COLUMNS = ("engine", "on", "accuracy % (95 %)", "flips", "against", "ms p50/p90/p99", "images/s (batch)", "file to label/s", "server/s")


def cells(row: Row, reference: str) -> tuple[str, ...]:
    """An engine's row of the table, in the order of `_COLUMNS`; reference: whom its flips are held against, where that differs by row."""
    found, single, clocks, served = row["accuracy"], row["single_stream"], row["clocks"], row["server"]
    return (
        row["engine"],
        row["device"],
        score_text(found),
        "" if found["flips"] is None else str(len(found["flips"])),
        reference,
        _latencies(single),
        f"{speed(row):,.0f} ({row['best_batch']})" if row["best_batch"] else "",
        f"{clocks['file_to_label']['images_per_second']:,.0f}" if clocks else "",
        rate(served) if served else "",
    )


def table(document: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the main table: engines, foreign programs, and what was not measured. Columns without a single figure are left out."""
    shown = [cells(row, references(document)[row["engine"]]) for row in document["engines"]]
    for peer in document["peers"]:
        shown.append((f"peer: {peer['command']}", "", score_text(peer), "", "", "", peer_speed(peer), "", ""))
    shown += [(name, "not here", *[""] * (len(_COLUMNS) - 2)) for name in document["absent"]]
    used = [any(column) for column in zip(*shown, strict=True)]
    return tuple(compress(_COLUMNS, used)), [tuple(compress(row, used)) for row in shown]


def score_text(scored: Row) -> str:
    """An accuracy with its interval, of an engine or a peer, in percent."""
    low, high = scored["interval"]
    return f"{100 * scored['accuracy']:.2f} ({100 * low:.1f}-{100 * high:.1f})"


def peer_speed(peer: Row) -> str:
    """Images a second of a foreign program, marked where it is indicative."""
    return f"{INDICATIVE * peer['indicative']}{peer['images_per_second']:,.0f}"


def references(document: Row) -> dict[str, str]:
    """By engine: the reference of its flips as a cell; empty where all have the same, which the text above the table names."""
    engines = document["engines"]
    several = len({row["reference"] for row in engines}) > 1
    return {row["engine"]: row["reference"] * several for row in engines}


def said_of_flips(document: Row) -> str:
    """What a flip is, and against whom."""
    if all(row["accuracy"]["flips"] is None for row in document["engines"]):
        return "Flips are not counted: no other engine of this network runs here to compare with."
    [name, *others] = dict.fromkeys(row["reference"] for row in document["engines"])
    return f"Flips: top-1 answers that differ from those of {'the engine they are compared with' if others else name}."


def said_of_speed(document: Row) -> str:
    """What the columns of speed are."""
    served = ""
    if any(row["server"] for row in document["engines"]):
        served = f" server/s: single tiles at random moments, 99 % answered within {document['method']['latency_bound']:g} ms."
    return (
        "ms: latency of one tile after another, from host array to host array. images/s: the best of the batch sweep. "
        f"File to label: read, decode, infer, argmax.{served}"
    )


def flips(document: Row, most: int | None = None) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns and rows of every tile that an engine answers otherwise than its reference, the first `most` of each."""
    columns = ("engine", "tile", "class", "its answer", "against", "that one's answer")
    shown = []
    for row in document["engines"]:
        found = row["accuracy"]
        for name, (truth, own, other) in list(zip(found["flips"] or [], found["flip_answers"], strict=True))[:most]:
            shown.append(tuple((text, text) for text in (row["engine"], name, truth, own, row["reference"], other)))
    return columns, shown


def details(document: Row) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns and rows of the second table: the three clocks, several tiles and several callers at once, shares of the machine's ceilings."""
    rows = document["engines"]
    callers = list(dict.fromkeys(count for row in rows for count in row["callers"]))
    columns = (
        "engine",
        *(f"{text}/s" for text in CLOCKS.values()),
        "8 tiles, ms",
        *(f"{count} caller{'s' * (count != '1')}/s" for count in callers),
        "matrix %",
        "memory %",
        "J per 1,000",
        "ECE %",
    )
    shown = [
        (
            (row["engine"], row["engine"]),
            *(number(row["clocks"] and row["clocks"][name]["images_per_second"], 0) for name in CLOCKS),
            (many["latency_ms"]["p50"] if (many := row["multi_stream"]) else "", _latencies(many)),
            *(number(row["callers"].get(count), 0) for count in callers),
            (share, "> 100") if (share := row["fraction_of_matrix_rate"] or 0) > 1 else number(row["fraction_of_matrix_rate"], 0, 100),
            number(row["fraction_of_memory_rate"], 0, 100),
            number(row["joules_per_1000_images"], 1),
            number(row["accuracy"]["ece"], 2, 100),
        )
        for row in rows
    ]
    used = [any(text for _, text in column) for column in zip(*shown, strict=True)]
    return tuple(compress(columns, used)), [tuple(compress(row, used)) for row in shown]


def said_of_details(document: Row) -> str:
    """What has to be said above the second table."""
    text = "Tiles a second by each clock; eight tiles a query, p50/p90/p99; percent of the rate of a large matrix product and of memory. "
    text += "ECE: expected calibration error, how far the share of right answers lies from the probability that was given."
    read = next((row["clocks"]["decoding"]["images_per_second"] for row in document["engines"] if row["clocks"]), None)
    return f"{text} Reading and decoding alone: {read:,.0f} tiles a second." if read else text


def changes(document: Row) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns and rows of what differs from the baseline; no row without one."""
    columns = ("engine", "figure", "baseline", "now", "change % (+: better)", "noise %", "beyond the noise")
    return columns, [
        (
            (change["engine"], change["engine"]),
            (change["figure"], change["figure"]),
            (change["old"], f"{change['old']:.4g}"),
            (change["new"], f"{change['new']:.4g}"),
            (change["percent"], f"{change['percent']:+.1f}"),
            number(change["noise"], 1),
            (change["exceeds_noise"], "yes" if change["exceeds_noise"] else "no"),
        )
        for change in sorted(document.get("changes", ()), key=lambda change: not change["exceeds_noise"])
    ]


def said_of_changes(document: Row) -> str:
    """How much differs from the baseline."""
    found = document["changes"]
    real = [change["percent"] for change in found if change["exceeds_noise"]]
    better = sum(percent > 0 for percent in real)
    return f"{len(real)} of {len(found)} figures differ by more than the noise: {better} better, {len(real) - better} worse. Accuracy: in points."


def rate(served: Row) -> str:
    """What the server scenario found, marked where it is indicative, or a lower bound; where no rate was held, below which it must lie."""
    if not served["rate"] and (lowest := served["lowest_tried"]):
        return f"below {lowest:,.0f}" if lowest >= 10 else f"below {lowest:.2g}"
    return f"{INDICATIVE * served['indicative']}{AT_LEAST * served['at_least']}{served['rate']:,.0f}"


def speed(row: Row) -> Any:
    """Images a second by which an engine is judged: the best of the batch sweep or, where none was made, the engine's own clock."""
    if row["best_batch"]:
        return row["offline"][str(row["best_batch"])]["images_per_second"]
    return row["clocks"] and row["clocks"]["engine"]["images_per_second"]


def percentile(timed: Row | None, name: str, digits: int) -> Cell:
    """A percentile of a latency in ms and its text, marked where it is indicative; both empty where none was taken."""
    if timed is None:
        return "", ""
    return timed["latency_ms"][name], f"{INDICATIVE * (name in timed['indicative'])}{timed['latency_ms'][name]:,.{digits}f}"


def percent(found: Row) -> str:
    """An accuracy in percent, without the digits that its interval makes idle."""
    low, high = found["interval"]
    digits = next((count for count in (2, 1) if 50 * (high - low) <= 0.5 / 10**count), 0)
    return f"{100 * found['accuracy']:.{digits}f} %"


def number(value: Any, digits: int, times: float = 1) -> Cell:
    """A figure and its text; both empty where there is none."""
    return ("", "") if value is None else (value, f"{times * value:,.{digits}f}")


def _latencies(timed: Row | None) -> str:
    return "/".join(percentile(timed, f"p{each}", 1)[1] for each in PERCENTILES) if timed else ""


def to_markdown(document: Row) -> str:
    """The report for people who read text."""
    environment, data, method = document["environment"], document["dataset"], document["method"]
    engines = document["engines"]
    lines = [
        f"# {', '.join(bundle['name'] for bundle in document['bundles'])}: speed and accuracy",
        "",
        f"{environment['cpu']}, {environment['cores']} cores; GPU: {environment['gpu'] or 'none'}. {document['measured_at']}, sattrt "
        f"{document['sattrt']}, bundle {', '.join('`' + bundle['digest'][:16] + '`' for bundle in document['bundles'])}.",
        "",
        f"{data['tiles']:,} test tiles, decoded by {data['decoder']}. Split: {data['split_description']}. {said_of_flips(document)} "
        f"{said_of_speed(document)} {INDICATIVE}: indicative, fewer than ten samples lie beyond it. Each timed for {method['seconds']:g} s "
        "after its warm-up, in turns.",
        "",
        *_markdown(*table(document)),
    ]
    if document["warnings"]:
        lines += ["", *[f"- {warning}" for warning in document["warnings"]]]
    if document["absent"]:
        lines += [
            "",
            "## Not measured here",
            "",
            *[f"- {', '.join(names)}: {reason}" for reason, names in by_reason(document["absent"]).items()],
        ]
    if any(row["verdict"] for row in engines):
        lines += ["", "## What limits them", "", *[f"- {row['engine']}: {row['verdict']}" for row in engines if row["verdict"]]]
    lines += ["", "## Flips", "", *_flips(document)]
    columns, shown = details(document)
    lines += [
        "",
        "## Clocks, and the machine's ceilings",
        "",
        said_of_details(document),
        "",
        *_markdown(columns, _texts(shown)),
    ]
    if sizes := sorted({size for row in engines for size in row["offline"]}, key=int):  # one may lack a size at which it failed
        sweep = [
            (row["engine"], *[f"{row['offline'][size]['images_per_second']:,.0f}" if size in row["offline"] else "" for size in sizes])
            for row in engines
        ]
        lines += ["", "## Images a second by batch size", "", *_markdown(("engine", *sizes), sweep)]
    columns, shown = changes(document)
    if shown:
        lines += ["", "## Against the baseline", "", said_of_changes(document), "", *_markdown(columns, _texts(shown))]
    names = [row["engine"] for row in engines]
    per_class = [
        (name, *["{correct} of {tiles}".format(**row["accuracy"]["per_class"][name]) for row in engines]) for name in data["classes"]
    ]
    lines += ["", "## Right of all tiles, by class", "", *_markdown(("class", *names), per_class)]
    lines += ["", "Libraries: " + ", ".join(f"{name} {version}" for name, version in environment["libraries"].items()) + "."]
    return "\n".join(lines) + "\n"


def _flips(document: Row) -> list[str]:
    columns, shown = flips(document, _MOST_FLIPS)
    if not shown:
        return ["None."]
    lines = _markdown(columns, _texts(shown))
    if longer := [row["engine"] for row in document["engines"] if len(row["accuracy"]["flips"] or []) > _MOST_FLIPS]:
        lines += ["", f"The first {_MOST_FLIPS} of {', '.join(longer)}; all are in bench.html and bench.json."]
    return lines


def _texts(rows: list[tuple[Cell, ...]]) -> list[tuple[str, ...]]:
    return [tuple(text for _, text in row) for row in rows]


def _markdown(columns: tuple[str, ...], table: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
