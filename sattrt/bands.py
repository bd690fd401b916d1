"""Sentinel-2's bands: their names, the orders that files hold them in, and whether an order can be right.

    candidates = orders(descriptions)                                      # by the names in a file, or the orders that products have
    order, odd = choose_order(candidates, Statistics(mean, correlation, darkest), "tiles.zip", named_order(descriptions))

Wavelengths and the water-vapour and cirrus bands: ESA, Sentinel-2 User Handbook. EuroSAT's order: Helber et al., 2019.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

# in ESA's order, which band_id in a product's metadata counts in
ESA = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
EUROSAT = (*(name for name in ESA if name != "B8A"), "B8A")  # the same but for B8A, which comes last
RGB = ("red", "green", "blue")
COLOURS = {"B04": "red", "B03": "green", "B02": "blue"}
COMMON = {**{colour: name for name, colour in COLOURS.items()}, "nir": "B08"}
FROM_REFLECTANCE = "gdal_translate -ot UInt16 -scale 0 1 0 10000"  # to digital numbers
# the digital number that EuroSAT's RGB tiles show as white: gdal_translate -scale 0 2750 1 255
WHITE = 2750
# neighbours in wavelength that see the same ground alike
_ALIKE = (("B02", "B03"), ("B03", "B04"), ("B06", "B07"), ("B07", "B08"), ("B07", "B8A"), ("B08", "B8A"), ("B11", "B12"))
_LEAST_ALIKE = 0.7  # in 270 tiles of EuroSAT all of these are correlated by 0.94 and more; B12 taken for B8A by 0.43
_DARKEST = ("B02", "B04")  # haze brightens dark places the more the shorter the wave
_NAMED = re.compile(r"(?<![A-Za-z0-9])B(?:and)?[ _-]?0*(\d{1,2}A?)(?![A-Za-z0-9])", re.IGNORECASE)

_COUNTED = re.compile(r"\s*band[ _-]?0*(\d{1,2})\s*", re.IGNORECASE)
# since baseline 04.00 a pixel of no reflectance has 1,000; noise takes very few below
LEAST_WITH_OFFSET = 950


@dataclass(frozen=True)
class Statistics:
    """Of some pixels: the mean of each band, the correlation of each two (bands, bands), the darkest values (a median of tiles)."""

    mean: NDArray[np.float64]
    correlation: NDArray[np.float64]
    darkest: NDArray[np.float64]


def band_name(text: str) -> str | None:
    """The band that a description or a file name speaks of ("B4", "Band 4", "..._B04_10m", "red"); None for none, or for several."""
    found = {number.upper().zfill(2) for number in _NAMED.findall(text)}
    names = [name for name in ESA if name[1:] in found]
    if len(found) == 1 and names:
        return names[0]
    return COMMON.get(text.strip().lower()) if not found else None


def described(descriptions: Sequence[str | None]) -> list[str | None]:
    """The band that each description speaks of; none at all where they only count: "Band 1", "Band 2", ..."""
    counted = [_COUNTED.fullmatch(text or "") for text in descriptions]
    if [int(found[1]) for found in counted if found] == list(range(1, len(descriptions) + 1)):
        return [None] * len(descriptions)
    return [band_name(text or "") for text in descriptions]


def tagged_offset(scale: float, offset: float) -> int | None:
    """Digital numbers to take off by GDAL's scale and offset of a band; None where it has neither. InputError where they make no sense."""
    if (scale, offset) == (1, 0):
        return None
    if not (abs(scale - 1e-4) <= 1e-9 and -1 <= offset <= 0):
        raise InputError(f"the scale {scale:g} and the offset {offset:g} in its tags; engines are trained on 10,000 a unit of reflectance")
    return round(-offset / scale)


def conversion_of(dtype: str) -> str:
    """gdal_translate's words that make digital numbers, uint16, of values of another data type; empty where no one can say."""
    if dtype in ("int16", "int32", "uint32"):
        return "gdal_translate -ot UInt16"
    return f"from reflectance 0..1: {FROM_REFLECTANCE}" if dtype in ("float32", "float64") else ""


def parse_bands(text: str) -> tuple[str, ...]:
    """Read "B04,B03,B02"; InputError for a name that is none or comes twice."""
    names = tuple(band_name(part) or part.strip() for part in text.split(","))
    if unknown := [name for name in names if name not in ESA]:
        raise InputError(f"--bands has {unknown[0]!r}, which is not a band of Sentinel-2. Choose from: {', '.join(ESA)}; or give all.")
    if len(set(names)) < len(names):
        raise InputError(f"--bands {text} names a band twice. Name each once.")
    return names


