"""The typed ONNX files of a bundle, each made when it is first asked for, int8 and fp8 with the calibration that serves them best.

file, notes = Graphs(folder, model, spec, samples, config, on_progress).make("int8-cpu")
"""

from __future__ import annotations

import math
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
from .gate import torch_logits
from .onnx_export import write_onnx
from .quantise import LEVELS, METHODS, Calibration, quantise

_BATCH = 64


class Graphs:
    """Makes `model.KIND.onnx` in a folder for the kinds "fp32", "fp16", "bf16", "int8", "int8-cpu" and "fp8"."""

    def __init__(
        self,
        folder: Path,
        model: TileClassifier,
        spec: ModelSpec,
        samples: Samples,
        config: ExportConfig,
        on_progress: Callable[[str], None],
    ) -> None:
        self._folder, self._model, self._spec, self._samples = folder, model, spec, samples
        self._config, self._on_progress = config, on_progress
        self._notes: dict[str, dict[str, Any]] = {}
        self._calibration: Calibration | None = None
        self._expected: NDArray[np.float32]

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
        """Quantise by every method, and by the best with weights rounded in several ways; keep the one whose logits lie nearest to the network's over train tiles that are not calibrated with.

        The validation tiles are left to the gate: a choice by them would flatter what it says.
        """
        tiles, others = self._samples.calibration(self._config.calibration_tiles)
        if self._calibration is None:
            self._on_progress(f"calibrating with {len(tiles)} train tiles")
            self._calibration = Calibration(self._fp32, tiles)
            self._expected = torch_logits(self._model, others, self._spec.temperature)
        trial = path.with_name(f"trial.{path.name}")
        in_pairs = kind == "int8-cpu" and not cpu_has_int8()

        def try_it(method: str, levels: int) -> dict[str, float]:
            quantise(self._fp32, trial, kind, calibration.ranges(method), in_pairs, levels)
            logits = self._answers(kind, trial.name, others)
            return {
                "agreement": float((logits.argmax(1) == self._expected.argmax(1)).mean()),
                "mean_error": float(np.abs(logits - self._expected).mean()),
            }

        calibration, best = self._calibration, math.inf
        tried: dict[str, dict[str, float]] = {}
        rounded: dict[int, dict[str, float]] = {}
        method, levels = "", LEVELS[0]
        for each in METHODS[kind]:
            self._on_progress(f"ONNX, {kind}, ranges by {each}")
            tried[each] = try_it(each, levels)
            if not method or tried[each]["mean_error"] < best:
                method, best = each, tried[each]["mean_error"]
                trial.replace(path)
        for count in LEVELS[1:] if kind != "fp8" else ():
            self._on_progress(f"ONNX, {kind}, weights of up to {count}")
            rounded[count] = try_it(method, count)
            if rounded[count]["mean_error"] < best:
                levels, best = count, rounded[count]["mean_error"]
                trial.replace(path)
        trial.unlink(missing_ok=True)
        return {
            "method": method,
            "levels": levels,
            "tiles": len(tiles),
            "others": len(others),
            "split": "train",
            "sum_bits": 16 if in_pairs else 32,
            "tried": tried,
            "tried_levels": {str(count): found for count, found in rounded.items()},
        }

    def _answers(self, kind: str, file: str, tiles: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Logits of tiles, by the backend that is at hand and made for such a graph."""
        reasons = []
        # OpenVINO is twice as fast at signed activations, and right where the CPU can sum their products; ONNX Runtime always is
        backends = ("openvino", "onnxruntime") if kind == "int8" and cpu_has_int8() else ("onnxruntime", "openvino")
        for backend in backends if kind != "fp8" else ("onnxruntime",):  # OpenVINO has no fp8 on a CPU
            try:
                with open_engine(EngineRecord(kind, backend, kind.removesuffix("-cpu"), file, {}), self._folder, self._spec) as engine:
                    return np.concatenate([engine.infer(tiles[i : i + _BATCH])[0] for i in range(0, len(tiles), _BATCH)])
            except BackendError as error:
                reasons.append(str(error))
        raise BackendError(f"Nothing here can run the {kind} graph to judge it: {' | '.join(reasons)}")
