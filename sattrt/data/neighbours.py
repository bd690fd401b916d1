"""What stands on both sides of a split: copies of the same place, and tiles that touch.

    report = leaks(tiles, thumbnails, places)

A score on tiles whose neighbours were trained on flatters a network; how many there are is said beside the split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dataset import SPLITS, Tile
from .geotiff import Place

SIDE = 32  # of a thumbnail
_COARSE = SIDE // 4
_LEAST_DETAIL = 0.01  # of the brightness: of a calm sea one tile is like another, which says nothing
_ALIKE, _SAME = 0.85, 0.7  # correlations: of what is looked at closely, and of the details of one and the same ground
_SHIFT = SIDE // 8  # at most so far apart
_AT_ONCE = 2048


class Pair(NamedTuple):
    """Two tiles, in different splits."""

    one: str
    other: str


def thumbnail(pixels: NDArray[np.unsignedinteger]) -> NDArray[np.float32] | None:
    """Mean brightness of (H, W, bands) in 32x32 parts; None where a tile has fewer pixels than that."""
    height, width = (side // SIDE for side in pixels.shape[:2])
    if not height or not width:
        return None
    parts = pixels[: height * SIDE, : width * SIDE].reshape(SIDE, height, SIDE, width, -1)
    return np.asarray(parts.mean((1, 3, 4)), np.float32)


def near_duplicates(tiles: Sequence[Tile], thumbnails: NDArray[np.float32]) -> list[Pair]:
    """Pairs in different splits that show the same ground, at most an eighth of a tile apart; thumbnails (N, 32, 32).

    Candidates look alike from afar; the same are those whose details (the brightness less that of the four neighbours) correlate
    by 0.7 at some shift. Tiles without detail are not judged.
    """
    detail = thumbnails - sum(np.roll(thumbnails, step, axis) for step, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2))) / 4
    detail = detail[:, 1:-1, 1:-1]
    strength = np.sqrt((detail**2).mean((1, 2)))
    judged = np.flatnonzero(strength > _LEAST_DETAIL * thumbnails.mean((1, 2)))
    coarse = thumbnails.reshape(-1, _COARSE, 4, _COARSE, 4).mean((2, 4)).reshape(len(thumbnails), -1)
    coarse = coarse - coarse.mean(1, keepdims=True)
    coarse /= np.linalg.norm(coarse, axis=1, keepdims=True).clip(1e-9)
    split = np.array([SPLITS.index(tile.split) for tile in tiles])
    found = []
    for number in range(1, len(SPLITS)):  # valid against train, test against both
        mine, others = judged[split[judged] == number], judged[split[judged] < number]
        for start in range(0, len(mine), _AT_ONCE):
            rows, columns = np.nonzero(coarse[mine[start : start + _AT_ONCE]] @ coarse[others].T > _ALIKE)
            found += [(a, b) for a, b in zip(mine[start + rows], others[columns], strict=True)]
    pairs = np.array(found, np.intp).reshape(-1, 2)
    same = [_same(detail, strength, pairs[start : start + _AT_ONCE]) for start in range(0, len(pairs), _AT_ONCE)]
    return [Pair(tiles[a].name, tiles[b].name) for a, b in pairs[np.concatenate(same)]] if same else []


def _same(detail: NDArray[np.float32], strength: NDArray[np.float32], pairs: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which pairs of details correlate at some shift, by the correlation theorem; zeros around them keep the ends apart."""
    side = detail.shape[1] + _SHIFT
    one, other = (np.fft.rfft2(detail[pairs[:, i]], (side, side)) for i in (0, 1))
    products = np.fft.irfft2(one * other.conj(), (side, side))
    near = np.r_[0 : _SHIFT + 1, -_SHIFT:0]
    highest = products[:, near][:, :, near].max((1, 2)) / detail[0].size
    return highest > _SAME * strength[pairs[:, 0]] * strength[pairs[:, 1]]  # type: ignore[no-any-return]


def touching(tiles: Sequence[Tile], places: Sequence[Place | None]) -> list[Pair]:
    """Pairs of tiles in different splits whose areas touch or overlap (to a tenth of a tile)."""
    placed = [(tile, place) for tile, place in zip(tiles, places, strict=True) if place]
    if not placed:
        return []
    wide, high = (2.2 * max(getattr(place, half) for _, place in placed) for half in ("half_width", "half_height"))
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (_, place) in enumerate(placed):
        cells[int(place.longitude // wide), int(place.latitude // high)].append(i)
    found = []
    for (column, row), own in cells.items():
        around = [i for x in (-1, 0, 1) for y in (-1, 0, 1) for i in cells.get((column + x, row + y), ())]
        found += [Pair(placed[i][0].name, placed[j][0].name) for i in own for j in around if i < j and _touch(placed[i], placed[j])]
    return sorted(found)


def _touch(one: tuple[Tile, Place], other: tuple[Tile, Place]) -> bool:
    if one[0].split == other[0].split:
        return False
    a, b = one[1], other[1]
    across, along = abs(a.longitude - b.longitude), abs(a.latitude - b.latitude)
    return across < 1.1 * (a.half_width + b.half_width) and along < 1.1 * (a.half_height + b.half_height)
