"""A bundle as a model repository for NVIDIA's Triton Inference Server: one model an engine that Triton has a backend for.

    write_triton(read_bundle(Path("engines/eurosat")), Path("models"))      # models/eurosat-onnxruntime-fp32/config.pbtxt, labels.txt, 1/model.onnx

Sources: Triton's model configuration, https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto, and what its
backend reads of it, https://github.com/triton-inference-server/onnxruntime_backend/blob/main/src/onnxruntime.cc
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ContractError, InputError
from ..runtime import Bundle, EngineRecord
from ..runtime.bundle import LABELS
from ..runtime.ort import cuda_options
from ..spec import ModelSpec, atomic_folder, read_json, require_replaceable, require_writable, sha256_file, write_bytes, write_json

# Triton's backend and the file it looks for. It has none for TensorRT-RTX. That for OpenVINO can't be told to compute in fp32 where the CPU has
# bf16, and refuses fewer tiles than max_batch_size unless it pads them: ONNX Runtime serves the same CPUs as it was judged
BACKENDS = {"onnxruntime": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
_QUEUE_MICROSECONDS, _MARKER = 2000, ".sattrt"


def write_triton(bundle: Bundle, folder: Path) -> list[str]:
    """Write the repository into `folder`, which must be absent, empty, or as it was written for this bundle before; returns the names of its models.

    InputError for another folder, or one that holds anything else. ContractError for a changed file, a plan without a largest batch, or one that takes no single tile.
    """
    check_folder(folder, bundle.path)
    names = []
    with atomic_folder(folder, "--triton") as target:
        for record in bundle.engines:
            flags = record.record.get("flags")
            if isinstance(flags, list) and "STRIP_PLAN" in flags:  # Triton would not put its weights in
                continue
            if record.backend not in BACKENDS:
                continue
            name = f"{_name(bundle.path)}-{record.name}"
            (target / name / "1").mkdir(parents=True)
            write_bytes(target / name / "config.pbtxt", model_config(name, bundle.spec, record).encode())
            write_bytes(target / name / LABELS, bundle.read(LABELS))
            write_bytes(target / name / "1" / BACKENDS[record.backend][1], bundle.read(record.file))
            names.append(name)
        files = {str(path.relative_to(target)): sha256_file(path) for path in sorted(target.rglob("*")) if path.is_file()}
        write_json(target / _MARKER, {"bundle": _name(bundle.path), "files": files})
    return names


def check_folder(folder: Path, bundle: Path) -> None:
    """InputError where a folder can't become a repository: it holds something else, can't be made, or it and the bundle lie in one another."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _refuse_others(folder, bundle)
    require_replaceable(folder, "--triton")
    own, other = folder.resolve(), bundle.resolve()
    if own.is_relative_to(other) or other.is_relative_to(own):
        raise InputError(
            f"{folder} and the bundle {bundle} can't lie in one another: each is replaced as a whole. Choose another --triton."
        )
    require_writable(folder, "--triton")


def _refuse_others(folder: Path, bundle: Path) -> None:
    """InputError unless a folder holds exactly what was written for this bundle: it is replaced as a whole."""
    try:
        written = read_json(folder / _MARKER)
        other, files = str(written["bundle"]), dict(written["files"])
    except (InputError, ContractError, LookupError, TypeError, ValueError):
        raise InputError(
            f"{folder} exists and is not a repository that sattrt wrote: it is not overwritten. Choose another --triton."
        ) from None
    if other != _name(bundle):
        raise InputError(
            f"{folder} holds the models of the bundle {other!r}, and is replaced as a whole. Choose another --triton: Triton takes several."
        )
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_dir() and name != _MARKER and (not path.is_file() or sha256_file(path) != files.get(name)):
            raise InputError(f"{path} was not written by sattrt, or was changed since; {folder} is replaced as a whole. Move it away.")


def _name(bundle: Path) -> str:
    return bundle.resolve().name


def model_config(name: str, spec: ModelSpec, record: EngineRecord) -> str:
    """config.pbtxt of one engine: tiles in, logits and probabilities out, requests gathered into batches."""
    kind, values = spec.dtype.upper(), len(spec.bands)
    if kind == "UINT16" and record.backend == "tensorrt":  # a plan takes the same memory as bytes
        kind, values = "UINT8", 2 * values
    backend, file = BACKENDS[record.backend]
    profile = record.record.get("profile", {"max": 64})
    largest = profile.get("max") if isinstance(profile, dict) else None
    if not isinstance(largest, int) or largest < 1:
        raise ContractError(f"{record.name} has a record without its largest batch. Export the bundle again.")
    if profile.get("min", 1) != 1:  # Triton would send it fewer
        raise ContractError(f"{record.name} does not take a single tile, as Triton's plans must. Export with min_batch = 1.")
    where = ""
    if record.backend == "onnxruntime" and record.precision == "int8":
        # ONNX Runtime's CUDA provider has no int8 convolution: it would compute the graph in fp32, unjudged
        where = "instance_group [\n  { kind: KIND_CPU }\n]\n"
    elif record.backend == "onnxruntime":
        options = "".join(f' parameters {{ key: "{key}" value: "{value}" }}' for key, value in cuda_options(record.precision).items())
        where = f'optimization {{\n  execution_accelerators {{ gpu_execution_accelerator [ {{ name: "cuda"{options} }} ] }}\n}}\n'
        # after that Triton's backend sets the search by this older parameter, to exhaustive where it is missing; 1 is HEURISTIC
        where += 'parameters { key: "cudnn_conv_algo_search" value { string_value: "1" } }\n'
    preferred = sorted({max(1, largest // 4), largest})
    return f"""name: {json.dumps(name, ensure_ascii=False)}
backend: "{backend}"
default_model_filename: "{file}"
max_batch_size: {largest}
input [
  {{ name: "input" data_type: TYPE_{kind} dims: [ {spec.height}, {spec.width}, {values} ] }}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {len(spec.classes)} ] }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {len(spec.classes)} ] label_filename: "labels.txt" }}
]
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, preferred))} ]
  max_queue_delay_microseconds: {_QUEUE_MICROSECONDS}
}}
{where}"""
