"""TensorRT 10 and 11 and TensorRT-RTX behind one interface: deserialise a plan, run it on the current GPU.

Not run on hardware yet: no machine at hand has had both a GPU and a TensorRT that supports it (see the README).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import BackendError
from .cuda import Device
from .engine import Outputs, Tiles

MODULES = {"tensorrt": ("tensorrt", "tensorrt_lean"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


def load_module(backend: str) -> ModuleType:
    """TensorRT's Python module for "tensorrt" or "tensorrt-rtx"; BackendError where it is not installed."""
    for name in MODULES[backend]:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise BackendError(f"{backend} is not installed. Install it with: pip install 'sattrt[{backend}]'")


class TensorRTBackend:
    """An execution context over one plan, with its input and output memory on the GPU."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        trt = load_module(record["builder"])
        # before TensorRT is touched: without a driver its lean runtime crashes the process while deserialising
        self._cuda = Device()
        wanted = record["compute_capabilities"]
        if wanted and self._cuda.compute_capability not in wanted:
            raise BackendError(
                f"{path.name} was built for compute capability {', '.join(wanted)}; {self._cuda.name} has "
                f"{self._cuda.compute_capability}. Export again on this machine, or use an onnxruntime engine."
            )
        self.device = self._cuda.name
        self.max_batch = int(record["profile"]["max"])
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            built = f"{record['builder']} {record['builder_version']}"
            raise BackendError(
                f"{path.name}, built by {built}, is refused by the installed {trt.__version__}. Export the bundle again here."
            )
        self._engine = engine
        self._context = engine.create_execution_context()
        self._buffers: dict[str, int] = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            shape = tuple(engine.get_tensor_shape(name))[1:]
            size = self.max_batch * int(np.prod(shape)) * (1 if name == "input" else 4)
            self._buffers[name] = self._cuda.allocate(size)
            self._context.set_tensor_address(name, self._buffers[name])
        self._classes = tuple(engine.get_tensor_shape("logits"))[1]

    def run(self, tiles: Tiles) -> Outputs:
        """Logits and probabilities of uint8 (N, H, W, bands)."""
        self._cuda.activate()
        self._context.set_input_shape("input", tiles.shape)
        self._cuda.copy_in(self._buffers["input"], tiles)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BackendError("TensorRT refused to run the engine. Export the bundle again on this machine.")
        outputs = []
        for name in ("logits", "probabilities"):
            array = np.empty((len(tiles), self._classes), np.float32)
            self._cuda.copy_out(array, self._buffers[name])
            outputs.append(array)
        self._cuda.synchronize()
        return outputs[0], outputs[1]

    def close(self) -> None:
        """Free the engine and its memory on the GPU."""
        self._cuda.activate()
        del self._context, self._engine, self._runtime
        self._cuda.close()
