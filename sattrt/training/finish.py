"""What follows the last epoch, on the first rank: the best network is examined on the validation split, its temperature is
fitted, and the run is drawn.

    finish(dataset, Path("run"), rank, "bf16", batch_size=64, decoder="auto", cache_gb=8)
    draw_curves(Path("run"))     # of a run that ends early

It may be run again: it reads best.safetensors and log.csv, and replaces what it wrote before.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..bands import preview
from ..calibration import calibration, softmax
from ..data.dataset import Dataset
from ..data.loader import Loader, decode_tiles
from ..model import TileClassifier
from ..trained import load_trained
from .handover import sampled_percentiles
from .hardware import DTYPES
from .log import read_log
from .ranks import Rank

WORST_TILES = 40
NO_PICTURES = "The run's pictures were left out: matplotlib is not installed (pip install matplotlib)."


def finish(dataset: Dataset, run: Path, rank: Rank, precision: str, batch_size: int, decoder: str, cache_gb: float) -> str | None:
    """Write temperature, calibration and what the bands were like into spec.json; curves, confusion matrix and the worst tiles as pictures.

    batch_size: of the training, by all ranks. decoder, cache_gb: as in `TrainConfig`. Returns what people should know: that the pictures were
    left out, where matplotlib is missing.
    """
    model, spec = load_trained(run)
    model.to(rank.device).to(memory_format=torch.channels_last)
    tiles = dataset.tiles("valid")
    batch = min(128, max(1, batch_size // rank.world))  # no more memory than training took
    loader = Loader(dataset, tiles, batch_size=batch, device=rank.device, threads=rank.threads, decoder=decoder, cache_gb=cache_gb)
    labels = np.array([tile.label for tile in tiles])
    logits = _logits(model, loader, rank.device, precision)
    loader.close()
    found = calibration(logits, labels)
    training = {**spec.training, "calibration": found, "percentiles": sampled_percentiles(run, spec.bands)}
    replace(spec, temperature=found["temperature"], training=training).write(run / "spec.json")
    try:
        from ..figure import contact_sheet, short
        from . import figures
    except ImportError:
        return NO_PICTURES
    predicted = logits.argmax(1)
    figures.curves(read_log(run / "log.csv"), run)
    figures.confusion(predicted, labels, dataset.classes, run)
    probabilities = 100 * softmax(logits / found["temperature"])
    of_class = probabilities[np.arange(len(labels)), labels]
    worst = of_class.argsort()[:WORST_TILES]
    images, _ = decode_tiles(dataset, [tiles[i] for i in worst], decoder, rank.threads)
    names = [short(name, 21) for name in dataset.classes]
    captions = [
        f"{Path(tiles[i].name).name}\nis {names[labels[i]]} ({of_class[i]:.0f} %)\nsaid {names[predicted[i]]} ({probabilities[i].max():.0f} %)"
        for i in worst
    ]
    contact_sheet(preview(images, dataset.bands), captions, (predicted == labels)[worst].tolist(), run / "worst.png")
    return None


def draw_curves(run: Path) -> None:
    """The curves of a run that was stopped or has failed, which is when they are looked at; none where they can't be drawn."""
    with contextlib.suppress(Exception):  # the checkpoint is written, and nothing may hide the reason
        from . import figures

        figures.curves(read_log(run / "log.csv"), run)


@torch.inference_mode()
def _logits(model: TileClassifier, loader: Loader, device: torch.device, precision: str) -> NDArray[np.float32]:
    model.eval()
    parts = []
    for images, _ in loader.epoch(0):
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            parts.append(model(images).float().cpu())
    return torch.cat(parts).numpy()
