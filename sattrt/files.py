"""The only way sattrt reads JSON and writes files: whole or not at all, and in one line where that can't be.

write_json(Path("run/config.json"), {"epochs": 20})
with atomic_path(Path("map.tif")) as temporary:
    ...
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ContractError, InputError

A_DAY = 86_400.0  # seconds; whoever has not touched a temporary folder for that long is dead
_TOKEN_BYTES = 4  # of the random part of a temporary name


def check_schema(data: Any, path: Path, schema: int) -> None:
    """ContractError unless `data` is a JSON object of this schema version."""
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise ContractError(
            f"{path} has schema {found!r}; this sattrt reads schema {schema}. "
            "Make the file again with this version, or install the version that wrote it."
        )


def read_json(path: Path) -> Any:
    """Parse a JSON file; InputError where it is missing, ContractError where it is no JSON."""
    return parse_json(read_bytes(path), path)


def parse_json(content: bytes, path: Path) -> Any:
    """Parse the content of a JSON file; ContractError where it is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{path} is not readable JSON ({error}). Make it again, or restore it.") from None


def read_bytes(path: Path) -> bytes:
    """The content of a file; InputError where it can't be read."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file. Check the path.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Can't read {path}: {error.strerror}. Check the path.") from None


def is_file(path: Path) -> bool:
    """Whether there is a file; InputError where the system doesn't tell, as of a name that is too long or a folder without permission."""
    try:
        return path.is_file()
    except OSError as error:
        raise InputError(f"Can't read {path}: {error.strerror}. Check the path.") from None


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file; InputError where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Can't read {path}: {error.strerror}. Check the path.") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, two spaces of indentation, a newline at the end."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes, setting: str = "--out") -> None:
    """Write a file atomically. setting: as `atomic_path` has it."""
    with atomic_path(path, setting) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_path(path: Path, setting: str = "--out") -> Iterator[Path]:
    """A temporary name in the folder of `path`; it becomes `path` when the block ends without an error.

    A killed process leaves the old file or the new one, never half. InputError where the folder can't be
    written or the disk is full; the old file is still there then. setting: where `path` came from, for that error; "" where it can't be chosen.
    What a link leads to is replaced, not the link. A device or a pipe, as /dev/stdout, is not replaced but written to.
    """
    if _is_written_to(path):
        try:
            yield path
        except BrokenPipeError:  # whoever read it has what it wanted
            raise
        except OSError as error:
            raise unwritable(path, error, setting) from None
        return
    if path.parent in (Path("/dev"), Path("/dev/fd")):
        raise InputError(f"{path} leads to the file {os.path.realpath(path)}, which would be replaced. Give that path itself.")
    path = _target(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error, setting) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The path that is written where `path` is: what a link leads to, any other as it is, absolute."""
    return Path(os.path.realpath(path) if path.is_symlink() else os.path.abspath(path))


def _is_written_to(path: Path) -> bool:
    """Whether it is a device or a pipe, which no file takes the place of."""
    return path.exists() and not path.is_file() and not path.is_dir()


def remove_temporaries(*paths: Path, seconds: float = 0) -> None:
    """Delete what processes that were killed within `atomic_path(path)` or `atomic_folder(path)` left.

    seconds: how long ago it was touched last, at least; with 0 nothing else may be writing these now.
    """
    for path in map(_target, paths):
        for left in path.parent.glob(f".{glob.escape(path.name)}.{2 * _TOKEN_BYTES * '[0-9a-f]'}.*"):
            with contextlib.suppress(OSError):
                touched = max(each.lstat().st_mtime for each in (left, *left.glob("*")))
                if time.time() - touched < seconds:
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path, setting: str = "--out") -> Iterator[Path]:
    """Like `atomic_path`, for a folder: the old folder is replaced as a whole, or kept as a whole. InputError where a file is in its place."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, not a folder: it is not replaced. Choose another {setting}.")
    path, token = Path(os.path.realpath(path)), secrets.token_hex(_TOKEN_BYTES)  # what a link leads to is replaced, not the link
    require_replaceable(path, setting)
    temporary, old = (path.with_name(f".{path.name}.{token}.{end}") for end in ("tmp", "old"))
    if path.exists():  # else what a killed process put aside may be all that there is of it
        remove_temporaries(path, seconds=A_DAY)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not path.exists():
            os.replace(temporary, path)
        elif not _exchange(path, temporary):
            os.replace(path, old)
            os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error, setting) from None
    finally:
        if old.exists() and not path.exists():  # stopped between the two, by a signal too
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def require_replaceable(path: Path, setting: str = "--out") -> None:
    """InputError for a folder that can't be replaced as a whole: better now than after the work."""
    if os.path.ismount(path):
        raise InputError(f"{path} is a mount point, which can't be replaced as a whole. Choose a folder in it: {setting} {path / 'NAME'}")


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's names in one step, so that a kill finds the one or the other in place; whether that can be done here.

    Source: renameat2(2), which Linux and most of its file systems know.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0)


def require_space(path: Path, size: int) -> None:
    """InputError unless the disk that `path` will lie on has `size` bytes left: better now than after an hour of work."""
    place = _nearest(_target(path))
    if (free := shutil.disk_usage(place).free) < size:
        raise InputError(
            f"The disk is full: {path} needs {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free. Free some space, or choose another --out."
        )


def require_writable(path: Path, setting: str = "--out") -> None:
    """InputError where `path` can't be made, for what lies in the way of its folder or for want of a right: better now than after the work."""
    if _is_written_to(path):
        return
    place = _nearest(_target(path).parent)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"Can't write {path}: {place} is {'read-only' if place.is_dir() else 'not a folder'}. {f'Choose another {setting}' if setting else 'Check its permissions'}."
        )


def _nearest(path: Path) -> Path:
    """The path, or the first of the folders above it that is there, be it a link to nothing."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))


def unwritable(path: Path, error: OSError, setting: str = "--out") -> InputError:
    """The one-line error for a file that can't be written. setting: what says where it is to be; "" where that can't be chosen."""
    full = error.errno == errno.ENOSPC
    said = f"The disk is full: {path} was not written." if full else f"Can't write {path}: {error.strerror or error}."
    if not setting:
        return InputError(f"{said} {'Free some space' if full else 'Check the permissions of its folder'}.")
    return InputError(f"{said} {'Free some space, or choose' if full else 'Choose'} another {setting}.")
