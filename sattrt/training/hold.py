"""A run folder belongs to one run at a time, and knows which launch began the run in it.

with held(Path("run"), rank) as hold:      # InputError where another process is at work in it
    hold.begun_here                        # True on every rank where this launch began the run that is there
    hold.begin()
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from ..errors import InputError
from ..lock import lock
from ..spec import remove_temporaries, unwritable
from .ranks import Rank

LOCK = ".lock"
# what a process that is killed while it writes leaves half of, under a temporary name: a checkpoint's is as large as the checkpoint
_WRITTEN = ("best.safetensors", "last.safetensors", "best.json", "last.json", "config.json", "log.csv", "samples.npz", "spec.json")


class Hold:
    """A folder that is held. begun_here: whether this launch, the same on all ranks, began the run in it."""

    def __init__(self, file: FileIO | None, begun_here: bool) -> None:
        self._file, self.begun_here = file, begun_here

    def begin(self) -> None:
        """Say that the run in the folder is this launch's, for the processes that the launcher starts after this one."""
        if self._file is not None:
            try:
                self._file.seek(0)
                self._file.truncate()
                self._file.write(launch().encode())
            except OSError as error:
                raise unwritable(Path(str(self._file.name)), error) from None


@contextlib.contextmanager
def held(out: Path, rank: Rank) -> Iterator[Hold]:
    """The folder for this run alone, made where it is missing, and removed where nothing came into it; the first rank
    holds it for all, and deletes the temporary files of runs that were killed. InputError where it is taken, or is no folder."""
    is_new, was_locked = not out.exists(), (out / LOCK).exists()
    file = _open(out) if rank.is_first else None
    if file is not None:
        remove_temporaries(*(out / name for name in _WRITTEN))
    try:
        [begun] = rank.sum(float(file is not None and file.read(1000) == launch().encode()))
        yield Hold(file, rank.restarted and begun > 0)
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                nothing_came = is_new and os.listdir(out) == [LOCK]
                if nothing_came or not (was_locked or (out / LOCK).stat().st_size):  # or no run was begun in it
                    (out / LOCK).unlink()
                if nothing_came:
                    out.rmdir()
            file.close()


def launch() -> str:
    """The process that started this one, by machine, number and start: torchrun's, which starts all processes of a run, and again after a loss.

    torchrun's own name of a run will not do: it is "none" unless one is given.
    """
    parent = os.getppid()
    try:
        start = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]  # in ticks since the machine's
    except OSError:  # not a Linux
        start = ""
    return f"{platform.node()} {parent} {start}"


def _open(out: Path) -> FileIO:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder. Choose another --out.")
    try:
        file = lock(out / LOCK)
    except OSError as error:
        raise unwritable(out, error) from None
    if file is None:
        raise InputError(f"Another process is training into {out}. Wait until it ends, or choose another --out.")
    return file
