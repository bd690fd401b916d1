"""Where an inference on a CPU goes, by OpenVINO's own profile; the last line on stdout is one JSON document.

    python benchmarks/inference_step.py engines/eurosat

Batches of 64 random tiles through each OpenVINO engine of the bundle, one after the other. Every operator's time is the median over the runs; they are
added up by the network's stage and the kernel of the convolution, with the operations that count (two a multiply-add, the zeros of the
padding included) and the rate beside that of a large matrix product in the same precision, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from sattrt.bench.ceiling import matrix_rate
from sattrt.machine import environment
from sattrt.runtime import Bundle, EngineRecord, read_bundle
from sattrt.runtime.ov import HINTS

BATCH, RUNS, WARM_UP = 64, 40, 8
_STAGE = re.compile(r"backbone\.(conv1|layer\d)\.")


def convolutions(path: Path) -> dict[str, tuple[str, int]]:
    """Of each convolution of a graph: the stage and kernel it is added up under, and multiply-adds for each place of its output."""
    import onnx

    graph = onnx.load(path).graph
    shapes = {each.name: list(each.dims) for each in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            weights = node.input[1] if node.input[1] in shapes else made_by[node.input[1]].input[0]
            stage = _STAGE.match(weights)
            assert stage, weights
            _, channels, height, width = shapes[weights]
            found[node.name] = f"{stage[1]}, {height}x{width}", channels * height * width
    return found


def profile(bundle: Bundle, record: EngineRecord, tiles: np.ndarray) -> dict[str, dict[str, float]]:
    """Milliseconds a batch and operations, by part of the network."""
    import openvino

    convolution = convolutions(bundle.path / record.file)
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": HINTS[record.precision], "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    model = core.compile_model(core.read_model(bundle.path / record.file), "CPU", settings)
    request = model.create_infer_request()
    taken: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for run in range(WARM_UP + RUNS):
        request.infer([tiles])
        for each in request.profiling_info:
            if run >= WARM_UP and each.real_time.total_seconds():
                taken.setdefault(each.node_name, []).append(1000 * each.real_time.total_seconds())
                kinds[each.node_name] = each.node_type
    places = {node.get_friendly_name(): node.get_output_partial_shape(0) for node in model.get_runtime_model().get_ordered_ops()}
    parts: dict[str, dict[str, float]] = {}
    for name, times in taken.items():
        part, products = convolution.get(name.removesuffix("/WithoutBiases"), (kinds[name], 0))
        row = parts.setdefault(part, {"ms": 0.0, "operations": 0.0})
        row["ms"] += statistics.median(times)
        if products:
            row["operations"] += 2.0 * products * int(np.prod([side.get_length() for side in places[name]]))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    shape = (BATCH, bundle.spec.height, bundle.spec.width, len(bundle.spec.bands))
    tiles = np.random.default_rng(0).integers(0, 256, shape).astype(bundle.spec.dtype)
    document: dict[str, Any] = {"batch": BATCH, "engines": {}, "environment": environment()}
    for record in bundle.engines:
        if record.backend != "openvino":
            continue
        ceiling, parts = matrix_rate(record.precision), profile(bundle, record, tiles)
        whole = sum(row["ms"] for row in parts.values())
        print(f"{record.name}, {whole:.1f} ms a batch; a large matrix product {ceiling / 1e9:.0f} GFLOP/s", flush=True)
        for part, row in parts.items():
            row["share"] = row["ms"] / whole
            row["fraction_of_ceiling"] = row["operations"] / row["ms"] * 1000 / ceiling
            rate = f"{100 * row['fraction_of_ceiling']:4.0f} % of the matrix rate" if row["operations"] else ""
            print(f"  {row['ms']:7.2f} ms {100 * row['share']:5.1f} %  {part:16} {rate}")
        document["engines"][record.name] = {"ms": whole, "matrix_rate": ceiling, "parts": parts}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
