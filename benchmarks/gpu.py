"""Training, export and bench on one GPU in one command, within eight minutes; the last line on stdout is one JSON document of at most 1 MB.

    python benchmarks/gpu.py --tiles EuroSAT_RGB.zip --weights resnet50_imagenet.safetensors --out gpu.json

Needs torch and torchvision (with numpy and Pillow) for anything; onnx for export, and so for the bench of engines; typer, rich and no network.
Uses onnxscript, DALI, TensorRT, TensorRT-RTX, OpenVINO, matplotlib and onnxruntime-gpu where it finds them, and says what it did without.

It trains `fast` and then `quick` of gpu_training.py, for their goals of 97 % within 15 s and 98.57 % within 60 s, and exports the latter, or the former where
the latter has failed.

Each stage is a process of its own, which is killed, with all that it has started, when its share of the time is over. A stage that fails is said, and
the next one continues with what there is: a run that fails with DALI is started again with torchvision's decoder, and where the export of fp32
alone fails that of all precisions is tried. The file holds what stands after each stage, and the bench of the engine that should be the fastest
before that of all. Without a GPU it runs as well, on a small share of the tiles and with short timings, to show that it works: `--share 640`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_training import LONGEST, NEEDED, RUNS, judged, libraries_read, missing, report, runs_of

if TYPE_CHECKING:
    from sattrt.bench.config import BenchConfig
    from sattrt.runtime import Bundle
    from sattrt.runtime.engine import EngineRecord

ENDS = {"training": 4.0, "export": 6.0, "bench": 7.8}  # minutes after the start by which each stage is over
# runs of gpu_training.py, and the part of what is left of the training's time that each may take: the second has what the first leaves, and its decoder
TRAINED = {"fast": 0.5, "quick": 1.0}
TO_RECORD = 5.0  # seconds before the end of the training's time by which a run is ended, so that how it failed is recorded
FOR_EXPORT = ("onnx",)
MOST_BYTES = 1_000_000
# the fastest first, as far as one can say beforehand
BACKENDS = ("tensorrt", "onnxruntime-tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
PRECISIONS = ("fp16", "int8", "fp8", "bf16", "fp32")  # int8 graphs for a GPU keep what is between their convolutions in fp32
_RAW = ("seconds", "wrong", "selective")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    parser.add_argument("--weights", required=True, help="ImageNet weights, or 'none'")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file for the JSON")
    parser.add_argument("--share", type=int, help="train on this many tiles only, for two epochs, and time in short")
    parser.add_argument(
        "--stage", nargs=3, metavar=("NAME", "FOLDER", "SECONDS"), help=argparse.SUPPRESS
    )  # what this program calls itself with
    options = parser.parse_args()
    if options.stage:
        one_stage(options)
        return
    begin = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stage in hand is ended too
    document: dict[str, Any] = {"without": without(), "environment": {}, "seconds": {}, "failed": {}}
    for name, cost in document["without"].items():
        print(f"without {name}: {cost}", flush=True)
    document["environment"] = surroundings()
    with tempfile.TemporaryDirectory() as folder:
        for name, end in ENDS.items():
            started = time.perf_counter()
            seconds = max(1.0, 60 * end - (started - begin))
            failure = why_not(name, document)
            if not failure:
                command = [sys.executable, __file__, *sys.argv[1:], "--stage", name, folder, str(seconds)]
                failure = within(command, seconds)
            found = json.loads(path.read_text()) if (path := Path(folder, f"{name}.json")).exists() else {}
            if failure := found.pop("failed", failure):
                document["failed"][name] = failure
                print(f"{name} failed: {failure}", flush=True)
            document |= found
            document["seconds"] |= {name: round(time.perf_counter() - started, 2), "all": round(time.perf_counter() - begin, 1)}
            write(document, options.out)
    print(write(document, options.out), flush=True)
    if lacking := missing(*NEEDED):
        sys.exit(f"Nothing could be done without {', '.join(lacking)}: pip install {' '.join(lacking)}")


def without() -> dict[str, str]:
    """What is not there, and what its absence costs."""
    from sattrt.doctor import examine
    from sattrt.errors import BackendError
    from sattrt.machine import gpu

    costs = {name: f"training, export, bench: need {name}" for name in missing(*NEEDED)}
    costs |= {name: f"export: needs {name}" for name in missing(*FOR_EXPORT)}
    costs |= dict.fromkeys(missing("onnxscript"), "no graphs in bf16; torch's older exporter makes the others")
    costs |= dict.fromkeys(missing("matplotlib"), "no pictures of the run")
    costs |= {finding.name: finding.cost for finding in examine() if not finding.found}
    with contextlib.suppress(BackendError):  # of a GPU that fails, which `examine` has said
        costs |= without_rtx(gpu())
    return costs


def without_rtx(found: tuple[str, str] | None) -> dict[str, str]:
    """What TensorRT-RTX can't do on a GPU (name, compute capability), whether it is installed or not; nothing where it has a target for it."""
    from sattrt.deploy.config import CAPABILITIES

    if found is None or found[1] in CAPABILITIES:
        return {}
    return {"TensorRT-RTX": f"its plans do not run on {found[0]}: it has no target for compute capability {found[1]}"}


