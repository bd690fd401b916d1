"""Whether the digital numbers of a scene can be right, judged by windows spread over it; the whole scene would take as long as mapping it.

values = check_values(scene, (), known_offset=False)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bands import ESA, EUROSAT, LEAST_WITH_OFFSET
from ..errors import InputError
from .geo import has_mask, nodata_of, open_raster, read_mask, reading
from .scene import Band, Reader, Scene

# that many along each side of the scene, of that many pixels; no more, since JPEG2000 unpacks a block of a thousand pixels square for each
_WINDOWS, _SIDE = 4, 64
_COARSE = 1024  # pixels along each side of a coarse look
_BRIGHT = 20_000  # twice what reflects all light: the half of a scene that lies above is none


def check_values(scene: Scene, others: tuple[Band, ...], known_offset: bool) -> NDArray[np.uint16]:
    """InputError for a uint16 scene whose values can't be Sentinel-2's digital numbers with the offset taken off; else the values that were
    looked at (bands, N), as the files have them.

    others: further bands of its files, which may tell what its own don't. known_offset: metadata or the config speak of it.
    """
    every = sample(dataclasses.replace(scene, bands=(*scene.bands, *others)))
    values, offset = every[: len(scene.bands)], max(band.offset for band in scene.bands)
    if not every.size:
        return values  # what is looked at holds no data; the map will say where there is some
    # what hardly a pixel of the darkest band lies below
    low = float(np.quantile(every, 0.005, axis=1).min())
    if not known_offset and low >= LEAST_WITH_OFFSET:
        raise InputError(
            f"{scene.path} has hardly a value below {low:.0f} and records no offset, like a product of baseline 04.00 or later without its metadata. "
            "Give --set offset=1000, or --set offset=0 if it is that bright."
        )
    if (below := float((values < offset).mean())) > 0.5:
        raise InputError(
            f"{scene.path} has {100 * below:.0f} % of its values below the offset of {offset} that would be subtracted. It has none: give --set offset=0"
        )
    if (largest := every.max()) <= 255:
        raise InputError(
            f"{scene.path} has no value above {largest}, too low for reflectance x 10,000. If these are 8-bit colours in 16 bits, convert them: "
            "gdal_translate -ot Byte"
        )
    if (middle := float(np.median(values, axis=1).max())) > _BRIGHT:
        raise InputError(
            f"{scene.path} has a band whose median is {middle:.0f}, too high for reflectance x 10,000. Give digital numbers of L1C or L2A."
        )
    return values


def name_13_bands(path: Path, indexes: list[int]) -> list[str]:
    """Names of 13 bands that have none, by their statistics. InputError where no known order fits."""
    with open_raster(path) as dataset:
        nodata, size = nodata_of(dataset), (dataset.height, dataset.width)
        dtype = dataset.dtypes[0]
    if dtype != "uint16":
        raise InputError(f"{path} has 13 bands of {dtype} without names; Sentinel-2's digital numbers are uint16. Give another scene.")
    values = sample(_unnamed(path, indexes, size, nodata))
    if not values.size:
        raise InputError(f"{path} has 13 bands without names, and no data to tell their order by. Name them: --set bands=B01,B02,...")
    return list(order_of_13(np.median(values, axis=1), str(path)))


def check_named(path: Path, names: list[str], indexes: list[int]) -> None:
    """InputError where the pixels of a uint16 raster show that the names of its bands, B10 among them, are wrong."""
    if fault := misnamed(path, names, indexes):
        raise InputError(f"{path} has band descriptions that can't be right: {fault}. Name them: --set bands=B01,B02,...")


def misnamed(path: Path, names: list[str], indexes: list[int]) -> str | None:
    """Why these can't be the names of the bands of a uint16 raster, B10 among them; None where nothing denies them."""
    with open_raster(path) as dataset:
        nodata, size, dtypes = nodata_of(dataset), (dataset.height, dataset.width), set(dataset.dtypes)
    if "B10" not in names or len(names) < 3 or dtypes != {"uint16"}:
        return None
    known = [place for place, name in enumerate(names) if name]
    values = sample(_unnamed(path, [indexes[place] for place in known], size, nodata))
    if values.size and (darkest := names[known[int(np.argmin(np.median(values, axis=1)))]]) != "B10":
        return f"B10 must be the darkest band, and what is called {darkest} is"
    return None


def _unnamed(path: Path, indexes: list[int], size: tuple[int, int], nodata: int | None) -> Scene:
    """A raster as a scene to be looked at, nothing known of its bands."""
    return Scene(
        path=str(path),
        kind="",
        bands=tuple(Band(name="", path=str(path), index=index) for index in indexes),
        height=size[0],
        width=size[1],
        crs="",
        transform=None,
        dtype="uint16",
        scaled=False,
        nodata=nodata,
        masked=nodata is None,
        says=(),
    )


def order_of_13(medians: NDArray[np.float64], name: str) -> tuple[str, ...]:
    """Which order 13 bands without names are in: B10, where cirrus shines and the ground doesn't, is the darkest, over water too.

    medians: digital numbers. InputError where neither order fits.
    """
    darkest = int(np.argmin(medians))
    for order in (EUROSAT, ESA):
        if order[darkest] == "B10":
            return order
    raise InputError(
        f"{name} has 13 bands without names, in neither EuroSAT's order nor ESA's: B10 must be the darkest, and band {darkest + 1} is. "
        "Name them: --set bands=B01,B02,..."
    )


def sample(scene: Scene) -> NDArray[np.uint16]:
    """Values (bands, N) of pixels that hold data, as the files have them, nothing taken off."""
    height, width = min(_SIDE, scene.height), min(_SIDE, scene.width)
    tops, lefts = (np.linspace(0, length - side, _WINDOWS).astype(int) for length, side in ((scene.height, height), (scene.width, width)))
    plain = dataclasses.replace(scene, scaled=False, bands=tuple(dataclasses.replace(band, offset=0) for band in scene.bands))
    with Reader(plain) as reader:

        def look(places: Iterable[tuple[int, int]]) -> NDArray[np.uint16]:
            found = []
            for top, left in places:
                pixels, valid = reader.read(int(top), int(left), height, width)
                found.append(pixels[:, valid])
            return np.concatenate([np.empty((len(scene.bands), 0), np.uint16), *found], axis=1).astype(np.uint16)

        values = look(itertools.product(tops, lefts))
        if values.shape[1] * 10 < _WINDOWS**2 * height * width:  # little data, in a frame of none: look where it is
            values = look(_where_data_are(scene, height, width))
        return values


def _where_data_are(scene: Scene, height: int, width: int) -> list[tuple[int, int]]:
    """Upper left corners of windows that lie about pixels with data, by a coarse look at the first band."""
    band = scene.bands[0]
    with reading(band.path), open_raster(band.path) as dataset:
        shape = min(_COARSE, dataset.height), min(_COARSE, dataset.width)
        holds = np.ones(shape, np.bool_) if scene.nodata is None else dataset.read(band.index, out_shape=shape) != scene.nodata
        if scene.masked and has_mask(dataset):
            holds &= read_mask(dataset, out_shape=shape)
    rows, columns = np.nonzero(holds)
    chosen = np.unique(np.linspace(0, len(rows) - 1, _WINDOWS**2).astype(int)) if len(rows) else rows
    tops = [int(np.clip(rows[i] * scene.height // shape[0] - height // 2, 0, scene.height - height)) for i in chosen]
    lefts = [int(np.clip(columns[i] * scene.width // shape[1] - width // 2, 0, scene.width - width)) for i in chosen]
    return list(zip(tops, lefts, strict=True))
