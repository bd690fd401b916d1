"""What one GPU does with EuroSAT: speed of training, time to 97, 98.57 and 99 % validation accuracy; the last line on stdout is one JSON document.

    python benchmarks/gpu_training.py --tiles EuroSAT_RGB.zip --weights resnet50_imagenet.safetensors --out gpu-training.json

`fast` is to reach 97 % within 15 s, `quick` 98.57 % within 60 s, both at 20,000 images/s. `full` has more arithmetic in it than one GPU does in a minute: it is to reach 99 %, however long it takes.
Each run is a process of its own. It is killed after two minutes (`fast`), three (`quick`) or seven (`full`), and nine and a half minutes after the start
of all (as many for each further seed); with less than ten seconds left it is skipped. A run that fails is recorded with its reason and the epochs that it
came to, and where DALI is installed it is made once more with torchvision's decoder, as a second entry. The file is written before the
first run and again after each of them, so nothing that was measured is lost. At first a ResNet-50 trains one step in a process of its own, so
that the libraries of CUDA and DALI (some gigabytes) are read from the disk once, and in no run's time; it is waited for, a minute at most
(`libraries_seconds`; `libraries_killed` where that was too short).

Needs torch and torchvision (with numpy and Pillow); where one is missing the JSON has nothing but that reason. Uses DALI where it is installed, else torchvision
decodes; without matplotlib a run has no pictures; safetensors, which checkpoints are, has a stand-in under benchmarks/bare. Each run is
`sattrt train` itself; a run's clock starts when the process has imported torch and torchvision (the first import is not
counted, but recorded as `import_seconds`) and covers what follows: sattrt's own modules, reading of dataset.json, CUDA's context, weights, decoding, training and validation. The
scan of the tiles, which all runs share, is recorded as `scan_seconds`, and added where a run is compared with its goal; it is that of `sattrt data`. Without a GPU it runs as well, on a small share of
the tiles and without a limit of time, to show that it works: `--share 640`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import multiprocessing
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sattrt.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # a bare machine has the checkout, and sattrt not installed
sys.path.append(str(Path(__file__).parent / "bare"))  # last: what is installed is taken

NEEDED = ("torch", "torchvision", "numpy", "PIL")  # without one of them nothing is trained
GOALS = (0.97, 0.9857, 0.99)
IMAGES_PER_SECOND = 20_000  # that training is to reach at the tile's own 64x64
JUDGED = {
    "fast": (0.97, 15.0),
    "quick": (0.9857, 60.0),
    "full": (0.99, None),
}  # a run's validation accuracy, and the seconds in which it has to be reached
# on a CPU four epochs of it gave 97.14, 97.75, 98.40 and 98.53 %; SGD at 0.08 gave 97.18 % after the second and 98.20 % at the end
_LARGE_BATCHES = {"batch_size": 256, "learning_rate": 0.002}
# name of a run -> settings over its recipe
RUNS: dict[str, dict[str, Any]] = {
    "fast": {"recipe": "default", "epochs": 4, **_LARGE_BATCHES},
    "quick": {"recipe": "default", "epochs": 14, **_LARGE_BATCHES},
    "full": {"recipe": "full"},
}
LONGEST = {"fast": 120.0, "quick": 180.0, "full": 420.0}  # seconds of a run, after which it is killed
TOGETHER = 570.0  # seconds for all runs of a seed and what comes before them: a GPU may be lent for ten minutes
SHORTEST = 10.0  # seconds that a run needs to be begun: with fewer left it hardly gets to its first step
MOST_OF_REASON, MOST_OF_TRACEBACK = 300, 1500  # characters that are kept, of the one's beginning and the other's end: the JSON stays small
FOR_LIBRARIES = 60.0  # seconds that are waited for them at most


def missing(*modules: str) -> list[str]:
    """Those of some modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def has_dali() -> bool:
    with contextlib.suppress(ImportError):  # of the package that it is in
        return not missing("nvidia.dali")
    return False


