"""The four ways in which an engine is asked, after MLPerf inference (Reddi et al., ISCA 2020).

Single-stream: one tile after another, judged by the 90th percentile of latency. Multi-stream: eight tiles a query, the 99th. Offline: all
tiles at hand, images a second. Server: single tiles at random moments; the highest rate at which 99 % are answered within a bound.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime import Batcher, Engine
from .measure import Samples, Timed, wall

Tiles = NDArray[np.unsignedinteger]
QUERY = {"single-stream": 1, "multi-stream": 8}  # tiles a query
FEWEST = {"single-stream": 100, "multi-stream": 1000}  # queries, so that ten lie beyond the percentile that it is judged by
_MOST_QUERIES = 64  # different ones, so that no cache makes the work easier than it is
_TRIALS, _STEP = 9, 1.3  # of the search for a rate, at most; from one that is held to the next that is tried
_CLOSE = 1.05  # how far the lowest rate that failed may lie above the highest that was held when the search ends
_FEWEST_ARRIVALS, _MOST_ARRIVALS = 200, 20_000
_CONFIRMING = 1000  # arrivals, at least, of the trial that confirms a rate: ten of them lie beyond the 99th percentile
_LONGEST_TRIAL = 4  # times `seconds`, so that a slow rate has some arrivals


def repeated(tiles: Tiles, size: int) -> Tiles:
    """The first `size` tiles, again and again if there are fewer: a copy of these alone."""
    return tiles[np.arange(size) % len(tiles)]


def queries(infer: Callable[[Tiles], object], tiles: Tiles, size: int, seed: int) -> Timed:
    """Queries of `size` tiles, each another one, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(tiles))
    count = min(_MOST_QUERIES, -(-len(tiles) // size))
    drawn = [np.ascontiguousarray(tiles[np.resize(np.roll(order, -i * size), size)]) for i in range(count)]
    turns = itertools.cycle(drawn)
    return Timed(wall(lambda: infer(next(turns))), size)


def streams(infer: Callable[[Tiles], object], tiles: Tiles, size: int, callers: int, seconds: float) -> float:
    """Images a second of several threads that each ask for batches of `size` as fast as they are answered: all of them until the last answer."""
    images = repeated(tiles, size)
    infer(images)
    begin = time.perf_counter()

    def ask(_: int) -> tuple[int, float]:
        count, taken = 0, 0.0
        while not count or taken < seconds:
            infer(images)
            count, taken = count + size, time.perf_counter() - begin
        return count, taken

    with ThreadPoolExecutor(callers) as pool:
        asked = list(pool.map(ask, range(callers)))
    # not each by its own end: an engine that takes callers in turn would seem faster than it is
    return sum(count for count, _ in asked) / max(taken for _, taken in asked)


@dataclass(frozen=True)
class Trial:
    """One rate of arrivals: how many came, the latency in seconds of each, the share answered within the bound (0..1).

    late: 99th percentile of the seconds by which tiles were handed over too late. served: as within, but from when they were handed over.
    """

    rate: float
    seconds: list[float]
    within: float
    late: float
    served: float

    @property
    def held(self) -> bool:
        """Whether 99 % were answered within the bound."""
        return self.within >= 0.99


@dataclass(frozen=True)
class ServerRate:
    """The highest rate found at which 99 % are answered within `bound` seconds, 0 where none was: then it is below every one that was tried.

    trials: all of the search. The last one at that rate confirms it.
    """

    rate: float
    bound: float
    trials: list[Trial]

    @property
    def lowest_tried(self) -> float:
        """The lowest rate that was tried; where none was held, it is above what the engine can answer in time."""
        return min(trial.rate for trial in self.trials)

    @property
    def at_least(self) -> bool:
        """Whether no rate above it failed, so that it is a lower bound."""
        return all(trial.rate <= self.rate for trial in self.trials)

    @property
    def generator_limited(self) -> bool:
        """Whether the lowest rate that failed did so because tiles could not be handed over in time: the engine would have held it."""
        failed = [trial for trial in self.trials if not trial.held]
        return bool(failed) and min(failed, key=lambda trial: trial.rate).served >= 0.99

    @property
    def latency(self) -> Samples | None:
        """Latencies at the rate that was found."""
        return next((Samples(1, trial.seconds) for trial in reversed(self.trials) if trial.rate == self.rate), None)


def server(engine: Engine, tiles: Tiles, bound: float, highest: float, seconds: float, seed: int, max_batch: int = 64) -> ServerRate:
    """Search the rate by bisection on a logarithmic scale, between a tile in each `bound` and `highest` (images a second) or, where that
    is answered in time, above it, until two rates lie 5 % apart; tiles are gathered into batches of `max_batch` by a `Batcher`. What was
    found is confirmed by a longer trial, and the next lower rate by another where it fails.

    bound: seconds. seconds: how long tiles arrive in each trial.
    """
    most = min(max_batch, engine.max_batch)
    sizes = [min(2**power, most) for power in range((most - 1).bit_length() + 1)]
    for size in sorted({*sizes, *engine.unprepared(most)}):  # the first call at a batch size is never typical
        engine.infer(repeated(tiles, size), most)
    low, high = min(1 / bound, highest / 2), math.inf  # at the lowest no tile has to wait for many others
    trials: list[Trial] = []
    while len(trials) < _TRIALS and high > _CLOSE * low:
        rate = highest * _STEP ** len(trials) if high == math.inf else math.sqrt(low * high)
        trials.append(_trial(engine, tiles, bound, rate, seconds, seed + len(trials), max_batch))
        low, high = (rate, high) if trials[-1].held else (low, rate)
    for rate in sorted((trial.rate for trial in trials if trial.held), reverse=True):
        trials.append(_trial(engine, tiles, bound, rate, seconds, seed + len(trials), max_batch, _CONFIRMING))
        if trials[-1].held:
            return ServerRate(rate, bound, trials)
    return ServerRate(0.0, bound, trials)


def moments(rate: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds at which `count` tiles arrive, `rate` a second on average: a Poisson process."""
    return np.cumsum(rng.exponential(1 / rate, count))


def _trial(
    engine: Engine, tiles: Tiles, bound: float, rate: float, seconds: float, seed: int, max_batch: int, fewest: int = _FEWEST_ARRIVALS
) -> Trial:
    count = max(1, int(min(max(rate * seconds, fewest), rate * _LONGEST_TRIAL * seconds, _MOST_ARRIVALS)))
    rng = np.random.default_rng(seed)
    arrivals = moments(rate, count, rng)
    order = rng.integers(0, len(tiles), count)
    answered, handed = np.full(count, np.inf), np.zeros(count)
    with Batcher(engine, latency=bound / 2, max_batch=max_batch) as batcher:
        batcher.predict(tiles[0])
        begin = time.perf_counter()

        def note(place: int) -> Callable[[object], None]:
            def done(_: object) -> None:
                answered[place] = time.perf_counter() - begin

            return done

        futures = []
        for place in range(count):
            wait = arrivals[place] - (time.perf_counter() - begin)
            if wait > 0:
                time.sleep(wait)
            if place and place % 64 == 0 and (_late(answered, arrivals, bound) > 0.01 * count or wait < -10 * bound):
                break  # it has failed already
            handed[place] = time.perf_counter() - begin
            futures.append(batcher.submit(tiles[order[place]]))
            futures[-1].add_done_callback(note(place))
        for future in futures:
            future.result()
    done = slice(len(futures))
    latencies = (answered - arrivals)[done]  # from the moment of arrival, not from when it could be handed over
    late, served = (handed - arrivals)[done], (answered - handed)[done] <= bound
    within = float((latencies <= bound).sum() / count)
    return Trial(rate, latencies.tolist(), within, max(0.0, float(np.percentile(late, 99))), float(served.mean()))


def _late(answered: NDArray[np.float64], arrivals: NDArray[np.float64], bound: float) -> int:
    """How many of the answers that are there came too late."""
    there = answered < np.inf
    return int((answered[there] - arrivals[there] > bound).sum())
