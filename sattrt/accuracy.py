"""The one evaluator: numpy counts, whatever predicted.

score = evaluate(logits.argmax(1), labels, spec.classes, reference=fp32_labels)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassScore:
    """Of one class: its tiles, how often it was answered, how often rightly; precision, recall, F1 in 0..1 (0 where undefined)."""

    tiles: int
    answered: int
    correct: int

    @property
    def precision(self) -> float:
        """Share of its answers that are right."""
        return self.correct / self.answered if self.answered else 0.0

    @property
    def recall(self) -> float:
        """Share of its tiles that are found."""
        return self.correct / self.tiles if self.tiles else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / (self.tiles + self.answered) if self.tiles + self.answered else 0.0


@dataclass(frozen=True)
class Score:
    """accuracy and its 95 % Wilson interval (low, high), 0..1; flips: positions that the reference answered otherwise.

    confusion: counts by true class (rows) and answer (columns), in the order of the classes.
    """

    tiles: int
    correct: int
    accuracy: float
    low: float
    high: float
    per_class: dict[str, ClassScore]
    confusion: list[list[int]]
    flips: list[int] | None

    def most_confused(self, count: int) -> list[tuple[str, str, int]]:
        """True class, answer and tiles of the pairs that are confused most often, at most `count`."""
        names = list(self.per_class)
        places = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j and self.confusion[i][j]]
        places.sort(key=lambda place: -self.confusion[place[0]][place[1]])
        return [(names[i], names[j], self.confusion[i][j]) for i, j in places[:count]]


def evaluate(
    predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: tuple[str, ...], reference: NDArray[np.integer] | None = None
) -> Score:
    """Score class indices (N,) against the true ones; `flips` are the positions where the reference answered otherwise."""
    count = len(classes)
    confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    correct = int(np.trace(confusion))
    low, high = wilson(correct, len(labels))
    per_class = {
        name: ClassScore(int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])) for i, name in enumerate(classes)
    }
    flips = None if reference is None else [int(i) for i in np.flatnonzero(predicted != reference)]
    return Score(len(labels), correct, correct / len(labels), low, high, per_class, confusion.tolist(), flips)


def standard_error(accuracy: float, tiles: int) -> float:
    """Of an accuracy (0..1) over so many tiles, with two right and two wrong ones added: where all are right it is not zero.

    Source: Agresti and Coull, The American Statistician, 1998.
    """
    share = (accuracy * tiles + 2) / (tiles + 4)
    return math.sqrt(share * (1 - share) / (tiles + 4))


def wilson(correct: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default (Wilson, JASA 1927)."""
    share = correct / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # the share itself is within it, whatever the last digit is rounded to
    return max(0.0, min(share, (middle - half) / (1 + z * z / total))), min(1.0, max(share, (middle + half) / (1 + z * z / total)))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p of McNemar's exact test: of `lost + gained` tiles that two classifiers judge differently, so uneven a division
    or a more uneven one, if both were as good (McNemar, Psychometrika 1947)."""
    total = lost + gained
    tail = term = 1
    for k in range(min(lost, gained)):
        term = term * (total - k) // (k + 1)  # total over k + 1
        tail += term
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
    kept = np.flatnonzero(last_of_its_value & (wrong <= error_rate * count + 1e-9))  # 0.7 / 100 of 1,000 is a little less than 7
    if not len(kept):
        return {"error_rate": error_rate, "threshold": 1.1, "coverage": 0.0, "error": 0.0}
    last = kept[-1]
    return {
        "error_rate": error_rate,
        "threshold": float(sorted_confidence[last]),
        "coverage": float((last + 1) / len(order)),
        "error": float(wrong[last] / (last + 1)),
    }


def selective_curve(confidence: NDArray[np.floating], right: NDArray[np.bool_], points: int = 50) -> list[dict[str, float]]:
    """Accuracy of the most certain share of the tiles, for growing shares: coverage, accuracy, threshold, all in 0..1.

    The last point is all tiles (El-Yaniv and Wiener, JMLR 2010).
    """
    order = np.argsort(-confidence, kind="stable")
    correct = np.cumsum(right[order])
    counts = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int))
    return [
        {"coverage": float(n / len(order)), "accuracy": float(correct[n - 1] / n), "threshold": float(confidence[order[n - 1]])}
        for n in counts
    ]
