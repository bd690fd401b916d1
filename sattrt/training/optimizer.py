"""The optimizer with its groups, and the moving average of the weights.

optimizer = make_optimizer(model, config)
set_learning_rate(optimizer, 0.01)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..model import STAGES, TileClassifier
from .config import TrainConfig


def make_optimizer(model: TileClassifier, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, AdamW or Adam over the trainable parameters, grouped by stage of the network and by whether weight decay applies."""
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            stage = next((i for i, stage in enumerate(STAGES) if name.startswith(stage)), 0)
            groups.setdefault((stage, parameter.ndim > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "scale": config.layer_decay ** (len(STAGES) - 1 - stage),
        }
        for (stage, decays), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(described, config.learning_rate, momentum=config.momentum, nesterov=True, fused=True)
        # torch leaves them unset until the first step: one that the gradient scaler skips would leave them so, and the next would read them
        for parameter in (each for group in groups.values() for each in group):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(described, config.learning_rate, betas=(config.momentum, 0.999), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the head; each group takes its own share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


class MovingAverage:
    """Exponential moving average of weights and BatchNorm statistics, in a network of its own: `model`.

    It begins shorter than `decay` says, so that it does not hold on to the start, and knows how short by the step alone.
    """

    def __init__(self, model: TileClassifier, decay: float) -> None:
        self.model, self._decay = copy.deepcopy(model).requires_grad_(False), decay
        self._pairs = [(own, other) for own, other in zip(_floats(self.model), _floats(model), strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the network's state after optimizer step `step` (from 1) in."""
        keep = min(self._decay, step / (9 + step))
        averaged, current = map(list, zip(*self._pairs, strict=True))
        torch._foreach_lerp_(averaged, current, 1 - keep)


def _floats(model: nn.Module) -> list[Tensor]:
    return [value for value in model.state_dict(keep_vars=True).values() if value.is_floating_point()]
