"""rmldnn's optimizers by torch and timm, and its schedules by epoch.

optimizer = make_optimizer(parameters, config.optimizer)
rate = rate_at(config.optimizer, epoch)                  # of epoch 0, 1, ...
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError
from .config import OptimizerConfig

_TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adagrad": torch.optim.Adagrad,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
}


def make_optimizer(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over these parameters. BackendError for LARS and LAMB where timm is not installed.

    LARS: You et al., 2017; LAMB: You et al., 2020, without the bound on the gradient's norm that implementations add. timm adapts
    only layers with weight decay unless it is told to; the papers adapt all of them.
    """
    options: dict[str, Any] = {"lr": config.learning_rate, **config.options}
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    if config.kind in _TORCH:
        return _TORCH[config.kind](list(parameters), **options)
    try:
        from timm.optim.lamb import Lamb
        from timm.optim.lars import Lars
    except ImportError:
        raise BackendError(f"{config.kind} needs timm, which is not installed. Install it with: pip install 'sattrt[rmldnn]'") from None
    optimizer: torch.optim.Optimizer
    if config.kind == "LARS":
        optimizer = Lars(list(parameters), trust_coeff=options.pop("eta"), always_adapt=True, **options)
    else:
        options.pop("amsgrad")
        optimizer = Lamb(list(parameters), max_grad_norm=None, always_adapt=True, **options)
    return optimizer


def rate_at(config: OptimizerConfig, epoch: int) -> float:
    """Learning rate of an epoch (from 0)."""
    schedule = config.scheduler
    if schedule is None:
        return config.learning_rate
    share = {
        "Step": lambda: schedule.gamma ** (epoch // schedule.step_size),
        "MultiStep": lambda: schedule.gamma ** sum(epoch >= each for each in schedule.milestones),
        "Exponential": lambda: schedule.gamma**epoch,
        "Warmup": lambda: schedule.start_factor + (1 - schedule.start_factor) * min(1.0, epoch / schedule.num_epochs),
    }
    return config.learning_rate * share[schedule.kind]()
