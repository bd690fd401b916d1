"""Tiles of a split for the bench: 8-bit RGB by DALI where it is installed, by Pillow on an edge machine, GeoTIFF by rasterio; the report
says which."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, Tile
from ..errors import BackendError, InputError

if TYPE_CHECKING:
    from ..data.loader import Loader

Batch = tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]


_PASS = 1024  # tiles that file to label is timed on, at most


def for_a_pass(tiles: list[Tile], batch_size: int) -> list[Tile]:
    """Of many tiles every second, third, ... one; whole batches, where there is one: libraries on a GPU prepare another size anew, amid the pass."""
    some = tiles[:: -(-len(tiles) // _PASS)]
    return some[: len(some) // batch_size * batch_size or len(some)]


class TileReader:
    """Reads, checks and decodes tiles in order, on the CPU: engines take host arrays. Use it as a context manager: the source stays open.

    decoder: "DALI", "torchvision", "Pillow" or "rasterio".
    """

    def __init__(self, dataset: Dataset, tiles: list[Tile], threads: int, batch_size: int = 64) -> None:
        self._dataset, self._tiles, self._batch_size = dataset, tiles, batch_size
        self._loader: Loader | None = None
        self._source = dataset.open()  # once: the directory of an archive takes a while, to unpack one far longer
        self.decoder = "Pillow" if dataset.dtype == "uint8" else "rasterio"
        if dataset.dtype != "uint8":  # the file is decoded, as a program at the edge would: not the cache of training
            return
        with contextlib.suppress(ImportError, BackendError):  # an edge machine has neither
            import torch

            from ..data.loader import Loader

            self._loader = Loader(
                dataset, tiles, batch_size=batch_size, device=torch.device("cpu"), threads=threads, cache_gb=0, source=self._source
            )
            self.decoder = self._loader.decoder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._source.close()

    def __len__(self) -> int:
        """Tiles of one pass."""
        return len(self._tiles)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of (N, H, W, bands) and class indices (N,), read from the source anew."""
        if self._loader:
            for batch in self._loader.epoch(0):
                yield batch[0].numpy(), batch[1].numpy()
            return
        for start in range(0, len(self._tiles), self._batch_size):
            part = self._tiles[start : start + self._batch_size]
            images = np.stack([self._decode(self._dataset.checked(self._source, tile), tile) for tile in part])
            yield images, np.array([tile.label for tile in part], np.int64)

    def _decode(self, content: bytes, tile: Tile) -> NDArray[np.unsignedinteger]:
        try:
            return self._dataset.format.read(content).pixels
        except InputError as error:
            raise InputError(f"{tile.name} in {self._dataset.source}: {error}. Run `sattrt data` again.") from None
