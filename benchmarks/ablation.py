"""What each piece of the recipe brings: one setting changed at a time, over seeds; the last line on stdout is one JSON document.

    python benchmarks/ablation.py --tiles EuroSAT_RGB.zip --weights resnet50_imagenet.safetensors --out ablation.json

Every run trains on the same class-balanced share of the train split of 80:10:10 and is scored on the same class-balanced share of
the validation split after its last epoch. The standard error of one figure is about half a point: read the mean over seeds, and of
the differences from the base with the same seed, beside their spread. What is best in so short a run on so few tiles need not be so in a
long one. A run that is in the JSON file already is not run again, so it can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import ablation_of

from sattrt.cores import cores
from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.deploy.gate import torch_logits
from sattrt.machine import environment
from sattrt.model import views_of
from sattrt.spec import sha256_file, write_json
from sattrt.trained import load_trained, read_samples
from sattrt.training.config import TrainConfig
from sattrt.training.log import read_log
from sattrt.training.loop import train

TILES, VALID_TILES, EPOCHS = 2000, 1200, 4
# SGD, which the other changes were held against when the recipes were chosen; a decay of the average that suits so few steps
BASE: dict[str, Any] = {"epochs": EPOCHS, "optimizer": "sgd", "learning_rate": 0.02, "layer_decay": 1.0, "ema": 0.98}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "no ImageNet weights": {"weights": "none"},
    "no symmetries": {"symmetries": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "no moving average": {"ema": 0.0},
    "random resized crop, at least half the area": {"crop": 0.5},
    "colour by a fifth": {"colour": 0.2},
    "mixup 0.2": {"mixup": 0.2},
    "CutMix 1": {"cutmix": 1.0},
    "layer decay 0.7": {"layer_decay": 0.7},
    "AdamW, 5e-4": {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.02},
    "Adam, 5e-4": {"optimizer": "adam", "learning_rate": 5e-4},
    "half the learning rate": {"learning_rate": 0.01},
    "twice the learning rate": {"learning_rate": 0.04},
    "exponential schedule, 0.5 an epoch": {"schedule": "exponential", "gamma": 0.5},
    "step schedule, a tenth after half": {"schedule": "step", "gamma": 0.1, "step_epochs": EPOCHS // 2},
    "no warm-up": {"warmup": 0.0},
    "batch norm and head alone": {"tune": "bn"},
    "96x96 inside": {"image_size": 96},
    "128x128 inside": {"image_size": 128},
}


def one_run(dataset: Dataset, config: TrainConfig) -> dict[str, float]:
    """Accuracy in percent after the last epoch, the same over eight views, calibration errors in percent, and seconds."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(dataset, Path(folder) / "run", config)
        last = read_log(Path(folder) / "run" / "log.csv")[-1]
        model, spec = load_trained(Path(folder) / "run")
        samples = read_samples(Path(folder) / "run", spec)
        model.views = views_of(model, spec.height, spec.width)
        over_views = torch_logits(model, samples.valid).argmax(1) == samples.valid_labels
    plain = spec.training["calibration"]
    return {
        "accuracy": 100 * last["valid_accuracy"],
        "accuracy_eight_views": 100 * float(over_views.mean()),
        "ece": 100 * plain["ece"],
        "ece_calibrated": 100 * plain["ece_calibrated"],
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON that is written after every run, and read at the start")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    whole = scan(options.tiles, SplitRule((80, 10, 10)), cores())
    dataset = replace(whole, all_tiles=(*balanced(whole.tiles("train"), TILES), *balanced(whole.tiles("valid"), VALID_TILES)))
    settings = {"tiles": TILES, "valid_tiles": len(dataset.tiles("valid")), "base": BASE, "changes": CHANGES}
    settings |= {"dataset": dataset.digest, "weights": sha256_file(Path(options.weights))}
    found = json.loads(options.out.read_text()) if options.out.exists() else {"settings": settings, "runs": {}}
    if found["settings"] != settings:
        parser.error(f"{options.out} holds runs of other settings, tiles or weights. Give another --out.")
    runs = found["runs"]
    base = {"weights": options.weights, **BASE}
    for seed in range(options.seeds):
        for name, change in CHANGES.items():
            if str(seed) in runs.setdefault(name, {}):
                continue
            runs[name][str(seed)] = one_run(dataset, TrainConfig(**{**base, "seed": seed, **change}))
            print(f"seed {seed}, {name}: {runs[name][str(seed)]['accuracy']:.2f} % in {runs[name][str(seed)]['seconds']:.0f} s", flush=True)
            write_json(options.out, {"settings": settings, "runs": runs, "environment": environment()})
    print(ablation_of(runs))
    print(json.dumps(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
