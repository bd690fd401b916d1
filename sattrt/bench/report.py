"""A measured report as `bench.json` (everything, raw samples too) and `bench.md` (for people)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..spec import write_bytes, write_json
from .run import Report, Row

SCHEMA = 1
COLUMNS = ("engine", "on", "accuracy % (95 %)", "flips", "ms p50/p90/p99", "images/s (batch)", "file to label/s")


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write bench.json and bench.md into a folder; returns their paths."""
    paths = folder / "bench.json", folder / "bench.md"
    write_json(paths[0], to_json(report))
    write_bytes(paths[1], to_markdown(report).encode())
    return paths


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain values; times in seconds, shares 0..1."""
    rows = [
        {
            "engine": row.name,
            "device": row.device,
            "accuracy": row.score.accuracy,
            "interval": [row.score.low, row.score.high],
            "correct": row.score.correct,
            "tiles": row.score.tiles,
            "per_class": {name: {"correct": right, "tiles": all_} for name, (right, all_) in row.score.per_class.items()},
            "flips": [report.tile_names[i] for i in row.score.flips or []],
            "largest_logit_error": row.largest_logit_error,
            "latency_ms": {f"p{percentile}": row.speed.latency_ms(percentile) for percentile in (50, 90, 99)},
            "images_per_second": {str(batch): row.speed.throughput(batch) for batch in row.speed.seconds},
            "file_to_label_per_second": row.file_to_label,
            "seconds": {str(batch): taken for batch, taken in row.speed.seconds.items()},
        }
        for row in report.rows
    ]
    head = {key: value for key, value in vars(report).items() if key not in ("rows", "tile_names")}
    return {"schema": SCHEMA, **head, "engines": rows}


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, in the order of `COLUMNS`."""
    speed, score = row.speed, row.score
    return (
        row.name,
        row.device,
        f"{100 * score.accuracy:.2f} ({100 * score.low:.1f}-{100 * score.high:.1f})",
        str(len(score.flips or [])),
        "/".join(f"{speed.latency_ms(percentile):.1f}" for percentile in (50, 90, 99)),
        f"{speed.throughput(speed.best_batch):.0f} ({speed.best_batch})",
        f"{row.file_to_label:.0f}",
    )


def to_markdown(report: Report) -> str:
    """The report for people."""
    environment, tiles = report.environment, report.rows[0].score.tiles
    lines = [
        f"# {report.bundle}: speed and accuracy",
        "",
        f"{environment['cpu']}, {environment['cores']} cores ({report.threads} threads used); GPU: {environment['gpu'] or 'none'}. "
        f"{report.measured_at}, sattrt {report.sattrt}, bundle `{report.bundle_digest[:16]}`.",
        "",
        f"{tiles} test tiles (split {report.split}), decoded by {report.decoder}. Flips are top-1 answers that differ from {report.reference}. "
        "Latency is one tile from host array to host array; images/s the best of the batch sweep, engine only; "
        "file to label begins with the encoded file: read, decode, infer, argmax.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in report.rows]
    lines += [f"| {name} | not here | {reason} " + "| " * (len(COLUMNS) - 2) + "|" for name, reason in report.absent.items()]
    if not report.same_split:
        lines += ["", "**The dataset's split is not the one the network was trained on: test tiles may have been seen in training.**"]
    batches = list(report.rows[0].speed.seconds)
    lines += [
        "",
        "## Throughput, images a second by batch size",
        "",
        "| engine | " + " | ".join(map(str, batches)) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    lines += [f"| {row.name} | " + " | ".join(f"{row.speed.throughput(batch):.0f}" for batch in batches) + " |" for row in report.rows]
    names = [row.name for row in report.rows]
    lines += ["", "## Accuracy by class, correct of tiles", "", "| class | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name in report.classes:
        lines.append(f"| {name} | " + " | ".join("{} of {}".format(*row.score.per_class[name]) for row in report.rows) + " |")
    lines += ["", "Libraries: " + ", ".join(f"{name} {version}" for name, version in environment["libraries"].items()) + "."]
    return "\n".join(lines) + "\n"
