"""The optimizer with its groups, and the moving average of the weights.

optimizer = make_optimizer(model, config)
set_learning_rate(optimizer, 0.01)
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..model import STAGES, TileClassifier
from .config import TrainConfig
from .cpu import ProductConv2d
from .cpu_optimizer import MemoryOrderAdam, MemoryOrderSGD, RoundingAdam, can_round

STEPS_BETWEEN_LOOKS = 8  # of the moving average


def make_optimizer(model: TileClassifier, config: TrainConfig, rounds: bool = False) -> torch.optim.Optimizer:
    """SGD, AdamW or Adam over the trainable parameters, grouped by stage of the network and by whether weight decay applies.

    rounds: the network computes in bf16, on a CPU and in this process alone; AdamW and Adam then keep its weights in bf16 as well.
    """
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
    products = [each for each in model.modules() if isinstance(each, ProductConv2d)]
    for layer in products:
        layer.rounded = None  # another optimizer's
    on_cpu = next(model.parameters()).device.type == "cpu"
    if config.optimizer == "sgd":
        sgd = MemoryOrderSGD if on_cpu else functools.partial(torch.optim.SGD, fused=True)
        optimizer: torch.optim.SGD = sgd(described, config.learning_rate, momentum=config.momentum, nesterov=True)
        # torch leaves them unset until the first step: one that the gradient scaler skips would leave them so, and the next would read them
        for parameter in (each for group in groups.values() for each in group):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    adam: Callable[..., torch.optim.Optimizer] = MemoryOrderAdam if on_cpu else functools.partial(torch.optim.Adam, fused=True)
    trained = [layer for layer in products if layer.weight.requires_grad]
    if rounds and trained and can_round():
        adam = functools.partial(RoundingAdam, trained)
    return adam(described, config.learning_rate, betas=(config.momentum, 0.999), decoupled_weight_decay=config.optimizer == "adamw")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the head; each group takes its own share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


class MovingAverage:
    """Exponential moving average of weights and BatchNorm statistics, in a network of its own: `model`.

    It looks at the network at every STEPS_BETWEEN_LOOKS-th step of an epoch and at its last, with the decay of all steps since: a look reads
    and writes every weight, and an average over hundreds of steps is no other for it (torchvision's reference training looks at every 32nd).
    Early steps use a smaller decay, computed from the step, so that the start is not held on to.
    """

    def __init__(self, model: TileClassifier, decay: float) -> None:
        self.model, self._decay = copy.deepcopy(model).requires_grad_(False), decay
        self._averaged, self._current = _floats(self.model), _floats(model)

    @torch.no_grad()
    def update(self, step: int, of_epoch: int, ends: bool) -> None:
        """Optimizer step `step` of the run and `of_epoch` of the epoch, both from 1, is done; `ends`: the epoch too."""
        since = (of_epoch - 1) % STEPS_BETWEEN_LOOKS + 1
        if ends or since == STEPS_BETWEEN_LOOKS:
            keep = min(self._decay, step / (9 + step)) ** since
            torch._foreach_lerp_(self._averaged, self._current, 1 - keep)


def _floats(model: nn.Module) -> list[Tensor]:
    return [value for value in model.state_dict(keep_vars=True).values() if value.is_floating_point()]
