"""Whether the digital numbers of a scene can be right, judged by windows spread over it; the whole scene would take as long as mapping it.

check_values(scene, known_offset=False)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bands import ESA, EUROSAT
from ..errors import InputError
from .geo import open_raster
from .scene import Band, Reader, Scene

_WINDOWS, _SIDE = 8, 32  # that many along each side of the scene, of that many pixels
# since baseline 04.00 a pixel of no reflectance has 1,000; noise takes very few below
_LEAST_WITH_OFFSET = 950
_BRIGHT = 20_000  # twice what reflects all light: the half of a scene that lies above is none


def check_values(scene: Scene, others: tuple[Band, ...], known_offset: bool) -> None:
    """InputError for a uint16 scene whose values can't be Sentinel-2's digital numbers with the offset taken off.

    others: further bands of its files, which may tell what its own don't. known_offset: metadata or the config speak of it.
    """
    every = _sample(dataclasses.replace(scene, bands=(*scene.bands, *others)))
    if not every.size:
        return  # what is looked at holds no data; the map will say where there is some
    values, offset = every[: len(scene.bands)], max(band.offset for band in scene.bands)
    # what hardly a pixel of the darkest band lies below
    low = float(np.quantile(every, 0.005, axis=1).min())
    if not known_offset and low >= _LEAST_WITH_OFFSET:
        raise InputError(
            f"{scene.path} has hardly a value below {low:.0f} and records no offset, as a product since baseline 04.00 whose metadata were lost. "
            "Say which in the config: offset = 1000, or offset = 0 if it is that bright."
        )
    if (below := float((values < offset).mean())) > 0.5:
        raise InputError(
            f"{scene.path} has {100 * below:.0f} % of its values below the offset of {offset} that would be taken off. It has none: offset = 0"
        )
    if (largest := every.max()) <= 255:
        raise InputError(f"{scene.path} has no value above {largest}: 8-bit colours in 16 bits. Convert them: gdal_translate -ot Byte")
    if (middle := float(np.median(values, axis=1).max())) > _BRIGHT:
        raise InputError(
            f"{scene.path} has a band whose median is {middle:.0f}; reflectance x 10,000 can't be. Give digital numbers of L1C or L2A."
        )


def name_13_bands(path: Path, indexes: list[int]) -> list[str]:
    """Names of 13 bands that have none, by their statistics. InputError where no known order fits."""
    with open_raster(path) as dataset:
        nodata, size = int(dataset.nodata or 0), (dataset.height, dataset.width)
        dtype = dataset.dtypes[0]
    if dtype != "uint16":
        raise InputError(f"{path} has 13 bands of {dtype} without names; Sentinel-2's digital numbers are uint16. Give another scene.")
    bands = tuple(Band(name="", path=str(path), index=index) for index in indexes)
    unnamed = Scene(
        path=str(path),
        kind="",
        bands=bands,
        height=size[0],
        width=size[1],
        crs="",
        transform=None,
        dtype=dtype,
        scaled=False,
        nodata=nodata,
        masked=False,
        says=(),
    )
    values = _sample(unnamed)
    if not values.size:
        raise InputError(
            f"{path} has 13 bands without names, and no data to tell their order by. Name them in the config: bands = 'B01,B02,...'"
        )
    return list(order_of_13(np.median(values, axis=1), str(path)))


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
        "Name them in the config: bands = 'B01,B02,...'"
    )


def _sample(scene: Scene) -> NDArray[np.uint16]:
    """Digital numbers (bands, N) of pixels that hold data, nothing taken off."""
    height, width = min(_SIDE, scene.height), min(_SIDE, scene.width)
    tops, lefts = (np.linspace(0, length - side, _WINDOWS).astype(int) for length, side in ((scene.height, height), (scene.width, width)))
    found = []
    plain = dataclasses.replace(scene, scaled=False, bands=tuple(dataclasses.replace(band, offset=0) for band in scene.bands))
    with Reader(plain) as reader:
        for top in map(int, tops):
            for left in map(int, lefts):
                pixels, valid = reader.read(top, left, height, width)
                found.append(pixels[:, valid])
    return np.concatenate(found, axis=1).astype(np.uint16)
