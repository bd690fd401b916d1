"""Names of Sentinel-2's bands, how they are recognised, and how digital numbers become what an engine takes.

band_name("T32UQD_20200101_B8A_20m.jp2")  # "B8A"
"""

from __future__ import annotations

import functools
import re

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# ESA's order, which band_id in a product's metadata counts in; EuroSAT's tiles hold B8A last
ESA = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
EUROSAT = (*(name for name in ESA if name != "B8A"), "B8A")
COMMON = {"red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}
# the digital number that EuroSAT's RGB tiles show as white: gdal_translate -scale 0 2750 1 255
WHITE = 2750
_NAMED = re.compile(r"(?<![A-Za-z0-9])B(?:and)?[ _-]?0*(\d{1,2}A?)(?![A-Za-z0-9])", re.IGNORECASE)


def band_name(text: str) -> str | None:
    """The band that a description or a file name speaks of ("B4", "Band 4", "..._B04_10m", "red"); None for none, or for several."""
    found = {number.upper().zfill(2) for number in _NAMED.findall(text)}
    names = [name for name in ESA if name[1:] in found]
    if len(found) == 1 and names:
        return names[0]
    return COMMON.get(text.strip().lower()) if not found else None


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


@functools.cache
def table(offset: int, scaled: bool) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """What each of the 65,536 digital numbers becomes: the offset is taken off; `scaled` gives EuroSAT's 8-bit values, 1..255."""
    numbers = np.maximum(np.arange(65_536) - offset, 0)
    if not scaled:
        return numbers.astype(np.uint16)
    return np.floor(np.minimum(numbers * (254 / WHITE) + 1, 255) + 0.5).astype(np.uint8)
