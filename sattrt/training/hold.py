"""A run folder belongs to one run at a time, and knows which launch began the run in it.

    with held(Path("run"), rank) as hold:      # InputError where another process is at work in it
        hold.begun_here                        # True on every rank where this launch began the run that is there
        hold.begin()

The lock is the system's (flock), on `.lock` in the folder: it ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..spec import remove_temporaries, unwritable
from .hardware import Rank

try:
    import fcntl
except ImportError:  # not a Unix: there is no lock then
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# what a process that is killed while it writes leaves half of, under a temporary name: a checkpoint's is as large as the checkpoint
_WRITTEN = ("best.safetensors", "last.safetensors", "best.json", "last.json", "config.json", "log.csv", "samples.npz", "spec.json")


class Hold:
    """A folder that is held. begun_here: whether this launch, the same on all ranks, began the run in it."""

    def __init__(self, file: int | None, begun_here: bool) -> None:
        self._file, self.begun_here = file, begun_here

    def begin(self) -> None:
        """Say that the run in the folder is this launch's, for the processes that the launcher starts after this one."""
        if self._file is not None:
            os.truncate(self._file, 0)
            os.pwrite(self._file, launch().encode(), 0)


@contextlib.contextmanager
def held(out: Path, rank: Rank) -> Iterator[Hold]:
    """The folder for this run alone, made where it is missing, and removed where nothing came into it; the first rank
    holds it for all, and deletes the temporary files of runs that were killed. InputError where it is taken, or is no folder."""
    is_new = not out.exists()
    file = _open(out) if rank.is_first else None
    if file is not None:
        remove_temporaries(*(out / name for name in _WRITTEN))
    try:
        [begun] = rank.sum(float(file is not None and os.pread(file, 1000, 0) == launch().encode()))
        yield Hold(file, rank.restarted and begun > 0)
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                if is_new and os.listdir(out) == [LOCK]:  # nothing came of it
                    (out / LOCK).unlink()
                    out.rmdir()
            os.close(file)


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


def _open(out: Path) -> int:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder. Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(out, error) from None
    if _is_taken(file):
        os.close(file)
        raise InputError(f"Another process is training into {out}. Wait for its end, or choose another --out.")
    return file


def _is_taken(file: int) -> bool:
    if not fcntl:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)  # else it is a disk that knows no locks
    return os.fstat(file).st_nlink == 0  # another process has just let go of the folder, and removed it
