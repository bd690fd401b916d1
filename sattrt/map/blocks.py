"""Stage one: the probabilities of every window, block by block, the next strip read while the engine computes.

for index, answers in compute_here(engine, plan, [block.index for block in plan.grid.blocks]):
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..runtime import Engine
from .scene import Pixels, Reader, Scene
from .windows import Answers, Block, Grid, held_cells

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be computed; together with the engine it settles every bit of the answers. batch_size, valid: as in MapConfig."""

    scene: Scene
    grid: Grid
    batch_size: int
    valid: float


def compute_here(engine: Engine, plan: Plan, blocks: Iterable[int]) -> Iterator[tuple[int, Answers]]:
    """Index and answers of each of these blocks, in their order. InputError where the scene can't be read."""
    with Reader(plan.scene) as reader:
        yield from compute_from(reader, engine, plan, blocks)


def compute_from(reader: Reader, engine: Engine, plan: Plan, blocks: Iterable[int]) -> Iterator[tuple[int, Answers]]:
    """The same from a scene that is open already."""

    def read(index: int) -> tuple[Block, Pixels, NDArray[np.bool_]]:
        block = plan.grid.blocks[index]
        return block, *reader.read(block.top, 0, block.bottom - block.top, plan.grid.width)

    for block, pixels, valid in ahead(partial(read, index) for index in blocks):
        yield block.index, _answers(plan, engine, block, pixels, valid)


def ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of calls in their order, each made in a thread while the caller works on the one before."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[T] | None = None
        for call in calls:
            following = pool.submit(call)
            if pending:
                yield pending.result()
            pending = following
        if pending:
            yield pending.result()


def _answers(plan: Plan, engine: Engine, block: Block, pixels: Pixels, valid: NDArray[np.bool_]) -> Answers:
    grid, height, width = plan.grid, plan.grid.tile_height, plan.grid.tile_width
    tops, lefts = np.array(grid.rows.starts[block.windows.start : block.windows.stop]) - block.top, np.array(grid.columns.starts)
    asked = np.argwhere(_held(valid, tops, lefts, height, width) >= plan.valid * height * width)
    batches = [asked[start : start + plan.batch_size] for start in range(0, len(asked), plan.batch_size)]

    def gather(batch: NDArray[np.intp]) -> Pixels:
        tiles = np.empty((len(batch), height, width, len(pixels)), pixels.dtype)
        for tile, (row, column) in zip(tiles, batch, strict=True):
            top, left = tops[row], lefts[column]
            tile[:] = pixels[:, top : top + height, left : left + width].transpose(1, 2, 0)
            held = valid[top : top + height, left : left + width]
            if not held.all():  # what stands for no data is no value: a network would see water in it, or snow
                tile[~held] = np.rint(tile[held].mean(0))
        return tiles

    probabilities = np.zeros((len(tops), len(lefts), len(engine.classes)), np.float32)
    for batch, tiles in zip(batches, ahead(partial(gather, batch) for batch in batches), strict=True):
        probabilities[batch[:, 0], batch[:, 1]] = engine.infer(tiles, plan.batch_size)[1]
    return Answers(probabilities, held_cells(valid, grid, block, plan.valid))


def _held(valid: NDArray[np.bool_], tops: NDArray[np.intp], lefts: NDArray[np.intp], height: int, width: int) -> NDArray[np.int32]:
    """How many pixels of each window hold data (rows, columns of windows), by sums over the rectangles from the corner."""
    sums = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(valid, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    rows = sums[tops + height] - sums[tops]
    held: NDArray[np.int32] = rows[:, lefts + width] - rows[:, lefts]
    return held
