"""A finished bench, and how it is written: `bench.json` (everything, raw samples too), `bench.md`, `bench.html`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec import write_bytes, write_json
from .page import to_html
from .tables import to_markdown


@dataclass(frozen=True)
class Report:
    """document: what bench.json holds (docs/bench.md describes it). worst: the tiles of document["worst_tiles"], uint8 (N, H, W, bands)."""

    document: dict[str, Any]
    worst: NDArray[np.uint8]


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write bench.json, bench.md and bench.html into a folder; returns their paths."""
    contents = {
        "bench.md": to_markdown(report.document),
        "bench.html": to_html(report.document, report.worst),
    }
    write_json(folder / "bench.json", report.document)
    for name, text in contents.items():
        write_bytes(folder / name, text.encode())
    return folder / "bench.json", *(folder / name for name in contents)
