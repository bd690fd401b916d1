"""Where windows lie, who votes for a cell, and what the votes give: held against loops that are written out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sattrt.map.windows import Answers, Block, Grid, held_cells, votes

SIZES = [
    (64, 64, 64),
    (65, 64, 64),
    (127, 64, 64),
    (128, 64, 64),
    (200, 64, 48),
    (100, 64, 50),
    (150, 64, 50),
    (130, 64, 7),
    (70, 64, 1),
    (70, 16, 16),
]


@pytest.mark.parametrize(("length", "tile", "stride"), SIZES)
def test_windows_cover_every_pixel_and_invent_none(length: int, tile: int, stride: int) -> None:
    grid = Grid(height=length, width=length + 3, tile_height=tile, tile_width=tile, stride=stride)
    for axis in (grid.rows, grid.columns):
        assert axis.starts[0] == 0
        assert axis.starts[-1] + tile == axis.length
        assert all(start % stride == 0 for start in axis.starts[:-1])
        assert set(range(axis.length)) == {pixel for start in axis.starts for pixel in range(start, start + tile)}
        assert axis.pixels.sum() == axis.length
        first, end = axis.voters
        for cell in range(axis.cells):
            centre = (cell * stride + min((cell + 1) * stride, axis.length)) / 2
            assert [i for i, start in enumerate(axis.starts) if start <= centre < start + tile] == list(range(first[cell], end[cell]))
            assert first[cell] < end[cell]


@pytest.mark.parametrize(("length", "tile", "stride"), SIZES)
def test_blocks_share_out_rows_of_windows_and_of_cells(length: int, tile: int, stride: int) -> None:
    grid = Grid(height=length, width=5000, tile_height=tile, tile_width=tile, stride=stride)
    assert [row for block in grid.blocks for row in block.windows] == list(range(len(grid.rows.starts)))
    assert [row for block in grid.blocks for row in block.cells] == list(range(grid.rows.cells))
    for block in grid.blocks:
        assert all(block.top <= grid.rows.starts[row] <= block.bottom - tile for row in block.windows)
        assert block.top <= block.cells.start * stride
        assert min(block.cells.stop * stride, length) <= block.bottom <= length


@pytest.mark.parametrize(("tile", "stride"), [(64, 64), (64, 32), (64, 7), (256, 256), (256, 100), (512, 512)])
@pytest.mark.parametrize("side", [600, 2_000, 10_980])
def test_a_block_holds_as_many_pixels_as_512_small_tiles_at_most(side: int, tile: int, stride: int) -> None:
    """However large the tiles are: a scene of 10,980 pixels and 13 bands would be read at once, and nothing kept of a run that is killed."""
    grid = Grid(height=side, width=side, tile_height=tile, tile_width=tile, stride=stride)
    first = grid.blocks[0]
    assert len(first.windows) == 1 or (first.bottom - first.top) * side <= 512 * 64 * 64
    if tile == 64:  # of EuroSAT's tiles the windows settle it, as they always have: answers that were kept fit
        assert len(first.windows) == min(max(1, 512 // len(grid.columns.starts)), len(grid.rows.starts))


def random_answers(grid: Grid, valid: NDArray[np.bool_], asked: NDArray[np.bool_]) -> tuple[NDArray[np.float32], dict[int, Answers]]:
    """Probabilities of every window, zero where it isn't asked, and the same cut into blocks."""
    drawn = np.random.default_rng(0).random((*asked.shape, 4)).astype(np.float32)
    drawn = np.where(asked[:, :, None], drawn / drawn.sum(2, keepdims=True), 0).astype(np.float32)
    blocks = {
        block.index: Answers(drawn[block.windows.start : block.windows.stop], held_cells(valid[block.top : block.bottom], grid, block, 0.5))
        for block in grid.blocks
    }
    return drawn, blocks


@pytest.mark.parametrize(("length", "tile", "stride"), SIZES)
def test_a_cell_gets_the_mean_of_the_windows_that_cover_its_centre(length: int, tile: int, stride: int) -> None:
    grid = Grid(height=length, width=length + 29, tile_height=tile, tile_width=tile, stride=stride)
    rng = np.random.default_rng(1)
    valid = rng.random((grid.height, grid.width)) < 0.9
    valid[: 2 * stride, :stride] = False
    asked = rng.random((len(grid.rows.starts), len(grid.columns.starts))) < 0.7
    drawn, blocks = random_answers(grid, valid, asked)

    def read(block: Block) -> Answers:
        return blocks[block.index]

    counted = np.stack(list(votes(grid, read)))
    assert counted.shape == (grid.rows.cells, grid.columns.cells, 4)
    for row in range(grid.rows.cells):
        for column in range(grid.columns.cells):
            own = np.s_[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            y, x = ((cell * stride + min((cell + 1) * stride, size)) / 2 for cell, size in ((row, grid.height), (column, grid.width)))
            voters = [
                drawn[i, j]
                for i, top in enumerate(grid.rows.starts)
                if top <= y < top + tile
                for j, left in enumerate(grid.columns.starts)
                if left <= x < left + tile and asked[i, j]
            ]
            expected = np.mean(voters, axis=0) if voters and valid[own].mean() >= 0.5 else np.zeros(4)
            assert counted[row, column] == pytest.approx(expected, abs=1e-6)
