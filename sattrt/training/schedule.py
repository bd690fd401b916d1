"""How large a step is, and how many fit into a given time."""

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


def fit_in_time(epochs: int, tiles: int, validation: int, rate: float, seconds: float) -> tuple[float, int]:
    """Epochs and tiles per epoch that fit in `seconds` at `rate` training tiles a second; of the last epoch it may be a part.

    A validated tile counts as a third of a trained one (one pass of three). Where not one whole epoch fits it is one of fewer tiles, at least one.
    """
    room, judged = rate * seconds, validation / 3
    whole = int(room / (tiles + judged))
    if whole >= epochs:
        return epochs, tiles
    left = room - whole * (tiles + judged) - judged  # a part of an epoch ends with a validation, too
    if whole >= 1:
        return whole + max(0.0, left / tiles), tiles
    return 1, max(1, min(tiles, int(left)))
