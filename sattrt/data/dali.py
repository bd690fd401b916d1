"""NVIDIA DALI: one graph, decoding on the GPU (`mixed`) where there is one, else on the CPU.

DALI's own shuffling is not used: an explicit list of tiles can begin anywhere, and needs no state in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from nvidia.dali.types import DALIDataType, DALIImageType

from ..errors import BackendError, InputError, SattrtError

Read = Callable[[int], bytes]


class DaliDecoder:
    """Decodes lists of tiles; `read` gives the encoded tile of an index, and says by InputError what is wrong with it."""

    name = "DALI"

    def __init__(self, read: Read, device: torch.device, batch_size: int, threads: int) -> None:
        self._feed = _Feed(read)
        on_gpu = device.type == "cuda"
        self._pipeline = _graph(
            feed=self._feed,
            decoder="mixed" if on_gpu else "cpu",
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=2,
        )
        self._iterator: DALIGenericIterator | None = None

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Tiles of each list of indices in turn: uint8 (N, H, W, 3) on the device, whose memory the next batch may take."""
        self._feed.start(plan)  # before the iterator: it reads ahead as soon as it is made or reset
        try:
            if self._iterator is None:
                self._iterator = DALIGenericIterator([self._pipeline], ["images"], prepare_first_batch=False)
            else:
                self._iterator.reset()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise self._explained(error) from None
        while True:
            try:
                yield next(self._iterator)[0]["images"]
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._explained(error) from None

    def _explained(self, error: RuntimeError) -> SattrtError:
        if self._feed.failure:
            return self._feed.failure
        text = " ".join(str(error).split())
        if "decode" in text or "nvImageCodec" in text or "uniform shape" in text:
            return InputError(f"DALI can't decode the tiles ({text[:200]}). Run `sattrt data` again.")
        return BackendError(f"DALI can't run here ({text[:200]}). Check the driver with `sattrt doctor`.")


class _Feed:
    """What DALI asks for the next batch of encoded tiles."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left: Iterator[NDArray[np.int64]] = iter(())
        self.failure: InputError | None = None

    def start(self, plan: Sequence[NDArray[np.int64]]) -> None:
        self._left = iter(plan)

    def __call__(self) -> list[NDArray[np.uint8]]:
        indices = next(self._left)
        try:
            return [np.frombuffer(self._read(int(i)), np.uint8) for i in indices]
        except InputError as error:
            self.failure = error
            raise


@pipeline_def
def _graph(feed: _Feed, decoder: str) -> Any:
    encoded = fn.external_source(source=feed, batch=True, dtype=DALIDataType.UINT8, ndim=1)
    return fn.decoders.image(encoded, device=decoder, output_type=DALIImageType.RGB, adjust_orientation=False)
