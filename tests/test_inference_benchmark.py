"""What `benchmarks/inference.py` does where something is missing, fails or disagrees; what it measures takes minutes."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sattrt.bench.contenders import TORCH
from sattrt.bench.measure import Samples
from sattrt.runtime import Bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import inference

TILES = np.zeros((3, 8, 8, 3), np.uint8)


def test_one_that_fails_is_named_and_the_others_are_measured() -> None:
    def fails_at_64(tiles: np.ndarray) -> Any:
        if len(tiles) == 64:
            raise RuntimeError("no\nmemory")
        time.sleep(0.02)

    failed: dict[str, str] = {}
    speeds = inference.timed({"bad": fails_at_64, "good": lambda tiles: time.sleep(0.02)}, TILES, 0.01, failed)
    assert failed == {"bad": "RuntimeError: no memory"}
    assert {name: list(found) for name, found in speeds.items()} == {"good": [1, 64]}


def test_clocks_that_differ_by_more_than_a_tenth_disagree() -> None:
    checks = {name: {"ratio": ratio} for name, ratio in {"a": 1.09, "b": 1.11, "c": 0.92, "d": 0.9}.items()}
    assert inference.disagreeing(checks) == ["b (1.110)", "d (0.900)"]


def test_ratios_are_of_what_there_is(bundle: Bundle) -> None:
    few = replace(bundle, engines=bundle.engines[:1])
    own, graph = few.engines[0].name, few.engines[0].file

    def at(seconds: float) -> dict[int, Samples]:
        return {batch: Samples(batch, [batch * seconds]) for batch in inference.BATCHES}

    def plain(tiles: np.ndarray) -> None: ...

    alone = inference.summary(few, {TORCH: at(0.2), own: at(0.1)}, {}, {})
    assert (alone["fastest"], alone["throughput_ratio_eager"], alone["throughput_ratio_best_peer"]) == (own, pytest.approx(2), None)
    beside = inference.summary(few, {own: at(0.1), "plain": at(0.4)}, {"plain": (graph, plain), "failed": (graph, plain)}, {})
    assert (beside["throughput_ratio_eager"], beside["throughput_ratio_best_peer"]) == (None, pytest.approx(4))
