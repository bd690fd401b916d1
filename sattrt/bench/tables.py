"""The tables of a report, made from its document: for the screen, and as `bench.md`."""

from __future__ import annotations

from itertools import compress
from typing import Any

from .rows import PERCENTILES, by_reason

_COLUMNS = ("engine", "on", "accuracy % (95 %)", "flips", "ms p50/p90/p99", "images/s (batch)", "file to label/s", "server/s")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """An engine's row of the table, in the order of `_COLUMNS`."""
    found, single, clocks, served = row["accuracy"], row["single_stream"], row["clocks"], row["server"]
    low, high = found["interval"]
    best = row["offline"].get(str(row["best_batch"]))
    return (
        row["engine"],
        row["device"],
        f"{100 * found['accuracy']:.2f} ({100 * low:.1f}-{100 * high:.1f})",
        str(len(found["flips"])),
        "/".join(f"{single['latency_ms'][f'p{percentile}']:.1f}" for percentile in PERCENTILES) if single else "",
        f"{best['images_per_second']:.0f} ({row['best_batch']})" if best else "",
        f"{clocks['file_to_label_per_second']:.0f}" if clocks else "",
        f"{served['rate']:.0f}" if served else "",
    )


def table(document: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the main table: engines, foreign programs, and what was not measured. Columns without a single figure are left out."""
    shown = [cells(row) for row in document["engines"]]
    for peer in document["peers"]:
        low, high = peer["interval"]
        score = f"{100 * peer['accuracy']:.2f} ({100 * low:.1f}-{100 * high:.1f})"
        shown.append((f"peer: {peer['command']}", "", score, "", "", f"{peer['images_per_second']:.0f}", "", ""))
    shown += [(name, "not here", *[""] * (len(_COLUMNS) - 2)) for name in document["absent"]]
    used = [any(column) for column in zip(*shown, strict=True)]
    return tuple(compress(_COLUMNS, used)), [tuple(compress(row, used)) for row in shown]


def to_markdown(document: dict[str, Any]) -> str:
    """The report for people who read text."""
    environment, data, method = document["environment"], document["dataset"], document["method"]
    engines = document["engines"]
    served = ""
    if any(row["server"] for row in engines):
        served = f"server/s: single tiles at random moments, 99 % answered within {method['latency_bound']:g} ms. "
    lines = [
        f"# {', '.join(bundle['name'] for bundle in document['bundles'])}: speed and accuracy",
        "",
        f"{environment['cpu']}, {environment['cores']} cores; GPU: {environment['gpu'] or 'none'}. {document['measured_at']}, sattrt "
        f"{document['sattrt']}, bundle {', '.join('`' + bundle['digest'][:16] + '`' for bundle in document['bundles'])}.",
        "",
        f"{data['tiles']} test tiles, decoded by {data['decoder']}. Split: {data['split_description']}. Flips: top-1 answers that differ from "
        f"{engines[0]['reference']}. ms: one tile after another, from host array to host array. images/s: the best of the batch sweep. File to "
        f"label: read, decode, infer, argmax. {served}Each timed for {method['seconds']:g} s after its warm-up, in turns.",
        "",
        *_markdown(*table(document)),
    ]
    if document["warnings"]:
        lines += ["", *[f"- {warning}" for warning in document["warnings"]]]
    if document["absent"]:
        lines += ["", *[f"- {', '.join(names)}: {reason}" for reason, names in by_reason(document["absent"]).items()]]
    if any(row["verdict"] for row in engines):
        lines += ["", "## What bounds it", "", *[f"- {row['engine']}: {row['verdict']}" for row in engines if row["verdict"]]]
    if sizes := list(engines[0]["offline"]):
        sweep = [
            (row["engine"], *[f"{row['offline'][size]['images_per_second']:.0f}" if size in row["offline"] else "" for size in sizes])
            for row in engines
        ]
        lines += ["", "## Images a second by batch size", "", *_markdown(("engine", *sizes), sweep)]
    names = [row["engine"] for row in engines]
    per_class = [
        (name, *["{correct} of {tiles}".format(**row["accuracy"]["per_class"][name]) for row in engines]) for name in data["classes"]
    ]
    lines += ["", "## Right of all tiles, by class", "", *_markdown(("class", *names), per_class)]
    lines += ["", "Libraries: " + ", ".join(f"{name} {version}" for name, version in environment["libraries"].items()) + "."]
    return "\n".join(lines) + "\n"


def _markdown(columns: tuple[str, ...], table: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
