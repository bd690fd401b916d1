"""Rasters as scenes: opened without touching what lies beside them, with their masks.

with open_raster(path) as dataset:
    ...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..raster import QUIET, faults, library

# bytes of decoded blocks: a row of them is met again by the next strip, and a scene must fit into 1 GB with all else
_CACHE = 192_000_000
# what may be opened as a scene; others reach out to the network or run programs
_DRIVERS = ["GTiff", "JP2OpenJPEG", "PNG", "JPEG"]


@contextlib.contextmanager
def environment() -> Iterator[Any]:
    """rasterio with its settings: no .aux.xml beside a file, a cache that stays small, nothing printed."""
    rasterio = library()
    with rasterio.Env(**QUIET, GDAL_CACHEMAX=_CACHE):
        yield rasterio


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[Any]:
    """rasterio, for a block that reads a file, unpacked on all cores: its errors are an InputError that names the file."""
    with environment() as rasterio, rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
        try:
            yield rasterio
        except faults(rasterio) as error:
            raise _unreadable(Path(path), error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, UnicodeEncodeError):
        return InputError(f"{str(path)!a} is not readable text. Rename it.")
    if path.exists() and not os.access(path, os.R_OK):
        return InputError(f"Can't read {path}: Permission denied. Check its permissions.")
    reason = str(error.__cause__ or error).rstrip(".")
    return InputError(
        f"Can't read {path}: {reason}. It is cut short or damaged, or no GeoTIFF, JPEG2000, PNG or JPEG; fetch it again, or convert it."
    )


def nodata_of(dataset: Any) -> int | None:
    """The digital number that a raster declares to hold nothing. Where it declares none, or one that can't be, 0; None where its mask tells."""
    declared = dataset.nodata
    if declared is not None and declared == declared and 0 <= declared <= 65_535:
        return int(declared)
    return None if has_mask(dataset) else 0


def alpha_bands(dataset: Any) -> list[int]:
    """Indexes of a raster's alpha bands. GDAL's own mask heeds one only where it is the last of two or four and no value is declared no data."""
    return [index for index, meaning in enumerate(dataset.colorinterp, 1) if meaning.name == "alpha"]


def has_mask(dataset: Any) -> bool:
    """Whether a raster carries a mask, of its own or as an alpha band."""
    return bool(alpha_bands(dataset)) or _own_mask(dataset)


def read_mask(dataset: Any, window: Any = None, out_shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Where a raster with a mask shows something (rows, columns), in a window of it or thinned out to a shape."""
    masks = [dataset.read(index, window=window, out_shape=out_shape) for index in alpha_bands(dataset)]
    if _own_mask(dataset):
        masks.append(dataset.read_masks(1, window=window, out_shape=out_shape))
    return np.asarray(np.logical_and.reduce([mask > 0 for mask in masks]))


def _own_mask(dataset: Any) -> bool:
    return any(flag.name == "per_dataset" for flags in dataset.mask_flag_enums for flag in flags)


def same_crs(one: str, other: str) -> bool:
    """Whether two texts in WKT, or none, mean the same: what is read from a GeoTIFF may be spelt otherwise than what was written."""
    if one == other or not (one and other):
        return one == other
    with environment() as rasterio:
        return bool(rasterio.crs.CRS.from_wkt(one) == rasterio.crs.CRS.from_wkt(other))


def open_raster(path: Path | str) -> Any:
    """An opened raster. InputError for what is no GeoTIFF, JPEG2000, PNG or JPEG."""
    with reading(path) as rasterio:
        return rasterio.io.DatasetReader(Path(path), driver=_DRIVERS)  # rasterio.open takes one driver only, and a text may be a URL