def read_libraries() -> None:
    """A training step of 64 tiles in bf16 and a decoded tile, so that what CUDA and DALI load when they are first used has been read."""
    with contextlib.suppress(Exception):  # what is wrong with a GPU is recorded by the runs
        import torch
        import torchvision

        network = torchvision.models.resnet50(num_classes=10).cuda().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        tiles = torch.rand(64, 3, 64, 64, device="cuda").to(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(tiles).float().square().mean()
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
    with contextlib.suppress(Exception):  # a tile on the GPU, as training has it: DALI alone is some 370 MB
        import numpy as np
        from PIL import Image

        from sattrt.data.dali import DaliDecoder

        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "JPEG")
        list(DaliDecoder(lambda _: file.getvalue(), torch.device("cuda", 0), 1, 1).batches([np.array([0])]))
    with contextlib.suppress(Exception):
        import torch.utils.tensorboard


def libraries_read(seconds: float = FOR_LIBRARIES) -> dict[str, Any]:
    """Where there is a GPU, let the libraries be read in a process of its own, which is waited for, so many seconds at most; how long that took, and
    whether it was killed, so that the runs had the rest to read."""
    import torch

    if not torch.cuda.is_available():
        return {}
    begin = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=read_libraries)
    process.start()
    try:
        process.join(seconds)
        return {"libraries_seconds": time.perf_counter() - begin, "libraries_killed": process.exitcode is None}
    finally:
        process.kill()
        process.join()


