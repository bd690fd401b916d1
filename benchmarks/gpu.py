"""Training, export and bench on one GPU in one command, within eight minutes; the last line on stdout is one JSON document of at most 1 MB.

    PYTHONPATH=. python benchmarks/gpu.py --tiles EuroSAT_RGB.zip --weights resnet50_imagenet.safetensors --out gpu.json

Needs torch, torchvision, safetensors, typer, rich, numpy, onnx, onnxscript, onnxruntime, matplotlib and no network; uses DALI, TensorRT, TensorRT-RTX, OpenVINO and
onnxruntime-gpu where it finds them, and says what it did without. A stage that fails, or takes longer than its share of the time, is
said, and the next one goes on with what there is; the file holds what stands after each of them, and the bench of the engine that should be the fastest before that of all. Without a GPU it runs as well, on a small share of the tiles, to show that it works: `--share 640`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
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
from sattrt.errors import BackendError
from sattrt.machine import cores, environment
from sattrt.runtime import Bundle, read_bundle
from sattrt.runtime.engine import EngineRecord
from sattrt.training.config import RECIPES, TrainConfig

STAGES = {"training": 4.0, "export": 6.0, "bench": 7.8}  # minutes after the start by which each is over
MOST_BYTES = 1_000_000
SECONDS_BETWEEN_ALARMS = 5
# the fastest first, as far as one can say beforehand
BACKENDS = ("tensorrt", "onnxruntime-tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")
_RAW = ("seconds", "wrong", "selective")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    parser.add_argument("--weights", required=True, help="ImageNet weights, or 'none'")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file for the JSON")
    parser.add_argument("--share", type=int, help="train on this many tiles only, for two epochs")
    options = parser.parse_args()
    begin = time.perf_counter()

    def left(until: float) -> float:
        """Seconds until a minute of the run."""
        return 60 * until - (time.perf_counter() - begin)

    without = {finding.name: finding.cost for finding in examine() if not finding.found}
    for name, cost in without.items():
        print(f"without {name}: {cost}")
    document: dict[str, Any] = {"without": without, "environment": environment(), "seconds": {}, "failed": {}}

    def stage(name: str, work: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            with at_most(left(STAGES[name])):
                work()
        except (Exception, TooLong) as error:  # the machine is lent for a few minutes: what stands is brought home
            traceback.print_exc()
            document["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {document['failed'][name]}", flush=True)
        finally:
            document["seconds"] |= {name: round(time.perf_counter() - started, 2), "all": round(time.perf_counter() - begin, 1)}
            write(document, options.out)

    dataset = scan(options.tiles, SplitRule((80, 10, 10)), cores())
    settings = {**RECIPES["quick"], **RUNS["fast"], "weights": options.weights, "minutes": STAGES["training"] - 0.5}
    if options.share:
        test = balanced(dataset.tiles("test"), 200)
        few = (*balanced(dataset.tiles("train"), options.share), *balanced(dataset.tiles("valid"), options.share // 4), *test)
        dataset = replace(dataset, all_tiles=few)
        settings |= {"epochs": 2, "batch_size": 32, "learning_rate": 0.005}

    def train_it() -> None:
        document["training"] = one_run(dataset, TrainConfig.from_dict(settings, "gpu.py"), run)
        report("training", 0, document["training"])

    def export_it() -> None:
        export(run, bundle, ExportConfig(precision="fp32"), say)  # stays, where the others take too long
        exported = export(run, bundle, ExportConfig(best_effort=True), say)
        document["skipped"], document["gate"] = exported.skipped, exported.failed
        document["engines"] = {
            engine.name: engine.record.get("validation", {}) | {"flips": len(engine.record.get("validation", {}).get("flips", []))}
            for engine in exported.bundle.engines
        }

    def bench_it() -> None:
        exported = read_bundle(bundle)
        # torch eager is measured each time: two for the first, which stays where all of them take too long
        config = bench_config(left(STAGES["bench"]) / (2 + len(exported.engines) + 1))
        for engines in ((fastest(exported),), exported.engines):
            measured = bench([replace(exported, engines=engines)], dataset, config, (), say).document
            document["bench"] = slim(measured)
            write(document, options.out)
        columns, rows = table(measured)
        for row in (columns, *rows):
            print(*row, sep=" | ")

    with tempfile.TemporaryDirectory() as folder:
        run, bundle = Path(folder, "run"), Path(folder, "engines", "gpu")
        for name, work in {"training": train_it, "export": export_it, "bench": bench_it}.items():
            stage(name, work)
    print(write(document, options.out))


def say(what: str) -> None:
    print(what, flush=True)


class TooLong(BaseException):
    """A stage has used its share of the eight minutes; no library's `except Exception` takes it for a failure of its own."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """TooLong after so many seconds, and again and again: Python swallows one that comes in a destructor."""
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, max(1, seconds), SECONDS_BETWEEN_ALARMS)
    try:
        yield
    finally:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        finally:  # also where one more came in that very moment
            signal.setitimer(signal.ITIMER_REAL, 0)


def too_long(number: int, frame: object) -> None:
    raise TooLong("it took longer than its share of the eight minutes")


def fastest(bundle: Bundle) -> EngineRecord:
    """The engine that should be the fastest by its backend and precision, of those that open here; the bundle's first where none does."""
    for engine in sorted(bundle.engines, key=lambda engine: (BACKENDS.index(engine.backend), PRECISIONS.index(engine.precision))):
        with contextlib.suppress(BackendError):
            bundle.open(engine.name).close()
            return engine
    return bundle.engines[0]


def bench_config(seconds: float) -> BenchConfig:
    """What fits into so many seconds an engine: eight timings of up to 1.5 s to warm up, six trials of the server, three passes."""
    timed = max(0.1, min(1.0, (seconds - 15) / 15))
    scenarios = "single-stream,multi-stream,offline,server" if seconds > 20 else "single-stream,offline"
    return BenchConfig(seconds=timed, scenarios=scenarios, streams="1", batches="1,16,64,256")


def write(document: dict[str, Any], path: Path) -> str:
    """The document in the file, and as text; without the bench where it would be too long."""
    text = json.dumps(document)
    if len(text) > MOST_BYTES:
        document["bench"] = {"left_out": f"{len(text)} bytes in all"}
        text = json.dumps(document)
    path.write_text(text + "\n")
    return text


def slim(document: dict[str, Any]) -> dict[str, Any]:
    """The report without its raw samples."""

    def without_samples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_samples(each) for key, each in value.items() if not (key in _RAW and isinstance(each, list))}
        return [without_samples(each) for each in value] if isinstance(value, list) else value

    return {key: without_samples(value) for key, value in document.items()}


if __name__ == "__main__":
    main()
