"""The optimizer with its groups, and the moving average of the weights.

optimizer = make_optimizer(model, config)
set_learning_rate(optimizer, 0.01)
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from torch.optim.adam import adam as adam_step
from torch.optim.sgd import sgd as sgd_step

from ..model import STAGES, TileClassifier
from .config import TrainConfig

STEPS_BETWEEN_LOOKS = 8  # of the moving average


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
    on_cpu = next(model.parameters()).device.type == "cpu"
    if config.optimizer == "sgd":
        sgd = MemoryOrderSGD if on_cpu else functools.partial(torch.optim.SGD, fused=True)
        optimizer: torch.optim.SGD = sgd(described, config.learning_rate, momentum=config.momentum, nesterov=True)
        # torch leaves them unset until the first step: one that the gradient scaler skips would leave them so, and the next would read them
        for parameter in (each for group in groups.values() for each in group):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    adam = MemoryOrderAdam if on_cpu else functools.partial(torch.optim.Adam, fused=True)
    return adam(described, config.learning_rate, betas=(config.momentum, 0.999), decoupled_weight_decay=config.optimizer == "adamw")


class MemoryOrderSGD(torch.optim.SGD):
    """torch's fused SGD for weights on a CPU that are channels_last: it copies a gradient whose memory is in another order than its
    dimensions (a third of its time for ResNet-50), so it is shown all three tensors in the order of their memory."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
        for group in self.param_groups:
            triples = [_in_memory_order(p, p.grad, self.state[p]["momentum_buffer"]) for p in group["params"] if p.grad is not None]
            if triples:
                parameters, gradients, buffers = map(list, zip(*triples, strict=True))
                sgd_step(
                    parameters,
                    gradients,
                    buffers,
                    fused=True,
                    foreach=False,
                    **{name: group[name] for name in ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")},
                )


class MemoryOrderAdam(torch.optim.Adam):
    """torch's fused Adam and AdamW, in the same way."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
        for group in self.param_groups:
            rows: list[tuple[Tensor, ...]] = []
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["step"] = torch.zeros(())
                        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                    rows.append((*_in_memory_order(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]), state["step"]))
            if rows:
                parameters, gradients, averages, squares, steps = map(list, zip(*rows, strict=True))
                adam_step(
                    parameters,
                    gradients,
                    averages,
                    squares,
                    [],
                    steps,
                    fused=True,
                    foreach=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    **{name: group[name] for name in ("weight_decay", "decoupled_weight_decay", "lr", "eps", "amsgrad", "maximize")},
                )


def _in_memory_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors (N, C, H, W) as views (N, H, W, C) where all of them are channels_last; others as they are."""
    if all(each.ndim == 4 and each.is_contiguous(memory_format=torch.channels_last) for each in tensors):
        return tuple(each.permute(0, 2, 3, 1) for each in tensors)
    return tensors


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
