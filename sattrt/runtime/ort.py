"""ONNX Runtime: the embedded default, on any CPU, and on NVIDIA GPUs with onnxruntime-gpu, by CUDA or by its own TensorRT provider."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..cores import cores
from ..errors import BackendError, ContractError, no_library
from .cuda import Device, NoGpuError
from .engine import Outputs, Tiles, largest_batch

_TUNED_BATCH = 64
_PRELOADING = threading.Lock()
_preloaded: str | None = None  # what was said of it


class OnnxRuntimeBackend:
    """A session over one ONNX file. It runs on CUDA where onnxruntime-gpu finds a GPU, else, and in int8, on the CPU; `device` says which.

    spinning: whether its threads wait busily. optimised: the file is a graph that `save_optimised` wrote for this place: it is opened as it is.
    tensorrt: (height, width, bands) where ONNX Runtime is to compile the graph by TensorRT as it opens it, which takes a while and
    needs libnvinfer.so.10. BackendError where it can't, and where there is a GPU that onnxruntime-gpu can't use.
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        threads: int = 0,
        spinning: bool = True,
        tensorrt: tuple[int, ...] | None = None,
        optimised: bool = False,
    ) -> None:
        onnxruntime = _module()
        self._path = path
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise BackendError(f"ONNX Runtime opens no path that is not UTF-8: {ascii(str(path))[1:-1]}. Rename the folder.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come back as exceptions; stderr stays the program's own
        options.intra_op_num_threads = threads or cores()
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif precision == "fp8":  # its extended optimisations compute E4M3 graphs wrongly (1.32: 14 % of tiles right, 98 % without)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        providers: list[Any] = ["CPUExecutionProvider"]
        # the CUDA provider has no int8 convolution: it would compute in fp32 what was judged in int8
        gpu = _gpu(onnxruntime) if precision != "int8" or tensorrt else ""
        if gpu:
            providers.insert(0, ("CUDAExecutionProvider", cuda_options(precision)))
        if tensorrt:
            require_tensorrt()
            with contextlib.suppress(ImportError, OSError):  # the package's libraries are where no loader looks: it loads them itself
                importlib.import_module("tensorrt")
            providers.insert(0, ("TensorrtExecutionProvider", _tensorrt_options(precision, tensorrt)))
        try:
            # a fallback would print, and go on elsewhere: `device` would be wrong
            self._session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=False)
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            if tensorrt:
                raise BackendError(
                    f"ONNX Runtime can't open {path} by TensorRT ({error}). It needs TensorRT 10 (pip install 'tensorrt<11'); or use another engine."
                ) from None
            if len(providers) > 1:  # the GPU may be full, or TensorRT refuse the graph
                raise BackendError(f"ONNX Runtime can't open {path} here ({error}). Use another engine, or free the GPU.") from None
            # the bundle's digests fit: it is this version that does not know the graph, or this machine that has no memory for it
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} can't load {path} ({error}). Use another engine or version, give it more memory, or export again."
            ) from None
        try:
            self.tile, self.dtype, self.classes = _signature(self._session)
        except Exception:  # names that are no UTF-8, shapes that are none
            raise ContractError(
                f"{path} is not a graph that sattrt exported: it has other inputs or outputs. Export the bundle again."
            ) from None
        self.max_batch = largest_batch(self.tile)
        # a provider that failed to start is dropped without an error: say what really runs
        running = self._session.get_providers()[0]
        if tensorrt and not running.startswith("Tensorrt"):
            raise BackendError("ONNX Runtime can't start TensorRT here; it needs a GPU and libnvinfer.so.10. Use an onnxruntime engine.")
        self.device = "cpu" if running.startswith("CPU") else "cuda"
        # on a GPU every convolution is prepared anew (onnxruntime#23006)
        self.sizes: tuple[int, ...] = () if self.device == "cpu" else (self.max_batch,)
        # it was dropped for lack of a library, and an engine that is so much slower is not what was opened
        if self.device == "cpu" and gpu:
            raise BackendError(
                f"ONNX Runtime can't use {gpu} ({_preloaded or 'it gives no reason'}). Install CUDA's libraries for it (pip install "
                "'onnxruntime-gpu[cuda,cudnn]'), or hide the GPU (CUDA_VISIBLE_DEVICES=) to run on the CPU."
            )

    def run(self, tiles: Tiles) -> Outputs:
        """Logits and probabilities of tiles (N, H, W, bands)."""
        with self._refusing():
            logits, probabilities = self._session.run(["logits", "probabilities"], {"input": tiles})
        return np.asarray(logits, np.float32), np.asarray(probabilities, np.float32)

    def resident(self, tiles: Tiles) -> Callable[[], float]:
        """A call that runs tiles which lie on the device, and leaves the answers there; its seconds."""
        with self._refusing():
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("input", _module().OrtValue.ortvalue_from_numpy(tiles, self.device, 0))
            for name in ("logits", "probabilities"):
                binding.bind_output(name, self.device)

        def call() -> float:
            begin = time.perf_counter()
            with self._refusing():
                self._session.run_with_iobinding(binding)  # waits for the device
            return time.perf_counter() - begin

        return call

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise BackendError(f"ONNX Runtime can't run {self._path}: {error}. Export the bundle again, or give it more memory.") from None

    def close(self) -> None:
        """Free the session."""
        del self._session


