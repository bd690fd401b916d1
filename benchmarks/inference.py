"""Every engine of a bundle against what a user would run instead, in one process, in turns; the last line on stdout is one JSON document.

    python benchmarks/inference.py engines/eurosat --data dataset

The yardstick is PyTorch eager in fp32, channels_last; beside it bf16 under autocast and torch.compile. The peers are a plain ONNX Runtime
session and a plain OpenVINO model, with no setting at all, on the very graphs that the engines run; OpenVINO then computes an fp32 graph in
bf16 where the CPU can. OpenVINO's own benchmark_app times the same model at the same batch size in turns with us, as a check of how we time: where both
differ by more than 10 % the exit code is 1, after all has been written. The ceiling is a large matrix product in the engine's precision; useful operations
are counted by torch on the network itself. Who fails is named under "failed" with the reason; the others are measured. All of it is on the CPU: a GPU is hidden.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sattrt.bench.ceiling import ceilings, work_per_tile
from sattrt.bench.contenders import TORCH, gather
from sattrt.bench.measure import Budget, Samples, Timed, measure, wall
from sattrt.bench.tiles import TileReader
from sattrt.cores import cores
from sattrt.data.dataset import Dataset
from sattrt.errors import BackendError
from sattrt.machine import cpu_has_bf16, environment
from sattrt.runtime import Bundle, read_bundle

Infer = Callable[[NDArray[np.uint8]], Any]
BATCHES = (1, 64)
ROUNDS = 7  # of our clock and benchmark_app's
AGREE = 0.1  # how far the two may lie apart
Speeds = dict[str, dict[int, Samples]]


def plain_onnxruntime(path: Path) -> Infer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda tiles: session.run(None, {"input": tiles})


def plain_openvino(path: Path) -> Infer:
    import openvino

    model = openvino.compile_model(path, "CPU")
    return lambda tiles: model({"input": tiles})


def torch_variants(run: Path, views: int, failed: dict[str, str]) -> dict[str, Infer]:
    """The trained network in bf16 under autocast, where the CPU has it, and compiled by Inductor in fp32; both channels_last.

    views: orientations of a tile that the bundle's engines average over.
    """
    import torch

    from sattrt.trained import load_trained

    model, spec = load_trained(run)
    model.views = views
    model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def bf16(tiles: NDArray[np.uint8]) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(torch.from_numpy(tiles)).float().numpy()

    compiled = torch.compile(model, dynamic=False)

    @torch.inference_mode()
    def compile_fp32(tiles: NDArray[np.uint8]) -> Any:
        return compiled(torch.from_numpy(tiles)).numpy()

    found = {"torch-eager-bf16": bf16} if cpu_has_bf16() else {}
    begin = time.perf_counter()
    try:
        for batch in BATCHES:
            compile_fp32(np.zeros((batch, spec.height, spec.width, len(spec.bands)), spec.dtype))
    except Exception as error:  # Inductor needs a C++ compiler
        failed["torch-compile-fp32"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return found
    print(f"torch.compile took {time.perf_counter() - begin:.0f} s for batches of {BATCHES}", flush=True)
    return {"torch-compile-fp32": compile_fp32} | found


def failing_as_backend(infer: Infer) -> Infer:
    """What any library raises becomes the error that `measure` leaves a contender out for."""

    def call(tiles: NDArray[np.uint8]) -> Any:
        try:
            return infer(tiles)
        except Exception as error:
            raise BackendError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error

    return call


def benchmark_app(path: Path, shape: tuple[int, ...], seconds: float) -> float | None:
    """Median milliseconds of OpenVINO's own benchmark of the model, one request at a time; None where it is not installed."""
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if not program:
        return None
    words = [
        program,
        "-m",
        path,
        "-d",
        "CPU",
        "-api",
        "sync",
        "-hint",
        "latency",
        "-t",
        str(max(1, round(seconds))),
        "-data_shape",
        f"[{','.join(map(str, shape))}]",
    ]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", said)
    if not found:
        raise RuntimeError(f"benchmark_app did not say its median: {said}")
    return float(found[1]) / (1000 if found[2] == "us" else 1)


