"""NVIDIA DALI: one graph, decoding on the GPU (`mixed`) where there is one, else on the CPU; tiles that are decoded already it only moves.

DALI's own shuffling is not used: an explicit list of tiles can begin anywhere, and needs no state in a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from nvidia.dali.types import DALIDataType, DALIImageType

from ..errors import BackendError, InputError, SattrtError

Read = Callable[[int], bytes | NDArray[np.uint16]]
# Encoded tiles that DALI is given together. It looks into 32 and more by several threads at once, and where it can't decode one of those, the
# others go on with memory that is gone: half of such failures end the process (DALI 2.4). Fewer at a time cost nothing that
# could be measured on two CPU cores; on a GPU neither was tried.
_MOST_ENCODED = 31


class DaliDecoder:
    """Decodes lists of tiles; `read` gives the encoded tile of an index, and says by InputError what is wrong with it.

    encoded: whether `read` gives the bytes of a file, or the pixels themselves, uint16 (H, W, bands). name_of: what a tile is called in errors.
    """

    name = "DALI"

    def __init__(
        self, read: Read, device: torch.device, batch_size: int, threads: int, encoded: bool = True, name_of: Callable[[int], str] = str
    ) -> None:
        self._feed, self._encoded, self._name_of = _Feed(read), encoded, name_of
        self._one_by_one = partial(DaliDecoder, read, device, 1, threads, encoded)
        self._most = min(batch_size, _MOST_ENCODED) if encoded else batch_size
        on_gpu = device.type == "cuda"
        self._pipeline = _graph(
            feed=self._feed,
            on_gpu=on_gpu,
            encoded=encoded,
            batch_size=self._most,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=2,
            # the dynamic executor hands out its own memory, and may fill it anew before work that torch has queued has read it; the other
            # one's batches are copied on torch's stream, and it waits for that (nvidia/dali/plugin/pytorch)
            exec_dynamic=not on_gpu,
        )
        self._iterator: DALIGenericIterator | None = None

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Tiles of each list of indices in turn: uint8 (N, H, W, 3), or uint16 of any bands, on the device, whose memory the next batch may take."""
        parts = [[indices[start : start + self._most] for start in range(0, len(indices), self._most)] for indices in plan]
        if self._iterator is not None:
            # it has to have said that it is at its end before it begins anew, and a pass may have been left early
            self._feed.start([])
            with contextlib.suppress(StopIteration, RuntimeError):
                while True:
                    next(self._iterator)
        # before the iterator: it reads ahead as soon as it is made or reset
        self._feed.start([part for of_batch in parts for part in of_batch])
        try:
            if self._iterator is None:
                self._iterator = DALIGenericIterator([self._pipeline], ["images"], prepare_first_batch=False)
            else:
                self._iterator.reset()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise self._explained(error, plan[0]) from None
        for of_batch in parts:
            found = [self._next(part, keep=len(of_batch) > 1) for part in of_batch]
            if len({images.shape[1:] for images in found}) > 1:
                raise self._explained(RuntimeError("its batch has no uniform shape"), np.concatenate(of_batch))
            yield found[0] if len(found) == 1 else torch.cat(found)

    def _next(self, indices: NDArray[np.int64], keep: bool) -> torch.Tensor:
        """What DALI delivers next, of these indices. keep: in memory of its own."""
        assert self._iterator is not None
        try:
            images: torch.Tensor = next(self._iterator)[0]["images"]
        except RuntimeError as error:
            raise self._explained(error, indices) from None
        if not self._encoded:
            images = images.view(torch.uint16)  # DALI's plugin for torch knows none: the same 16 bits
        return images.clone() if keep else images

    def _explained(self, error: RuntimeError, indices: NDArray[np.int64]) -> SattrtError:
        """What the user can do about a failure at the tiles of these indices."""
        if self._feed.failure:
            return self._feed.failure
        text = " ".join(str(error).split())
        if "decode" in text or "nvImageCodec" in text or "uniform shape" in text:
            tile = self._name_of(self._culprit(indices))
            return InputError(
                f'DALI can\'t decode {tile} ({text[:200]}). Set decoder = "torchvision", or take it out and run `sattrt data` again.'
            )
        return BackendError(f"DALI can't run here ({text[:200]}). Check the driver with `sattrt doctor`.")

    def _culprit(self, indices: NDArray[np.int64]) -> int:
        """The first that can't be decoded alone either; the first of all, where each can."""
        done = 0
        if len(indices) > 1:
            with contextlib.suppress(SattrtError):
                for _ in self._one_by_one().batches(np.split(indices, len(indices))):
                    done += 1
        return int(indices[done % len(indices)])


class _Feed:
    """What DALI asks for the next batch of encoded tiles."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left: Iterator[NDArray[np.int64]] = iter(())
        self.failure: InputError | None = None

    def start(self, plan: Sequence[NDArray[np.int64]]) -> None:
        self._left, self.failure = iter(plan), None

    def __call__(self) -> list[NDArray[np.unsignedinteger]]:
        indices = next(self._left)
        try:
            found = [self._read(int(i)) for i in indices]
            return [np.frombuffer(each, np.uint8) if isinstance(each, bytes) else each.view(np.int16) for each in found]
        except InputError as error:
            self.failure = error
            raise


@pipeline_def
def _graph(feed: _Feed, on_gpu: bool, encoded: bool) -> Any:
    if encoded:
        files = fn.external_source(source=feed, batch=True, dtype=DALIDataType.UINT8, ndim=1)
        device = "mixed" if on_gpu else "cpu"
        # fancy: the chroma of 4:2:0 is interpolated, as Pillow does; on a CPU DALI does so in any case, on a GPU only when told to
        return fn.decoders.image(
            files,
            device=device,
            output_type=DALIImageType.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            # nvJPEG, on a GPU, sets this aside for each thread, by default enough for photographs; it takes more where a tile needs it
            device_memory_padding=2**20,
            host_memory_padding=2**20,
        )
    pixels = fn.external_source(source=feed, batch=True, dtype=DALIDataType.INT16, ndim=3, layout="HWC")
    return pixels.gpu() if on_gpu else pixels