def named_order(descriptions: Sequence[str | None], wanted: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
    """The order that a file's own descriptions say, else the user, who names as many bands as it has; None where neither does."""
    named = described(descriptions)
    if all(named) and len(set(named)) == len(named):
        return tuple(name for name in named if name)
    return wanted if wanted and len(wanted) == len(descriptions) else None


def orders(descriptions: Sequence[str | None], wanted: tuple[str, ...] | None = None) -> list[tuple[str, ...]]:
    """The orders that a file's bands can be in: its own descriptions, if it has them, else those in which products are stored.

    descriptions: of each band in the file. wanted: what the user calls them, good for as many bands as it names.
    Raises InputError where nothing says what the bands are.
    """
    if named := named_order(descriptions):
        return [named]
    count = len(descriptions)
    if count == len(ESA):
        return [EUROSAT, ESA]
    if count == len(ESA) - 1:  # surface reflectance: the cirrus band is not in it
        return [tuple(name for name in order if name != "B10") for order in (ESA, EUROSAT)]
    if named := named_order(descriptions, wanted):
        return [named]
    names = [name for name in described(descriptions) if name]
    if double := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"several of its bands are described as {double[0]}. Describe each, or name all {count} in their order with --bands"
        )
    raise InputError(
        f"nothing says which {count} band{'s' * (count > 1)} it holds. Write their names (B04, B03, ...) as the file's band descriptions, "
        f"or name all {count} in their order with --bands"
    )


def impossible(order: tuple[str, ...], found: Statistics) -> str | None:
    """Why bands with these statistics can't be in this order, whatever ground they show, by B10; None where nothing denies it."""
    place = {name: i for i, name in enumerate(order)}
    if "B10" in place and len(order) > 1:
        rest = [(found.mean[i], name) for name, i in place.items() if name != "B10"]
        cirrus = found.mean[place["B10"]]
        if 900 < cirrus < min(rest)[0]:
            return f"the mean of B10 (cirrus) is {cirrus:.0f}: these numbers include the offset of 1,000 (baseline 04.00 and later); --offset 1000 subtracts it"
        if not cirrus < 0.5 * min(rest)[0]:
            return f"B10 (cirrus) should be by far the darkest band; its mean is {cirrus:.0f}, that of {min(rest)[1]} {min(rest)[0]:.0f}"
    return None


def unlikely(order: tuple[str, ...], found: Statistics) -> str | None:
    """What is odd about bands with these statistics in this order, though some ground, a desert, is like that; None where nothing is."""
    place = {name: i for i, name in enumerate(order)}
    for one, other in _ALIKE:
        if one in place and other in place and found.correlation[place[one], place[other]] < _LEAST_ALIKE:
            alike = found.correlation[place[one], place[other]]
            return f"{one} and {other} should look alike; their correlation is {alike:.2f}, at least {_LEAST_ALIKE} is plausible"
    blue, red = (place.get(name) for name in _DARKEST)
    if blue is not None and red is not None and found.darkest[blue] < 0.6 * found.darkest[red]:
        return (
            f"dark places should be brighter in B02 (blue) than in B04 (red); their darkest values are {found.darkest[blue]:.0f} "
            f"and {found.darkest[red]:.0f}"
        )
    return None


def choose_order(
    candidates: Sequence[tuple[str, ...]], found: Statistics, name: str, named: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], str | None]:
    """The first of the orders that the statistics allow, and what is odd about it, if anything.

    named: the order that the files or the user name, which is taken where none is allowed, unless it can't be at all: what is odd is said then.
    InputError, with what is wrong about each order, where none can be taken; it names `name`.
    """
    reasons = []
    for order in candidates:
        reason = impossible(order, found) or unlikely(order, found)
        if reason is None:
            return order, None
        reasons.append(f"as {','.join(order)}: {reason}")
    if named and not impossible(named, found):
        return named, unlikely(named, found)
    mend = (
        "Check their names, or the tiles"
        if named
        else "If the ground is like that, name all of them with --bands, in the order of the files"
    )
    raise InputError(f"The bands of {name} can't be in this order ({'; '.join(reasons)}). {mend}.")


def preview(tiles: NDArray[np.unsignedinteger], bands: tuple[str, ...]) -> NDArray[np.uint8]:
    """Tiles (N, H, W, bands) for the eye: uint8 (N, H, W, 3), in natural colours where the bands are there, else the first one in grey."""
    if tiles.dtype == np.uint8:
        return np.asarray(tiles, np.uint8)
    visible = [bands.index(name) for name in COLOURS if name in bands]
    if len(visible) == len(COLOURS):
        return to_eurosat_rgb(tiles[..., visible])
    grey = tiles[..., :1].astype(np.float32)
    low, high = np.percentile(grey, (2, 98)) if grey.size else (0, 1)
    stretched = ((grey - low) / max(high - low, 1)).clip(0, 1) * 255
    return stretched.astype(np.uint8).repeat(3, -1)


def to_eurosat_rgb(numbers: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Digital numbers as EuroSAT's 8-bit tiles have them: 0..2750 to 1..255, what lies beyond is clipped."""
    return np.floor(numbers.clip(0, WHITE) * (254 / WHITE) + 1.5).astype(np.uint8)
