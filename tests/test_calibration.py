import math

import numpy as np
import pytest

from sattrt.calibration import expected_calibration_error, fit_temperature, softmax


def drawn(temperature: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times too large for the labels that were drawn from them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 5))
    labels = (softmax(logits).cumsum(1) < rng.uniform(size=(count, 1))).sum(1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert expected_calibration_error(softmax(logits / found), labels) < 0.02
    if temperature != 1:
        assert expected_calibration_error(softmax(logits), labels) > 0.05


def test_the_error_is_the_gap_between_confidence_and_accuracy() -> None:
    # four tiles at 0.95, half of them right; two at 0.55, both right
    probabilities = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55]] * 2)
    labels = np.array([0, 0, 1, 1, 1, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx((4 * 0.45 + 2 * 0.45) / 6)
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0


def test_a_network_that_is_never_wrong_has_a_finite_temperature() -> None:
    assert fit_temperature(np.eye(3) * 10, np.arange(3)) == pytest.approx(10 / math.log(8), rel=1e-3)  # of three, four fifths are believed
