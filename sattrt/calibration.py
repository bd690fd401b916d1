"""Whether a probability means what it says: calibration error, and the temperature that mends it.

    temperature = fit_temperature(logits, labels)
    expected_calibration_error(softmax(logits / temperature), labels)

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; where all tiles are right, which would make a network certain without
bound, Platt's targets (Platt, Probabilistic Outputs for Support Vector Machines, 1999).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
_LOWEST, _HIGHEST = math.log(0.25), math.log(10.0)


def calibration(logits: Floats, labels: NDArray[np.integer]) -> dict[str, float]:
    """The temperature that fits logits (N, classes), their accuracy, and their calibration error without it and with it, 0..1."""
    temperature = fit_temperature(logits, labels)
    return {
        "valid_accuracy": float((logits.argmax(1) == labels).mean()),
        "temperature": temperature,
        "ece": expected_calibration_error(softmax(logits), labels),
        "ece_calibrated": expected_calibration_error(softmax(logits / temperature), labels),
    }


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities (N, classes) of logits (N, classes), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return probabilities


def reliability_curve(probabilities: Floats, labels: NDArray[np.integer], bins: int = 15) -> list[dict[str, float]]:
    """For each of `bins` equal ranges of confidence that holds a tile: its tiles, their mean confidence, the share that is right (0..1)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    tiles, sure, correct = (np.bincount(place, weights, bins) for weights in (None, confidence, right))
    return [
        {"tiles": int(tiles[i]), "confidence": float(sure[i] / tiles[i]), "accuracy": float(correct[i] / tiles[i])}
        for i in np.flatnonzero(tiles)
    ]


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.integer], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy, 0..1, over `bins` equal ranges of confidence, each weighted by its tiles."""
    curve = reliability_curve(probabilities, labels, bins)
    return sum(each["tiles"] * abs(each["confidence"] - each["accuracy"]) for each in curve) / len(labels)


def fit_temperature(logits: Floats, labels: NDArray[np.integer]) -> float:
    """The temperature, 0.25 to 10, that gives the labels the highest likelihood; accuracy is untouched by it.

    A label counts as Platt has it: of N tiles, (N + 1) / (N + 2) of it is believed. So few tiles, all of them right, make no network sure.
    """
    believed = (len(labels) + 1) / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits / math.exp(log_temperature))[np.arange(len(labels)), labels]
        return float(-(believed * np.log(chosen.clip(1e-300)) + (1 - believed) * np.log((1 - chosen).clip(1e-300))).mean())

    # golden section: the loss has one minimum in the temperature
    low, high, share = _LOWEST, _HIGHEST, (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - share * (high - low), low + share * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)
