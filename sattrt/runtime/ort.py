"""ONNX Runtime: the embedded default, on any CPU and on NVIDIA GPUs with onnxruntime-gpu."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, ContractError
from .engine import Outputs, Tiles


class OnnxRuntimeBackend:
    """A session over one ONNX file. It runs on CUDA where onnxruntime-gpu finds a GPU, else on the CPU; `device` says which."""

    max_batch = 256

    def __init__(self, path: Path, precision: str, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise BackendError("ONNX Runtime is not installed. Install it with: pip install 'sattrt[cpu]' (or [gpu])") from None
        self._path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come back as exceptions; stderr stays the program's own
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
        if precision == "fp8":  # its extended optimisations compute E4M3 graphs wrongly (1.32: 14 % of tiles right, 98 % without)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        providers: list[Any] = ["CPUExecutionProvider"]
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it can't find
                onnxruntime.preload_dlls()
            # TF32 would round fp32 engines to 10 bits without a word
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            raise ContractError(f"ONNX Runtime can't load {path} ({error}). Export the bundle again.") from None
        outputs = {output.name: output for output in self._session.get_outputs()}
        inputs = [(each.name, each.type) for each in self._session.get_inputs()]
        if inputs != [("input", "tensor(uint8)")] or any(
            name not in outputs or len(outputs[name].shape) != 2 or outputs[name].type != "tensor(float)"
            for name in ("logits", "probabilities")
        ):
            raise ContractError(f"{path} is not a graph that sattrt exported: it has other inputs or outputs. Export the bundle again.")
        self.tile = tuple(self._session.get_inputs()[0].shape[1:])
        self.classes = int(outputs["logits"].shape[-1])
        # a provider that failed to start is dropped without an error: say what really runs
        self.device = "cuda" if self._session.get_providers()[0].startswith("CUDA") else "cpu"

    def run(self, tiles: Tiles) -> Outputs:
        """Logits and probabilities of uint8 (N, H, W, bands)."""
        try:
            logits, probabilities = self._session.run(["logits", "probabilities"], {"input": tiles})
        except Exception as error:
            raise BackendError(f"ONNX Runtime can't run {self._path}: {error}. Export the bundle again, or give it more memory.") from None
        return np.asarray(logits, np.float32), np.asarray(probabilities, np.float32)

    def close(self) -> None:
        """Free the session."""
        del self._session