def surroundings() -> dict[str, Any]:
    from sattrt.machine import environment

    return environment()


def why_not(stage: str, document: dict[str, Any]) -> str | None:
    """Why a stage need not be begun, if so."""
    needed = missing(*NEEDED, *(FOR_EXPORT if stage == "export" else ()))
    if needed:
        return f"needs {', '.join(needed)}: pip install {' '.join(needed)}"
    return "there is no bundle to measure" if stage == "bench" and "engines" not in document else None


def within(command: list[str], seconds: float) -> str | None:
    """Run a command, and end it and whatever it has started after so many seconds; None, or how it failed."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "it took longer than its share of the eight minutes"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"it ended with exit code {code}" if code else None


def one_stage(options: argparse.Namespace) -> None:
    """A stage in its own process; what it found so far, or why it failed, is in FOLDER/NAME.json."""
    name, folder, end = options.stage[0], Path(options.stage[1]), time.perf_counter() + float(options.stage[2])
    found: dict[str, Any] = {}

    def keep(**what: Any) -> None:
        found.update(what)
        temporary = folder / f"{name}.new"
        temporary.write_text(json.dumps(found))
        temporary.replace(folder / f"{name}.json")

    try:
        {"training": train_it, "export": export_it, "bench": bench_it}[name](folder, options, end, keep)
    except Exception as error:  # the machine is lent for a few minutes: what stands is brought home
        traceback.print_exc()
        keep(failed=f"{type(error).__name__}: {error}")


def train_it(folder: Path, options: argparse.Namespace, end: float, keep: Any) -> None:
    import torch

    from sattrt.cores import cores
    from sattrt.data.dataset import balanced
    from sattrt.data.scan import SplitRule, scan
    from sattrt.training.config import RECIPES, TrainConfig

    keep(**libraries_read())
    begin = time.perf_counter()
    dataset = scan(options.tiles, SplitRule((80, 10, 10)), cores())
    scanned = time.perf_counter() - begin
    if options.share:
        test = balanced(dataset.tiles("test"), 200)
        few = (*balanced(dataset.tiles("train"), options.share), *balanced(dataset.tiles("valid"), options.share // 4), *test)
        dataset = replace(dataset, all_tiles=few)
    dataset.write(folder)
    end -= TO_RECORD
    trained: dict[str, Any] = {}
    failed: list[dict[str, Any]] = []
    decoder = "auto"
    for name, part in TRAINED.items():
        settings = {**RECIPES[RUNS[name]["recipe"]], **RUNS[name], "weights": options.weights, "decoder": decoder}
        if options.share:
            settings |= {"epochs": 2, "batch_size": 32, "learning_rate": 0.005}
        seconds, limits = part * (end - time.perf_counter()), ()
        if torch.cuda.is_available():
            limits = (LONGEST[name], time.perf_counter() + seconds)
        else:  # on a GPU it takes seconds, and to measure beforehand how long would be among them
            settings["minutes"] = max(0.1, seconds / 60 - 0.5)
        for run in runs_of(folder, TrainConfig.from_dict(settings, "gpu.py"), folder / name, *limits):
            decoder = run["config"]["decoder"]
            if "failed" in run:
                failed.append({"run": name, **run})
                keep(training_failed=failed)
                say(f"{name}, decoder {decoder} failed: {run['failed'].splitlines()[0]}")
                continue
            run |= {"scan_seconds": scanned, "goal": judged(name, run, scanned)}
            trained[name] = run
            keep(training=trained)
            (folder / "run").unlink(missing_ok=True)  # what is exported: the last that came to its end
            (folder / "run").symlink_to(name)
            report(name, 0, run)
    if not trained:
        raise RuntimeError(failed[-1]["failed"].splitlines()[0])


def export_it(folder: Path, options: argparse.Namespace, end: float, keep: Any) -> None:
    from sattrt.deploy.bundle import export
    from sattrt.deploy.config import ExportConfig
    from sattrt.errors import SattrtError

    failures: dict[str, str] = {}
    # each with what the ones before have made: these stay where the next, int8 with its calibration above all, takes too long
    configs = {"fp32": ExportConfig(precision="fp32", best_effort=True)}
    configs |= {"fp16": replace(configs["fp32"], precision="fp32,fp16"), "all": ExportConfig(best_effort=True)}
    for name, config in configs.items():
        try:
            exported = export(folder / "run", folder / "gpu", config, say)
        except SattrtError as error:  # as where ONNX Runtime can't use the GPU in fp32: int8 is for the CPU
            failures[name] = str(error)
            keep(export_failed=failures)
            say(f"export, {name} failed: {error}")
            continue
        verdicts = {engine.name: engine.record.get("validation", {}) for engine in exported.bundle.engines}
        engines = {name: verdict | {"flips": len(verdict.get("flips", []))} for name, verdict in verdicts.items()}
        keep(skipped=exported.skipped, gate=exported.failed, engines=engines)
    if len(failures) == len(configs):
        raise RuntimeError(" | ".join(failures.values()))


def bench_it(folder: Path, options: argparse.Namespace, end: float, keep: Any) -> None:
    from sattrt.bench.run import bench
    from sattrt.bench.tables import table
    from sattrt.data.dataset import Dataset
    from sattrt.runtime import read_bundle

    exported, dataset = read_bundle(folder / "gpu"), Dataset.read(folder)
    # torch eager is measured each time: two for the first, which stays where all of them take too long
    config = bench_config(0 if options.share else (end - time.perf_counter()) / (2 + len(exported.engines) + 1))
    if options.share:
        config = replace(config, batches="1,4", scenarios="single-stream,offline", clock_batch=4)
    for engines in ((fastest(exported),), exported.engines):
        measured = bench([replace(exported, engines=engines)], dataset, config, (), say).document
        keep(bench=slim(measured))
    columns, rows = table(measured)
    for row in (columns, *rows):
        print(*row, sep=" | ")


def say(what: str) -> None:
    print(what, flush=True)


def fastest(bundle: Bundle) -> EngineRecord:
    """The engine that should be the fastest by its backend and precision, of those that open here; the bundle's first where none does."""
    from sattrt.errors import BackendError
    from sattrt.runtime.ort import this_place

    on_cuda = False  # ONNX Runtime, whatever GPU there is
    with contextlib.suppress(BackendError):  # it is not installed
        on_cuda = this_place()["provider"] == "cuda"

    def rank(engine: EngineRecord) -> tuple[int, bool, bool, int]:
        int8 = engine.precision == "int8"
        on_cpu = engine.backend == "openvino" or (engine.backend == "onnxruntime" and (int8 or not on_cuda))
        return BACKENDS.index(engine.backend), on_cpu, on_cpu and not int8, PRECISIONS.index(engine.precision)

    for engine in sorted(bundle.engines, key=rank):
        with contextlib.suppress(BackendError):
            bundle.open(engine.name).close()
            return engine
    return bundle.engines[0]


def bench_config(seconds: float) -> BenchConfig:
    """What fits into so many seconds an engine: eight timings of up to 1.5 s to warm up, nine trials of the server, three passes."""
    from sattrt.bench.config import BenchConfig

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
