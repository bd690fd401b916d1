"""Times of several contenders in one process, taken in turns, so that a machine that drifts harms none of them.

    samples = measure({"onnxruntime-fp32": Timed(wall(lambda: engine.infer(tiles)), len(tiles))}, Budget(seconds=3))
    samples["onnxruntime-fp32"].images_per_second

Each is first warmed up until three windows agree (or once, where a call is long work by itself). Then everyone has turns in a freshly shuffled order: a short pause and one untimed
call, since the idle threads of one library spin for a while after its last call, and timed calls for a moment.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import SattrtError

Name = TypeVar("Name", str, tuple[str, str])  # of a contender, or of one by one of its clocks
Call = Callable[[], float]  # does the work once; the seconds it took, by the clock that suits it
STEADY, VARIATION = 0.05, 0.05  # how far windows of a warm-up may differ; a coefficient of variation that is worth a warning
WINDOWS, MOST_WINDOWS = 3, 10
_WINDOW_SECONDS, _TURN_SECONDS, _PAUSE_SECONDS = 0.15, 0.2, 0.02
_LONG_CALL = 0.1  # seconds
_LONGEST = 4  # times the seconds of a budget, for calls that are hoped for
FAILURES = (SattrtError, MemoryError)  # of a contender, which is then left out; anything else is a fault of ours
_BEYOND = 10  # samples that have to lie beyond a percentile before it is claimed


@dataclass(frozen=True)
class Timed:
    """What is timed: a call, and how many images it handles."""

    call: Call
    images: int = 1


@dataclass(frozen=True)
class Budget:
    """How long each is timed after its warm-up: in seconds, and at least that many calls.

    hoped: calls that are taken as well where they fit into `_LONGEST` times `seconds`: a percentile may want them.
    warm_up: False for work of seconds a call: one uncounted call in the first turn is enough, and the first timed ones tell whether it rested.
    """

    seconds: float = 3.0
    calls: int = 3
    hoped: int = 0
    warm_up: bool = True

    def spent(self, taken: list[float]) -> bool:
        """Whether these seconds of calls are enough."""
        hopeless = self.hoped * sum(taken) > _LONGEST * self.seconds * len(taken)
        return len(taken) >= self.calls and sum(taken) >= self.seconds and (len(taken) >= self.hoped or hopeless)


@dataclass(frozen=True)
class Samples:
    """Raw seconds of every timed call of `images` images; steady: whether the warm-up came to rest."""

    images: int
    seconds: list[float]
    steady: bool = True

    def milliseconds(self, percentile: float) -> float:
        """Percentile of a call's time."""
        return float(np.percentile(self.seconds, percentile)) * 1e3

    def tells(self, percentile: float) -> bool:
        """Whether there are samples enough to claim that percentile: ten beyond it. Else it is indicative."""
        return tells(len(self.seconds), percentile)

    @property
    def images_per_second(self) -> float:
        """All images over all seconds, as MLPerf's offline scenario has it: slow calls count by what they cost."""
        return self.images / float(np.mean(self.seconds))

    @property
    def spread(self) -> float:
        """How far the mean of all calls may lie from the true one, as a share of it: two standard errors, of turns, whose calls are alike.

        Of one turn: two standard deviations.
        """
        means = [float(np.mean(turn)) for turn in turns(self.seconds)]
        if len(means) == 1:
            return 2 * self.variation
        return 2 * float(np.std(means)) / float(np.mean(means)) / float(np.sqrt(len(means) - 1))

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float(np.std(self.seconds) / np.mean(self.seconds))


def tells(calls: int, percentile: float) -> bool:
    """Whether ten of so many calls lie beyond a percentile."""
    return calls * min(percentile, 100 - percentile) / 100 >= _BEYOND


def wall(work: Callable[[], object]) -> Call:
    """Work that is over when it returns, timed by the monotonic clock."""

    def call() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return call


def measure(
    contenders: Mapping[Name, Timed],
    budget: Budget = Budget(),
    seed: int = 0,
    failed: dict[Name, str] | None = None,
) -> dict[Name, Samples]:
    """Time every contender. failed: takes up the reason of each that raises one of `FAILURES`, which is then left out; None lets it pass."""
    draw = random.Random(seed)
    seconds: dict[Name, list[float]] = {}
    steady: dict[Name, bool] = {}
    waiting: list[Name] = []
    for name, each in contenders.items():
        try:
            steady[name], seconds[name] = budget.warm_up and _warm_up(each.call), []
            waiting.append(name)
        except FAILURES as error:
            _give_up(name, error, failed)
    while waiting:
        draw.shuffle(waiting)
        for name in list(waiting):
            taken = seconds[name]
            try:
                taken += _turn(contenders[name].call, bool(taken) and taken[-1] > _LONG_CALL)
            except FAILURES as error:
                _give_up(name, error, failed)
                waiting.remove(name)
                del seconds[name]
                continue
            if budget.spent(taken):
                waiting.remove(name)
    if not budget.warm_up:
        steady = {name: _rests(taken[:WINDOWS]) for name, taken in seconds.items()}
    return {name: Samples(contenders[name].images, taken, steady[name]) for name, taken in seconds.items()}


def _give_up(name: Name, error: Exception, failed: dict[Name, str] | None) -> None:
    if failed is None:
        raise error
    failed[name] = why(error)


def why(error: Exception) -> str:
    """What a report says of a contender that failed."""
    return "It ran out of memory. Choose smaller batches." if isinstance(error, MemoryError) else str(error)


def _turn(call: Call, long: bool) -> list[float]:
    time.sleep(_PAUSE_SECONDS)
    if not long:  # other threads spin for a moment only
        call()
    taken: list[float] = []
    while sum(taken) < _TURN_SECONDS:
        taken.append(call())
    return taken


def turns(seconds: Sequence[float]) -> list[list[float]]:
    """Raw seconds of `Samples`, divided into the turns that they were taken in: a turn ends with the call that fills it."""
    found: list[list[float]] = [[]]
    for taken in seconds:
        if sum(found[-1]) >= _TURN_SECONDS:
            found.append([])
        found[-1].append(taken)
    return found


def _warm_up(call: Call) -> bool:
    """Call until the medians of three windows in a row agree; False where ten windows did not bring that."""
    call()  # the first one at a batch size is never typical
    medians: list[float] = []
    while len(medians) < MOST_WINDOWS:
        window: list[float] = []
        while sum(window) < _WINDOW_SECONDS:
            window.append(call())
        medians.append(float(np.median(window)))
        if _rests(medians[-WINDOWS:]):
            return True
    return False


def _rests(medians: list[float]) -> bool:
    return len(medians) == WINDOWS and max(medians) <= (1 + STEADY) * min(medians)
