"""Every file of a source in turn, read and worked on by several processes.

for result in each_file(source, names, work, workers=2):
    ...                                    # work(source, name), in the order of the names
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BackendError
from .sources import Source, open_source

CHUNK = 256  # files that a process works on before it hands over what it made of them

Result = TypeVar("Result")
_of_this_process: tuple[Source, Callable[[Source, str], Any]] | None = None


def each_file(
    source: Source, names: list[str], work: Callable[[Source, str], Result], workers: int, chunk: int = CHUNK
) -> Iterator[Result]:
    """What `work` makes of each file, by its source and name; in this process alone where there are few, or an archive opens slowly.

    work: goes to other processes, so it must be something that can be pickled. chunk: files whose results are handed over together, of which up
    to twice as many as there are workers wait in memory: fewer where a result is large.
    """
    if workers < 2 or len(names) < 2 * CHUNK or not source.opens_cheaply:
        yield from (work(source, name) for name in names)
        return
    # forkserver: no locks or threads of the parent are inherited, and it costs less than spawn for each worker
    with ProcessPoolExecutor(workers, get_context("forkserver"), _open, (source.path, work)) as pool:
        try:
            chunks = (names[start : start + chunk] for start in range(0, len(names), chunk))
            ahead = deque(pool.submit(_do, few) for few in islice(chunks, 2 * workers))  # no more than that waits in memory
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(pool.submit(_do, few) for few in islice(chunks, 1))
        except BrokenProcessPool:
            pool.shutdown(wait=False, cancel_futures=True)
            raise BackendError(
                f"A process that read {source.path} was killed by the system, most likely out of memory. Free some memory and run it again."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _open(path: Path, work: Callable[[Source, str], Any]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C, and a terminal that goes away, are the parent's to answer
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    global _of_this_process  # an archive's directory is read once a process, not once a file
    _of_this_process = open_source(path), work


def _end_with_the_parent() -> None:
    """A parent that was killed asks for nothing any more, and nobody else would end this process."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _do(names: list[str]) -> list[Any]:
    assert _of_this_process is not None
    source, work = _of_this_process
    return [work(source, name) for name in names]
