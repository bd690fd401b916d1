"""How large the cells of a map are on the ground.

areas = cell_areas(crs, transform, row_pixels, column_pixels)
areas.strip(0, 256)      # (256, columns), in areas.unit
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..raster import faults, library
from .geo import environment

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
_WGS84 = (6_378_137.0, 298.257223563)
_NODES = 65  # along each side of a scene, at most: between them a projection's scale is as good as straight
_POLE = np.pi / 2 + 1e-6  # in radians: a file that ends there may say so with sides of pixels that are rounded, and end some metres beyond
_TRUE = 0.002  # a projection whose areas are that near to the ground's all over the scene is taken at its word: UTM in its zone


@dataclass(frozen=True, kw_only=True)
class Areas:
    """The areas of a map's cells, in `unit`: "ha", or "pixels" where the scene lies nowhere on the ground.

    rows, columns: two factors of each. scale: a third, at nodes from corner to corner of the scene; None where it is 1. down, across: where
    the centres of rows and columns lie among the nodes.
    """

    unit: str
    rows: Floats
    columns: Floats
    scale: Floats | None = None
    down: Floats | None = None
    across: Floats | None = None

    def strip(self, top: int, bottom: int) -> Floats:
        """Areas of the cells of these rows (rows, columns)."""
        areas: Floats = self.rows[top:bottom, None] * self.columns
        if self.scale is None or self.down is None or self.across is None:
            return areas
        return areas * _between(_between(self.scale, self.down[top:bottom]).T, self.across).T


def cell_areas(crs: str, transform: tuple[float, ...] | None, row_pixels: Counts, column_pixels: Counts) -> Areas:
    """The true areas of cells on the CRS's ellipsoid; counted in pixels where the scene, or a part of it, is nowhere on the ground, as beyond a pole.

    crs, transform: of the scene. row_pixels, column_pixels: how many of its pixels each cell has. A geographic CRS: the area between the
    latitudes, row by row. A projection: as it says, or times its scale where that is off by more than `_TRUE` somewhere in the scene.
    """
    across = column_pixels.astype(np.float64)
    uncounted = Areas(unit="pixels", rows=row_pixels.astype(np.float64), columns=across)
    system: Any = library().crs.CRS.from_wkt(crs) if transform else None
    if not transform or not (system.is_geographic or system.is_projected):
        return uncounted
    a, b, _, d, e, top = transform
    if system.is_geographic and not (b or d):
        unit = system.units_factor[1]  # in radians: degrees, or grads
        edges = unit * (top + e * np.concatenate([[0], np.cumsum(row_pixels)]))
        if np.abs(edges).max() > _POLE:
            return uncounted
        zones = np.abs(np.diff(_zone(edges, *_ellipsoid(crs))))
        return Areas(unit="ha", rows=zones * unit * abs(a) / 10_000, columns=across)
    pixel = abs(a * e - b * d) * (system.linear_units_factor[1] ** 2 if system.is_projected else 1)
    nodes = [np.linspace(0, pixels.sum(), min(len(pixels) + 1, _NODES)) for pixels in (row_pixels, column_pixels)]
    scale = _on_the_ground(crs, transform, *nodes) / pixel
    if not np.isfinite(scale).all():
        return uncounted
    plain = Areas(unit="ha", rows=row_pixels * pixel / 10_000, columns=across)
    if system.is_projected and np.abs(scale - 1).max() < _TRUE:
        return plain
    down, beside = ((np.cumsum(pixels) - pixels / 2) / each[1] for pixels, each in zip((row_pixels, column_pixels), nodes, strict=True))
    return dataclasses.replace(plain, scale=scale, down=down, across=beside)


def gsd_of(crs: str, transform: tuple[float, ...] | None, height: int, width: int) -> float | None:
    """Ground sampling distance of a scene in metres: the side of a square as large as its pixels are on average; None where it lies nowhere."""
    areas = cell_areas(crs, transform, np.array([height]), np.array([width]))
    return None if areas.unit == "pixels" else float(np.sqrt(10_000 * areas.strip(0, 1)[0, 0] / (height * width)))


def _on_the_ground(crs: str, transform: tuple[float, ...], downs: Floats, acrosses: Floats) -> Floats:
    """Square metres of a pixel around each of these places (downs, acrosses), by its corners in space; nan where projection or earth end."""
    a, b, left, d, e, top = transform
    rows, columns = np.meshgrid(downs, acrosses, indexing="ij")
    rows, columns = (each[..., None] + corners for each, corners in ((rows, [-0.5, -0.5, 0.5, 0.5]), (columns, [-0.5, 0.5, 0.5, -0.5])))
    axis, inverse_flattening = _ellipsoid(crs)
    shape = f"+a={axis} +rf={inverse_flattening}" if inverse_flattening else f"+R={axis}"
    with environment() as rasterio:
        xs, ys = (left + a * columns + b * rows).ravel(), (top + d * columns + e * rows).ravel()
        try:
            found = rasterio.warp.transform(crs, f"+proj=longlat {shape}", xs, ys)
        except faults(rasterio):
            return np.full((len(downs), len(acrosses)), np.nan)
    longitude, latitude = (np.radians(each).reshape(rows.shape) for each in found)
    latitude = np.where(np.abs(latitude) > _POLE, np.nan, latitude)  # degrees to degrees go through unchecked
    flattening = 1 / inverse_flattening if inverse_flattening else 0.0
    squeezed = (1 - flattening) ** 2
    normal = axis / np.sqrt(1 - (1 - squeezed) * np.sin(latitude) ** 2)
    level = normal * np.cos(latitude)
    space = np.stack([level * np.cos(longitude), level * np.sin(longitude), squeezed * normal * np.sin(latitude)], axis=-1)
    diagonals = space[..., 2, :] - space[..., 0, :], space[..., 3, :] - space[..., 1, :]
    return np.asarray(np.linalg.norm(np.cross(*diagonals), axis=-1) / 2)


def _between(values: Floats, places: Floats) -> Floats:
    """Values along the first axis at places between them, straight from one to the next."""
    first = np.minimum(places.astype(np.intp), len(values) - 2)
    share = (places - first)[:, None]
    return np.asarray(values[first] * (1 - share) + values[first + 1] * share)


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
