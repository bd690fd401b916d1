"""What stands on both sides of a split: copies of the same place, and tiles that touch.

    copies, neighbours = near_duplicates(tiles, thumbnails), touching(tiles, places)

A score on tiles whose neighbours were trained on flatters a network; how many there are is said beside the split.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .dataset import SPLITS, Tile
from .geotiff import Place

SIDE = 32  # of a thumbnail
_COARSE = SIDE // 4
_LEAST_DETAIL = 0.01  # of the brightness: of a calm sea one tile is like another, which says nothing
_ALIKE, _SAME = 0.85, 0.7  # correlations: of what is looked at closely, and of the details of one and the same ground
_SHIFT = SIDE // 8  # at most so far apart
_LEAST = 1e-9  # degrees, a tenth of a millimetre: next to nothing can't be counted in
_AT_ONCE, _ROWS = 128, 256  # what is at work on few of them stays in a core's cache


Pair = tuple[str, str]  # names of two tiles, in different splits


def thumbnail(pixels: NDArray[np.unsignedinteger]) -> NDArray[np.uint16] | None:
    """Brightness of (H, W, bands) in 32x32 parts, in 65,535ths of the largest value; None where a tile has fewer pixels than that."""
    height, width = (side // SIDE for side in pixels.shape[:2])
    if not height or not width:
        return None
    parts = pixels[: height * SIDE, : width * SIDE].reshape(SIDE, height, SIDE, width, -1)
    return np.asarray(parts.mean((1, 3, 4)) * (65535 / np.iinfo(pixels.dtype).max), np.uint16)


def near_duplicates(tiles: Sequence[Tile], thumbnails: NDArray[np.uint16]) -> list[Pair]:
    """Pairs in different splits that show the same ground, at most an eighth of a tile apart; thumbnails (N, 32, 32).

    Candidates look alike from afar; the same are those whose details (the brightness less that of the four neighbours) correlate
    by 0.7 at some shift. Tiles without detail are not judged.
    """
    coarse = np.empty((len(tiles), _COARSE**2), np.float32)
    has_detail = np.empty(len(tiles), np.bool_)
    for start in range(0, len(tiles), _AT_ONCE):  # as floats all would take a gigabyte where a dataset is large
        part = slice(start, start + _AT_ONCE)
        brightness = thumbnails[part].astype(np.float32)
        has_detail[part] = _strength(_detail(brightness)) > _LEAST_DETAIL * brightness.mean((1, 2))
        from_afar = brightness.reshape(-1, _COARSE, 4, _COARSE, 4).mean((2, 4)).reshape(len(brightness), -1)
        from_afar -= from_afar.mean(1, keepdims=True)
        coarse[part] = from_afar / np.linalg.norm(from_afar, axis=1, keepdims=True).clip(1e-9)
    judged = np.flatnonzero(has_detail)
    split = np.array([SPLITS.index(tile.split) for tile in tiles])
    found: list[Pair] = []
    for number in range(1, len(SPLITS)):  # valid against train, test against both
        mine, others = judged[split[judged] == number], judged[split[judged] < number]
        for start in range(0, len(mine), _ROWS):
            alike = coarse[mine[start : start + _ROWS]] @ coarse[others].T > _ALIKE
            rows, columns = np.divmod(np.flatnonzero(alike), max(len(others), 1))  # faster than to look in two dimensions
            pairs = np.stack([mine[start + rows], others[columns]], 1)
            for first in range(0, len(pairs), _AT_ONCE):
                few = pairs[first : first + _AT_ONCE]
                found += [(tiles[a].name, tiles[b].name) for a, b in few[_same(thumbnails, few)]]
    return found


def _detail(brightness: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 32, 32) less the mean of the four neighbours: (N, 30, 30)."""
    neighbours = brightness[:, :-2, 1:-1] + brightness[:, 2:, 1:-1] + brightness[:, 1:-1, :-2] + brightness[:, 1:-1, 2:]
    return np.asarray(brightness[:, 1:-1, 1:-1] - neighbours / 4, np.float32)


def _strength(detail: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt((detail**2).mean((1, 2))), np.float32)


def _same(thumbnails: NDArray[np.uint16], pairs: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which pairs have details that correlate at some shift, by the correlation theorem; zeros around them keep the ends apart."""
    details = [_detail(thumbnails[pairs[:, i]].astype(np.float32)) for i in (0, 1)]
    size = details[0].shape[1]
    one, other = (np.fft.rfft2(detail, (size + _SHIFT, size + _SHIFT)) for detail in details)
    products = np.fft.irfft2(one * other.conj(), (size + _SHIFT, size + _SHIFT))
    near = np.r_[0 : _SHIFT + 1, -_SHIFT:0]
    highest = products[:, near][:, :, near].max((1, 2)) / size**2
    same: NDArray[np.bool_] = highest > _SAME * _strength(details[0]) * _strength(details[1])
    return same


def touching(tiles: Sequence[Tile], places: Sequence[Place | None]) -> list[Pair]:
    """Pairs of tiles in different splits whose areas touch or overlap (to a tenth of a tile)."""
    placed = [(tile, place) for tile, place in zip(tiles, places, strict=True) if place]
    sizes = [math.frexp(max(place.half_width, place.half_height, _LEAST))[1] for _, place in placed]  # in doublings
    found = []
    for size in set(sizes):
        # held against those as large or smaller, in cells of that size: in the cells of one outsized tile all others would be neighbours
        cells = _Cells([(i, place) for i, (_, place) in enumerate(placed) if sizes[i] <= size])
        for i in (i for i, each in enumerate(sizes) if each == size):
            others = (j for j in cells.around(placed[i][1]) if sizes[j] < size or j < i)
            found += [(placed[min(i, j)][0].name, placed[max(i, j)][0].name) for j in others if _touch(placed[i], placed[j])]
    return sorted(found)


class _Cells:
    """Numbered places in cells round the globe, so large that what touches lies in the same cell or in the next."""

    def __init__(self, places: Sequence[tuple[int, Place]]) -> None:
        wide, self._high = (max(2.2 * max(getattr(place, half) for _, place in places), _LEAST) for half in ("half_width", "half_height"))
        self._columns = max(int(360 // wide), 1)
        self._cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for i, place in places:
            self._cells[self._of(place)].append(i)

    def _of(self, place: Place) -> tuple[int, int]:
        return int(place.longitude % 360 * self._columns // 360) % self._columns, int(place.latitude // self._high)

    def around(self, place: Place) -> list[int]:
        """The numbers of all that may touch it."""
        column, row = self._of(place)
        beside = {(column + x) % self._columns for x in (-1, 0, 1)}
        return [i for x in beside for y in (-1, 0, 1) for i in self._cells.get((x, row + y), ())]


def _touch(one: tuple[Tile, Place], other: tuple[Tile, Place]) -> bool:
    if one[0].split == other[0].split:
        return False
    a, b = one[1], other[1]
    across, along = abs(a.longitude - b.longitude), abs(a.latitude - b.latitude)
    across = min(across, 360 - across)
    return across < 1.1 * (a.half_width + b.half_width) and along < 1.1 * (a.half_height + b.half_height)
