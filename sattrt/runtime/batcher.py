"""Single requests from many threads become batches, under a bound on latency.

with open_bundle("engines/eurosat") as engine, Batcher(engine, latency=0.02) as batcher:
    prediction = batcher.predict(tile)          # from any thread; one tile in, its prediction out
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from ..errors import InputError
from .engine import Engine, Prediction, Tiles


@dataclass
class _Request:
    tile: Tiles
    answer: Future[Prediction] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects tiles until a batch is full, or until waiting longer would answer the oldest of them too late.

    latency: seconds from request to answer that are aimed at; the engine's own time is measured and taken off. A machine that is asked
    for more than it can do answers later than that: requests queue up, none is dropped. max_batch: tiles in a batch. reject: as in
    `Engine.predict`. Leaving the context, or `close`, answers what is queued; the engine stays open.
    """

    def __init__(self, engine: Engine, latency: float = 0.02, max_batch: int = 64, reject: bool = False) -> None:
        if not latency >= 0 or max_batch < 1:
            raise InputError(f"A Batcher takes a latency of 0 s or more and a batch of 1 or more, not {latency} and {max_batch}.")
        self._engine, self._latency, self._max_batch, self._reject = engine, latency, max_batch, reject
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.0  # that a batch took of late
        self._worker = threading.Thread(target=self._work, name="sattrt batcher", daemon=True)
        self._worker.start()

    def submit(self, tile: Tiles) -> Future[Prediction]:
        """Queue one uint8 tile (height, width, bands); the future's result is its prediction, N = 1.

        Raises InputError for another dtype or shape, more than one tile, or a batcher that is closed.
        """
        checked = self._engine.checked(tile)
        if len(checked) != 1:
            raise InputError(f"A Batcher takes one tile at a time, not {len(checked)}. Give them one by one, or use engine.predict.")
        request = _Request(checked.copy())  # the caller may write over its own
        with self._changed:
            if self._closed:
                raise InputError("The Batcher is closed. Make a new one.")
            self._waiting.append(request)
            self._changed.notify()
        return request.answer

    def predict(self, tile: Tiles) -> Prediction:
        """As `submit`, and wait for the answer."""
        return self.submit(tile).result()

    def close(self) -> None:
        """Answer what is queued, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        while popped := self._next():
            batch = [request for request in popped if request.answer.set_running_or_notify_cancel()]
            if not batch:
                continue
            begin = time.monotonic()
            try:
                found = self._engine.predict(np.concatenate([request.tile for request in batch]), self._reject)
            except BaseException as error:  # the requests get it; the next batch may fare better
                for request in batch:
                    request.answer.set_exception(error)
                continue
            self._seconds = max(time.monotonic() - begin, 0.9 * self._seconds)
            for i, request in enumerate(batch):
                one = slice(i, i + 1)
                request.answer.set_result(Prediction(found.labels[one], found.probabilities[one], found.logits[one], found.names[one]))

    def _next(self) -> list[_Request]:
        """The next batch; none once it is closed and all is answered."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return []
            latest = self._waiting[0].arrived + self._latency - self._seconds
            while len(self._waiting) < self._max_batch and not self._closed and (left := latest - time.monotonic()) > 0:
                self._changed.wait(left)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
