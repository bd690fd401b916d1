"""TensorRT 10 and 11 and TensorRT-RTX behind one interface: deserialise a plan, run it on the current GPU.

Not run on hardware yet: no machine at hand has had a GPU (see the README).
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import BackendError, ContractError, no_library
from .cuda import Device, Memory
from .engine import Outputs, Tiles

# the lean runtime loads version-compatible plans, and builds none
MODULES = {"tensorrt": ("tensorrt", "tensorrt_lean"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


def load_module(backend: str, builds: bool = False) -> ModuleType:
    """TensorRT's Python module for "tensorrt" or "tensorrt-rtx", if wanted one that builds; BackendError where it is not installed."""
    broken = None
    for name in MODULES[backend]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:  # OSError: its libraries are not there
            broken = broken or error
            continue
        if hasattr(module, "Builder") or not builds:
            return module
    raise no_library(backend, f"sattrt[{backend}]", broken) from None


def silent_log(trt: ModuleType) -> Any:
    """TensorRT's log, kept silent: stderr is the program's own. Its last error is what a refusal is explained with."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = " ".join(message.split())

    return Log()


def refusal(trt: ModuleType, runtime: Any, plan: bytes, version: str, logged: str) -> str:
    """Why a plan was refused: another version, what TensorRT-RTX finds in it, and the last error that was logged."""
    reasons = [] if version == trt.__version__ else [f"it was built by {version}, and {trt.__version__} is installed"]
    if hasattr(runtime, "get_engine_validity"):
        _, found = runtime.get_engine_validity(plan)
        reasons += [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(found) & int(bit)]
    return "; ".join([*reasons, logged])


class TensorRTBackend:
    """An execution context over one plan, with its input and output memory on the GPU.

    A batch size that comes twice in a row is recorded as a CUDA graph and launched as one from then on, until another comes.
    plan: the content of the file, where it was read already, and its digest checked.
    """

    def __init__(self, path: Path, record: dict[str, Any], plan: bytes | None = None) -> None:
        try:
            builder, wanted = record["builder"], [str(each) for each in record["compute_capabilities"]]
            if builder not in MODULES:
                raise ValueError(builder)
            self._min_batch, self.max_batch = int(record["profile"]["min"]), int(record["profile"]["max"])
            flags = record.get("flags", [])
            if not isinstance(flags, list):
                raise TypeError(flags)
            weights = path.with_name(record["onnx"]) if "STRIP_PLAN" in flags else None
            self.dtype = str(record["dtype"])
            version = str(record["builder_version"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ContractError(f"The build record of {path} is invalid ({error!r}). Export the bundle again.") from None
        trt = load_module(builder)
        if not hasattr(trt, "Builder") and "VERSION_COMPATIBLE" not in flags:
            raise BackendError(
                f"{path.name} is not version-compatible, and the lean runtime loads nothing else. Export with version_compatible = true, "
                "or install tensorrt."
            )
        # before TensorRT is touched: without a driver deserialising can crash the process
        device = Device()
        on_any_since_ampere = builder == "tensorrt" and "AMPERE_PLUS" in flags and int(device.compute_capability.partition(".")[0]) >= 8
        if device.compute_capability not in wanted and not on_any_since_ampere:
            way_out = (
                "Export again on this machine" if builder == "tensorrt" else "TensorRT-RTX may not build for it: use a tensorrt engine"
            )
            raise BackendError(
                f"{path.name} was built for compute capability {', '.join(wanted)}; {device.name} has "
                f"{device.compute_capability}. {way_out}, or use an onnxruntime engine."
            )
        self.device = device.name
        # few enough that a size often comes twice; a small GPU needs as many times longer for a full batch as it has tiles
        self.sizes: tuple[int, ...] = (*(2**i for i in range(self.max_batch.bit_length()) if 2**i < self.max_batch), self.max_batch)
        self._memory, self._turn = Memory(device), threading.Lock()
        try:
            with self._memory.current():
                self._load(trt, path.read_bytes() if plan is None else plan, path, version, weights)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: ModuleType, plan: bytes, path: Path, version: str, weights: Path | None) -> None:
        self._logger = silent_log(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
        except (TypeError, RuntimeError):  # pybind11's words for a null pointer
            raise BackendError(
                f"{path.name}: TensorRT can't start here ({self._logger.last}). Check the driver and free memory (nvidia-smi), or use an onnxruntime engine."
            ) from None
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            why = refusal(trt, self._runtime, plan, version, self._logger.last)
            raise BackendError(f"{path.name} is refused here: {why}. Export the bundle again on this machine.")
        smallest, _, largest = (int(shape[0]) for shape in self._engine.get_tensor_profile_shape("input", 0))
        if (smallest, largest) != (self._min_batch, self.max_batch):
            raise ContractError(
                f"{path} takes {smallest} to {largest} tiles; its record says {self._min_batch} to {self.max_batch}. Export the bundle again."
            )
        if weights and not hasattr(trt, "OnnxParserRefitter"):
            raise BackendError(
                f"{path.name} was built without its weights, which the lean runtime can't put in. Install tensorrt, or export without strip_weights."
            )
        if weights:  # the plan has none: they come out of the graph it was built from
            refitter = trt.Refitter(self._engine, self._logger)
            if not (trt.OnnxParserRefitter(refitter, self._logger).refit_from_file(str(weights)) and refitter.refit_cuda_engine()):
                raise BackendError(f"{path.name} can't be given the weights of {weights.name}. Export the bundle again.")
        self._context = self._engine.create_execution_context(*self._runtime_config(trt))
        if self._context is None:
            raise BackendError(f"{self.device} has no memory left for {path.name}. Close other programs, or use another engine.")
        self.classes = int(self._engine.get_tensor_shape("logits")[1])
        self._shape = tuple(self._engine.get_tensor_shape("input"))[1:]
        # TensorRT has no uint16: such a plan takes the same memory as bytes
        size = 2 if self.dtype == "uint16" else 1
        self.tile = (*self._shape[:2], self._shape[2] // size)
        self._buffers: dict[str, int] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            values = self.max_batch * int(np.prod(tuple(self._engine.get_tensor_shape(name))[1:]))
            self._buffers[name] = self._memory.allocate(values * (1 if name == "input" else 4))
            self._context.set_tensor_address(name, self._buffers[name])
        self._last, self._recorded = 0, False  # the last batch size, and whether it is recorded

    def _runtime_config(self, trt: ModuleType) -> list[Any]:
        """TensorRT-RTX, which compiles kernels as it runs, records graphs by itself, and knows when."""
        self._may_record = not hasattr(trt, "CudaGraphStrategy")
        if self._may_record:
            return []
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return [config]

    def run(self, tiles: Tiles) -> Outputs:
        """Logits and probabilities of tiles (N, H, W, bands)."""
        logits, probabilities = (np.empty((len(tiles), self.classes), np.float32) for _ in range(2))
        tiles = np.ascontiguousarray(tiles)  # the driver copies bytes as they lie
        with self._turn, self._memory.current():
            self._memory.copy_in(self._buffers["input"], tiles)
            self._infer(len(tiles))
            self._memory.copy_out(logits, self._buffers["logits"])
            self._memory.copy_out(probabilities, self._buffers["probabilities"])
            self._memory.synchronize()
        return logits, probabilities

    def resident(self, tiles: Tiles) -> Callable[[], float]:
        """A call that runs tiles which lie on the GPU, and leaves the answers there; its seconds by the GPU's events."""
        tiles = np.ascontiguousarray(tiles)
        with self._memory.current():
            self._memory.copy_in(self._buffers["input"], tiles)
            self._memory.synchronize()

        def call() -> float:
            with self._turn, self._memory.current():
                return self._memory.seconds(lambda: self._infer(len(tiles)))

        return call

    def _infer(self, count: int) -> None:
        count = max(count, self._min_batch)  # what lies behind the tiles is answered too, and not read
        if count != self._last:
            self._last, self._recorded = 0, False  # an interrupt may leave another shape set
            if not self._context.set_input_shape("input", (count, *self._shape)):
                raise BackendError(f"TensorRT refuses batches of {count}. Export the bundle again on this machine.")
        elif self._may_record and not self._recorded:  # a second time: the first, unrecorded, has prepared this shape
            try:
                self._memory.record(self._enqueue)
                self._recorded = True
            except BackendError:  # not every engine can be recorded; each can be run
                self._may_record = False
        self._last = count
        if self._recorded:
            self._memory.replay()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._memory.stream):
            raise BackendError("TensorRT refused to run the engine. Export the bundle again on this machine.")

    def close(self) -> None:
        """Free the engine and its memory on the GPU."""
        # as `Memory.close` does: a GPU that fails would hide what happened first
        with self._turn, contextlib.suppress(BackendError), self._memory.current():
            for name in ("_context", "_engine", "_runtime"):  # in this order; what failed to load has not all of them
                self.__dict__.pop(name, None)
        self._memory.close()
