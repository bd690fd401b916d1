"""A map that was written, read again: its classes, its cells, and their areas.

map = MapFile.read(Path("map.tif"))
map.statistics().area       # by class, in map.unit
map.shares(statistics)      # the same for people and programs: what a table, a page and a JSON document show
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .area import Areas, cell_areas
from .geo import open_raster, reading
from .windows import Axis

TAG = "SATTRT"  # of the file: a JSON document of how the map was made
CHANGE_TAG = "SATTRT_CHANGE"  # the same of a map of change
MOST_CLASSES = 254  # 0 is no data, and 255 unchanged in a map of change
Bytes = NDArray[np.uint8]
_ROWS = 256  # read at once


@dataclass(frozen=True)
class Statistics:
    """By class, (classes,) each: area in the map's unit, mean confidence in percent (nan where there is none).

    histogram: area by percent of confidence (101,). nothing: area of cells without data. cells: how many there are of no data and of each
    class (1 + classes,).
    """

    area: NDArray[np.float64]
    confidence: NDArray[np.float64]
    histogram: NDArray[np.float64]
    nothing: float
    cells: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a map has of a class. area: in the map's unit. share: of the mapped area, in percent. confidence: mean, in percent; None where no
    cell is of the class."""

    name: str
    area: float
    share: float
    cells: int
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class MapFile:
    """What a map says of itself. made: how; the scene's size, stride, bundle, engine. transform: of the map's cells.

    areas: of its cells.
    """

    path: Path
    classes: tuple[str, ...]
    height: int
    width: int
    crs: str
    transform: tuple[float, ...] | None
    made: dict[str, Any]
    areas: Areas

    @property
    def unit(self) -> str:
        """Of areas: "ha", or "pixels"."""
        return self.areas.unit

    @classmethod
    def read(cls, path: Path) -> MapFile:
        """Read a map's own account. InputError for a file that `sattrt map` did not write."""
        if not path.is_file():
            raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}. Give a map that `sattrt map` wrote.")
        with open_raster(path) as file:
            if CHANGE_TAG in file.tags():
                raise InputError(f"{path} is a map of change, not of one scene. Give a map that `sattrt map` wrote of one.")
            try:
                made = json.loads(file.tags()[TAG])
                classes = tuple(str(name) for name in made["classes"])
                rows, columns = (Axis(int(made[side]), 1, int(made["stride"])) for side in ("height", "width"))
                shaped = (rows.cells, columns.cells, file.count, file.dtypes[0]) == (file.height, file.width, 2, "uint8")
                if not shaped or len(classes) > MOST_CLASSES:
                    raise ValueError
            except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError):
                raise InputError(
                    f"{path} is not a map of classes that `sattrt map` wrote, by its tags and bands. Give one that is."
                ) from None
            crs, transform = (file.crs.to_wkt(), tuple(file.transform)[:6]) if file.crs else ("", None)
        stride = rows.stride
        pixel = tuple(value / stride if i in (0, 1, 3, 4) else value for i, value in enumerate(transform)) if transform else None
        return cls(
            path=path,
            classes=classes,
            height=rows.cells,
            width=columns.cells,
            crs=crs,
            transform=transform,
            made=made,
            areas=cell_areas(crs, pixel, rows.pixels, columns.pixels),
        )

    def strips(self) -> Iterator[tuple[Bytes, Bytes, NDArray[np.float64]]]:
        """Class, 0 for no data, confidence in percent, and area, (rows, width) each, from top to bottom."""
        # rasterio's settings belong to a thread and are left in the order that they were entered: none stay entered over a yield
        with contextlib.closing(open_raster(self.path)) as file:
            for top in range(0, self.height, _ROWS):
                areas = self.areas.strip(top, top + _ROWS)
                with reading(self.path) as rasterio:
                    both = file.read(window=rasterio.windows.Window(0, top, self.width, len(areas)))
                yield both[0], both[1], areas

    def statistics(self) -> Statistics:
        """Areas and confidences by class."""
        count = len(self.classes) + 1
        area, weighted, histogram, cells = np.zeros(count), np.zeros(count), np.zeros(101), np.zeros(count, np.int64)
        for classes, confidence, areas in self.strips():
            area += np.bincount(classes.ravel(), areas.ravel(), count)[:count]
            weighted += np.bincount(classes.ravel(), (areas * confidence).ravel(), count)[:count]
            histogram += np.bincount(confidence[classes > 0], areas[classes > 0], 101)[:101]
            cells += np.bincount(classes.ravel(), minlength=count)[:count]
        with np.errstate(invalid="ignore"):
            mean = weighted / area
        return Statistics(area[1:], mean[1:], histogram, float(area[0]), cells)

    def shares(self, statistics: Statistics) -> list[Share]:
        """What the map has of each class, in index order."""
        mapped = float(statistics.area.sum()) or 1.0
        figures = zip(self.classes, statistics.area.tolist(), statistics.confidence.tolist(), statistics.cells[1:].tolist(), strict=True)
        return [
            Share(name=name, area=area, share=100 * area / mapped, cells=cells, confidence=confidence if area else None)
            for name, area, confidence, cells in figures
        ]
