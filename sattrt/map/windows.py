"""Where windows lie on a scene, which cells of the map they vote for, and the blocks that they are computed in.

grid = Grid(height=10980, width=10980, tile_height=64, tile_width=64, stride=32)
grid.rows.cells, grid.columns.cells      # the size of the map: one cell is stride x stride pixels
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# of a block: enough that a file costs nothing, few enough that two strips of 13 bands lie in memory beside the engine
_WINDOWS = 512
_PIXELS = _WINDOWS * 64 * 64  # and no more pixels than that many of EuroSAT's tiles have, or a scene of large tiles would be one block


@dataclass(frozen=True)
class Axis:
    """One direction of the grid: windows of `tile` pixels, a `stride` apart, over `length` pixels; cells of `stride` pixels."""

    length: int
    tile: int
    stride: int

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each window: multiples of the stride, and one more flush with the edge where those leave a rest."""
        last = self.length - self.tile
        return (*range(0, last + 1, self.stride), *([last] if last % self.stride else []))

    @property
    def cells(self) -> int:
        """Cells of the map; the last may reach beyond the scene."""
        return -(-self.length // self.stride)

    @functools.cached_property
    def pixels(self) -> NDArray[np.int64]:
        """How many of the scene's pixels each cell has (cells,)."""
        return np.minimum((np.arange(self.cells) + 1) * self.stride, self.length) - np.arange(self.cells) * self.stride

    @functools.cached_property
    def voters(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each cell the first window that covers the centre of its pixels, and the one after the last (cells,) each."""
        starts = np.array(self.starts)
        centres = np.arange(self.cells) * self.stride + self.pixels / 2
        return np.searchsorted(starts + self.tile, centres, side="right"), np.searchsorted(starts, centres, side="right")


@dataclass(frozen=True)
class Block:
    """Whole rows of windows that are computed together, and the rows of cells that begin in them.

    windows, cells: rows of each. top, bottom: the pixels that they lie on.
    """

    index: int
    windows: range
    cells: range
    top: int
    bottom: int


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Windows over a scene of height x width pixels."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    stride: int

    @functools.cached_property
    def rows(self) -> Axis:
        """From top to bottom."""
        return Axis(self.height, self.tile_height, self.stride)

    @functools.cached_property
    def columns(self) -> Axis:
        """From left to right."""
        return Axis(self.width, self.tile_width, self.stride)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All windows in fixed blocks: they follow from the grid alone, so that a run can be stopped, shared out and repeated."""
        starts = self.rows.starts
        fit = (_PIXELS // self.width - self.tile_height) // self.stride + 1
        step = max(1, min(_WINDOWS // len(self.columns.starts), fit))
        blocks = []
        for index, first in enumerate(range(0, len(starts), step)):
            end = min(first + step, len(starts))
            cells = range(first, self.rows.cells if end == len(starts) else end)
            blocks.append(Block(index, range(first, end), cells, starts[first], starts[end - 1] + self.tile_height))
        return tuple(blocks)


@dataclass(frozen=True)
class Answers:
    """What a block gives. probabilities: float32 (rows, columns of windows, classes), zero where the engine wasn't asked.

    seen: whether enough of a cell's pixels hold data, bool (rows, columns of cells).
    """

    probabilities: NDArray[np.float32]
    seen: NDArray[np.bool_]


def held_cells(valid: NDArray[np.bool_], grid: Grid, block: Block, share: float) -> NDArray[np.bool_]:
    """Whether at least this share of the pixels of each cell of the block holds data. valid: (pixel rows of the block, width)."""
    # a flush window begins above the cells that begin in it
    start = block.cells.start * grid.stride - block.top
    below = valid[start : start + len(block.cells) * grid.stride]
    by_row = np.add.reduceat(below, np.arange(0, len(block.cells) * grid.stride, grid.stride), axis=0, dtype=np.int32)
    held = np.add.reduceat(by_row, np.arange(0, grid.width, grid.stride), axis=1)
    pixels = grid.rows.pixels[block.cells.start : block.cells.stop, None] * grid.columns.pixels
    return np.asarray(held >= share * pixels)


def votes(grid: Grid, answers: Callable[[Block], Answers]) -> Iterator[NDArray[np.float32]]:
    """For each row of cells the mean of the probabilities that windows give it, float32 (cells, classes); zeros where there is none.

    answers: called once for each block, in order.
    """
    first, end = grid.rows.voters
    rows: dict[int, NDArray[np.float32]] = {}  # of windows, as long as a cell wants them
    seen: dict[int, NDArray[np.bool_]] = {}
    blocks = iter(grid.blocks)
    for cell in range(grid.rows.cells):
        while end[cell] - 1 not in rows or cell not in seen:
            block = next(blocks)
            given = answers(block)
            rows |= dict(zip(block.windows, given.probabilities, strict=True))
            seen |= dict(zip(block.cells, given.seen, strict=True))
        for old in [row for row in rows if row < first[cell]]:
            del rows[old]
        yield _mean([rows[row] for row in range(first[cell], end[cell])], grid.columns, seen.pop(cell))


def _mean(rows: list[NDArray[np.float32]], columns: Axis, seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The mean over the windows that cover each cell of a row; always in the same order, so that it is the same to the bit."""
    total: NDArray[np.float64] = np.asarray(np.sum(rows, axis=0, dtype=np.float64))
    asked: NDArray[np.int64] = np.asarray(np.sum([row.any(1) for row in rows], axis=0))
    first, end = columns.voters
    sums, counts = np.zeros((columns.cells, total.shape[1])), np.zeros(columns.cells, np.int64)
    for each in range(int((end - first).max())):
        window = np.minimum(first + each, end - 1)
        covers = (first + each < end) & seen
        sums += np.where(covers[:, None], total[window], 0)
        counts += np.where(covers, asked[window], 0)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
