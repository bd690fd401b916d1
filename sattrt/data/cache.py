"""Tiles that are slow to decode, decoded once: `tiles.npy` beside dataset.json, uint16 (tiles, H, W, bands) in the dataset's order.

dataset = write_cache(dataset, Path("dataset"), workers=2)
rows = open_cache(dataset)
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ContractError, InputError
from ..spec import A_DAY, atomic_path, remove_temporaries, require_space, sha256_file
from .dataset import Cache, Dataset
from .decode import TileFormat
from .sources import Source
from .workers import CHUNK, each_file

NAME = "tiles.npy"
_BYTES_AT_ONCE = 2**25  # of tiles that a process hands over together: a few such lots wait in memory, for each core


@dataclasses.dataclass(frozen=True)
class _Decoding:
    """A file of a source to its pixels; InputError where it is not what was scanned."""

    kind: TileFormat
    sha256: dict[str, str]

    def __call__(self, source: Source, name: str) -> NDArray[np.unsignedinteger]:
        content = source.read(name)
        if hashlib.sha256(content).hexdigest() != self.sha256[name]:
            raise InputError(f"{name} has changed since it was scanned. Run `sattrt data` again.")
        return self.kind.read(content).pixels


def write_cache(
    dataset: Dataset, folder: Path, workers: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """Decode all tiles into `folder/tiles.npy`, atomically; the dataset that knows of it, to be written beside it.

    Raises InputError where the disk is too small, or a tile is no longer what was scanned.
    """
    names = [tile.name for tile in dataset.all_tiles]
    shape = (len(names), dataset.height, dataset.width, len(dataset.bands))
    path = folder / NAME
    remove_temporaries(path, seconds=A_DAY)  # a large file that a killed scan left
    require_space(path, 2 * math.prod(shape))
    chunk = max(1, min(CHUNK, _BYTES_AT_ONCE // dataset.tile_bytes))
    work = _Decoding(dataset.format, {tile.name: tile.sha256 for tile in dataset.all_tiles})
    with atomic_path(path) as temporary, dataset.open() as source:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": shape})
        digest = hashlib.sha256(header.getvalue())
        with open(temporary, "wb") as file:
            file.write(header.getvalue())
            for done, pixels in enumerate(each_file(source, names, work, workers, chunk), 1):
                content = pixels.tobytes()
                digest.update(content)  # as it is written: read again, a large file would take as long once more
                file.write(content)
                on_progress(done, len(names))
    # its own name, and not that of what a link leads to: by it the file is looked for beside dataset.json
    return dataclasses.replace(dataset, cache=Cache(str(path.absolute()), digest.hexdigest()))


def open_cache(dataset: Dataset) -> NDArray[np.uint16]:
    """The decoded tiles, mapped into memory. ContractError where the file is not the one that was written."""
    assert dataset.cache is not None
    path = Path(dataset.cache.path)
    if not path.is_file():
        raise InputError(f"{path}, the decoded tiles, is missing. Run `sattrt data` again.")
    status = path.stat()
    if _digest(path, status.st_mtime_ns, status.st_size) != dataset.cache.sha256:
        raise ContractError(f"{path} was changed since it was written: its sha256 is not the recorded one. Run `sattrt data` again.")
    rows: NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


@lru_cache
def _digest(path: Path, modified: int, size: int) -> str:
    """Of a file at one time of its life: it is read whole, and once a process."""
    return sha256_file(path)
