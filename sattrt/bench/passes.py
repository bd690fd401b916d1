"""The contenders on their way through accuracy, clocks and scenarios, always all of them in turns. Whoever gives no answers is absent from then
on; one that fails later lacks that figure alone.

passes = Passes(contenders, tiles, BenchConfig(), print)
answers, clocks = passes.answers(), passes.clocks(reader)
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from .config import BenchConfig
from .contenders import Contender, Contenders, Infer, Tiles
from .measure import FAILURES, Budget, Samples, Timed, measure, wall, why
from .power import joules
from .scenarios import FEWEST, QUERY, ServerRate, queries, repeated, server, streams
from .tiles import TileReader
from .verdict import Clocks

_ACCURACY_BATCH = 64
_PASSES = 5  # at least, from file to label
_CALLS, _HOPED_CALLS = 5, 20  # of the other two clocks: at least, and where they fit into four times the seconds
_ROUNDS = 5  # of several callers, in each of which everyone has a share of the seconds
_DECODE = ("", "decode")
_CLOCKS = {"engine": "the engine alone", "host": "host to host", "whole": "file to label"}


Answers = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Measured:
    """What the passes gave, by the contender's name.

    answers: logits and probabilities (N, classes). timings: of queries, by scenario first. offline: of batches, by their size first.
    callers: images a second in every round, by the number of callers. energy: joules for 1,000 images. failed: why a figure is
    lacking, by the figure. gpu_state, throttled: of the GPU, as NVML has it.
    """

    answers: Answers
    clocks: dict[str, Clocks]
    timings: dict[str, dict[str, Samples]]
    offline: dict[int, dict[str, Samples]]
    callers: dict[str, dict[int, list[float]]]
    served: dict[str, ServerRate]
    energy: dict[str, float]
    failed: dict[str, dict[str, str]]
    gpu_state: dict[str, Any] | str
    throttled: set[str]


class Passes:
    """The contenders on their way through accuracy, clocks and scenarios.

    failed: by contender and by what was to be measured, why it was not: it keeps its other figures.
    """

    def __init__(
        self, contenders: Contenders, images: NDArray[np.unsignedinteger], config: BenchConfig, on_progress: Callable[[str], None]
    ) -> None:
        self._all, self._images, self._config, self._say = contenders, images, config, on_progress
        self._budget = Budget(config.seconds)
        self._draw = random.Random(config.seed)
        self.failed: dict[str, dict[str, str]] = {}

    def answers(self) -> Answers:
        """Logits and probabilities of every tile, by each."""
        found: Answers = {}
        starts = range(0, len(self._images), _ACCURACY_BATCH)
        for name, contender in self._present().items():
            self._say(f"accuracy of {name}")
            with self._absent_if_it_fails(name):
                parts = [contender.infer(self._images[start : start + _ACCURACY_BATCH]) for start in starts]
                logits, probabilities = (np.concatenate(each) for each in zip(*parts, strict=True))
                if not (np.isfinite(logits).all() and np.isfinite(probabilities).all()):
                    raise BackendError("It returned NaN or infinity. Export the bundle again.")
                found[name] = (logits, probabilities)
        if not found:
            raise BackendError(f"No engine gave an answer: {' | '.join(f'{name}: {why}' for name, why in self._all.absent.items())}")
        return found

    def _present(self) -> dict[str, Contender]:
        return {name: each for name, each in self._all.present.items() if name not in self._all.absent}

    def _shuffled(self) -> list[tuple[str, Contender]]:
        """Those who are present, in another order each time: what comes first or last must not be the same engine always."""
        return self._draw.sample(list(self._present().items()), len(self._present()))

    @contextlib.contextmanager
    def _absent_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            self._all.absent[name] = why(error)

    @contextlib.contextmanager
    def _lacking_if_it_fails(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            self._note(name, what, why(error))

    def _note(self, name: str, what: str, reason: str) -> None:
        self.failed.setdefault(name, {}).setdefault(what, reason)

    def _batch(self, size: int) -> Tiles:
        return repeated(self._images, size)

    def _measure(self, what: str, timed: dict[str, Timed], budget: Budget | None = None) -> dict[str, Samples]:
        failed: dict[str, str] = {}
        taken = measure(timed, budget or self._budget, self._config.seed, failed)
        for name, reason in failed.items():
            self._note(name, what, reason)
        return taken

    def clocks(self, reader: TileReader) -> dict[str, Clocks]:
        """The three clocks of each, and of decoding; none of one that fails at any of them."""
        batch = self._batch(self._config.clock_batch)
        self._say("clocks: the engine alone, host to host")
        timed: dict[tuple[str, str], Timed] = {}  # both clocks take turns: a machine that drifts must not tell them apart
        for name, each in self._present().items():
            with self._lacking_if_it_fails(name, "the engine alone"):
                timed[name, "engine"] = Timed(each.resident(batch), min(len(batch), each.engine.max_batch if each.engine else len(batch)))
            timed[name, "host"] = _whole(each, batch)
        taken = self._clocks(timed, Budget(self._config.seconds, _CALLS, _HOPED_CALLS))
        self._say("clocks: decoding, file to label")
        passes = {_DECODE: Timed(wall(partial(_read, reader)), len(reader))}
        passes |= {(name, "whole"): Timed(wall(partial(_read, reader, each.infer)), len(reader)) for name, each in self._present().items()}
        taken |= self._clocks(passes, Budget(self._config.seconds, _PASSES, warm_up=False))
        whole = [name for name in self._present() if all((name, clock) in taken for clock in _CLOCKS)]
        return {name: Clocks(taken[name, "engine"], taken[name, "host"], taken[_DECODE], taken[name, "whole"]) for name in whole}

    def _clocks(self, timed: dict[tuple[str, str], Timed], budget: Budget) -> dict[tuple[str, str], Samples]:
        failed: dict[tuple[str, str], str] = {}
        taken = measure(timed, budget, self._config.seed, failed)
        if _DECODE in failed:
            raise InputError(failed[_DECODE])
        for (name, clock), reason in failed.items():
            self._note(name, _CLOCKS[clock], reason)
        return taken

    def stream(self, scenario: str) -> dict[str, Samples]:
        """Latencies of queries that come one after another."""
        self._say(scenario)
        size, seed = QUERY[scenario], self._config.seed
        budget = Budget(self._config.seconds, hoped=FEWEST[scenario])
        return self._measure(
            scenario, {name: queries(each.infer, self._images, size, seed) for name, each in self._present().items()}, budget
        )

    def offline(self) -> tuple[dict[int, dict[str, Samples]], dict[str, dict[int, list[float]]]]:
        """Times of a batch by size and name; images a second in every round by name and number of callers, at the best size of each."""
        sweep: dict[int, dict[str, Samples]] = {}
        for size in self._config.batch_sizes:
            self._say(f"offline, batches of {size}")
            batch = self._batch(size)
            sweep[size] = self._measure(f"batches of {size}", {name: _whole(each, batch) for name, each in self._present().items()})
        callers: dict[str, dict[int, list[float]]] = {name: {} for name in self._present()}
        for count in self._config.stream_counts if self._config.stream_counts != (1,) else ():
            self._say(f"offline, {count} callers")
            what = f"{count} caller{'s' * (count != 1)}"
            for _ in range(_ROUNDS):
                for name, each in self._shuffled():
                    if what in self.failed.get(name, ()) or not any(name in found for found in sweep.values()):
                        continue
                    with self._lacking_if_it_fails(name, what):
                        rate = streams(each.infer, self._images, _best(sweep, name), count, self._config.seconds / _ROUNDS)
                        callers[name].setdefault(count, []).append(rate)
            for name in callers:
                if what in self.failed.get(name, ()):
                    callers[name].pop(count, None)  # some rounds are none
        return sweep, callers

    def server(self, sweep: dict[int, dict[str, Samples]]) -> dict[str, ServerRate]:
        """The highest rate of arrivals that each engine answers within the bound; torch has no batcher to be asked through."""
        found = {}
        for name, each in self._shuffled():
            if each.engine is None:
                continue
            self._say(f"server: {name}")
            bound, seconds = self._config.latency_bound / 1e3, self._config.seconds
            with self._lacking_if_it_fails(name, "server"):
                rates = {size: timed[name].images_per_second for size, timed in sweep.items() if name in timed}
                if not rates:
                    size = self._config.clock_batch
                    rates = {size: measure({name: _whole(each, self._batch(size))}, self._budget)[name].images_per_second}
                size = max(rates, key=lambda size: rates[size])
                if each.engine.fills_batches:  # half of the bound may go by until a batch is full: the other half has to do for a full one
                    size = max((size for size in rates if size / rates[size] <= bound / 2), default=min(rates))
                found[name] = server(each.engine, self._images, bound, rates[size], seconds, self._config.seed, size)
        return found

    def energy(self) -> dict[str, float]:
        """Joules for 1,000 images, where something here counts them."""
        found = {}
        batch = self._batch(self._config.clock_batch)
        for name, each in self._shuffled():
            before, source = joules(each.device)
            if before is None:
                continue
            self._say(f"energy of {source}: {name}")
            count, begin = 0, time.perf_counter()
            with self._lacking_if_it_fails(name, "energy"):
                while time.perf_counter() - begin < self._config.seconds:
                    each.infer(batch)
                    count += len(batch)
            after, _ = joules(each.device)
            if "energy" in self.failed.get(name, ()):
                continue
            if count and after is not None and after >= before:  # RAPL's counter begins anew at its end
                found[name] = 1000 * (after - before) / count
        return found


def _whole(contender: Contender, batch: Tiles) -> Timed:
    """From host array to host array."""
    return Timed(wall(partial(contender.infer, batch)), len(batch))


def _read(reader: TileReader, infer: Infer | None = None) -> None:
    """One pass over the files: read, decode and, with `infer`, the classes of all."""
    for images, _ in reader:
        if infer:
            infer(images)[0].argmax(1)


def _best(sweep: dict[int, dict[str, Samples]], name: str) -> int:
    """The batch size of a contender's highest throughput."""
    return max((size for size in sweep if name in sweep[size]), key=lambda size: sweep[size][name].images_per_second)
