"""Tiles to tensors with NVIDIA DALI: one graph, decoding on the GPU (`mixed`) where there is one, else on the CPU.

    loader = Loader(dataset, dataset.tiles("train"), batch_size=64, device=torch.device("cpu"), augment=True)
    for images, labels in loader.epoch(0):
        ...                                     # uint8 (N, H, W, 3) and int64 (N,), on the device

Order and augmentation are drawn by numpy from (seed, epoch), not by DALI: an explicit list over the whole
split beats a shuffle buffer over sorted folders, and epoch n is the same whenever and wherever it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import BackendError, ContractError, InputError, SattrtError
from .dataset import Dataset, Tile
from .sources import Source, open_source

try:
    from nvidia.dali import fn
    from nvidia.dali.pipeline import pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator
    from nvidia.dali.types import DALIDataType, DALIImageType
except ImportError as error:
    raise BackendError(f"NVIDIA DALI is not installed ({error}). Install it with: pip install 'sattrt[train]'") from None

Batch = tuple[torch.Tensor, torch.Tensor]
Plan = list[tuple[np.ndarray, np.ndarray]]


class Loader:
    """Batches of one split, on one rank.

    tiles: which tiles, in a fixed order. batch_size: tiles per batch on this rank.
    augment: shuffle, drop what does not fill a batch on every rank, and show each tile in one of its eight
    symmetries (four where tiles are not square). Without it: every tile once, in order, over the ranks.
    Raises BackendError without DALI; InputError where a tile is no longer what was scanned.
    """

    def __init__(
        self,
        dataset: Dataset,
        tiles: list[Tile],
        *,
        batch_size: int,
        device: torch.device,
        augment: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
    ) -> None:
        self._tiles = tiles
        self._labels = np.fromiter((tile.label for tile in tiles), np.int64, len(tiles))
        self._batch_size, self._augment, self._seed = batch_size, augment, seed
        self._rank, self._world = rank, world
        self._size = (dataset.height, dataset.width)
        self._square = dataset.height == dataset.width
        self._source = open_source(Path(dataset.source))
        self._feed = _Feed(self._source, tiles, augment)
        on_gpu = device.type == "cuda"
        self._pipeline = _graph(
            feed=self._feed,
            decoder="mixed" if on_gpu else "cpu",
            augment=augment,
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=2,
        )
        self._iterator: DALIGenericIterator | None = None
        self._device = device

    @property
    def steps(self) -> int:
        """Batches per epoch on this rank; with `augment` the same on every rank."""
        if self._augment:
            return max(1, len(self._tiles) // (self._batch_size * self._world))
        return -(-len(range(self._rank, len(self._tiles), self._world)) // self._batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Batches of epoch `number`, from step `first` on: images uint8 (N, H, W, 3) and class indices int64 (N,), both on the device."""
        self._feed.start(self._plan(number)[first:])  # before the iterator: it reads ahead as soon as it is made or reset
        try:
            if self._iterator is None:
                self._iterator = DALIGenericIterator([self._pipeline], ["images", "index"], prepare_first_batch=False)
            else:
                self._iterator.reset()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise self._explained(error) from None
        while True:
            try:
                output = next(self._iterator)[0]
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._explained(error) from None
            if output["images"].shape[1:3] != self._size:
                raise ContractError(f"The tiles of {self._source.path} are not {self._size[1]}x{self._size[0]}. Run `sattrt data` again.")
            index = output["index"].reshape(-1).cpu().numpy()
            yield output["images"], torch.from_numpy(self._labels[index]).to(self._device)

    def close(self) -> None:
        """Let go of the archive."""
        self._source.close()

    def _explained(self, error: RuntimeError) -> SattrtError:
        if self._feed.failure:
            return self._feed.failure
        text = " ".join(str(error).split())
        if "decode" in text or "nvImageCodec" in text:
            return InputError(f"DALI can't decode tiles of {self._source.path} ({text[:200]}). Run `sattrt data` again.")
        return BackendError(f"DALI can't run here ({text[:200]}). Check the driver with `sattrt doctor`.")

    def _plan(self, epoch: int) -> Plan:
        """For every batch the tiles' indices and symmetries (bit 0: left-right, 1: up-down, 2: transposed)."""
        size = self._batch_size
        if not self._augment:
            mine = np.arange(self._rank, len(self._tiles), self._world)
            return [(mine[start : start + size], np.zeros(size, np.int32)) for start in range(0, len(mine), size)]
        draw = np.random.default_rng([self._seed, epoch])
        order = np.resize(draw.permutation(len(self._tiles)), self.steps * size * self._world)
        symmetry = draw.integers(0, 8 if self._square else 4, len(order), dtype=np.int32)
        # consecutive runs of one global batch, so that ranks together see what one rank alone would have seen
        shape = (self.steps, self._world, size)
        mine, turns = order.reshape(shape)[:, self._rank], symmetry.reshape(shape)[:, self._rank]
        return list(zip(mine, turns, strict=True))


def decode_tiles(dataset: Dataset, tiles: list[Tile]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tiles decoded on the CPU: uint8 (N, H, W, 3) and class indices (N,)."""
    loader = Loader(dataset, tiles, batch_size=64, device=torch.device("cpu"), augment=False)
    batches = [(images.numpy().copy(), labels.numpy()) for images, labels in loader.epoch(0)]
    loader.close()
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


class _Feed:
    """What DALI asks for the next batch: encoded tiles, their indices, their symmetries."""

    def __init__(self, source: Source, tiles: list[Tile], augment: bool) -> None:
        self._source, self._tiles, self._augment = source, tiles, augment
        self._left: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        self.failure: InputError | None = None

    def start(self, plan: Plan) -> None:
        self._left = iter(plan)

    def __call__(self) -> tuple[list[np.ndarray], ...]:
        indices, symmetry = next(self._left)
        try:
            encoded = [self._read(self._tiles[i]) for i in indices]
        except InputError as error:
            self.failure = error
            raise
        numbers = [np.array([i], np.int32) for i in indices]
        if not self._augment:
            return encoded, numbers
        return encoded, numbers, *([np.array(turn >> bit & 1, np.int32) for turn in symmetry] for bit in range(3))

    def _read(self, tile: Tile) -> np.ndarray:
        content = self._source.read(tile.name)
        if hashlib.sha256(content).hexdigest() != tile.sha256:
            raise InputError(f"{tile.name} in {self._source.path} has changed since it was scanned. Run `sattrt data` again.")
        return np.frombuffer(content, np.uint8)


@pipeline_def(enable_conditionals=True)
def _graph(feed: _Feed, decoder: str, augment: bool) -> tuple[Any, Any]:
    kinds = [DALIDataType.UINT8, DALIDataType.INT32] + [DALIDataType.INT32] * 3 * augment
    encoded, index, *symmetry = fn.external_source(
        source=feed, num_outputs=len(kinds), batch=True, dtype=kinds, ndim=[1, 1] + [0] * 3 * augment
    )
    images = fn.decoders.image(encoded, device=decoder, output_type=DALIImageType.RGB, adjust_orientation=False)
    if augment:
        left_right, up_down, transposed = symmetry
        images = fn.flip(images, horizontal=left_right, vertical=up_down)
        if transposed:
            images = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
    return images, index
