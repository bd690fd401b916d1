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
    """Write bench.json, bench.md and bench.html into a folder, in that order: what was measured is kept, whatever hinders a page.

    Returns their paths.
    """
    paths = tuple(folder / f"bench.{kind}" for kind in ("json", "md", "html"))
    write_json(paths[0], report.document)
    write_bytes(paths[1], to_markdown(report.document).encode(errors="backslashreplace"))
    write_bytes(paths[2], to_html(report.document, report.worst).encode(errors="backslashreplace"))
    return paths
