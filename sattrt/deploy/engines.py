"""ONNX to plan: TensorRT 10 and 11 and TensorRT-RTX through one code path.

    record = build_plan("tensorrt-rtx", "fp16", Path("model.fp16.onnx"), Path("tensorrt-rtx-fp16.plan"), spec)

Precision comes from the graph alone (TensorRT 11 knows nothing else; 10 is asked for a strongly typed network).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BackendError
from ..runtime.trt import load_module
from ..spec import ModelSpec, sha256_file

# TensorRT-RTX builds ahead of time for these, without a GPU. It has no Hopper (9.0), and no fp32 matrix product on Turing (7.5).
RTX_CAPABILITIES = {"fp32": ("8.0", "8.6", "8.9", "12.0"), "fp16": ("7.5", "8.0", "8.6", "8.9", "12.0")}


@dataclass(frozen=True)
class Profile:
    """Batch sizes that a plan serves: the smallest, the one it is tuned for, the largest."""

    min: int = 1
    opt: int = 64
    max: int = 256


def build_plan(
    backend: str, precision: str, onnx_path: Path, plan_path: Path, spec: ModelSpec, profile: Profile = Profile()
) -> dict[str, Any]:
    """Compile an ONNX file that is typed in this precision; returns the build record. BackendError where the library is absent or refuses the graph."""
    trt = load_module(backend)
    started = time.perf_counter()
    log = _log(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError):  # pybind11's words for a null pointer
        raise BackendError(f"{backend} can't start here ({log.last}). It needs an NVIDIA GPU and driver.") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendError(
            f"{backend} {trt.__version__} can't parse {onnx_path.name}: {errors}. Use the onnxruntime engine, or another version."
        )
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    tile = (spec.height, spec.width, len(spec.bands))
    shapes.set_shape("input", *((batch, *tile) for batch in (profile.min, profile.opt, profile.max)))
    config.add_optimization_profile(shapes)
    if precision == "fp32":  # TF32 would round it to 10 bits without a word
        config.clear_flag(trt.BuilderFlag.TF32)
    capabilities = _set_capabilities(trt, config, RTX_CAPABILITIES[precision])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{backend} {trt.__version__} can't build {onnx_path.name}: {log.last}. Check `sattrt doctor`.")
    plan_path.write_bytes(bytes(plan))
    return {
        "builder": backend,
        "builder_version": trt.__version__,
        "onnx": onnx_path.name,
        "onnx_sha256": sha256_file(onnx_path),
        "compute_capabilities": capabilities,
        "profile": vars(profile),
        "flags": ["STRONGLY_TYPED", *(["no TF32"] if precision == "fp32" else [])],
        "build_seconds": round(time.perf_counter() - started, 2),
    }


def _set_capabilities(trt: ModuleType, config: Any, wanted: tuple[str, ...]) -> list[str]:
    """Ask for every compute capability that TensorRT-RTX can target; plain TensorRT builds for the GPU at hand."""
    if not hasattr(config, "set_compute_capability"):
        from ..runtime.cuda import Device

        return [Device().compute_capability]
    config.num_compute_capabilities = len(wanted)
    for i, capability in enumerate(wanted):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i):
            raise BackendError(
                f"TensorRT-RTX {trt.__version__} can't target compute capability {capability}. Install tensorrt-rtx 1.7 or later."
            )
    return list(wanted)


def _log(trt: ModuleType) -> Any:
    """TensorRT's log, kept silent; its last error is what a refusal is explained with."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = " ".join(message.split())

    return Log()
