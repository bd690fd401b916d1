"""A scene: what it is made of, and its pixels by window, as the engine takes them.

scene = find_scene(Path("S2A_MSIL2A_....SAFE"), engine.spec, MapConfig())      # of sattrt.map.finding
with Reader(scene) as reader:
    pixels, valid = reader.read(0, 0, 64, 640)      # (bands, 64, 640), (64, 640)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..bands import to_eurosat_rgb
from .geo import has_mask, open_raster, read_mask, reading

Pixels = NDArray[Any]  # uint8 or uint16


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band that the engine takes. path, index: where it lies, the index from 1. factor: pixels of the scene's grid that one of
    its own covers, along each side. offset: digital numbers to take off."""

    name: str
    path: str
    index: int = 1
    factor: int = 1
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene as one engine will read it: plain values, which another process can open again.

    path, kind: for people. bands: in the engine's order. height, width: pixels of the finest band. crs: as WKT, empty for none.
    transform: six numbers from pixel to CRS, row by row; None without georeference. dtype: of the files, "uint8" or "uint16".
    scaled: digital numbers become EuroSAT's 8-bit values. nodata: the value of pixels that hold nothing, None where only a
    mask tells. masked: the files carry a mask or an alpha band. says: what was found and decided, for people.
    """

    path: str
    kind: str
    bands: tuple[Band, ...]
    height: int
    width: int
    crs: str
    transform: tuple[float, ...] | None
    dtype: str
    scaled: bool
    nodata: int | None
    masked: bool
    says: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read, each once."""
        return tuple(dict.fromkeys(band.path for band in self.bands))


def stamps(files: Iterable[str]) -> dict[str, list[int]]:
    """By file name size in bytes and time of the last change, in nanoseconds: what tells one file from another of its name."""
    return {Path(name).name: [Path(name).stat().st_size, Path(name).stat().st_mtime_ns] for name in files}


class Reader:
    """Opened files of a scene. Use it as a context manager, and from one thread at a time."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._stack = scene, contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._files = {path: stack.enter_context(contextlib.closing(open_raster(path))) for path in scene.files}
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, NDArray[np.bool_]]:
        """Pixels (bands, height, width) as the engine takes them, and where they hold data (height, width).

        A pixel is the same whatever window it is read in. InputError where a file can't be read.
        """
        scene = self._scene
        # the bands of a pixel lie side by side in memory, as in the tiles that will be cut from it, many times over where windows overlap
        numbers = np.empty((height, width, len(scene.bands)), scene.dtype).transpose(2, 0, 1)
        valid = np.zeros((height, width), np.bool_)
        for path, run in itertools.groupby(range(len(scene.bands)), lambda place: scene.bands[place].path):
            places = list(run)
            valid |= self._fill(numbers[places[0] : places[-1] + 1], self._files[path], places, (top, left, height, width))
        if not scene.scaled and not any(band.offset for band in scene.bands):
            return numbers, valid
        pixels = np.empty((height, width, len(scene.bands)), np.uint8).transpose(2, 0, 1) if scene.scaled else numbers
        for place, band in enumerate(scene.bands):
            pixels[place] = table(band.offset, scene.scaled)[numbers[place]]
        return pixels, valid

    def _fill(self, out: Pixels, dataset: Any, places: list[int], window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
        """Put digital numbers on the scene's grid into `out` (places, height, width), and say where any of these bands holds data."""
        indexes, factor = [self._scene.bands[place].index for place in places], self._scene.bands[places[0]].factor
        top, left, height, width = window
        if factor == 1:
            return self._raw(out, dataset, indexes, range(top, top + height), range(left, left + width))
        # the pixels of its own that the window touches, and one more on each side to interpolate from, where there is one
        rows = range(max(top // factor - 1, 0), min(-(-(top + height) // factor) + 1, dataset.height))
        columns = range(max(left // factor - 1, 0), min(-(-(left + width) // factor) + 1, dataset.width))
        raw = np.empty((len(places), len(rows), len(columns)), out.dtype)
        held = self._raw(raw, dataset, indexes, rows, columns)
        down, across = (np.arange(start, start + size) for start, size in ((top, height), (left, width)))
        nearest = np.ix_(down // factor - rows.start, across // factor - columns.start)
        for finer, each in zip(out, raw, strict=True):
            finer[:] = _finer(each, held, nearest, _weights(down, factor, rows), _weights(across, factor, columns))
        return held[nearest]

    def _raw(self, out: Pixels, dataset: Any, indexes: list[int], rows: range, columns: range) -> NDArray[np.bool_]:
        """Read a file's own pixels into `out` (bands, rows, columns), and say where any of these bands holds data."""
        with reading(dataset.name) as rasterio:
            area = rasterio.windows.Window(columns.start, rows.start, len(columns), len(rows))
            dataset.read(indexes, window=area, out=out)
            nodata = self._scene.nodata
            held: NDArray[np.bool_] = np.ones(out.shape[1:], np.bool_) if nodata is None else out[0] != nodata
            for band in out[1:]:
                if held.all():
                    break
                held |= band != nodata
            if self._scene.masked and has_mask(dataset):
                held &= read_mask(dataset, area)
        return held


@functools.cache
def table(offset: int, scaled: bool) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """What each of the 65,536 digital numbers becomes: the offset is taken off; `scaled` gives EuroSAT's 8-bit values, 1..255."""
    numbers = np.maximum(np.arange(65_536) - offset, 0).astype(np.uint16)
    return to_eurosat_rgb(numbers) if scaled else numbers


def converted(scene: Scene, values: Pixels) -> Pixels:
    """Values (bands, N) of the files as the engine takes them (N, bands)."""
    if scene.dtype == "uint8":
        return values.T
    return np.stack([table(band.offset, scene.scaled)[each] for band, each in zip(scene.bands, values, strict=True)], axis=-1)


Weights = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def _weights(pixels: NDArray[np.intp], factor: int, own: range) -> Weights:
    """For each fine pixel its two coarse neighbours (indexes into `own`) and the weight of the second."""
    place = (pixels + 0.5) / factor - 0.5
    first = np.floor(place).astype(np.intp)
    low, high = (np.clip(each, own.start, own.stop - 1) - own.start for each in (first, first + 1))
    return low, high, (place - first).astype(np.float32)


def _finer(numbers: Pixels, held: NDArray[np.bool_], nearest: Any, down: Weights, across: Weights) -> Pixels:
    """Bilinear interpolation; beside pixels that hold nothing, the nearest."""
    low, high, share = down
    left, right, along = across

    exact = numbers.astype(np.float32)
    rows = exact[low] * (1 - share)[:, None] + exact[high] * share[:, None]
    smooth: Pixels = np.floor(rows[:, left] * (1 - along) + rows[:, right] * along + 0.5).astype(numbers.dtype)
    if held.all():
        return smooth
    whole = held[low] & held[high]
    mended: Pixels = np.where(whole[:, left] & whole[:, right], smooth, numbers[nearest])
    return mended
