"""Tiles with more than three bands: GeoTIFF of unsigned 16-bit digital numbers, through rasterio. And where any TIFF lies.

tile = read_geotiff(content)
tile.pixels, tile.descriptions, tile.place
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bands import conversion_of, tagged_offset
from ..errors import BackendError, InputError
from ..raster import QUIET, faults, library

MAX_SIDE, MAX_BANDS = 4096, 64  # pixels a side of a tile
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of TIFF and BigTIFF, in either order of bytes
_DEGREE = 111_195.0  # metres of a meridian, on a sphere: the ellipsoid's differ by half a percent


@dataclass(frozen=True)
class Place:
    """Where a tile lies: its centre in degrees of WGS 84, and half its width and height there."""

    longitude: float
    latitude: float
    half_width: float
    half_height: float

    def gsd(self, width: int, height: int) -> float:
        """Ground sampling distance in metres, where the tile has that many pixels: the side of a square as large as one of them is."""
        square = 4 * self.half_width * self.half_height * math.cos(math.radians(self.latitude))
        return _DEGREE * math.sqrt(square / (width * height))


@dataclass(frozen=True)
class GeoTile:
    """pixels: uint16 (H, W, bands), in the file's order, the offset taken off. descriptions: of each band. place: None without georeference.
    known_offset: GDAL's scale and offset of every band, or the user, say what the numbers are."""

    pixels: NDArray[np.uint16]
    descriptions: tuple[str | None, ...]
    place: Place | None
    known_offset: bool = False


def read_geotiff(content: bytes, offset: int | None = None) -> GeoTile:
    """Pixels and place of an encoded GeoTIFF. InputError with the fault; BackendError where rasterio is not installed.

    offset: digital numbers to take off (down to 0) bands whose tags speak of none; None where nobody says.
    """
    rasterio = library()
    try:
        if content[:4] not in _MAGIC:
            raise InputError("not a TIFF" if content else "empty")
        with _opened(content, rasterio) as opened:
            if max(opened.width, opened.height) > MAX_SIDE or opened.count > MAX_BANDS:
                raise InputError(
                    f"too large ({opened.width}x{opened.height}, {opened.count} bands; at most {MAX_SIDE} a side, {MAX_BANDS} bands)"
                )
            if (size := opened.width * opened.height * opened.count) > 3 * MAX_SIDE**2:  # before anything of that size is made
                raise InputError(
                    f"too large ({size / 1e6:.0f} million values; at most {3 * MAX_SIDE**2 / 1e6:.0f} million, as in the largest RGB)"
                )
            if odd := next((kind for kind in opened.dtypes if kind != "uint16"), None):
                way_out = f"; {words}" if (words := conversion_of(odd)) else ""
                raise InputError(f"wrong data type ({odd}; uint16 digital numbers are needed{way_out})")
            pixels = np.ascontiguousarray(opened.read().transpose(1, 2, 0))
            tags = [tagged_offset(*tag) for tag in zip(opened.scales, opened.offsets, strict=True)]
            offsets = [offset if tag is None else tag for tag in tags]
            if any(offsets):
                pixels = np.maximum(pixels.astype(np.int32) - np.array([each or 0 for each in offsets]), 0).astype(np.uint16)
            return GeoTile(pixels, opened.descriptions, _place(opened, rasterio), None not in offsets)
    except faults(rasterio) as error:
        said = error.__cause__ or error  # rasterio's own words may be no more than that GDAL has said why
        raise InputError(f"corrupt or cut short ({' '.join(re.sub('/vsimem/[^ ]*tif', 'it', str(said)).split())})") from None


def read_place(content: bytes) -> Place | None:
    """Where an encoded TIFF of any values lies, by its header alone; None where it doesn't say, or rasterio is not installed."""
    try:
        rasterio = library()
    except BackendError:
        return None
    if not content:  # of nothing MemoryFile would make a file to write to
        return None
    try:
        with _opened(content, rasterio) as opened:
            return _place(opened, rasterio)
    except faults(rasterio):
        return None


@contextlib.contextmanager
def _opened(content: bytes, rasterio: Any) -> Iterator[Any]:
    with rasterio.Env(**QUIET, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tile without georeference is no surprise
        with rasterio.io.MemoryFile(content, ext=".tif") as file, file.open(driver="GTiff") as opened:
            yield opened


def _place(opened: Any, rasterio: Any) -> Place | None:
    """None too where the numbers can be no degrees: of metres that are tagged as degrees, say, or of no extent."""
    if opened.crs is None or opened.transform.is_identity:
        return None
    left, bottom, right, top = opened.bounds
    try:
        (west, east, x), (south, north, y) = rasterio.warp.transform(
            opened.crs, "EPSG:4326", [left, right, (left + right) / 2], [bottom, top, (bottom + top) / 2]
        )
    except faults(rasterio):
        return None
    width, height = abs(east - west), abs(north - south)
    if not (abs(x) <= 360 and abs(y) <= 90 and 0 < width < 360 and 0 < height <= 180):  # nor where one of them is NaN
        return None
    return Place(x, y, min(width, 360 - width) / 2, height / 2)  # it may lie across the 180th meridian
