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
    predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: tuple[str, ...], reference: NDArray[np.integer] | None = None
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


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p of McNemar's exact test: of `lost + gained` tiles that two classifiers judge differently, so uneven a division
    or a more uneven one, if both were as good (McNemar, Psychometrika 1947)."""
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1))
    return min(1.0, float(2 * tail / 2**total))


def reject_threshold(confidence: NDArray[np.floating], right: NDArray[np.bool_], error_rate: float) -> dict[str, float]:
    """The lowest threshold at which no more than `error_rate` of the answers that reach it are wrong, all in 0..1.

    Returns threshold, coverage (the share of tiles that is answered), error (of those) and the error_rate asked for; where no
    threshold will do, one above 1 that answers nothing (Chow, IEEE Trans. Information Theory 1970).
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, wrong = confidence[order], np.cumsum(~right[order])
    last_of_its_value = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    count = np.arange(1, len(order) + 1)
    kept = np.flatnonzero(last_of_its_value & (wrong <= error_rate * count))
    if not len(kept):
        return {"error_rate": error_rate, "threshold": 1.1, "coverage": 0.0, "error": 0.0}
    last = kept[-1]
    return {
        "error_rate": error_rate,
        "threshold": float(sorted_confidence[last]),
        "coverage": float((last + 1) / len(order)),
        "error": float(wrong[last] / (last + 1)),
    }
