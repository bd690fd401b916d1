"""Speed of several engines in one process, measured in turns, so that a machine that drifts harms none of them.

speeds = measure({"onnxruntime-fp32": engine.infer}, tiles)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.uint8]], object]
BATCHES = (1, 4, 16, 64, 128)
_WARM_UP_SECONDS, _TURN_SECONDS, _PAUSE_SECONDS = 0.3, 0.2, 0.02


@dataclass(frozen=True)
class Budget:
    """How long each engine is measured at each batch size, in seconds and at least that many calls."""

    latency_seconds: float = 2.0
    latency_calls: int = 100
    throughput_seconds: float = 1.0
    throughput_calls: int = 3


@dataclass(frozen=True)
class Speed:
    """Raw seconds of every timed call, by batch size; host arrays in, host arrays out."""

    seconds: dict[int, list[float]]

    def latency_ms(self, percentile: float, batch: int = 1) -> float:
        """Percentile of one call's time, in ms."""
        return float(np.percentile(self.seconds[batch], percentile)) * 1e3

    def throughput(self, batch: int) -> float:
        """Images a second at this batch size, from the median call."""
        return batch / float(np.median(self.seconds[batch]))

    @property
    def best_batch(self) -> int:
        """The batch size of the highest throughput."""
        return max(self.seconds, key=self.throughput)


def measure(
    engines: Mapping[str, Predict],
    tiles: NDArray[np.uint8],
    batches: tuple[int, ...] = BATCHES,
    budget: Budget = Budget(),
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Speed]:
    """Time every engine at every batch size, in rounds: each engine has its turn, in a freshly shuffled order.

    A turn is a short pause and one untimed call, then timed calls for a moment: the idle threads of one library spin
    for a while after its last call, and would slow down the next engine's first.
    """
    draw = random.Random(0)
    seconds: dict[str, dict[int, list[float]]] = {name: {} for name in engines}
    for batch in batches:
        on_progress(f"batch {batch}")
        images = np.ascontiguousarray(np.resize(tiles, (batch, *tiles.shape[1:])))
        for predict in engines.values():
            _warm_up(predict, images)
        wanted, calls = (
            (budget.latency_seconds, budget.latency_calls) if batch == 1 else (budget.throughput_seconds, budget.throughput_calls)
        )
        open_turns = list(engines)
        for name in engines:
            seconds[name][batch] = []
        while open_turns:
            draw.shuffle(open_turns)
            for name in list(open_turns):
                taken = seconds[name][batch]
                taken += _turn(engines[name], images)
                if len(taken) >= calls and sum(taken) >= wanted:
                    open_turns.remove(name)
    return {name: Speed(by_batch) for name, by_batch in seconds.items()}


def _turn(predict: Predict, images: NDArray[np.uint8]) -> list[float]:
    time.sleep(_PAUSE_SECONDS)
    predict(images)
    taken: list[float] = []
    while sum(taken) < _TURN_SECONDS:
        begin = time.perf_counter()
        predict(images)
        taken.append(time.perf_counter() - begin)
    return taken


def _warm_up(predict: Predict, images: NDArray[np.uint8]) -> None:
    """The first call at a batch size is never typical; then on, until the clock has settled."""
    end = time.perf_counter() + _WARM_UP_SECONDS
    while True:
        predict(images)
        if time.perf_counter() > end:
            return