def require_tensorrt() -> None:
    """BackendError where ONNX Runtime is installed without its TensorRT provider."""
    if "TensorrtExecutionProvider" not in _module().get_available_providers():
        raise BackendError(
            "ONNX Runtime here has no TensorRT provider. Install onnxruntime-gpu (pip install 'sattrt[gpu]') and TensorRT 10."
        )


def save_optimised(source: Path, target: Path) -> dict[str, str]:
    """Write a graph as ONNX Runtime rewrites it for this CPU, and return the place, as `this_place` has it, that alone it is good for.

    It opens in less time and memory, and answers the same. BackendError where ONNX Runtime is not installed, or refuses the graph or the target.
    """
    onnxruntime = _module()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    try:
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has errors of its own
        raise BackendError(f"ONNX Runtime can't rewrite {source.name} ({' '.join(str(error).split())}). Leave optimised out.") from None
    return {**this_place(), "provider": "cpu"}  # its operators are for the CPU, whatever else this machine has


def this_place() -> dict[str, str]:
    """What an optimised graph depends on: ONNX Runtime's version, the CPU's features (a digest), and whether a GPU might run it instead."""
    onnxruntime = _module()
    flags = ""
    with contextlib.suppress(OSError):
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    provider = "cuda" if _gpu(onnxruntime) else "cpu"
    return {"onnxruntime": onnxruntime.__version__, "cpu": hashlib.sha256(flags.encode()).hexdigest(), "provider": provider}


def _signature(session: Any) -> tuple[tuple[int, ...], str, int]:
    """(height, width, bands) and dtype of the tiles that a graph takes, and how many classes it knows. ValueError for another kind of graph."""
    [given] = session.get_inputs()
    outputs = {output.name: output for output in session.get_outputs()}
    if given.name != "input" or given.type not in ("tensor(uint8)", "tensor(uint16)"):
        raise ValueError
    for answer in (outputs["logits"], outputs["probabilities"]):
        if answer.type != "tensor(float)" or len(answer.shape) != 2 or not isinstance(answer.shape[1], int):
            raise ValueError
    return tuple(given.shape[1:]), given.type[len("tensor(") : -1], int(outputs["logits"].shape[1])


def _preload(onnxruntime: Any) -> None:
    """Load CUDA's libraries, once, where the build is for CUDA: one that brings CUDA as a plugin has no such provider before.

    What it can't find it prints; stdout is the program's own and its threads', so the module is given a `print` that keeps what is said.
    """
    global _preloaded
    with _PRELOADING:
        if _preloaded is None:
            said: list[str] = []
            onnxruntime.print = lambda *words, **_: said.extend(map(str, words))
            try:
                onnxruntime.preload_dlls()
            finally:
                del onnxruntime.print
            _preloaded = " ".join(" ".join(said).split())[:200]


def cuda_options(precision: str) -> dict[str, str]:
    """Options of the CUDA provider for a graph of this precision.

    TF32 would round fp32 engines to 10 bits without a word; without it fp16 would be kept from the tensor cores. cuDNN's rules choose the
    algorithms: to time them all for every batch size that comes takes up to seconds, in the middle of the work.
    """
    return {"cudnn_conv_algo_search": "HEURISTIC"} | ({} if precision == "fp16" else {"use_tf32": "0"})


def _gpu(onnxruntime: Any) -> str:
    """Name of the GPU that a build for CUDA can use; "" where there is none, or it is hidden: its provider, which is there all the same, would raise.

    BackendError for a GPU that is there and fails: the CPU in its place would be so much slower.
    """
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return ""
    try:
        return Device().name
    except NoGpuError:
        return ""


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise no_library("ONNX Runtime", "sattrt[cpu]' or 'sattrt[gpu]", error) from None
    _preload(onnxruntime)
    return onnxruntime


def _tensorrt_options(precision: str, tile: tuple[int, ...]) -> dict[str, str]:
    """One profile for every batch size: without it each new one would be compiled anew."""
    sides, most = "x".join(map(str, tile)), largest_batch(tile)
    profile = {"min": 1, "opt": min(_TUNED_BATCH, most), "max": most}
    return {
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_int8_enable": str(precision == "int8"),
        **{f"trt_profile_{name}_shapes": f"input:{batch}x{sides}" for name, batch in profile.items()},
    }
