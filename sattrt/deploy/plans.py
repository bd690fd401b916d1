"""ONNX to plan: TensorRT 10 and 11 and TensorRT-RTX through one code path.

    recipe = plan_recipe("tensorrt-rtx", "fp16", Path("model.fp16.onnx"), ExportConfig())
    record = build_plan(Path("model.fp16.onnx"), Path("tensorrt-rtx-fp16.plan"), spec, recipe)

Precision comes from the graph alone (TensorRT 11 knows nothing else; 10 is asked for a strongly typed network).
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import __version__
from ..errors import BackendError, ContractError
from ..runtime import Bundle
from ..runtime.cuda import Device
from ..runtime.trt import load_module, silent_log
from ..spec import ModelSpec, sha256_file
from .config import CAPABILITIES, ExportConfig

# of TensorRT-RTX's targets: Turing (7.5) has no fp32 matrix product and no bf16 there, and fp8 begins with Ada (8.9)
_AMPERE_ON, _ADA_ON = CAPABILITIES[1:], CAPABILITIES[3:]
RTX_CAPABILITIES = {"fp32": _AMPERE_ON, "fp16": CAPABILITIES, "bf16": _AMPERE_ON, "int8": _AMPERE_ON, "fp8": _ADA_ON}
# what a plan may be reused by: two builds that agree in these are of the same making
RECIPE = ("sattrt", "builder", "builder_version", "onnx_sha256", "compute_capabilities", "gpu", "profile", "flags")
TIMING = "tensorrt.timing"


def build_plan(onnx_path: Path, plan_path: Path, spec: ModelSpec, recipe: dict[str, Any], old: Bundle | None = None) -> dict[str, Any]:
    """Compile an ONNX file by the recipe that `plan_recipe` made of it; returns the build record.

    old: the bundle that is replaced, for what TensorRT timed when that was made. BackendError where the library is absent or refuses the graph.
    """
    backend = recipe["builder"]
    trt = load_module(backend, builds=True)
    started = time.perf_counter()
    log = silent_log(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError):  # pybind11's words for a null pointer
        raise BackendError(f"{backend} can't start here ({log.last}). It needs an NVIDIA GPU and driver.") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    wide = spec.dtype == "uint16"
    if wide and "STRIP_PLAN" in recipe["flags"]:  # they would be sought in a graph that has another input
        raise BackendError(f"{backend} can't strip the weights of a plan that takes 16-bit tiles. Leave strip_weights out.")
    if not (parser.parse(fed_with_bytes(onnx_path)) if wide else parser.parse_from_file(str(onnx_path))):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendError(
            f"{backend} {trt.__version__} can't parse {onnx_path.name}: {errors}. Use the onnxruntime engine, or another version."
        )
    settings = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    tile = (spec.height, spec.width, len(spec.bands) * (2 if wide else 1))
    shapes.set_shape("input", *((batch, *tile) for batch in recipe["profile"].values()))
    settings.add_optimization_profile(shapes)
    for flag in recipe["flags"]:
        if flag.startswith("no "):
            settings.clear_flag(getattr(trt.BuilderFlag, flag.removeprefix("no ")))
        elif flag == "AMPERE_PLUS":
            settings.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        elif flag != "STRONGLY_TYPED":
            settings.set_flag(getattr(trt.BuilderFlag, flag))
    _set_capabilities(trt, settings, recipe["compute_capabilities"])
    timed = _timed_before(settings, plan_path.with_name(TIMING), old) if backend == "tensorrt" else None  # held until it is built
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise BackendError(f"{backend} {trt.__version__} can't build {onnx_path.name}: {log.last}. Check `sattrt doctor`.")
    plan_path.write_bytes(bytes(plan))
    if timed is not None:
        plan_path.with_name(TIMING).write_bytes(bytes(timed.serialize()))
    return {
        **recipe,
        "dtype": spec.dtype,
        "timing_cache": TIMING if timed is not None else None,
        "timing_cache_sha256": sha256_file(plan_path.with_name(TIMING)) if timed is not None else None,  # as this build left it
        "build_seconds": round(time.perf_counter() - started, 2),
    }


def fed_with_bytes(path: Path) -> bytes:
    """A graph that takes uint16 (N, H, W, bands), as one that takes the same memory as uint8 (N, H, W, 2 * bands): TensorRT has no uint16."""
    model = onnx.load(path)
    graph, given = model.graph, model.graph.input[0]
    height, width, bands = (side.dim_value for side in given.type.tensor_type.shape.dim[1:])
    given.type.tensor_type.elem_type = TensorProto.UINT8
    given.type.tensor_type.shape.dim[3].dim_value = 2 * bands
    cast = next(node for node in graph.node if given.name in node.input)  # the first operation: to float
    values, cast.output[0] = cast.output[0], "bytes"
    pairs = numpy_helper.from_array(np.array([-1, height, width, bands, 2]), "pairs")
    places = numpy_helper.from_array(np.array([[1], [256]], np.float32), "places")  # the lower byte comes first
    last = numpy_helper.from_array(np.array([4]), "last")
    graph.initializer.extend([pairs, places, last])
    after = list(graph.node).index(cast) + 1
    for node in (
        helper.make_node("Squeeze", ["sums", "last"], [values]),
        helper.make_node("MatMul", ["byte_pairs", "places"], ["sums"]),
        helper.make_node("Reshape", ["bytes", "pairs"], ["byte_pairs"]),
    ):
        graph.node.insert(after, node)
    del graph.value_info[:]
    return bytes(model.SerializeToString())


def plan_recipe(backend: str, precision: str, onnx_path: Path, config: ExportConfig) -> dict[str, Any]:
    """All that decides what a build makes: graph, builder, hardware, profile, flags. BackendError where the builder is absent."""
    trt = load_module(backend, builds=True)
    flags = ["STRONGLY_TYPED"]
    if precision == "fp32":  # TF32 would round it to 10 bits without a word
        flags.append("no TF32")
    if config.version_compatible:  # without the lean runtime inside: a plan is data, never code of the host
        flags += ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]
    if config.hardware_compatible:
        flags.append("AMPERE_PLUS")
    if config.strip_weights:
        flags.append("STRIP_PLAN")
    gpu = None if backend == "tensorrt-rtx" else Device()  # TensorRT times its kernels on the GPU at hand; RTX builds ahead of time
    return {
        "sattrt": __version__,
        "builder": backend,
        "builder_version": trt.__version__,
        "onnx": onnx_path.name,
        "onnx_sha256": sha256_file(onnx_path),
        "compute_capabilities": [gpu.compute_capability] if gpu else _capabilities(precision, config.capabilities),
        "gpu": gpu.name if gpu else None,
        "profile": {"min": config.min_batch, "opt": config.opt_batch, "max": config.max_batch},
        "flags": flags,
    }


def reuse_plan(old: Bundle | None, name: str, recipe: dict[str, Any], plan_path: Path) -> tuple[dict[str, Any] | None, str]:
    """Copy a plan out of the bundle that is replaced, where it was made by the same recipe: its record, or None; and why."""
    record = next((engine for engine in old.engines if engine.name == name), None) if old else None
    if old is None or record is None:
        return None, "not built before"
    was = record.record
    if others := [f"{name} was {_short(was.get(name))}, is {_short(recipe[name])}" for name in RECIPE if was.get(name) != recipe[name]]:
        return None, "; ".join(others)
    try:
        plan_path.write_bytes(old.read(record.file))
    except ContractError:
        return None, f"{record.file} was changed since it was built"
    if record.record.get("timing_cache") and TIMING in old.files and not plan_path.with_name(TIMING).exists():
        plan_path.with_name(TIMING).write_bytes(old.read(TIMING))
    return {key: value for key, value in record.record.items() if key != "validation"}, "same graph, builder, hardware, profile and flags"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}..." if len(text) == 64 else text


def _capabilities(precision: str, wanted: tuple[str, ...]) -> list[str]:
    """Those of TensorRT-RTX's targets that are wanted and run the precision. BackendError where none is."""
    known = RTX_CAPABILITIES[precision]
    able = [name for name in wanted or known if name in known]
    if not able:
        raise BackendError(
            f"TensorRT-RTX does not run {precision} on compute capability {', '.join(wanted)}; it does on {', '.join(known)}."
        )
    return able


def _set_capabilities(trt: ModuleType, settings: Any, wanted: list[str]) -> None:
    if not hasattr(settings, "set_compute_capability"):
        return
    settings.num_compute_capabilities = len(wanted)
    for i, capability in enumerate(wanted):
        if not settings.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i):
            raise BackendError(
                f"TensorRT-RTX {trt.__version__} can't target compute capability {capability}. Install tensorrt-rtx 1.7 or later."
            )


def _timed_before(settings: Any, path: Path, old: Bundle | None) -> Any:
    """TensorRT's memory of what it timed on this GPU, in use: of the plans before this one, or of the bundle before; empty where it is of
    another GPU or version."""
    content = path.read_bytes() if path.exists() else old.read(TIMING) if old and TIMING in old.files else b""
    cache = settings.create_timing_cache(content)
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, ignore_mismatch=False)
    return cache
