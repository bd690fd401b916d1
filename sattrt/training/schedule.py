"""How large a step is."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate_at(config: TrainConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of step `step` (0-based) of `steps`; a closed form, so that a resumed run needs no state for it."""
    warm = config.warmup * steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    epoch = step // steps_per_epoch
    share = {
        "one-cycle": 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm))),
        "exponential": config.gamma**epoch,
        "step": config.gamma ** (epoch // config.step_epochs),
        "constant": 1.0,
    }
    return config.learning_rate * share[config.schedule]
