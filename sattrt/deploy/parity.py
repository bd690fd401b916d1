"""Proof that an exported model answers as the network does: on real tiles, at several batch sizes.

The field's exporters have silently made wrong ResNets; so nothing leaves `sattrt export` unchecked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ParityError
from ..model import TileClassifier
from ..runtime import Engine

BATCHES = (1, 3, 64)
# Largest logit error and smallest top-1 agreement that pass. fp32 differs by the order of sums; fp16 has 11 bits.
GATES = {"fp32": (1e-3, 1.0), "fp16": (0.25, 0.99)}


@dataclass(frozen=True)
class Parity:
    """tiles: how many were compared; flips: of these, those with another top-1 at any of the `batches`; errors: of logits."""

    tiles: int
    batches: tuple[int, ...]
    flips: int
    largest_error: float
    mean_error: float


@torch.inference_mode()
def torch_logits(model: TileClassifier, tiles: NDArray[np.uint8], temperature: float, batch: int = 64) -> NDArray[np.float32]:
    """Logits of the trained network in fp32, over the temperature: float32 (N, classes)."""
    parts = [model(torch.from_numpy(tiles[start : start + batch])) for start in range(0, len(tiles), batch)]
    return (torch.cat(parts) / temperature).numpy()


def compare(engine: Engine, tiles: NDArray[np.uint8], expected: NDArray[np.float32], precision: str) -> Parity:
    """Run the tiles through the engine at every batch size of `BATCHES`, against the expected logits.

    Raises ParityError where the error or the number of flips exceeds the gate of this precision, or where
    probabilities are no softmax of the logits.
    """
    flipped: set[int] = set()
    errors = []
    for batch in BATCHES:
        # a few tiles one by one are as telling as all; the largest batch is filled, by repetition if need be
        order = np.resize(np.arange(len(tiles)), max(batch, len(tiles)) if batch == max(BATCHES) else min(len(tiles), 24))
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            logits, probabilities = engine.infer(tiles[part])
            errors.append(np.abs(logits - expected[part]))
            flipped.update(part[logits.argmax(1) != expected[part].argmax(1)].tolist())
            _check_softmax(engine, logits, probabilities)
    error = np.concatenate(errors)
    parity = Parity(len(tiles), BATCHES, len(flipped), float(error.max()), float(error.mean()))
    largest, agreement = GATES[precision]
    # written so that a NaN fails
    if not (parity.largest_error <= largest and parity.flips <= (1 - agreement) * parity.tiles):
        raise ParityError(
            f"{engine.name} differs from the trained network: {parity.flips} of {parity.tiles} top-1 answers, largest logit error "
            f"{parity.largest_error:.3g} (allowed {largest:g}). Use another torch or backend version, or leave this engine out."
        )
    return parity


def _check_softmax(engine: Engine, logits: NDArray[np.float32], probabilities: NDArray[np.float32]) -> None:
    powers: NDArray[Any] = np.exp(logits - logits.max(1, keepdims=True))
    if not np.allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-4):
        raise ParityError(f"{engine.name} gives probabilities that are no softmax of its logits. Use another torch version.")
