"""An opened engine: arrays are checked once at the border, cut into batches, and answered with names.

result = engine.predict(tiles)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, ContractError, InputError
from ..spec import ModelSpec

Tiles = NDArray[np.unsignedinteger]
Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
T = TypeVar("T")


REJECTED = "rejected"


@dataclass(frozen=True)
class EngineRecord:
    """How an engine was built. file: the model or plan.

    backend: "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx" or "onnxruntime-tensorrt" (ONNX Runtime's TensorRT provider).
    """

    name: str
    backend: str
    precision: str
    file: str
    record: dict[str, Any]


class Backend(Protocol):
    """What one inference library does for an engine: `run` for at most `max_batch` tiles, and where it really runs.

    `run` may be called from several threads at once. tile, dtype: (H, W, bands) that the file takes, "uint8" or "uint16". classes: how
    many it knows. sizes: the batch sizes, ascending, to fill a batch up to, of a library that prepares each size anew; else none.
    """

    device: str
    max_batch: int
    sizes: tuple[int, ...]
    tile: tuple[int, ...]
    dtype: str
    classes: int

    def run(self, tiles: Tiles) -> Outputs:
        """Logits and probabilities, float32 (N, classes) each, of tiles (N, H, W, bands)."""

    def resident(self, tiles: Tiles) -> Callable[[], float]:
        """A call that runs tiles which were put where the engine computes, leaves the answers there, and returns its seconds."""

    def close(self) -> None:
        """Free the library's memory."""


@dataclass(frozen=True)
class Prediction:
    """labels: class index, int64 (N,). probabilities, logits: float32 (N, classes). names: class name of each tile.

    A tile that was rejected has the label -1 and the name "rejected"; its probabilities are as they were.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    names: list[str]


class NoNumbersError(BackendError):
    """Answers that are NaN or infinite."""


def largest_batch(tile: tuple[int, ...]) -> int:
    """How many tiles (H, W, bands) a CPU is given at once: 256, or fewer large ones, of which the first layer's answers alone take a gigabyte."""
    return max(1, min(256, 2**24 // (tile[0] * tile[1])))


class Engine:
    """One compiled network, ready to answer, from any number of threads. Use it as a context manager, or call `close`.

    name: of the engine within its bundle, e.g. "onnxruntime-fp32". precision: what it computes in. device: what really runs it.
    """

    def __init__(self, record: EngineRecord, spec: ModelSpec, backend: Backend) -> None:
        self.name, self.precision, self.spec, self._record, self._backend = record.name, record.precision, spec, record.record, backend
        self._closed_by: int | None = None  # the thread that did so last
        self._freed, self._freeing = False, threading.RLock()
        self._calls: dict[threading.Lock, int] = {}  # those under way, each with a lock that it holds, and its thread
        self._sent: set[int] = set()  # sizes of batches
        self._process = os.getpid()

    @property
    def device(self) -> str:
        """Where it really runs: "cpu", "cuda", or the GPU's name."""
        return self._backend.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.spec.classes

    @property
    def reject_threshold(self) -> float:
        """The confidence, 0..1, below which `predict` rejects a tile if asked to; chosen on validation, for this engine, or for its graph
        where the engine could not be run when it was exported.

        Raises ContractError where the bundle records none.
        """
        try:
            threshold = float(self._record["validation"]["reject"]["threshold"])
            if not threshold >= 0:
                raise ValueError
            return threshold
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ContractError(f"The bundle records no reject threshold for {self.name}. Export it again.") from None

    def predict(self, images: Tiles, reject: bool = False, batch: int = 0) -> Prediction:
        """Classify tiles of shape (N, height, width, bands) in the contract's dtype, or one of (height, width, bands).

        reject: give the label -1 and the name "rejected" to tiles of less confidence than `reject_threshold`. batch: as in `infer`.
        Raises InputError for another dtype or shape, or no tile at all; else as `infer`.
        """
        logits, probabilities = self.infer(self.checked(images), batch)
        labels = logits.argmax(1)
        if reject:
            labels = np.where(probabilities.max(1) >= self.reject_threshold, labels, -1)  # what is no number is not sure enough
        names = [self.spec.classes[label] if label >= 0 else REJECTED for label in labels]
        return Prediction(labels, probabilities, logits, names)

    def infer(self, tiles: Tiles, batch: int = 0) -> Outputs:
        """Logits and probabilities of tiles that are known to have the right shape and dtype.

        batch: of a caller whose batches have many sizes, the largest that it sends. Others are then filled up, by repetition, to a size that the
        library may have prepared for already; it prepares each anew, which on a GPU, and by OpenVINO, takes longer than the tiles. Raises BackendError where the engine was closed, fails, or returns NaN or infinity; ContractError where it answers with
        other arrays than its contract promises.
        """
        size, count = self.max_batch, len(tiles)
        filled = count + self._missing(count, batch)

        def part(start: int) -> Tiles:
            """Contiguous in memory; of many tiles that are not, no more than a batch is copied at once."""
            some = tiles[start : start + size]
            lacking = min(size, filled - start) - len(some)
            return np.concatenate([some, np.repeat(tiles[-1:], lacking, 0)]) if lacking else np.ascontiguousarray(some)

        parts = self._call(lambda backend: [self._run(backend, part(start)) for start in range(0, filled, size)])
        logits, probabilities = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return logits[:count], probabilities[:count]

    def unprepared(self, batch: int) -> list[int]:
        """The sizes, ascending, that `infer` makes of batches of up to `batch` tiles and that the library has not been sent yet."""
        return [size for size in self._steps(batch) if size not in self._sent]

    def prepare(self, size: int) -> None:
        """Have the library prepare for batches of this size. Errors as `infer`."""
        self.infer(np.zeros((size, self.spec.height, self.spec.width, len(self.spec.bands)), self.spec.dtype))

    def _steps(self, batch: int) -> list[int]:
        """The sizes, ascending, that batches of up to `batch` tiles are filled up to; none where the library prepares nothing."""
        most = min(batch, self.max_batch)
        return sorted({min(size, most) for size in (*self._backend.sizes, most)}) if most and self._backend.sizes else []

    def _missing(self, count: int, batch: int) -> int:
        """How many tiles the last of the batches that `count` tiles are divided into lacks to the next size that is prepared."""
        steps = self._steps(batch)
        rest = count % steps[-1] if steps else 0
        return next(size for size in steps if size >= rest) - rest if rest else 0

    def resident(self, tiles: Tiles) -> Callable[[], float]:
        """The engine alone: a call that runs these tiles (at most a batch), nothing copied, and returns the seconds it took.

        The clock is the device's own where it has one. Not for use beside `predict` from another thread.
        """
        call = self._call(lambda backend: backend.resident(tiles[: self.max_batch]))
        return lambda: self._call(lambda backend: call())

    @property
    def fills_batches(self) -> bool:
        """Whether a `Batcher` fills its batches up, so that a few tiles take as long as more."""
        return bool(self._backend.sizes)

    @property
    def max_batch(self) -> int:
        """How many tiles it takes at once; more are divided."""
        return self._backend.max_batch

    def _call(self, work: Callable[[Backend], T]) -> T:
        """What `work` does with the backend, which stays open meanwhile. BackendError where the engine was closed.

        A signal's handler may raise between any two steps, and so within a Condition or a context manager in Python, which then keeps what
        it has taken. A lock in a `with` of its own is always let go.
        """
        if os.getpid() != self._process:
            raise BackendError(
                f"{self.name} was opened before this process was forked, and a fork has none of its threads. Open it in the child."
            )
        call = threading.Lock()
        with call:
            try:
                self._calls[call] = threading.get_ident()
                if self._closed_by:
                    raise BackendError(f"{self.name} was closed. Open it again.")
                return work(self._backend)
            finally:
                self._calls.pop(call, None)
                if self._closed_by == threading.get_ident():  # in a handler, which could not free what it had interrupted
                    self.close()

    def _run(self, backend: Backend, tiles: Tiles) -> Outputs:
        logits, probabilities = backend.run(tiles)
        self._sent.add(len(tiles))
        wanted = (len(tiles), len(self.spec.classes))
        for answer in (logits, probabilities):
            if answer.shape != wanted or answer.dtype != np.float32:
                raise ContractError(f"{self.name} returned {answer.dtype} {answer.shape}, not float32 {wanted}. Export the bundle again.")
            if not np.isfinite(answer).all():
                raise NoNumbersError(f"{self.name} returned NaN or infinity. Use an engine of another precision, or export again.")
        return logits, probabilities

    def close(self) -> None:
        """Free the engine's memory, once the calls that other threads have under way have been answered. Closing it twice does no harm.

        The handler of a signal may close the engine whose call it interrupts: that call is answered, and then frees it. In a fork nothing is
        done: what the library would wait for is not there.
        """
        if os.getpid() != self._process:
            return
        self._closed_by = threading.get_ident()
        if self.is_interrupted():  # a call of another thread may wait for a lock that the interrupted one holds
            return
        for call in self._calls.copy():
            with call:
                pass
        with self._freeing:
            if not self._freed:
                self._freed = True
                self._backend.close()

    def is_interrupted(self) -> bool:
        """Whether the caller has interrupted a call of its own thread's, as a signal's handler may, or what a collection of garbage calls."""
        return threading.get_ident() in self._calls.copy().values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def checked(self, images: Tiles) -> Tiles:
        """The tiles as an array (N, height, width, bands). InputError for another dtype or shape, or no tile at all."""
        spec = self.spec
        tile = (spec.height, spec.width, len(spec.bands))
        if not isinstance(images, np.ndarray) or images.dtype != spec.dtype:
            found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            values = "0..255 values" if spec.dtype == "uint8" else "digital numbers"
            raise InputError(f"predict() takes a {spec.dtype} array, not {found}. Give the tile's own {values}; the engine scales them.")
        if images.shape[-3:] != tile or images.ndim not in (3, 4):
            raise InputError(
                f"predict() takes the shape (N, {', '.join(map(str, tile))}), not {images.shape}. Cut tiles of that size, channels last."
            )
        if images.ndim == 3:
            images = images[np.newaxis]
        if not len(images):
            raise InputError("predict() was given no tile. Give at least one.")
        return images
