"""When a run's checkpoints are written, and in which order.

    keeper = Keeper(Path("run"))
    keeper.keep_best(model.state_dict(), state, spec)     # in memory, where the weights are
    if keeper.is_due(epoch_ends=True):
        keeper.write(tensors, state)                      # best.safetensors and spec.json, then last.safetensors

The best network goes to disk before the `last` that knows of it, so a run that is resumed misses none.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..model import TileClassifier
from ..spec import ModelSpec, require_space

SECONDS_BETWEEN_CHECKPOINTS = 60
# An epoch's end writes none until PATIENCE times the last write's duration has passed, so that a tenth of the time at most goes into
# checkpoints: on a GPU an epoch may take a second, and 380 MB safe on a disk half of one.
PATIENCE = 10.0


class Keeper:
    """Writes the checkpoints of a run. patience: see `PATIENCE`; 0 lets every epoch end with a checkpoint. interval: seconds after which
    one is due wherever the run is; 0 lets every step end with a checkpoint."""

    def __init__(self, out: Path, patience: float = PATIENCE, interval: float = SECONDS_BETWEEN_CHECKPOINTS) -> None:
        self._out, self._patience, self._interval = out, patience, interval
        self._best: tuple[dict[str, torch.Tensor], dict[str, Any], ModelSpec] | None = None
        self._written_at, self._took, self._bytes = time.perf_counter(), 0.0, 0

    def require_space(self, model: TileClassifier, moments: int, averaged: bool, samples: int = 0) -> None:
        """InputError unless the disk has room for best, last, and a new last beside the old one. moments: tensors of the optimizer a parameter.
        samples: bytes of what else is to be written."""
        weights = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
        trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        last = weights * (1 + averaged) + moments * trained
        there = sum(path.stat().st_size for path in self._out.glob("*.safetensors"))
        require_space(self._out, samples + max(0, weights + 2 * last - there))
        self._bytes = weights + last

    def is_due(self, epoch_ends: bool) -> bool:
        """Whether a checkpoint is to be written now."""
        waited = time.perf_counter() - self._written_at
        return waited > self._interval or (epoch_ends and waited >= self._patience * self._took)

    def keep_best(self, tensors: dict[str, torch.Tensor], state: dict[str, Any], spec: ModelSpec) -> None:
        """Copy the network that is the best so far, on its device; it is written with the next checkpoint."""
        self._best = {name: value.clone() for name, value in tensors.items()}, state, spec

    def write_best(self) -> None:
        """Write the best network and its contract, if they wait for it. InputError where the disk is full."""
        if self._best:
            tensors, state, spec = self._best
            checkpoint.save(self._out / "best.safetensors", tensors, state)
            spec.write(self._out / "spec.json")
            self._best = None

    def write(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write what waits, then everything that is needed to go on. InputError where the disk is full."""
        begin = time.perf_counter()
        written = sum(value.nbytes for part in (tensors, self._best[0] if self._best else {}) for value in part.values())
        self.write_best()
        checkpoint.save(self._out / "last.safetensors", tensors, state)
        self._written_at = time.perf_counter()
        # a run's first has neither the optimizer's moments nor a best network: the others will take longer
        self._took = (self._written_at - begin) * max(1.0, self._bytes / max(1, written))