def peers(bundle: Bundle, failed: dict[str, str]) -> dict[str, tuple[str, Infer]]:
    """Name to (graph, what answers), for each graph that an engine of the bundle runs as it is."""
    found = {}
    for graph in sorted({engine.file for engine in bundle.engines if engine.file.endswith(".onnx")}):
        kind = graph.removeprefix("model.").removesuffix(".onnx")
        for name, make in (("onnxruntime", plain_onnxruntime), ("openvino", plain_openvino)):
            try:
                found[f"plain-{name}-{kind}"] = (graph, make(bundle.path / graph))
            except Exception as error:  # each library has errors of its own
                failed[f"plain-{name}-{kind}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that `sattrt data` wrote")
    parser.add_argument("--run", type=Path, help="run that the bundle was exported from, if it was moved")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each is timed for at each batch size")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    bundle, dataset = read_bundle(options.bundle), Dataset.read(options.data)
    run = options.run or Path(bundle.source["run"])
    with TileReader(dataset, dataset.require("test"), cores()) as reader:
        tiles = np.concatenate([images.copy() for images, _ in reader])
    contenders = gather([bundle], dataset, run, (cores(),))
    if TORCH not in contenders.present:
        sys.exit(f"The yardstick is the run that the bundle was exported from. {contenders.absent[TORCH]} Or name it with --run.")
    failed = dict(contenders.absent)
    plain = peers(bundle, failed)
    everyone: dict[str, Infer] = {name: each.infer for name, each in contenders.present.items()} | torch_variants(
        run, bundle.spec.views, failed
    )
    everyone |= {name: infer for name, (_, infer) in plain.items()}
    speeds = timed(everyone, tiles, options.seconds, failed)
    best, work = ceilings(), work_per_tile(bundle.spec)
    operations = work.operations if work else 0.0
    result = summary(bundle, speeds, plain, {name: operations / rate for name, rate in best.matrix.items()})
    result["benchmark_app"] = {}
    try:
        result["benchmark_app"] = checked_against_benchmark_app(bundle, tiles, min(options.seconds, 1.0))
    except Exception as error:  # the program and OpenVINO have errors of their own, and what was measured is worth having
        failed["benchmark_app"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    apart = disagreeing(result["benchmark_app"])
    result["benchmark_app_agrees"] = not apart if result["benchmark_app"] else None
    rows = sorted(result["engines"].items(), key=lambda row: -row[1]["images_per_second"])
    print(f"{'':28} ms p50  img/s (64)  to eager  to the best peer on its graph  of the matrix rate")
    for name, row in rows:
        peer, share = (f"{row[key]:.2f}" if key in row else "" for key in ("throughput_ratio_best_peer", "fraction_of_ceiling"))
        print(
            f"{name:28} {row['latency_ms']:6.2f} {row['images_per_second']:9.0f} {row['throughput_ratio_eager'] or 0:10.2f} {peer:>16} {share:>20}"
        )
    for name, row in result["benchmark_app"].items():
        print(f"{name}: benchmark_app says {row['benchmark_app_ms']:.2f} ms, we {row['ours_ms']:.2f} ms, {row['ratio']:.3f}")
    result |= {
        "ceilings_gflops": {name: rate / 1e9 for name, rate in best.matrix.items()},
        "tiles": len(tiles),
        "failed": failed,
        "environment": environment(),
    }
    result["seconds"] = {name: {batch: samples.seconds for batch, samples in by_batch.items()} for name, by_batch in speeds.items()}
    print(json.dumps(result), flush=True)
    if apart:
        sys.exit(f"Our clock and benchmark_app's differ by more than {100 * AGREE:.0f} %: {', '.join(apart)}")


def timed(everyone: dict[str, Infer], tiles: NDArray[np.uint8], seconds: float, failed: dict[str, str]) -> Speeds:
    """Samples of each by batch size; who fails is in `failed` from then on, and nowhere else."""
    speeds: Speeds = {name: {} for name in everyone}
    for batch in BATCHES:
        images = np.resize(tiles, (batch, *tiles.shape[1:]))
        calls = {
            name: Timed(wall(partial(failing_as_backend(infer), images)), batch) for name, infer in everyone.items() if name not in failed
        }
        for name, samples in measure(calls, Budget(seconds, 5), failed=failed).items():
            speeds[name][batch] = samples
    return {name: found for name, found in speeds.items() if name not in failed}


def disagreeing(checks: dict[str, dict[str, float]]) -> list[str]:
    """The graphs and batches that benchmark_app and we differ about by more than 10 %."""
    return [f"{name} ({check['ratio']:.3f})" for name, check in checks.items() if not 1 / (1 + AGREE) <= check["ratio"] <= 1 + AGREE]


def checked_against_benchmark_app(bundle: Bundle, tiles: NDArray[np.uint8], seconds: float) -> dict[str, dict[str, float]]:
    """How we time against how benchmark_app does, by graph and batch: both in turns on the same work, a request whose tiles lie in place."""
    try:
        import openvino
    except ImportError:
        return {}
    found = {}
    for graph in sorted({engine.file for engine in bundle.engines if engine.backend == "openvino"}):
        for batch in BATCHES:
            request = openvino.Core().compile_model(bundle.path / graph, "CPU").create_infer_request()
            request.set_tensor("input", openvino.Tensor(np.resize(tiles, (batch, *tiles.shape[1:]))))
            pairs = []
            for _ in range(ROUNDS):
                theirs = benchmark_app(bundle.path / graph, (batch, *tiles.shape[1:]), seconds)
                if theirs is None:
                    return {}
                ours = measure({graph: Timed(wall(request.infer), batch)}, Budget(seconds))[graph].milliseconds(50)
                pairs.append((ours, theirs))
            ours, theirs = np.median(pairs, axis=0)
            ratio = float(np.median([ours / theirs for ours, theirs in pairs]))
            found[f"{graph}, batch {batch}"] = {"benchmark_app_ms": float(theirs), "ours_ms": float(ours), "ratio": ratio}
    return found


def summary(bundle: Bundle, speeds: Speeds, plain: dict[str, tuple[str, Infer]], seconds_at_ceiling: dict[str, float]) -> dict[str, Any]:
    """Ratios by engine, and those of the best; null where what they need failed."""
    eager = speeds.get(TORCH)
    graphs = {engine.name: engine.file for engine in bundle.engines}
    precisions = {engine.name: engine.precision for engine in bundle.engines} | {
        TORCH: "fp32",
        "torch-eager-bf16": "bf16",
        "torch-compile-fp32": "fp32",
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, speed in speeds.items():
        latency, throughput = speed[1].milliseconds(50), speed[64].images_per_second
        row = rows[name] = {
            "latency_ms": latency,
            "images_per_second": throughput,
            "throughput_ratio_eager": throughput / eager[64].images_per_second if eager else None,
            "latency_ratio_eager": latency / eager[1].milliseconds(50) if eager else None,
        }
        precision = "fp32" if precisions.get(name) == "fp16" else precisions.get(name)  # fp16 is computed so on a CPU
        if precision in seconds_at_ceiling:
            row["fraction_of_ceiling"] = throughput * seconds_at_ceiling[precision]
        same = [speeds[peer] for peer, (graph, _) in plain.items() if graph == graphs.get(name) and peer in speeds]
        if same:
            row["throughput_ratio_best_peer"] = throughput / max(peer[64].images_per_second for peer in same)
            row["latency_ratio_best_peer"] = latency / min(peer[1].milliseconds(50) for peer in same)
    own = {name: row for name, row in rows.items() if name in graphs}
    fastest = max(own, key=lambda name: own[name]["images_per_second"], default=None)
    quickest = min(own, key=lambda name: own[name]["latency_ms"], default=None)
    best_peer = max((rows[name]["images_per_second"] for name in plain if name in rows), default=None)
    return {
        "throughput_ratio_eager": own[fastest]["throughput_ratio_eager"] if fastest else None,
        "latency_ratio_eager": own[quickest]["latency_ratio_eager"] if quickest else None,
        "throughput_ratio_best_peer": own[fastest]["images_per_second"] / best_peer if fastest and best_peer else None,
        "fastest": fastest,
        "quickest": quickest,
        "engines": rows,
    }


if __name__ == "__main__":
    main()
