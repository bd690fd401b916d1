"""A foreign program on the same tiles: `sattrt bench BUNDLE --peer "python theirs.py {tiles}"`.

The command is given the path of a .npy file of (N, height, width, bands), uint8 or uint16 as the bundle takes them, in place of {tiles}, or as
its last word where there is no {tiles}; it prints a line for each tile, in order, that begins with a class name or index. It is run for one tile and for all, in
turns: the difference is what the tiles took, without the program's start. Where the runs differ among themselves by more than a tenth of
that, it is given the tiles several times over; where that does not help, its speed is indicative.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_PAIRS = 3  # of a run for one tile and one for all
_CLEAR = 10  # how many times what runs differ by the tiles must take
_MOST_BYTES, _LONGEST = 2**28, 10  # of the tiles several times over; seconds of a run of them


@dataclass(frozen=True)
class Peer:
    """A foreign program's answers (class indices, int64 (N,)), images a second without its start, and its start in seconds.

    indicative: whether runs differ too much among themselves for that speed. images: that each run of `seconds` handled; starts: seconds
    of each run for one tile.
    """

    command: str
    labels: NDArray[np.int64]
    images_per_second: float
    start_seconds: float
    indicative: bool
    images: int
    seconds: list[float]
    starts: list[float]


def run_peer(command: str, tiles: NDArray[np.unsignedinteger], classes: tuple[str, ...], limit: float) -> Peer:
    """Run it. limit: seconds for one run. InputError where it can't be started, fails, takes longer, or prints something else, or where the
    disk is too small for the tiles."""
    words = _words(command)
    with tempfile.TemporaryDirectory() as folder:
        one, every = Path(folder, "one.npy"), Path(folder, "tiles.npy")
        _save(one, tiles[:1])
        _save(every, tiles)
        labels = _labels(command, _run(words, command, every, limit)[1], classes, len(tiles))  # fills the disk's cache, too
        times = 1
        while True:
            pairs = [[_run(words, command, path, limit)[0] for path in (one, every)] for _ in range(_PAIRS)]
            starts, seconds = (list(each) for each in zip(*pairs, strict=True))
            start, whole = float(np.median(starts)), float(np.median(seconds))
            beyond, jitter = whole - start, max(np.ptp(starts), np.ptp(seconds))
            more = times * int(np.clip(np.ceil(2 * _CLEAR * jitter / max(beyond, 1e-9)), 2, 16))
            if (
                beyond >= _CLEAR * jitter
                or more * tiles.nbytes > _MOST_BYTES
                or whole + more / times * max(beyond, 0) > min(limit, _LONGEST)
            ):
                break
            times = more
            _save(every, np.concatenate([tiles] * times))
    if beyond <= jitter:
        raise InputError(
            f"The peer {command!r} takes {1e3 * beyond:.0f} ms longer for {times * len(tiles)} tiles than for one, and its runs differ by "
            f"{1e3 * jitter:.0f} ms: too much to tell its speed. Give it more tiles, or check what it does."
        )
    images = times * len(tiles)
    return Peer(command, labels, (images - 1) / beyond, start, bool(beyond < _CLEAR * jitter), images, seconds, starts)


def require_program(command: str) -> None:
    """InputError where a peer's command is none, or its program is not there: before anything is measured."""
    program = _words(command)[0]
    if not shutil.which(program):
        raise InputError(f"The peer {command!r} can't be started: {program!r} is not a program that can be run. Check the command.")


def _save(path: Path, tiles: NDArray[np.unsignedinteger]) -> None:
    try:
        np.save(path, tiles)
    except OSError as error:
        raise InputError(
            f"The tiles for a peer were not written to {path.parent}: {error.strerror or error}. Free some space, or set TMPDIR."
        ) from None


def _words(command: str) -> list[str]:
    """The words of a command. InputError where a quote is not closed, or it is empty."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"The peer {command!r} is not a command ({error}). Quote it as for a shell.") from None
    if not words:
        raise InputError("The peer is an empty command. Give a program.")
    return words if any("{tiles}" in word for word in words) else [*words, "{tiles}"]


def _run(words: list[str], command: str, path: Path, limit: float) -> tuple[float, str]:
    begin = time.perf_counter()
    try:
        process = subprocess.Popen(
            [word.replace("{tiles}", str(path)) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what it starts can be stopped with it
        )
    except OSError as error:
        raise InputError(f"The peer {command!r} can't be started: {error.strerror}. Check the command.") from None
    try:
        said, complaints = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"The peer {command!r} was stopped after {limit:g} s: it, or what it has started, kept its output open. Raise peer_seconds, or fix the program."
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        last = (complaints.strip() or "it says nothing").splitlines()[-1]
        raise InputError(f"The peer {command!r} failed with exit code {process.returncode}: {last[:200]}. Fix it, or leave it out.")
    return time.perf_counter() - begin, said


def _labels(command: str, text: str, classes: tuple[str, ...], count: int) -> NDArray[np.int64]:
    known = {str(i): i for i in range(len(classes))} | {name: i for i, name in enumerate(classes)}
    longest = sorted(known, key=len, reverse=True)  # of the classes "Sea" and "Sea Lake" the one that is meant
    words = [line.split("\t")[0].strip() for line in text.splitlines() if line.strip()]
    found = [next((known[name] for name in longest if f"{word} ".startswith(f"{name} ")), None) for word in words]
    if len(found) != count or None in found:
        odd = next((word for word, label in zip(words, found, strict=True) if label is None), f"{len(found)} lines")
        raise InputError(
            f"The peer {command!r} prints {odd[:60]!r}; it must print a class name or index for each of {count} tiles, a line each."
        )
    return np.array(found, np.int64)
