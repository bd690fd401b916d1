"""Answers to tiles, and what they are worth: loss and accuracy as rmldnn reports them.

logits = answers(network, loader, count, rank, "fp32", config.data.transforms)
loss, accuracy = judge(logits, labels, config.loss)
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..accuracy import evaluate
from ..data.dataset import Dataset, Tile
from ..data.loader import Loader
from ..errors import ContractError, InputError
from ..training.hardware import DTYPES
from ..training.ranks import Rank
from .config import LossConfig, RmldnnConfig
from .network import Network
from .transforms import Transforms

NO_CLASS = -100  # torch's own index for what doesn't count


def loader_of(dataset: Dataset, tiles: list[Tile], batch_size: int, rank: Rank, **more: object) -> Loader:
    """Batches of tiles on this rank; batch_size counts over all ranks."""
    return Loader(
        dataset,
        tiles,
        batch_size=max(1, batch_size // rank.world),
        device=rank.device,
        rank=rank.number,
        world=rank.world,
        threads=rank.threads,
        **more,  # type: ignore[arg-type]
    )


@torch.inference_mode()
def answers(network: Network, loader: Loader, count: int, rank: Rank, precision: str, transforms: Transforms) -> Tensor:
    """Logits (count, classes) of a loader's tiles in their order, float32 on the CPU, the same on every rank."""
    network.model.eval()
    logits = torch.zeros(count, network.keras.classes, device=rank.device)
    done = 0
    for tiles, _ in loader.epoch(0):
        tiles = as_judged(tiles, network, transforms)
        with torch.autocast(rank.device.type, DTYPES[precision], enabled=precision != "fp32"):
            rows = torch.arange(done, done + len(tiles), device=rank.device) * rank.world + rank.number
            logits[rows] = network.model(tiles).float()
        done += len(tiles)
    if rank.world > 1:
        dist.all_reduce(logits)
    return logits.cpu()


def as_judged(tiles: Tensor, network: Network, transforms: Transforms) -> Tensor:
    """Tiles (N, H, W, 3) after the transforms that the network does not do itself, without what varies in training."""
    if network.side is not None:
        return tiles
    return transforms.views(tiles.shape[1], tiles.shape[2], len(tiles), None).show(tiles)


def judge(logits: Tensor, labels: Tensor, config: LossConfig) -> tuple[float, float]:
    """Loss (weighted mean over what counts) and accuracy (0..1, over all tiles)."""
    total, weight = weighed_loss(logits, labels, config)
    classes = tuple(map(str, range(logits.shape[1])))
    return float(total / weight.clamp(min=1e-12)), evaluate(logits.argmax(1).numpy(), labels.numpy(), classes).accuracy


def weighed_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood, summed with the classes' weights, and the sum of those weights."""
    weights = _weights(config.weight, logits.device) if config.weight else None
    ignored = NO_CLASS if config.ignore_index is None else config.ignore_index
    total = F.cross_entropy(logits.float(), labels, weights, ignore_index=ignored, reduction="sum")
    counts = labels != ignored
    if weights is None:
        return total, counts.sum().float()
    return total, (weights[labels.clamp(0, len(weights) - 1)] * counts).sum()  # to pick out those that count would wait for a GPU


@cache
@torch.inference_mode(False)  # it outlives whoever asks first, and a gradient may need it
def _weights(weight: tuple[float, ...], device: torch.device) -> Tensor:
    """The classes' weights: put on the device once, since each step would wait for the copy."""
    return torch.tensor(weight, dtype=torch.float32, device=device)


def check_classes(network: Network, dataset: Dataset, config: RmldnnConfig) -> None:
    """ContractError where head, folders, loss and activation don't fit together."""
    classes, folder = network.keras.classes, config.data.input_path or config.data.test_input_path
    if classes != len(dataset.classes):
        raise ContractError(
            f"The head {network.keras.names['fc']!r} has {classes} classes, {folder} has tiles in {len(dataset.classes)} class folders "
            f"({', '.join(dataset.classes[:12])}{', ...' if len(dataset.classes) > 12 else ''}). Give a layer file for as many, or tiles of every class."
        )
    if config.loss.weight and len(config.loss.weight) != classes:
        raise InputError(f"{config.path}: loss: weight has {len(config.loss.weight)} numbers for {classes} classes. Give one for each.")
    if config.loss.ignore_index is not None and config.loss.ignore_index >= classes:
        raise InputError(
            f"{config.path}: loss: ignore_index is {config.loss.ignore_index}; the classes are 0 to {classes - 1}. Give one of them, or leave it out."
        )
    if network.keras.activation != "log_softmax":
        raise ContractError(
            f"NLL takes log-probabilities; the head {network.keras.names['fc']!r} gives {network.keras.activation}. Give it the activation log_softmax."
        )


def as_last_layer(logits: Tensor, activation: str) -> NDArray[np.float32]:
    """What the layer file's network gives: log-probabilities, probabilities, or the logits themselves."""
    given = {"log_softmax": torch.log_softmax, "softmax": torch.softmax}.get(activation)
    found: NDArray[np.float32] = (given(logits, 1) if given else logits).numpy()
    return found