def apart(seconds: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fresh process, which is killed after so many seconds. RuntimeError that says how it failed: the reason in its
    first line, and where it came from in those after it."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, work, *arguments))
    process.start()
    sender.close()  # here, so that a process that dies is noticed
    try:
        if not receiver.poll(seconds):
            raise RuntimeError(f"it took longer than {seconds:.3g} s")
        try:
            found, failure = receiver.recv()
        except EOFError:
            process.join(5)
            raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
        process.join(5)  # to end by itself
    finally:
        process.kill()
        process.join()
    if failure:
        raise RuntimeError(failure)
    return found


def _answer(sender: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    try:
        sender.send((work(*arguments), None))
    except Exception as error:  # as text: not every exception can be sent
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        sender.send((None, f"{reason[:MOST_OF_REASON]}\n{traceback.format_exc()[-MOST_OF_TRACEBACK:]}"))


def runs_of(folder: Path, config: TrainConfig, out: Path, seconds: float = math.inf, end: float = math.inf) -> Iterator[dict[str, Any]]:
    """A run on the dataset of a folder, in a process that is killed after so many seconds, or at the end, a time of `perf_counter`; once more without
    DALI where it failed and DALI is there.

    Each as `one_run` has it, or {"config": ..., "failed": why, "epochs": those that came to an end, by the run's own clock}. One that there is no
    time for is skipped: it failed before it began.
    """
    for decoder in dict.fromkeys((config.decoder, *(["torchvision"] if has_dali() else []))):
        settings = replace(config, decoder=decoder).to_dict()
        left = min(seconds, end - time.perf_counter())
        if left < SHORTEST:
            yield {"config": settings, "failed": f"skipped: {max(0.0, left):.0f} s are left for it", "epochs": []}
            return
        shutil.rmtree(out, ignore_errors=True)  # what the first left
        try:
            run = apart(left if left < math.inf else None, one_run, folder, settings, out)
        except RuntimeError as error:
            yield {"config": settings, "failed": str(error), "epochs": ended(out)}
        else:
            yield run
            return


def ended(run: Path) -> list[dict[str, Any]]:
    """The epochs that the log of a run has; none where there is no log yet."""
    from sattrt.errors import SattrtError
    from sattrt.training.log import read_log

    with contextlib.suppress(SattrtError):
        return [{key: row[key] for key in ("seconds", "valid_accuracy")} for row in read_log(run / "log.csv") if row["valid_accuracy"]]
    return []


def one_run(folder: Path, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train on the dataset of a folder; seconds and accuracy at the end of each epoch, images a second, and when each goal was met."""
    first = time.perf_counter()
    import torch
    import torchvision  # noqa: F401 - sattrt's modules import it

    begin = time.perf_counter()
    from sattrt.data.dataset import Dataset
    from sattrt.training.config import TrainConfig
    from sattrt.training.log import Row
    from sattrt.training.loop import train
    from sattrt.training.observer import Observer, Plan

    class Watch(Observer):
        def __init__(self) -> None:
            self.plan: Plan | None = None
            self.windows: list[tuple[int, float]] = []
            self.step = 0
            self.epochs: list[dict[str, float]] = []
            self.stages: dict[str, float] = {}

        def reached(self, what: str) -> None:
            self.stages.setdefault(what, time.perf_counter() - begin)

        def started(self, plan: Plan) -> None:
            self.plan = plan
            self.reached("set up")

        def stepped(self, row: Row, plan: Plan) -> None:
            self.reached("first report")
            self.windows.append((row.step - self.step, row.images_per_second))
            self.step = row.step

        def noted(self, what: str) -> None:
            print(what, flush=True)

        def epoch_ended(self, row: Row, best: bool) -> None:
            self.epochs.append({"seconds": time.perf_counter() - begin, "valid_accuracy": row.valid_accuracy or 0.0})

    watch, config = Watch(), TrainConfig(**settings)
    result = train(Dataset.read(folder), out, config, watch)
    assert watch.plan is not None
    return {
        "config": config.to_dict(),
        "plan": vars(watch.plan),
        "import_seconds": begin - first,
        "seconds": time.perf_counter() - begin,
        "seconds_until": watch.stages,
        "best_valid_accuracy": max(each["valid_accuracy"] for each in watch.epochs),
        "kept_valid_accuracy": result.accuracy,  # of the network that is kept, which the eight views are of, too
        "epochs": watch.epochs,
        "images_per_second": speed_of(watch.windows),
        "seconds_to": {
            percent(goal): next((each["seconds"] for each in watch.epochs if each["valid_accuracy"] >= goal), None) for goal in GOALS
        },
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "calibration": json.loads((out / "spec.json").read_text())["training"]["calibration"],
        "valid_accuracy_eight_views": over_eight_views(out),
    }


def over_eight_views(run: Path) -> float | None:
    """Validation accuracy of the best network, its logits averaged over the symmetries of each tile; None where that fails: the training is over."""
    import torch

    from sattrt.deploy.gate import torch_logits
    from sattrt.model import views_of
    from sattrt.trained import load_trained, read_samples

    try:
        model, spec = load_trained(run)
        model.to("cuda" if torch.cuda.is_available() else "cpu").to(memory_format=torch.channels_last)
        model.views = views_of(model, spec.height, spec.width)
        torch.backends.cudnn.allow_tf32 = False  # which a training in bf16 allows: these are answers in fp32
        samples = read_samples(run, spec)
        return float((torch_logits(model, samples.valid).argmax(1) == samples.valid_labels).mean())
    except Exception as error:
        print(f"the eight views were not judged: {error}", flush=True)
        return None


def speed_of(windows: list[tuple[int, float]]) -> float:
    """Images a second, of (steps, images a second) by window: the median over whole windows, not those that an epoch's end cut short; the first quarter left out."""
    longest = max(steps for steps, _ in windows)
    whole = [speed for steps, speed in windows if steps == longest]
    return statistics.median(whole[len(whole) // 4 :])


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def judged(name: str, run: dict[str, Any], scan_seconds: float) -> dict[str, Any]:
    """What a run has to reach, and whether it did: an accuracy, in a time with the scan of the tiles in it, and where tiles have their own size a speed."""
    accuracy, within = JUDGED[name]
    took = run["seconds_to"][percent(accuracy)]
    met = took is not None and (within is None or scan_seconds + took <= within)
    goal = {"valid_accuracy": accuracy, "within_seconds": within, "met": met}
    if run["config"]["image_size"]:
        return goal
    return {**goal, "images_per_second": IMAGES_PER_SECOND, "speed_met": run["images_per_second"] >= IMAGES_PER_SECOND}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    parser.add_argument("--weights", required=True, help="ImageNet weights, or 'none'")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--share", type=int, help="train on this many tiles only, for two epochs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run in hand is ended too
    end = math.inf if options.share else time.perf_counter() + TOGETHER * options.seeds
    if lacking := missing(*NEEDED):
        document: dict[str, Any] = {"failed": f"Training needs {', '.join(lacking)}: pip install {' '.join(lacking)}"}
        if options.out:
            options.out.write_text(json.dumps(document) + "\n")
        print(json.dumps(document), flush=True)
        sys.exit(document["failed"])

    from sattrt.cores import cores
    from sattrt.data.dataset import balanced
    from sattrt.data.scan import SplitRule, scan
    from sattrt.machine import environment
    from sattrt.spec import write_bytes
    from sattrt.training.config import RECIPES, TrainConfig

    surroundings = environment()
    libraries = libraries_read()
    begin = time.perf_counter()
    dataset = scan(options.tiles, SplitRule((80, 10, 10)), cores())
    scanned = time.perf_counter() - begin
    if options.share:
        few = (*balanced(dataset.tiles("train"), options.share), *balanced(dataset.tiles("valid"), options.share // 4))
        dataset = replace(dataset, all_tiles=few)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.runs}
    document = {"scan_seconds": scanned, "split": dataset.split, "runs": found, "environment": surroundings, **libraries}

    def write() -> None:
        if options.out:
            write_bytes(options.out, json.dumps(document).encode() + b"\n")

    write()
    with tempfile.TemporaryDirectory() as folder:
        dataset.write(Path(folder))
        for name, taken in found.items():
            longest = math.inf if options.share else LONGEST[name]
            for seed in range(options.seeds):
                settings = {**RECIPES[RUNS[name]["recipe"]], **RUNS[name], "weights": options.weights, "seed": seed}
                if options.share:
                    settings |= {"epochs": 2, "batch_size": 32, "image_size": 0}
                for run in runs_of(Path(folder), TrainConfig.from_dict(settings, name), Path(folder, f"{name}-{seed}"), longest, end):
                    taken.append(run)
                    if "failed" in run:  # of any kind, its process killed among them: the others are worth having
                        print(
                            f"{name}, seed {seed}, decoder {run['config']['decoder']} failed: {run['failed'].splitlines()[0]}", flush=True
                        )
                    else:
                        run["goal"] = judged(name, run, scanned)
                        report(name, seed, run)
                    write()
    print(json.dumps(document))


def report(name: str, seed: int, run: dict[str, Any]) -> None:
    goals = ", ".join(f"{goal} in {seconds:.1f} s" if seconds else f"{goal} not reached" for goal, seconds in run["seconds_to"].items())
    goal = run["goal"]
    within = f" within {goal['within_seconds']:g} s, the scan included" if goal["within_seconds"] else ""
    said = f"; {percent(goal['valid_accuracy'])}{within}: {'met' if goal['met'] else 'missed'}"
    if "speed_met" in goal:
        said += f"; {goal['images_per_second']} images/s: {'met' if goal['speed_met'] else 'missed'}"
    slower = f" ({run['plan']['slower']})" if run["plan"]["slower"] else ""
    best, kept, views = (100 * (run[which] or 0) for which in ("best_valid_accuracy", "kept_valid_accuracy", "valid_accuracy_eight_views"))
    print(
        f"{name}, seed {seed}: {run['images_per_second']:.0f} images/s{slower}, best {best:.2f} %, kept {kept:.2f} % "
        f"(eight views {views:.2f} %), {goals}, {run['seconds']:.1f} s in all{said}",
        flush=True,
    )


if __name__ == "__main__":
    main()
