"""Tiles to tensors: decoded once and kept on the device where they fit into memory, else decoded as they are needed.

    loader = Loader(dataset, dataset.tiles("train"), batch_size=64, device=torch.device("cpu"), augmentation=Augmentation())
    for images, labels in loader.epoch(0):
        ...                                     # (N, H, W, bands), the dataset's dtype, or float where cropped or coloured; int64 (N,)

Order and augmentation are drawn by numpy from (seed, epoch), so epoch n is the same whenever, wherever and by whatever it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..bands import RGB
from ..errors import BackendError, ContractError, InputError
from .augment import Augmentation, Views, look, same_bits
from .cache import open_cache
from .dataset import Dataset, Tile
from .sources import Source
from .transfer import to_device

Batch = tuple[torch.Tensor, torch.Tensor]
DECODERS = ("auto", "dali", "torchvision")
CACHE_GB = 4.0
_DECODED_AT_ONCE, _BYTES_AT_ONCE = 256, 2**28  # whichever is less


class Decoder(Protocol):
    """What one library does for a loader; `name` is said to people."""

    name: str

    def batches(self, plan: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Tiles of each list of indices in turn: (N, H, W, bands) on the device."""


class _Rows:
    """What stands in for DALI where tiles are decoded already: `row` gives the pixels of an index."""

    name = "numpy"

    def __init__(self, row: Callable[[int], NDArray[np.uint16]], device: torch.device) -> None:
        self._row, self._device = row, device

    def batches(self, plan: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        for indices in plan:
            yield to_device(np.stack([self._row(int(i)) for i in indices]), self._device)


class Loader:
    """Batches of one split, on one rank.

    tiles: which tiles, in a fixed order. batch_size: tiles per batch on this rank.
    augmentation: shuffle, drop what does not fill a batch on every rank, and vary each tile. Without it: every tile
    once, in order, divided among the ranks.
    decoder: "dali", "torchvision", or "auto", which is DALI where it is installed. cache_gb: the most memory that decoded
    tiles may take on the device, in 10**9 bytes; a split that needs more is decoded anew in every epoch. keeps: whether they are kept. kept_gb: what they take.
    source: the dataset's, opened by whoever closes it; without it the loader opens its own.
    Raises BackendError where the decoder is not installed; InputError where a tile is no longer what was scanned, or other bands than red, green and
    blue are to be coloured; ContractError where the decoded tiles are not the dataset's.
    """

    def __init__(
        self,
        dataset: Dataset,
        tiles: list[Tile],
        *,
        batch_size: int,
        device: torch.device,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        decoder: str = "auto",
        cache_gb: float = CACHE_GB,
        source: Source | None = None,
    ) -> None:
        if augmentation and augmentation.colour and dataset.bands != RGB:
            raise InputError("colour varies red, green and blue; these tiles have other bands. Set colour to 0.")
        self._tiles, self._augmentation = tiles, augmentation
        self._batch_size, self._seed, self._rank, self._world, self._device = batch_size, seed, rank, world, device
        self._size = (dataset.height, dataset.width)
        self._shape = (*self._size, len(dataset.bands))
        self._dtype: torch.dtype = getattr(torch, dataset.dtype)
        self._labels = torch.tensor([tile.label for tile in tiles], device=device)
        self._dataset = dataset
        self._source = source or open_tiles(dataset)
        self._own = None if source else self._source
        if not self._source:
            self._cache = open_cache(dataset)
            if len(self._cache) != len(dataset.all_tiles):
                raise ContractError(
                    f"{dataset.source} has {len(dataset.all_tiles)} tiles, of which {len(self._cache)} are decoded. Run `sattrt data` again."
                )
            self._row_of = {tile.name: row for row, tile in enumerate(dataset.all_tiles)}
        # an evaluating rank needs its share alone; where training shuffles, any tile may come to any rank
        self._mine = np.arange(len(tiles)) if augmentation else np.arange(rank, len(tiles), world)
        size = len(self._mine) * math.prod(self._shape) * self._dtype.itemsize / 1e9
        self.keeps = size <= cache_gb
        self.kept_gb = size if self.keeps else 0.0
        self._kept: torch.Tensor | None = None
        self._at_once = decoded_at_once(dataset)
        self._decoder = self._open(decoder, max(batch_size, self._at_once if self.keeps else 0), threads)

    @property
    def decoder(self) -> str:
        """Name of the library that decodes."""
        return self._decoder.name

    @property
    def steps(self) -> int:
        """Batches per epoch on this rank; with an augmentation the same on every rank."""
        if self._augmentation:
            return max(1, len(self._tiles) // (self._batch_size * self._world))
        return -(-len(self._mine) // self._batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Batches of epoch `number`, from step `first` on: images (N, H, W, bands) and class indices int64 (N,), both on the device."""
        order, views = self._plan(number)
        starts = range(first * self._batch_size, len(order), self._batch_size)
        spans = [slice(start, start + self._batch_size) for start in starts]
        shown = views.to(self._device) if views else None
        where = torch.from_numpy(order).to(self._device)
        if self.keeps:
            if self._kept is None:
                self._kept = self._decoded()
                if self._own:
                    self._own.close()  # of a compressed tar it holds an unpacked copy
            # the share that is kept begins at `rank` and steps by `world` where nothing is shuffled
            rows = where if self._augmentation else where // self._world
            for span in spans:
                images = look(self._kept, shown[span], rows[span]) if shown else same_bits(self._kept)[rows[span]].view(self._dtype)
                yield images, self._labels[where[span]]
            return
        for span, images in zip(spans, self._decode([order[span] for span in spans]), strict=True):
            yield look(images, shown[span]) if shown else images, self._labels[where[span]]

    def close(self) -> None:
        """Let go of the archive and the decoded tiles."""
        if self._own:
            self._own.close()
        self._kept = None

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], Views | None]:
        """Indices of this rank's tiles in the order of the epoch, and how each is shown."""
        if not self._augmentation:
            return self._mine, None
        rng = np.random.default_rng([self._seed, epoch])
        order = np.resize(rng.permutation(len(self._tiles)), self.steps * self._batch_size * self._world)
        views = self._augmentation.draw(rng, len(order), self._size[0] == self._size[1])
        # consecutive runs of one global batch, so that ranks together see what one rank alone would have seen
        mine = np.arange(len(order)).reshape(self.steps, self._world, self._batch_size)[:, self._rank].reshape(-1)
        return order[mine], views[torch.from_numpy(mine)]

    def _decoded(self) -> torch.Tensor:
        """All tiles that this rank may need; one copy in memory."""
        kept = torch.empty((len(self._mine), *self._shape), dtype=self._dtype, device=self._device)
        parts = [self._mine[start : start + self._at_once] for start in range(0, len(self._mine), self._at_once)]
        done = 0
        for images in self._decode(parts):
            kept[done : done + len(images)] = images
            done += len(images)
        return kept

    def _decode(self, plan: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        for images in self._decoder.batches(plan):
            if images.shape[1:] != self._shape:
                raise ContractError(
                    f"The tiles of {self._dataset.source} are not {self._size[1]}x{self._size[0]}. Run `sattrt data` again."
                )
            yield images

    def _open(self, decoder: str, batch_size: int, threads: int) -> Decoder:
        read: Callable[[int], Any] = self._read if self._source else self._row
        if decoder != "torchvision":
            try:
                from .dali import DaliDecoder

                return DaliDecoder(read, self._device, batch_size, threads, self._source is not None, lambda index: self._tiles[index].name)
            except ImportError as error:
                if decoder == "dali":
                    raise BackendError(
                        f"NVIDIA DALI is not installed ({error}). Install it with: pip install 'sattrt[train]', or set decoder to torchvision."
                    ) from None
        if not self._source:
            return _Rows(self._row, self._device)
        from .threads import ThreadedDecoder

        return ThreadedDecoder(self._read, self._device, threads)

    def _row(self, index: int) -> NDArray[np.uint16]:
        row: NDArray[np.uint16] = self._cache[self._row_of[self._tiles[index].name]]
        return row

    def _read(self, index: int) -> bytes:
        assert self._source is not None
        return self._dataset.checked(self._source, self._tiles[index])


def decoded_at_once(dataset: Dataset) -> int:
    """How many tiles are decoded together where no batch is asked for: few, where they are large."""
    return max(1, min(_DECODED_AT_ONCE, _BYTES_AT_ONCE // dataset.tile_bytes))


def open_tiles(dataset: Dataset) -> Source | None:
    """Where the tiles of a dataset are read from; None where they are decoded already. InputError where they are gone."""
    return dataset.open() if dataset.dtype == "uint8" else None


def decoded(
    dataset: Dataset, tiles: list[Tile], decoder: str = "auto", threads: int = 2, source: Source | None = None
) -> Iterator[NDArray[np.unsignedinteger]]:
    """Tiles in their order, decoded on the CPU, in batches (n, H, W, bands) of the dataset's dtype; each is there until the next one."""
    options: dict[str, Any] = {"device": torch.device("cpu"), "threads": threads, "decoder": decoder, "cache_gb": 0, "source": source}
    loader = Loader(dataset, tiles, batch_size=decoded_at_once(dataset), **options)
    try:
        for images, _ in loader.epoch(0):
            yield images.numpy()
    finally:
        loader.close()


def decode_tiles(
    dataset: Dataset, tiles: list[Tile], decoder: str = "auto", threads: int = 2
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Tiles decoded on the CPU: (N, H, W, bands) in the dataset's dtype, and class indices (N,)."""
    found = np.empty((len(tiles), dataset.height, dataset.width, len(dataset.bands)), dataset.dtype)
    done = 0
    for images in decoded(dataset, tiles, decoder, threads):
        found[done : done + len(images)] = images
        done += len(images)
    return found, np.array([tile.label for tile in tiles], np.int64)
