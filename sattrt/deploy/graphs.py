"""The typed ONNX files of a bundle, each made when it is first asked for, int8 and fp8 with the calibration that serves them best.

file, notes = Graphs(folder, model, spec, samples, expected, config, on_progress).make("int8-cpu")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from ..machine import cpu_has_int8
from ..model import TileClassifier
from ..runtime import EngineRecord, open_engine
from ..spec import ModelSpec
from ..trained import Samples
from .config import ExportConfig
from .onnx_export import write_onnx
from .precision import METHODS, WEIGHT_BITS, Calibration, quantise


class Graphs:
    """Makes `model.KIND.onnx` in a folder for the kinds "fp32", "fp16", "bf16", "int8", "int8-cpu" and "fp8"."""

    def __init__(
        self,
        folder: Path,
        model: TileClassifier,
        spec: ModelSpec,
        samples: Samples,
        expected: NDArray[np.float32],
        config: ExportConfig,
        on_progress: Callable[[str], None],
    ) -> None:
        self._folder, self._model, self._spec, self._samples, self._expected = folder, model, spec, samples, expected
        self._config, self._on_progress = config, on_progress
        self._notes: dict[str, dict[str, Any]] = {}
        self._calibration: Calibration | None = None

    def make(self, kind: str) -> tuple[str, dict[str, Any]]:
        """The file's name, and what is to be recorded of its making. BackendError where no quantiser is at hand."""
        path = self._folder / f"model.{kind}.onnx"
        if kind not in self._notes:
            self._on_progress(f"ONNX, {kind}")
            if kind in METHODS:
                self._notes[kind] = {"calibration": self._calibrated(kind, path)}
            else:
                write_onnx(self._model, self._spec, path, kind)
                self._notes[kind] = {}
        return path.name, self._notes[kind]

    @property
    def _fp32(self) -> Path:
        return self._folder / self.make("fp32")[0]

    def _calibrated(self, kind: str, path: Path) -> dict[str, Any]:
        """Quantise by every method, keep the one that costs the fewest validation tiles, then the least error of logits."""
        tiles = self._samples.calibration(self._config.calibration_tiles)
        if self._calibration is None:
            self._on_progress(f"calibrating with {len(tiles)} train tiles")
            self._calibration = Calibration(self._fp32, tiles)
        tried: dict[str, dict[str, float]] = {}
        best: tuple[float, float] | None = None
        trial = path.with_name(f"trial.{path.name}")
        for method in METHODS[kind]:
            self._on_progress(f"ONNX, {kind}, ranges by {method}")
            quantise(self._fp32, trial, kind, self._calibration.ranges(method))
            logits = self._answers(kind, trial.name)
            right = float((logits.argmax(1) == self._samples.valid_labels).mean())
            error = float(np.abs(logits - self._expected).mean())
            tried[method] = {"accuracy": right, "mean_error": error}
            if best is None or (right, -error) > best:
                best, chosen = (right, -error), method
                trial.replace(path)
        trial.unlink(missing_ok=True)
        return {"method": chosen, "tiles": len(tiles), "split": "train", "weight_bits": WEIGHT_BITS[kind], "tried": tried}

    def _answers(self, kind: str, file: str) -> NDArray[np.float32]:
        """Logits of the validation tiles, by the backend that is at hand and made for such a graph."""
        reasons = []
        # OpenVINO is twice as fast at signed activations, and right where the CPU can sum their products; ONNX Runtime always is
        for backend in ("openvino", "onnxruntime") if kind == "int8" and cpu_has_int8() else ("onnxruntime", "openvino"):
            try:
                with open_engine(EngineRecord(kind, backend, kind[:4], file, {}), self._folder, self._spec) as engine:
                    return engine.infer(self._samples.valid)[0]
            except BackendError as error:
                reasons.append(str(error))
        raise BackendError(f"Nothing here can run the {kind} graph to judge it: {' | '.join(reasons)}")
