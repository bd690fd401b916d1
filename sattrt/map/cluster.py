"""Blocks of scenes on other processes or machines, by Dask: they open scene and bundle by their paths, and send back the answers.

with connect(bundle, engine, MapConfig(cluster="tcp://10.0.0.5:8786")) as compute:
    for index, answers in compute(plan, [0, 1, 2]):
        ...

A task that dies with its worker is given to another. The files of a map are written here alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import pkgutil
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..cores import cores
from ..errors import BackendError, ContractError, InputError, SattrtError
from ..runtime import Bundle, Engine, read_bundle
from .blocks import Plan, compute_from
from .config import MapConfig
from .scene import Reader, Scene, stamps
from .windows import Answers

# seconds until these are given up: a scheduler that doesn't answer, a worker that doesn't say which version it has, a cluster without workers
_PATIENCE, _SLOW, _DESERTED = 5, 30, 60
_of_this_thread = threading.local()


@contextlib.contextmanager
def connect(bundle: Bundle, engine: Engine, config: MapConfig) -> Iterator[Callable[[Plan, list[int]], Iterator[tuple[int, Answers]]]]:
    """A function like `compute_here` that a Dask cluster works for. BackendError without Dask, or where no scheduler answers."""
    distributed = _library()
    with contextlib.ExitStack() as stack:
        threads = config.threads
        logger = logging.getLogger("distributed.client")  # what goes wrong comes back as an exception
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        try:
            if config.cluster == "local":
                workers = config.workers or cores()
                threads = threads or max(1, cores() // workers)
                local = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
                address = stack.enter_context(local).scheduler_address
            else:
                address = config.cluster
                if not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d{1,5}", address):  # Dask would try for a while, and not be silent about it
                    raise InputError(f"The address of the cluster is {address!r}; give tcp://HOST:8786, or local.")
            client = stack.enter_context(distributed.Client(address, timeout=_PATIENCE, set_as_default=False))
        except (OSError, ValueError, TimeoutError) as error:
            raise BackendError(
                f"No Dask scheduler answers at {config.cluster} ({error}). Start one with: dask scheduler, and workers with: dask worker ADDRESS"
            ) from None
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise BackendError(f"The Dask scheduler at {address} has no workers. Start some: dask worker {address} --nthreads 1") from None
        _check_versions(client, address)
        where = (str(bundle.path.absolute()), bundle.digest, engine.name, engine.device, threads)

        def compute(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
            bands = tuple(dataclasses.replace(band, path=os.path.abspath(band.path)) for band in plan.scene.bands)
            scene = dataclasses.replace(plan.scene, bands=bands)
            grid = dataclasses.replace(plan.grid)  # without what it has worked out, which is long
            bare = dataclasses.replace(plan, scene=scene, grid=grid)
            task = partial(_block, bare, stamps(scene.files), *where)
            futures = iter(client.map(task, blocks, pure=False))  # no list: an answer is let go when it was taken
            try:
                for index, found in _results(client, distributed.as_completed(futures, with_results=True, loop=client.loop)):
                    if not isinstance(found, Answers):
                        kind, message = found
                        raise kind(message)
                    yield index, found
            except (distributed.KilledWorker, distributed.CancelledError, OSError, TimeoutError) as error:
                raise BackendError(
                    f"The Dask cluster at {address} failed ({error or type(error).__name__}). Fix it, then continue with --resume: finished blocks are kept."
                ) from None

        yield compute


def _check_versions(client: Any, address: str) -> None:
    """BackendError where the scheduler or a worker lacks sattrt, or has another version: it could not read what it is sent, and never answer."""
    asked = {f"The worker {worker}": partial(client.run, workers=[worker]) for worker in client.nthreads()}
    for name, ask in {f"The Dask scheduler at {address}": client.run_on_scheduler, **asked}.items():
        try:  # by the standard library, which is there
            found = client.sync(ask, pkgutil.resolve_name, "sattrt:__version__", callback_timeout=_SLOW)
        except (ImportError, AttributeError):
            raise BackendError(f"{name} has no sattrt. Install sattrt {__version__} there, as it is here.") from None
        except (OSError, TimeoutError):
            raise BackendError(f"{name} does not answer. Start it again, or leave it out.") from None
        found = found if isinstance(found, str) else next(iter(found.values()))
        if found != __version__:
            raise BackendError(f"{name} has sattrt {found}, this machine {__version__}. Install the same version on all.")


def _results(client: Any, completed: Any) -> Iterator[Any]:
    """Each result as it comes; OSError where the cluster is gone, or has had no worker for a while."""
    seen = time.monotonic()
    while not completed.is_empty():
        if completed.has_ready():
            _, result = next(completed)
            # Dask raises some failures, and hands others over: alone, or as sys.exc_info() gives them
            failure = result[1] if isinstance(result, tuple) else result
            if isinstance(failure, BaseException):
                raise failure
            yield result
        else:
            time.sleep(0.1)
            if client.nthreads():
                seen = time.monotonic()
            elif time.monotonic() - seen > _DESERTED:
                raise OSError("all of its workers are gone")


def _block(
    plan: Plan, files: dict[str, list[int]], bundle: str, digest: str, name: str, device: str, threads: int, index: int
) -> tuple[int, Answers | tuple[type[SattrtError], str]]:
    """One block, in a worker. What the user can mend is no failure of the task: its kind and message are the answer."""
    try:
        _same_files(plan, files)
        return next(compute_from(_reader(plan.scene, files), _engine(bundle, digest, name, device, threads), plan, [index]))
    except SattrtError as error:
        return index, (type(error), str(error))


def _same_files(plan: Plan, files: dict[str, list[int]]) -> None:
    """ContractError where the scene's files are not those that the map is made of."""
    try:
        same = stamps(plan.scene.files) == files
    except OSError:
        same = False
    if not same:
        raise ContractError(
            f"{plan.scene.files[0]} is missing on a worker, or differs from the file here. Put scenes on a disk that all share."
        )


def _reader(scene: Scene, files: dict[str, list[int]]) -> Reader:
    """A scene stays open in the thread that reads it: blocks of its files that are unpacked are met again by the next task."""
    if getattr(_of_this_thread, "key", None) != (scene, files):
        _of_this_thread.key, _of_this_thread.reader = (scene, files), Reader(scene)
    reader: Reader = _of_this_thread.reader
    return reader


@functools.lru_cache(maxsize=1)
def _engine(bundle: str, digest: str, name: str, device: str, threads: int) -> Engine:
    """An engine stays open in its worker. ContractError where that has another bundle, or runs the engine on another device than it says here."""
    found = read_bundle(Path(bundle))
    if found.digest != digest:
        raise ContractError(f"{bundle} differs on a worker. Give all the same bundle, on a shared disk.")
    engine = found.open(name, threads, spinning=False)
    if (engine.device == "cpu") != (device == "cpu"):  # GPUs may differ: each plan says which it is for
        engine.close()
        raise ContractError(
            f"A worker runs {name} on {engine.device}, this machine on {device}. Install the same on all, or give another --engine."
        )
    return engine


def _library() -> Any:
    try:
        import distributed
    except ImportError:
        raise BackendError("Dask is not installed. Install it with: pip install 'sattrt[cluster]'") from None
    return distributed
