"""Pillow: decodes where DALI is not installed, on as many threads as there are cores (it lets go of Python's lock)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ContractError
from .decode import decode_rgb
from .transfer import to_device

_AHEAD = 2  # batches that are decoded while one is used


class PillowDecoder:
    """Decodes lists of tiles; `read` gives the encoded tile of an index, and says by InputError what is wrong with it."""

    name = "Pillow"

    def __init__(self, read: Callable[[int], bytes], device: torch.device, threads: int) -> None:
        self._read, self._device, self._threads = read, device, threads

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Tiles of each list of indices in turn: uint8 (N, H, W, 3) on the device."""
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
            for indices in plan:
                waiting.append([pool.submit(self._decoded, int(i)) for i in indices])
                if len(waiting) > _AHEAD:
                    yield self._batch(waiting.popleft())
            while waiting:
                yield self._batch(waiting.popleft())

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        return decode_rgb(self._read(index))

    def _batch(self, futures: list[Future[NDArray[np.uint8]]]) -> torch.Tensor:
        images = [future.result() for future in futures]
        if len({image.shape for image in images}) > 1:
            raise ContractError("The tiles are not all of one size. Run `sattrt data` again.")
        return to_device(np.stack(images), self._device)
