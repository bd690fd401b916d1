"""Single requests from many threads become batches, under a bound on latency.

with open_bundle("engines/eurosat") as engine, Batcher(engine, latency=0.02) as batcher:
    prediction = batcher.predict(tile)          # from any thread; one tile in, its prediction out
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np

from ..errors import BackendError, InputError
from .engine import Engine, NoNumbersError, Prediction, Tiles


@dataclass
class _Request:
    tile: Tiles
    answer: Future[Prediction] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects tiles until a batch is full, or until waiting longer would answer the oldest of them too late.

    latency: seconds from request to answer that are aimed at; the engine's own time is measured and taken off. A machine that is asked
    for more than it can do answers later than that: requests queue up, none is dropped. max_batch: tiles in a batch. reject: as in
    `Engine.predict`. Leaving the context, `close`, the end of the program, or that nobody knows the Batcher any more: each answers what
    is queued and stops its thread; the engine stays open. To make one takes as long as the engine needs to prepare for every size of batch that it
    fills up to. Errors as `Engine.infer`.

    One thread answers all: what a done-callback of a future does holds up the next batch, and it can `submit`, but not wait in `predict`.
    A fork has no such thread, nor those of the engine: open both after it. BackendError where it asks a Batcher that was made before it.
    """

    def __init__(self, engine: Engine, latency: float = 0.02, max_batch: int = 64, reject: bool = False) -> None:
        if not isinstance(latency, int | float | np.number) or not 0 <= latency <= threading.TIMEOUT_MAX:
            raise InputError(f"A Batcher takes a latency of a finite number of seconds, 0 or more, not {latency}.")
        if not isinstance(max_batch, int | np.integer) or max_batch < 1:
            raise InputError(f"A Batcher takes batches of a whole number of tiles, 1 or more, not {max_batch}.")
        latency, max_batch = float(latency), int(max_batch)  # numpy's own kinds mean something else to a queue's clock
        for size in engine.unprepared(max_batch):  # now: whoever asks later would wait for it
            engine.prepare(size)
        self._engine, self._queue = engine, _Queue(engine, latency, max_batch, reject)
        # the queue's thread does not know its Batcher, which can be collected; as the program ends, a thread inside a backend would abort it
        weakref.finalize(self, self._queue.close)

    def submit(self, tile: Tiles) -> Future[Prediction]:
        """Queue one tile (height, width, bands) of the engine's dtype; the future's result is its prediction, N = 1.

        Raises InputError for another dtype or shape, more than one tile, or a batcher that is closed.
        """
        return self._queue.put(self._request(tile))

    def predict(self, tile: Tiles) -> Prediction:
        """As `submit`, and wait for the answer. Also raises InputError in a done-callback, which the answer would wait for."""
        if self._queue.is_own_thread():
            raise InputError("A done-callback can't wait in predict(): the Batcher continues when it returns. Use submit() there.")
        request, answered = self._request(tile), SimpleQueue[Future[Prediction]]()
        request.answer.add_done_callback(answered.put)
        self._queue.put(request)
        return answered.get().result()  # result() alone waits with a lock that an interrupt may keep from the thread that answers

    def _request(self, tile: Tiles) -> _Request:
        checked = self._engine.checked(tile)
        if len(checked) != 1:
            raise InputError(f"A Batcher takes one tile at a time, not {len(checked)}. Give them one by one, or use engine.predict.")
        return _Request(checked.copy())  # the caller may write over its own

    def close(self) -> None:
        """Answer what is queued, then stop; wait for that, unless a call of the engine by this thread was interrupted for it."""
        self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _own(error: BaseException) -> BaseException:
    """A copy of an error, for one request: each `raise` adds to the traceback. The error itself where a copy says something else, or fails."""
    try:
        own = copy.copy(error)
        if str(own) != str(error):
            return error
    except Exception:  # of a class that can't be made from its own arguments
        return error
    own.__cause__ = error
    return own


class _Queue:
    """The requests that wait, and the thread that answers them.

    A signal's handler may raise, or close, between any two steps, and so may a collection of garbage close: each lock is taken in a `with` of
    its own. None is needed to answer but the engine's, and a call of the engine that was interrupted holds it: then closing doesn't wait.
    """

    def __init__(self, engine: Engine, latency: float, max_batch: int, reject: bool) -> None:
        self._engine, self._latency, self._max_batch, self._reject = engine, latency, max_batch, reject
        self._waiting: SimpleQueue[_Request | None] = SimpleQueue()  # None: it was closed, and no request comes behind
        self._closing, self._closed, self._process = threading.RLock(), False, os.getpid()
        self._seconds = 0.0  # that a batch took of late
        self._working = threading.Lock()  # held until the thread ends
        self._working.acquire()
        self._worker = threading.Thread(target=self._work, name="sattrt batcher", daemon=True)
        self._worker.start()

    def put(self, request: _Request) -> Future[Prediction]:
        """Queue a request; its future. InputError once it is closed, BackendError in a fork."""
        if os.getpid() != self._process:
            raise BackendError(
                "A fork has no thread of the Batcher that was made before it. Open an engine and make a Batcher in the child."
            )
        with self._closing:
            if self._closed:
                raise InputError("The Batcher is closed. Make a new one.")
            self._waiting.put(request)
        return request.answer

    def close(self) -> None:
        """Answer what is queued, then stop. Nothing in a fork, which has nothing to stop."""
        if os.getpid() != self._process:
            return
        with self._closing:
            self._closed = True
            self._waiting.put(None)
        if not self.is_own_thread() and not self._engine.is_interrupted():
            with self._working:  # join(), once interrupted, takes a thread for ended (Python 3.11 and 3.12)
                pass

    def is_own_thread(self) -> bool:
        """Whether the caller is called by the thread that answers, as a done-callback is."""
        return threading.current_thread() is self._worker

    def _work(self) -> None:
        batch: list[_Request] = []
        try:
            while batch := self._next():
                self._answer([request for request in batch if request.answer.set_running_or_notify_cancel()])
        except BaseException as error:  # of a done-callback that wants to end the program: nobody is left to answer, so nobody waits
            self.close()
            for request in (*batch, *iter(self._waiting.get, None)):
                with contextlib.suppress(BaseException):  # answered already, or of another such callback
                    request.answer.set_exception(_own(error))
            raise
        finally:
            self._working.release()

    def _answer(self, batch: list[_Request]) -> None:
        if not batch:
            return
        begin = time.monotonic()
        try:
            found = self._engine.predict(np.concatenate([request.tile for request in batch]), self._reject, self._max_batch)
        except NoNumbersError as error:  # of one tile, which is no reason to fail the others
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for request in batch:
                    self._answer([request])
            return
        except BaseException as error:  # the requests get it; the next batch may fare better
            for request in batch:
                request.answer.set_exception(_own(error))
            return
        self._seconds = max(time.monotonic() - begin, 0.9 * self._seconds)
        for i, request in enumerate(batch):
            one = slice(i, i + 1)
            request.answer.set_result(Prediction(found.labels[one], found.probabilities[one], found.logits[one], found.names[one]))

    def _next(self) -> list[_Request]:
        """The next batch; none once it is closed and all is answered."""
        batch: list[_Request] = []
        left: float | None = None  # the first is waited for until it comes
        while len(batch) < self._max_batch:
            try:
                request = self._waiting.get(timeout=left)
            except Empty:
                break
            if request is None:
                self._waiting.put(None)  # for the next time
                break
            batch.append(request)
            left = max(0.0, batch[0].arrived + self._latency - self._seconds - time.monotonic())
        return batch
