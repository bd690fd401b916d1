"""The one evaluator: numpy counts, whatever predicted.

score = evaluate(logits.argmax(1), labels, spec.classes, reference=fp32_labels)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """accuracy and its 95 % Wilson interval, 0..1; per_class: class name to (correct, tiles); flips against the reference."""

    tiles: int
    correct: int
    accuracy: float
    low: float
    high: float
    per_class: dict[str, tuple[int, int]]
    flips: list[int] | None


def evaluate(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...], reference: NDArray[np.int64] | None = None
) -> Score:
    """Score class indices (N,) against the true ones; `flips` are the positions where the reference answered otherwise."""
    right = predicted == labels
    correct = int(right.sum())
    low, high = wilson(correct, len(labels))
    per_class = {name: (int(right[labels == i].sum()), int((labels == i).sum())) for i, name in enumerate(classes)}
    flips = None if reference is None else [int(i) for i in np.flatnonzero(predicted != reference)]
    return Score(len(labels), correct, correct / len(labels), low, high, per_class, flips)


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default (Wilson, JASA 1927)."""
    share = correct / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / (1 + z * z / total)), min(1.0, (middle + half) / (1 + z * z / total))
