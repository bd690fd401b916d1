"""The work folder of a map that isn't finished: answered blocks, and a manifest of what they belong to.

work = Work.begin(out, manifest, resume=True)
work.missing(grid)
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import ContractError, InputError, SattrtError
from ..lock import lock
from ..spec import atomic_path, read_json, unwritable, write_json
from .windows import Answers, Block, Grid

_MANIFEST, _LOCK = "manifest.json", "lock"
# all that is ever made in a work folder: these, blocks, and what has not taken its name yet
_OWN = re.compile(rf"{_MANIFEST}|{_LOCK}|block-\d{{6,}}\.npz|\..+\.[0-9a-f]{{8}}\.tmp(\.plain)?")


@dataclass(frozen=True)
class Work:
    """A folder beside the map, hidden; it goes away when the map is written. lock: held to the end of the `with`, or of this process."""

    folder: Path
    lock: FileIO

    @classmethod
    def begin(cls, out: Path, manifest: dict[str, Any], resume: bool) -> Work:
        """Make the folder, or go on with it. InputError where it can't be written, or another run is at it; ContractError where it belongs to
        something else."""
        # map.tif and map.tiff have one picture and one page: they share the folder, and so the lock
        folder = out.with_name(f".{out.stem}.tif.work")
        there = folder.exists()
        _check_own(folder)
        work = cls(folder, _locked(folder, out))
        try:
            work._prepare(out, manifest, resume, there)
        except BaseException:
            work.lock.close()
            raise
        return work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()  # not left to the garbage collector: what failed may be tried again in this process

    def _prepare(self, out: Path, manifest: dict[str, Any], resume: bool, there: bool) -> None:
        """Leave in the folder what a run can go on from. there: it was not made just now."""
        folder = self.folder
        found = _manifest(folder / _MANIFEST) if there else None
        if found is not None and found.get("map") != out.name:
            raise InputError(
                f"{folder} holds the unfinished map {found['map']}, which would share {out.stem}.png. Finish that map with --resume, or choose another --out."
            )
        own = _own(folder)
        blocks = sum(path.suffix == ".npz" and not path.name.startswith(".") for path in own)
        if found is not None and blocks and not resume:
            raise InputError(
                f"{out} was begun and not finished: {folder} holds {blocks} of its blocks. Continue with --resume, or delete that folder to start over."
            )
        if found is not None and resume:
            if fault := _other(found, manifest):
                raise ContractError(f"{out} was started with {fault}. Use that, or delete {folder} to start over.")
            for path in own:
                if path.name.startswith("."):  # never finished, and it takes space that the run may need
                    path.unlink()
            return
        for path in own:
            path.unlink()
        write_json(folder / _MANIFEST, {"map": out.name, **manifest})

    def missing(self, grid: Grid) -> list[int]:
        """Indexes of the blocks that have no answers yet, or a damaged file: they are read whole, which takes far less time than to compute one."""
        return [block.index for block in grid.blocks if not self._is_sound(block)]

    def _is_sound(self, block: Block) -> bool:
        try:
            return bool(self._path(block.index).is_file() and self.read(block))
        except ContractError:
            return False

    def write(self, index: int, answers: Answers) -> None:
        """Keep the answers of a block. InputError where they can't be written."""
        with atomic_path(self._path(index)) as path, open(path, "wb") as file:
            np.savez(file, probabilities=answers.probabilities, seen=answers.seen)

    def read(self, block: Block) -> Answers:
        """The answers of a block. ContractError where the file is damaged."""
        path = self._path(block.index)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = Answers(file["probabilities"], file["seen"])
            if (len(found.probabilities), len(found.seen)) != (len(block.windows), len(block.cells)):
                raise ValueError("it has the rows of another block")
            return found
        except (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ContractError(f"{path} can't be read ({error}). Run it again with --resume, which recomputes it.") from None

    def remove(self) -> None:
        """Delete what was made in the folder, and the folder where nothing else is in it."""
        try:
            for path in (*_own(self.folder), self.folder / _LOCK):
                path.unlink(missing_ok=True)
            self.lock.close()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:06}.npz"


def _other(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What a run was started with in place of what is wanted; "" where all is the same."""
    before, now = (sorted(key.removeprefix("file ") for key in each if key.startswith("file ")) for each in (found, wanted))
    if before != now:
        return f"the scene {', '.join(before)}, not {', '.join(now)}"
    for name, value in wanted.items():
        if found.get(name) != value:
            changed = f"{name.removeprefix('file ')} as it was before it changed"
            return changed if name.startswith("file ") else f"another {name}: {found.get(name)!r}, not {value!r}"
    return ""


def _own(folder: Path) -> list[Path]:
    """The files of a run but for its lock."""
    return [path for path in folder.iterdir() if path.name != _LOCK and _OWN.fullmatch(path.name)]


def _check_own(folder: Path) -> None:
    """InputError for a folder that no run made: its files would be deleted."""
    if folder.is_symlink() or not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder; a map needs a folder of that name for its work. Move it away, or choose another --out."
        )
    with os.scandir(folder) as entries:  # a run that is at it may rename a file before it could be looked at by its name
        foreign = [entry.name for entry in entries if not (_OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))]
    manifest, empty = folder / _MANIFEST, folder / _LOCK
    if manifest.exists() and "sattrt" not in (_manifest(manifest) or {}):
        foreign.append(_MANIFEST)
    if empty.exists() and empty.stat().st_size:
        foreign.append(_LOCK)
    if foreign:
        raise InputError(f"{folder} holds {min(foreign)}, which no run of sattrt map made. Move it away, or choose another --out.")


def _locked(folder: Path, out: Path) -> FileIO:
    """The lock of a work folder, which goes with this process. InputError where another has it, or the folder can't be made or is a link."""
    if folder.is_symlink():
        raise InputError(f"{folder} is a link; what it points to would be deleted with it. Remove the link, or choose another --out.")
    try:
        file = lock(folder / _LOCK)
    except OSError as error:
        raise unwritable(out, error) from None
    if file is None:
        raise InputError(f"{out}, or a map that shares its picture, is being made by another run. Wait for it, or choose another --out.")
    return file


def _manifest(path: Path) -> dict[str, Any] | None:
    """A run that was killed before it wrote one has nothing to go on from."""
    try:
        found = read_json(path)
    except SattrtError:
        return None
    return found if isinstance(found, dict) else None
