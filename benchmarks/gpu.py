"""Training, export and bench on one GPU in one command, within eight minutes; the last line on stdout is one JSON document of at most 1 MB.

    python benchmarks/gpu.py --tiles EuroSAT_RGB.zip --weights resnet50_imagenet.safetensors --out gpu.json

Needs torch, torchvision, safetensors, typer, rich, numpy, onnx, onnxscript, onnxruntime, matplotlib and no network; uses DALI, TensorRT, TensorRT-RTX, OpenVINO and
onnxruntime-gpu where it finds them, and says what it did without. A stage that fails is said, and the next one goes on with what there
is. Without a GPU it runs as well, on a small share of the tiles, to show that it works: `--share 640`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_training import RUNS, one_run, report

from sattrt.bench.config import BenchConfig
from sattrt.bench.run import bench
from sattrt.bench.tables import table
from sattrt.data.dataset import balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.doctor import examine
from sattrt.machine import cores, environment
from sattrt.training.config import RECIPES, TrainConfig

MINUTES, TRAINING_MINUTES = 8.0, 4.0
MOST_BYTES = 1_000_000
_RAW = ("seconds", "wrong", "selective")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    parser.add_argument("--weights", required=True, help="ImageNet weights, or 'none'")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--share", type=int, help="train on this many tiles only, for two epochs")
    options = parser.parse_args()
    begin = time.perf_counter()
    left = lambda: MINUTES - (time.perf_counter() - begin) / 60  # noqa: E731
    without = {finding.name: finding.cost for finding in examine() if not finding.found}
    for name, cost in without.items():
        print(f"without {name}: {cost}")
    document: dict[str, Any] = {"without": without, "environment": environment(), "seconds": {}, "failed": {}}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return work()
        except Exception as error:  # the machine is lent for a few minutes: what stands is brought home
            traceback.print_exc()
            document["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {document['failed'][name]}", flush=True)
        finally:
            document["seconds"][name] = round(time.perf_counter() - started, 2)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = scan(options.tiles, SplitRule((80, 10, 10)), cores())
        settings = {**RECIPES["quick"], **RUNS["fast"], "weights": options.weights, "minutes": min(TRAINING_MINUTES, left() / 2)}
        if options.share:
            test = balanced(dataset.tiles("test"), 200)
            few = (*balanced(dataset.tiles("train"), options.share), *balanced(dataset.tiles("valid"), options.share // 4), *test)
            dataset = replace(dataset, all_tiles=few)
            settings |= {"epochs": 2, "batch_size": 32, "learning_rate": 0.005}
        document["training"] = stage("training", lambda: one_run(dataset, TrainConfig.from_dict(settings, "gpu.py"), folder / "run"))
        if document["training"]:
            report("training", 0, document["training"])
        exported = stage(
            "export",
            lambda: export(
                folder / "run", folder / "engines" / "gpu", ExportConfig(best_effort=True), lambda what: print(what, flush=True)
            ),
        )
        if exported:
            document["engines"] = {
                engine.name: engine.record.get("validation", {}) | {"flips": len(engine.record.get("validation", {}).get("flips", []))}
                for engine in exported.bundle.engines
            }
            document["skipped"], document["gate"] = exported.skipped, exported.failed
            # a second or less for each timing, as many as fit into what is left
            config = BenchConfig(
                seconds=max(0.1, min(1.0, left() * 60 / (12 * (len(exported.bundle.engines) + 1)))), streams="1", batches="1,16,64,256"
            )
            measured = stage("bench", lambda: bench([exported.bundle], dataset, config, (), lambda what: print(what, flush=True)))
            if measured:
                document["bench"] = slim(measured.document)
                columns, rows = table(measured.document)
                for row in (columns, *rows):
                    print(*row, sep=" | ")
    document["seconds"]["all"] = round(time.perf_counter() - begin, 1)
    text = json.dumps(document)
    if len(text) > MOST_BYTES:
        document["bench"] = {"left_out": f"{len(text)} bytes in all"}
        text = json.dumps(document)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


def slim(document: dict[str, Any]) -> dict[str, Any]:
    """The report without its raw samples."""

    def without_samples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_samples(each) for key, each in value.items() if not (key in _RAW and isinstance(each, list))}
        return [without_samples(each) for each in value] if isinstance(value, list) else value

    return {key: without_samples(value) for key, value in document.items()}


if __name__ == "__main__":
    main()
