"""OpenVINO: the same ONNX files on Intel and other CPUs."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..cores import granted
from ..errors import BackendError, ContractError, no_library
from .engine import Outputs, Tiles, largest_batch

# what the floating-point part of a graph is computed in; by itself OpenVINO would take bf16 where it can
TYPED = "typed"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", TYPED: "f32"}
# what batches are filled up to: OpenVINO prepares some 55 primitives for each size, 10 ms or 25 tiles in int8. In fp32 a tile takes four times as long, and
# what would be filled costs more than the preparing: a Batcher answered 237 tiles a second in time for 308 (design notes)
_SIZES: dict[str, tuple[int, ...]] = dict.fromkeys(("bf16", "int8"), (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256))
_KEPT = 512  # of nine sizes, those of a Batcher's own 64 tiles; by itself it keeps those of every size that it ever saw
_FIRST, _IMPORTING = threading.Lock(), threading.RLock()


class OpenVinoBackend:
    """A model compiled by OpenVINO for the CPU.

    precision: what it computes in: "fp32", "bf16" or "int8"; or "typed", which is a graph of any types, its sums in fp32.

    Raises BackendError where the CPU can't multiply bf16 and that is asked for: OpenVINO would compute in fp32 without a word.
    """

    device = "cpu"

    def __init__(self, path: Path, precision: str, threads: int = 0) -> None:
        openvino = module()
        from openvino.frontend import FrontEndManager

        if precision not in HINTS:
            raise ContractError(f"{path} is to be run in {precision}, which sattrt does not ask of OpenVINO. Export the bundle again.")
        self._path, self.sizes = path, _SIZES.get(precision, ())
        with _FIRST:  # two threads may come at once, and one OpenVINO would not be kept
            core = _core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError(f"This CPU does not multiply bf16, which {path.name} is to be run in. Use an engine of another precision.")
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY", "CPU_RUNTIME_CACHE_CAPACITY": str(_KEPT)}
        if wanted := threads or granted():  # it counts the cores that it sees, not what a container may use of them
            settings["INFERENCE_NUM_THREADS"] = str(wanted)
        try:
            # by its reader of ONNX alone: the others would try a damaged file too, and print what they miss in it
            reader = FrontEndManager().load_by_framework("onnx")
            self._model = core.compile_model(reader.convert(reader.load(path)), "CPU", settings)
            self._request, self._turn = self._model.create_infer_request(), threading.Lock()
        except Exception as error:  # the bundle's digests fit: it is this version, or this machine, that can't
            raise BackendError(
                f"OpenVINO {openvino.__version__} can't load {path} ({error}). Use another engine or version, give it more memory, or export again."
            ) from None
        try:
            tile, logits = self._model.input("input").partial_shape, self._model.output("logits").partial_shape
            self.tile, self.classes = tuple(side.get_length() for side in list(tile)[1:]), int(logits[1].get_length())
            self.dtype = str(self._model.input("input").element_type.to_dtype())
        except Exception:  # names, ranks and types that sattrt's graphs do not have
            raise ContractError(
                f"{path} is not a graph that sattrt exported: it has other inputs or outputs. Export the bundle again."
            ) from None
        self.max_batch = largest_batch(self.tile)

    def run(self, tiles: Tiles) -> Outputs:
        """Logits and probabilities of tiles (N, H, W, bands)."""
        with self._turn, self._refusing():
            # of a copy, which the request keeps until the next call. Without share_inputs OpenVINO 2026.4 would write the tiles to where those of
            # the model's last request with shared memory lie, or lay (resident's)
            self._request.infer({"input": tiles.copy()}, share_inputs=True)
            # copied: the request's memory is written over by the next call
            return np.array(self._request.get_tensor("logits").data), np.array(self._request.get_tensor("probabilities").data)

    def resident(self, tiles: Tiles) -> Callable[[], float]:
        """A call that runs these tiles where they lie; its seconds."""
        openvino = module()
        tiles = np.require(tiles, requirements=["C", "W"])  # it shares no memory that it might not write to
        with self._refusing():
            request = self._model.create_infer_request()
            request.set_tensor("input", openvino.Tensor(tiles, shared_memory=True))

        def call(_held: Tiles = tiles) -> float:  # the request alone does not keep the memory
            begin = time.perf_counter()
            with self._refusing():
                request.infer()
            return time.perf_counter() - begin

        return call

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise BackendError(f"OpenVINO can't run {self._path}: {error}. Export the bundle again, or give it more memory.") from None

    def close(self) -> None:
        """Free the model."""
        del self._request, self._model


@functools.cache
def _core() -> Any:
    """OpenVINO, kept as long as the program runs.

    On CPUs with AVX-512 it gives the thread that first uses it a stack for signals, and takes that away where it ends: in another thread, the
    next signal to the first would end the program.
    """
    return module().Core()


def module() -> Any:
    """The package `openvino`, imported without its telemetry. BackendError where it is not installed.

    By itself it tells Google Analytics that it was imported, from a child process of the program, and leaves files in the home folder; for want of
    the package that does so it takes a stub of its own (openvino/tools/ovc/telemetry_utils.py).
    """
    telemetry = "openvino_telemetry"
    with _IMPORTING:
        left_out = "openvino" not in sys.modules and telemetry not in sys.modules
        if left_out:
            sys.modules[telemetry] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise no_library("OpenVINO", "sattrt[openvino]", error) from None
        finally:
            if left_out:
                del sys.modules[telemetry]
    return openvino
