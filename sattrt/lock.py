"""A folder that one process works in at a time. The lock is the system's (flock), on a file in the folder: it ends with the process,
however that ends.

    file = lock(Path("run/.lock"))     # None where another process has it
    ...
    file.close()
"""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: there is no lock then
    fcntl = None  # type: ignore[assignment]


def lock(path: Path) -> FileIO | None:
    """The file at `path`, made where it is missing and its folder too, open and locked; None where another process has it, or has just removed it.

    Raises OSError where it can't be made. On a disk that knows no locks it is open alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
    if _is_taken(file.fileno()):
        file.close()
        return None
    return file


def _is_taken(file: int) -> bool:
    if not fcntl:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)  # else it is a disk that knows no locks
    return os.fstat(file).st_nlink == 0  # another process has just let go of the folder, and removed it
