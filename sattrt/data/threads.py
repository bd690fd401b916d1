"""Decoding without DALI: JPEG by torchvision, what that can't take by Pillow, each batch divided among a few threads.

A thread that asks for Python's lock after every tile makes the others wait. So one thread reads, while nobody decodes, and what a thread
does with its part of a batch leaves the lock alone for as long as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torchvision.io  # registers torch.ops.image
from numpy.typing import NDArray

from ..errors import ContractError
from .decode import decode_rgb
from .transfer import to_device

_JPEG = b"\xff\xd8\xff"
_MOST_THREADS = 4  # of a tile's time a fifth is Python's: more of them only wait for its lock
_AS_STORED = torchvision.io.ImageReadMode.UNCHANGED.value


class ThreadedDecoder:
    """Decodes lists of tiles; `read` gives the encoded tile of an index, and says by InputError what is wrong with it."""

    name = "torchvision"

    def __init__(self, read: Callable[[int], bytes], device: torch.device, threads: int) -> None:
        self._read, self._device, self._threads = read, device, min(threads, _MOST_THREADS)

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Tiles of each list of indices in turn: uint8 (N, H, W, 3) on the device; the next one is decoded while one is used."""
        with ThreadPoolExecutor(self._threads) as pool:
            ready: NDArray[np.uint8] | None = None
            for indices in plan:
                contents = [self._read(int(i)) for i in indices]
                parts = [pool.submit(_part, contents[i :: self._threads]) for i in range(min(self._threads, len(contents)))]
                if ready is not None:
                    yield to_device(ready, self._device)
                ready = _joined(parts, len(contents))
            if ready is not None:
                yield to_device(ready, self._device)


def _joined(parts: list[Future[NDArray[np.uint8]]], count: int) -> NDArray[np.uint8]:
    found = [part.result() for part in parts]
    if len({part.shape[1:] for part in found}) > 1:
        raise ContractError("The tiles are not all of one size. Run `sattrt data` again.")
    batch = np.empty((count, *found[0].shape[1:]), np.uint8)
    for i, part in enumerate(found):
        batch[i :: len(found)] = part
    return batch


def _part(contents: list[bytes]) -> NDArray[np.uint8]:
    images = [_decoded(content) for content in contents]
    if len({image.shape for image in images}) > 1:
        raise ContractError("The tiles are not all of one size. Run `sattrt data` again.")
    return np.stack(images)


def _decoded(content: bytes) -> NDArray[np.uint8]:
    if content.startswith(_JPEG):
        try:  # the operator itself: what torchvision wraps around it costs a tenth of the rate
            image = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), _AS_STORED, False).numpy()
        except (RuntimeError, AttributeError):  # Pillow takes it, or says what is wrong; AttributeError: a torchvision without its decoders
            return decode_rgb(content)
        if len(image) == 3:
            return image.transpose(1, 2, 0)  # type: ignore[no-any-return]
    return decode_rgb(content)
