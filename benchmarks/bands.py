"""How the first layer should begin when tiles have other bands than red, green and blue; the last line on stdout is one JSON document.

    python benchmarks/bands.py --tiles EuroSAT_MS.zip --weights resnet50_imagenet.safetensors --out bands.json

Every run trains the same network on the same split, from the same ImageNet weights behind the first layer; what differs is how the
filters of the bands that ImageNet has not are made. Scored on validation and test together after the last epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sattrt.bands import COLOURS, RGB
from sattrt.cores import cores
from sattrt.data.cache import write_cache
from sattrt.data.dataset import Dataset
from sattrt.data.scan import SplitRule, scan
from sattrt.machine import environment
from sattrt.model import adapted_to_bands, read_state
from sattrt.spec import sha256_file, write_json
from sattrt.training.config import TrainConfig
from sattrt.training.log import read_log
from sattrt.training.loop import train


def kept(filters: Tensor, bands: tuple[str, ...], others: Callable[[Tensor], Tensor]) -> Tensor:
    """ImageNet's filters for red, green and blue as they are, and `others` for each other band."""
    of_colour = dict(zip(RGB, filters.unbind(1), strict=True))
    return torch.stack([of_colour[COLOURS[name]] if name in COLOURS else others(filters) for name in bands], 1)


def random(filters: Tensor) -> Tensor:
    """As torchvision begins a layer: He's normal distribution over the fan out."""
    return torch.randn_like(filters[:, 0]) * math.sqrt(2 / (filters.shape[0] * filters[0, 0].numel()))


def zero(filters: Tensor) -> Tensor:
    """Nothing: the band has to be learnt."""
    return torch.zeros_like(filters[:, 0])


Start = Callable[[Tensor, tuple[str, ...]], Tensor]
STARTS: dict[str, Start] = {
    "mean of the three, unscaled": adapted_to_bands,
    "mean of the three, all scaled by 3/bands": lambda filters, bands: adapted_to_bands(filters, bands) * (len(RGB) / len(bands)),
    "random": lambda filters, bands: kept(filters, bands, random),
    "zero": lambda filters, bands: kept(filters, bands, zero),
    "random, those of red, green and blue too": lambda filters, bands: torch.stack([random(filters) for _ in bands], 1),
}


def one_run(dataset: Dataset, weights: dict[str, Tensor], start: Start | None, config: TrainConfig) -> dict[str, float]:
    """Accuracy in percent after the last epoch, and its loss; start None takes the weights as they are."""
    state = dict(weights)
    torch.manual_seed(config.seed)
    if start:
        state["conv1.weight"] = start(state["conv1.weight"].float(), dataset.bands)
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: value.contiguous() for name, value in state.items()}, Path(folder, "weights.safetensors"))
        train(dataset, Path(folder, "run"), replace(config, weights=str(Path(folder, "weights.safetensors"))))
        last = read_log(Path(folder, "run", "log.csv"))[-1]
    return {"accuracy": 100 * float(last["valid_accuracy"]), "loss": float(last["valid_loss"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; runs that it holds already are not repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()

    weights = {name: value for name, value in read_state(args.weights).items() if not name.startswith("fc.")}
    tiles = scan(args.tiles, SplitRule(), cores()).digest
    settings = {"epochs": args.epochs, "weights": sha256_file(args.weights), "dataset": tiles}
    found: dict[str, Any] = {"settings": settings, "environment": environment(), "runs": {}}
    if args.out.exists() and (found := json.loads(args.out.read_text())).get("settings") != settings:
        parser.error(f"{args.out} holds runs of other settings: {found.get('settings')}, not {settings}. Give another --out.")
    config = TrainConfig(epochs=args.epochs, batch_size=16, optimizer="sgd", learning_rate=0.005, layer_decay=1.0, ema=0.0)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            every, rgb = (
                write_cache(scan(args.tiles, SplitRule((60, 40, 0), seed), cores(), bands=bands), Path(folder, name), cores())
                for name, bands in (("all", None), ("rgb", ("B04", "B03", "B02")))
            )
            trials: list[tuple[str, Dataset, Start | None]] = [(name, every, start) for name, start in STARTS.items()]
            trials.append(("red, green and blue alone", rgb, None))
            for name, dataset, start in trials:
                runs = found["runs"].setdefault(name, {})
                if str(seed) not in runs:
                    runs[str(seed)] = one_run(dataset, weights, start, replace(config, seed=seed))
                    found["tiles"] = len(dataset.all_tiles)
                    write_json(args.out, found)
                    print(f"seed {seed}  {name:<42} {runs[str(seed)]['accuracy']:.2f} %", flush=True)
    for name, runs in found["runs"].items():
        scores = [run["accuracy"] for run in runs.values()]
        spread = statistics.stdev(scores) if len(scores) > 1 else math.nan
        print(f"{name:<42} {statistics.mean(scores):6.2f} % (standard deviation {spread:.2f}, {len(scores)} seeds)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
