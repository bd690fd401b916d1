"""One optimizer step of a network on this rank's device, and how many tiles a second that is.

step = TrainStep(model, dataset, config, rank, "bf16")
loss, norm = step(images, labels, rate=1e-3, number=0)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.augment import mix
from ..data.dataset import Dataset
from ..model import TileClassifier, set_training_mode
from .captured import Gradient, captured
from .config import TrainConfig
from .hardware import DTYPES, across_ranks, tuned_convolutions
from .optimizer import make_optimizer, set_learning_rate
from .ranks import Rank

# shown in a run in all: cuDNN builds every algorithm of some seventy convolutions before it times them, which takes seconds. What the fastest one saves grows with
# the tiles, not with the steps
TILES_WORTH_TUNING = 200_000


class TrainStep:
    """Forward and backward pass in mixed precision, the mean of the ranks' gradients, and the optimizer's update.

    model: on its device, with what is frozen in it frozen.
    """

    def __init__(self, model: TileClassifier, dataset: Dataset, config: TrainConfig, rank: Rank, precision: str) -> None:
        self.model, self._config, self._rank, self._precision = model, config, rank, precision
        self.optimizer = make_optimizer(model, config, rounds=precision == "bf16" and rank.device.type == "cpu" and rank.world == 1)
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=precision == "fp16")
        self._dataset, self._classes = dataset, len(dataset.classes)
        self.tunes = config.epochs * len(dataset.tiles("train")) >= TILES_WORTH_TUNING
        self._net = across_ranks(model, rank)
        self._recording: Gradient | None = None
        set_training_mode(model, config.tune)

    def __call__(self, images: Tensor, labels: Tensor, rate: float, number: int) -> tuple[Tensor, Tensor]:
        """Make step `number` of the run, from 0; the loss, and the norm of the gradient."""
        config = self._config
        if config.mixup or config.cutmix:
            # the same on all ranks; with the 1, other numbers than those that an epoch's order is drawn from
            rng = np.random.default_rng([config.seed, number, 1])
            images, labels = mix(images, labels, self._classes, rng, config.mixup, config.cutmix)
        with tuned_convolutions(self.tunes):
            loss, norm = (self._recording or self._passes)(images, labels)
        set_learning_rate(self.optimizer, rate)
        norm_in_bf16: Any = self.scaler.step(self.optimizer)  # of RoundingAdam, whose gradients in bf16 are in no parameter
        self.scaler.update()
        return loss, norm if norm_in_bf16 is None else norm.hypot(norm_in_bf16)

    def _passes(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward pass: the loss, and the norm of the gradient, which is left in the parameters."""
        self.optimizer.zero_grad()
        with torch.autocast(self._rank.device.type, DTYPES[self._precision], enabled=self._precision != "fp32"):
            loss = F.cross_entropy(self._net(images), labels, label_smoothing=self._config.label_smoothing)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        return loss.detach(), gradient_norm(self.model)

    def record(self, noted: Callable[[str], object]) -> str:
        """On a GPU, make one CUDA graph of both passes and note how long it took; why that can't be, if so: with several ranks or in fp16 more happens
        between its kernels."""
        if self._rank.device.type == "cpu":
            return ""
        if self._rank.world > 1:
            return "no CUDA graph: several processes"
        if self._precision == "fp16":
            return "no CUDA graph: fp16's gradient scaler"
        begin = time.perf_counter()
        images, labels = self._example()
        if self._config.mixup or self._config.cutmix:
            labels = F.one_hot(labels, self._classes).float()
        with tuned_convolutions(self.tunes):
            recording, reason = captured(self._passes, self.model, images, labels, self._precision)
        self._recording = None if reason else recording
        if not reason:
            what = "Convolutions were tuned and a step recorded" if self.tunes else "A step was recorded"
            noted(f"{what} as a CUDA graph in {time.perf_counter() - begin:.1f} s")
        return reason

    def speed(self) -> float:
        """Training tiles a second on this rank. The weights are not worth having afterwards: measure a copy."""
        images, labels = self._example()
        warm_up, timed = (10, 20) if self._rank.device.type == "cuda" else (2, 4)
        for steps in (warm_up, timed):
            begin = time.perf_counter()
            losses = [self(images, labels, 1e-3, 0)[0] for _ in range(steps)]
            losses[-1].item()  # waits for the device, once, as training does
            seconds = time.perf_counter() - begin
        return timed * len(labels) / seconds

    def _example(self) -> tuple[Tensor, Tensor]:
        """A batch of random tiles with labels, on the device."""
        data, device, size = self._dataset, self._rank.device, self._config.batch_size // self._rank.world
        numbers = torch.Generator(device).manual_seed(0)
        shape = (size, data.height, data.width, len(data.bands))
        images = torch.randint(0, 256, shape, device=device, generator=numbers).to(getattr(torch, data.dtype))
        return images, torch.arange(size, device=device) % self._classes


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients; on a CPU by output channel first, since torch divides such sums among the cores, and that of a whole tensor not."""
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    if gradients[0].device.type == "cpu":
        gradients = [torch.linalg.vector_norm(each, dim=tuple(range(1, each.ndim))) if each.ndim > 1 else each for each in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.cat(gradients))
        return norm
    return torch.nn.utils.get_total_norm(gradients)
