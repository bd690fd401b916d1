"""Every engine of a bundle against what a user would run instead, in one process, in turns; the last line on stdout is one JSON document.

    python benchmarks/inference.py engines/eurosat --data dataset

The yardstick is PyTorch eager in fp32, channels_last. The peers are a plain ONNX Runtime session and a plain OpenVINO model, with no
setting at all, on the very graphs that the engines run; OpenVINO then computes an fp32 graph in bf16 where the CPU can. The ceiling is a
large matrix product in the engine's precision; useful operations are counted by torch on the network itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sattrt.bench.contenders import TORCH, gather
from sattrt.bench.measure import Budget, Speed, measure
from sattrt.bench.tiles import TileReader
from sattrt.data.dataset import Dataset
from sattrt.machine import cores, environment
from sattrt.runtime import Bundle, read_bundle

Infer = Callable[[NDArray[np.uint8]], Any]
BATCHES = (1, 64)


def plain_onnxruntime(path: Path) -> Infer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda tiles: session.run(None, {"input": tiles})


def plain_openvino(path: Path) -> Infer:
    import openvino

    model = openvino.compile_model(path, "CPU")
    return lambda tiles: model({"input": tiles})


def torch_bf16(run: Path) -> Infer:
    import torch

    from sattrt.training.run import load_trained

    model, _ = load_trained(run)
    model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(tiles: NDArray[np.uint8]) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(torch.from_numpy(tiles)).float().numpy()

    return infer


def matrix_rate(precision: str, size: int = 2048) -> float:
    """Operations a second of a square matrix product in PyTorch: the median of seven, of the library that is the fastest.

    int8 is multiplied into int32; floats by the BLAS behind `@`, and by oneDNN as a 1x1 convolution.
    """
    import torch

    if precision == "int8":
        a, b = (torch.randint(-128, 128, (size, size), dtype=torch.int8) for _ in range(2))
        return 2 * size**3 / median_seconds(lambda: torch._int_mm(a, b))
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    x, y = (torch.randn(size, size).to(dtype) for _ in range(2))
    image = x.view(1, size // 32, 32, size).permute(0, 3, 1, 2)  # (1, channels, 64, 32), channels last
    with torch.inference_mode():
        blas = median_seconds(lambda: x @ y)
        onednn = median_seconds(lambda: torch.nn.functional.conv2d(image, y[:, :, None, None]))
    return 2 * size**3 / min(blas, onednn)


def median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])


def useful_operations() -> float:
    """Operations of a forward pass per 64x64 tile (torch's own count, two a multiply-add)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import resnet50

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        resnet50(num_classes=10).eval()(torch.zeros(1, 3, 64, 64))
    return float(counter.get_total_flops())


def peers(bundle: Bundle) -> dict[str, tuple[str, Infer]]:
    """Name to (graph, what answers), for each graph that an engine of the bundle runs as it is."""
    found = {}
    for graph in sorted({engine.file for engine in bundle.engines if engine.file.endswith(".onnx")}):
        kind = graph.removeprefix("model.").removesuffix(".onnx")
        for name, make in (("onnxruntime", plain_onnxruntime), ("openvino", plain_openvino)):
            try:
                found[f"plain-{name}-{kind}"] = (graph, make(bundle.path / graph))
            except (ImportError, RuntimeError) as error:
                print(f"plain-{name}-{kind}: {str(error).splitlines()[0][:100]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that `sattrt data` wrote")
    parser.add_argument("--run", type=Path, help="run that the bundle was exported from, if it was moved")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each is timed for at each batch size")
    options = parser.parse_args()
    bundle, dataset = read_bundle(options.bundle), Dataset.read(options.data)
    run = options.run or Path(bundle.source["run"])
    tiles = np.concatenate([images.copy() for images, _ in TileReader(dataset, dataset.require("test"), cores())])
    contenders = gather(bundle, run, cores())
    plain = peers(bundle)
    everyone: dict[str, Infer] = {**contenders.infer, "torch-eager-bf16": torch_bf16(run)}
    everyone |= {name: infer for name, (_, infer) in plain.items()}
    budget = Budget(options.seconds, 100, options.seconds, 5)
    speeds = measure(everyone, tiles, BATCHES, budget)
    operations = useful_operations()
    ceilings = {precision: matrix_rate(precision) for precision in ("fp32", "bf16", "int8")}
    result = summary(bundle, speeds, plain, {name: operations / rate for name, rate in ceilings.items()})
    rows = sorted(result["engines"].items(), key=lambda row: -row[1]["images_per_second"])
    print(f"{'':28} ms p50  img/s (64)  to eager  to the best peer on its graph  of the matrix rate")
    for name, row in rows:
        peer, share = (f"{row[key]:.2f}" if key in row else "" for key in ("throughput_ratio_best_peer", "fraction_of_ceiling"))
        print(
            f"{name:28} {row['latency_ms']:6.2f} {row['images_per_second']:9.0f} {row['throughput_ratio_eager']:10.2f} {peer:>16} {share:>20}"
        )
    result |= {"ceilings_gflops": {name: rate / 1e9 for name, rate in ceilings.items()}, "tiles": len(tiles), "environment": environment()}
    result["seconds"] = {name: speed.seconds for name, speed in speeds.items()}
    print(json.dumps(result))


def summary(
    bundle: Bundle, speeds: dict[str, Speed], plain: dict[str, tuple[str, Infer]], seconds_at_ceiling: dict[str, float]
) -> dict[str, Any]:
    """Ratios by engine, and those of the best."""
    eager = speeds[TORCH]
    graphs = {engine.name: engine.file for engine in bundle.engines}
    precisions = {engine.name: engine.precision for engine in bundle.engines} | {TORCH: "fp32", "torch-eager-bf16": "bf16"}
    rows: dict[str, dict[str, Any]] = {}
    for name, speed in speeds.items():
        row = rows[name] = {
            "latency_ms": speed.latency_ms(50),
            "images_per_second": speed.throughput(64),
            "throughput_ratio_eager": speed.throughput(64) / eager.throughput(64),
            "latency_ratio_eager": speed.latency_ms(50) / eager.latency_ms(50),
        }
        if precisions.get(name) in seconds_at_ceiling:
            row["fraction_of_ceiling"] = speed.throughput(64) * seconds_at_ceiling[precisions[name]]
        same = [speeds[peer] for peer, (graph, _) in plain.items() if graph == graphs.get(name)]
        if same:
            row["throughput_ratio_best_peer"] = speed.throughput(64) / max(peer.throughput(64) for peer in same)
            row["latency_ratio_best_peer"] = speed.latency_ms(50) / min(peer.latency_ms(50) for peer in same)
    own = {name: row for name, row in rows.items() if name in graphs}
    fastest = max(own, key=lambda name: own[name]["images_per_second"])
    quickest = min(own, key=lambda name: own[name]["latency_ms"])
    best_peer = max(rows[name]["images_per_second"] for name in plain)
    return {
        "throughput_ratio_eager": own[fastest]["throughput_ratio_eager"],
        "latency_ratio_eager": own[quickest]["latency_ratio_eager"],
        "throughput_ratio_best_peer": own[fastest]["images_per_second"] / best_peer,
        "fastest": fastest,
        "quickest": quickest,
        "engines": rows,
    }


if __name__ == "__main__":
    main()
