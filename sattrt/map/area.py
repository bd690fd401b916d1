"""How large the cells of a map are on the ground.

unit, rows, columns = cell_areas(crs, transform, row_pixels, column_pixels)      # a cell has rows[i] * columns[j] of the unit
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geo import library

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
_WGS84 = (6_378_137.0, 298.257223563)


def cell_areas(crs: str, transform: tuple[float, ...] | None, row_pixels: Counts, column_pixels: Counts) -> tuple[str, Floats, Floats]:
    """The unit ("ha", or "pixels" where the scene lies nowhere on the ground), and two factors whose product is the area of a cell.

    crs, transform: of the scene. row_pixels, column_pixels: how many of its pixels each cell has. A projected CRS: pixels as large as it says. A
    geographic one: the true area between the latitudes on its ellipsoid, row by row.
    """
    across = column_pixels.astype(np.float64)
    system: Any = library().crs.CRS.from_wkt(crs) if transform else None
    if not transform or not (system.is_geographic or system.is_projected):
        return "pixels", row_pixels.astype(np.float64), across
    a, b, _, d, e, top = transform
    if not system.is_geographic:
        return "ha", row_pixels * abs(a * e - b * d) * system.linear_units_factor[1] ** 2 / 10_000, across
    if b or d:  # turned: rows are no zones, and every pixel counts as the one in the middle
        middle = top + d * column_pixels.sum() / 2 + e * row_pixels.sum() / 2
        zone = np.diff(_zone(np.radians(np.array([middle - 0.5, middle + 0.5])), *_ellipsoid(crs)))[0]  # of one degree
        return "ha", row_pixels * abs(a * e - b * d) * zone * np.radians(1) / 10_000, across
    edges = np.radians(top + e * np.concatenate([[0], np.cumsum(row_pixels)]))
    return "ha", np.abs(np.diff(_zone(edges, *_ellipsoid(crs)))) * np.radians(abs(a)) / 10_000, across


def _zone(latitude: Floats, axis: float, inverse_flattening: float) -> Floats:
    """Square metres between the equator and a latitude, for one radian of longitude (Snyder 1987, 3-12, not divided by q at the pole)."""
    flattening = 1 / inverse_flattening if inverse_flattening else 0.0
    e = np.sqrt(flattening * (2 - flattening))
    sine = np.sin(latitude)
    if not e:
        return np.asarray(axis**2 * sine)
    return np.asarray(axis**2 * (1 - e**2) / 2 * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e))


def _ellipsoid(crs: str) -> tuple[float, float]:
    """Semi-major axis in metres and inverse flattening (0 for a sphere), as the WKT has them."""
    found = re.search(r'(?:SPHEROID|ELLIPSOID)\["[^"]*",\s*([\d.]+),\s*([\d.]+)', crs)
    return (float(found[1]), float(found[2])) if found else _WGS84
