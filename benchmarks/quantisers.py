"""onnxruntime's quantiser, which `sattrt export` uses, beside ModelOpt's, on one network; the last line on stdout is one JSON document.

    python benchmarks/quantisers.py engines/eurosat --run run

Both make the int8 graph that TensorRT wants of the bundle's fp32 graph, with the same train tiles, by each of their methods. Each graph is judged on the whole validation
split by OpenVINO, and built by TensorRT-RTX. ModelOpt is asked twice: as it comes, and for convolutions alone, as `sattrt.deploy.quantise` has it.
Its ONNX part pins other versions of onnx and onnxruntime, and works with sattrt's all the same:

    pip install nvidia-modelopt
    pip install --no-deps onnx-graphsurgeon onnxslim polygraphy lief cppimport onnxconverter-common mako pybind11 colorama
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sattrt.deploy.config import ExportConfig
from sattrt.deploy.plans import build_plan, plan_recipe
from sattrt.deploy.quantise import METHODS, Calibration, quantise
from sattrt.errors import BackendError
from sattrt.machine import environment
from sattrt.runtime import Bundle, EngineRecord, open_engine, read_bundle
from sattrt.trained import read_samples

TILES = 512
FEW = 64  # for ModelOpt's entropy
PARTS = {
    "onnxruntime": ("onnxruntime",),
    "ModelOpt": (
        "nvidia-modelopt",
        "scipy",
        "pulp",
        "onnx-graphsurgeon",
        "onnxslim",
        "polygraphy",
        "lief",
        "cppimport",
        "onnxconverter-common",
        "mako",
        "pybind11",
    ),
}


def ways(source: Path, tiles: np.ndarray) -> dict[str, Callable[[Path], None]]:
    """Every way to quantise the graph `source`, by name: a function of the file to write."""
    found = {f"onnxruntime, {method}": partial(by_onnxruntime, source, tiles, method) for method in METHODS["int8"]}
    for method, some in (("max", tiles), ("entropy", tiles[:FEW])):
        found[f"ModelOpt, {method}, {len(some)} tiles"] = partial(by_modelopt, source, some, method, {})
        found[f"ModelOpt, {method}, {len(some)} tiles, convolutions alone"] = partial(
            by_modelopt, source, some, method, {"op_types_to_quantize": ["Conv"]}
        )
    return found


def by_onnxruntime(source: Path, tiles: np.ndarray, method: str, target: Path) -> None:
    quantise(source, target, "int8", Calibration(source, tiles).ranges(method))


def by_modelopt(source: Path, tiles: np.ndarray, method: str, options: dict[str, Any], target: Path) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"input": tiles},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(target),
        **options,
    )


def built(path: Path, bundle: Bundle) -> str | None:
    """Why TensorRT-RTX builds no plan of a graph; None where it does."""
    try:
        build_plan(path, path.with_suffix(".plan"), bundle.spec, plan_recipe("tensorrt-rtx", "int8", path, ExportConfig()))
    except BackendError as error:
        return str(error)
    return None


def megabytes(packages: tuple[str, ...]) -> float:
    """What distributions take on the disk."""
    files = [file for package in packages for file in importlib.metadata.files(package) or ()]
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).exists()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run that it was exported from")
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    samples = read_samples(options.run, bundle.spec)
    source, (tiles, _) = bundle.path / "model.fp32.onnx", samples.calibration(TILES)

    def answers(file: str, folder: Path, precision: str) -> np.ndarray:
        with open_engine(EngineRecord(precision, "openvino", precision, file, {}), folder, bundle.spec) as engine:
            return engine.infer(samples.valid)[0]

    expected = answers(source.name, bundle.path, "fp32")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for way, make in ways(source, tiles).items():
            path, begin = Path(name, "graph.onnx"), time.perf_counter()
            make(path)
            seconds, logits = time.perf_counter() - begin, answers(path.name, path.parent, "int8")
            rows[way] = {
                "accuracy": float((logits.argmax(1) == samples.valid_labels).mean()),
                "flips": int((logits.argmax(1) != expected.argmax(1)).sum()),
                "mean_error": float(np.abs(logits - expected).mean()),
                "seconds": seconds,
                "tensorrt_rtx_refuses": built(path, bundle),
            }
            print(way, rows[way], flush=True)
    document = {
        "fp32_accuracy": float((expected.argmax(1) == samples.valid_labels).mean()),
        "tiles": len(samples.valid),
        "ways": rows,
        "megabytes": {name: megabytes(parts) for name, parts in PARTS.items()},
        "versions": {name: importlib.metadata.version(name) for name in ("nvidia-modelopt", "onnxruntime", "onnx")},
        "environment": environment(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
