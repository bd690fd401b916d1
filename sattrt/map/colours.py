"""The colour of each class: those that land cover is usually drawn in for EuroSAT's, well told apart for any others."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

_KNOWN: dict[str, Colour] = {
    "AnnualCrop": (240, 208, 96),
    "Forest": (31, 107, 58),
    "HerbaceousVegetation": (160, 190, 80),
    "Highway": (90, 90, 98),
    "Industrial": (150, 82, 160),
    "Pasture": (140, 216, 132),
    "PermanentCrop": (226, 144, 58),
    "Residential": (214, 64, 56),
    "River": (84, 176, 226),
    "SeaLake": (28, 78, 158),
}
_GOLDEN = 0.618033988749895  # of the circle: hues that follow each other lie far apart, however many there are


def class_colours(classes: tuple[str, ...]) -> list[Colour]:
    """A colour for each class, in index order."""
    return [_KNOWN.get(name) or _spread(index) for index, name in enumerate(classes)]


def _spread(index: int) -> Colour:
    red, green, blue = colorsys.hls_to_rgb((0.58 + index * _GOLDEN) % 1, (0.55, 0.4, 0.68)[index // 5 % 3], 0.6)
    return round(255 * red), round(255 * green), round(255 * blue)
