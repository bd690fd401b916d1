"""What ONNX Runtime's own settings bring on a CPU, in turns in one run; the last line on stdout is one JSON document.

    python benchmarks/onnxruntime_settings.py engines/eurosat

Every variant differs from `sattrt.runtime`'s session in one setting. Latency and throughput are measured in turns in one process; the
seconds to open a session and answer the first tile, and the memory that this and a batch of 64 leave resident, each in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sattrt.bench.measure import Budget, Timed, measure, wall
from sattrt.cores import cores
from sattrt.machine import environment
from sattrt.runtime.ort import save_optimised

OURS, OPTIMISED = "as sattrt opens it", "saved optimised graph"
VARIANTS: tuple[str, ...] = (
    OURS,
    OPTIMISED,
    "one thread",
    "threads wait instead of spinning",
    "no memory arena",
    "no memory pattern",
    "basic optimisations only",
)
FRESH_PROCESSES = 3


def session(path: Path, variant: str) -> Callable[[Any], Any]:
    """What answers tiles through a session with the variant's setting; `path` is the saved graph for that variant."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1 if variant == "one thread" else cores()
    if variant == OPTIMISED:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif variant == "threads wait instead of spinning":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif variant == "no memory arena":
        options.enable_cpu_mem_arena = False
    elif variant == "no memory pattern":
        options.enable_mem_pattern = False
    elif variant == "basic optimisations only":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda tiles: opened.run(["logits", "probabilities"], {"input": tiles})


def opened_afresh(path: Path, variant: str, tile: tuple[int, ...], dtype: str) -> dict[str, float]:
    """Seconds to a first answer, and megabytes resident after it and after a batch of 64, beyond the import of onnxruntime."""
    import onnxruntime  # noqa: F401 - its import is not what is measured

    before, begin = resident(), time.perf_counter()
    infer = session(path, variant)
    infer(np.zeros((1, *tile), dtype))
    seconds, first = time.perf_counter() - begin, resident()
    infer(np.zeros((64, *tile), dtype))
    return {"seconds": seconds, "first_mb": first - before, "batch_mb": resident() - before}


def resident() -> float:
    """Resident memory of this process in megabytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", default="fp32,int8-cpu", help="model.GRAPH.onnx files of the bundle, with commas between")
    parser.add_argument("--seconds", type=float, default=3.0, help="that each is timed for at each batch size")
    options = parser.parse_args()
    tiles = np.load(options.bundle / "golden.npz")["tiles"]
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in options.graphs.split(","):
            source, saved = options.bundle / f"model.{graph}.onnx", Path(folder, f"{graph}.onnx")
            save_optimised(source, saved)
            paths = {variant: saved if variant == OPTIMISED else source for variant in VARIANTS}
            sessions = {variant: session(path, variant) for variant, path in paths.items()}
            one, many = (
                measure(
                    {
                        variant: Timed(wall(partial(infer, np.resize(tiles, (batch, *tiles.shape[1:])))), batch)
                        for variant, infer in sessions.items()
                    },
                    Budget(options.seconds, 5),
                )
                for batch in (1, 64)
            )
            afresh: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
            for _ in range(FRESH_PROCESSES):
                for variant, path in paths.items():
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                        afresh[variant].append(pool.submit(opened_afresh, path, variant, tiles.shape[1:], str(tiles.dtype)).result())
            results[graph] = {
                variant: {
                    "latency_ms": one[variant].milliseconds(50),
                    "latency_ms_p99": one[variant].milliseconds(99),
                    "images_per_second": many[variant].images_per_second,
                    **{key: statistics.median(each[key] for each in afresh[variant]) for key in afresh[variant][0]},
                }
                for variant in VARIANTS
            }
            results[graph][OPTIMISED]["file_mb"] = saved.stat().st_size / 1e6
    print(f"{'':44} ms p50     p99  img/s (64)  open s  MB after 1   64")
    for graph, rows in results.items():
        for variant, row in rows.items():
            print(
                f"{graph:9} {variant:34} {row['latency_ms']:6.2f} {row['latency_ms_p99']:7.2f} {row['images_per_second']:11.0f} "
                f"{row['seconds']:7.2f} {row['first_mb']:11.0f} {row['batch_mb']:4.0f}"
            )
    print(json.dumps({"variants": results, "environment": environment()}))


if __name__ == "__main__":
    main()
