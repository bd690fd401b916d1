"""What an engine says of tiles wherever they lie: image files, folders of any depth, zip and tar archives.

    left_out: dict[str, str] = {}
    with open_bundle("engines/eurosat") as engine:
        for answer in predict_files(engine, [Path("tiles.zip")], left_out):
            print(answer.file, answer.name, answer.probability)

One batch is decoded while the one before it is answered: memory is taken by two of them, however many files there are.
"""

from __future__ import annotations

import contextlib
import csv
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bands import RGB
from .cores import cores
from .data.decode import EXTENSIONS, read_for
from .data.sources import ARCHIVES, FolderSource, Source, Unreadable, is_archive, open_source
from .errors import InputError
from .runtime import Engine, NoNumbersError, refuse_inside
from .shift import shifts
from .spec import ModelSpec, atomic_path, require_writable

Pixels = NDArray[np.unsignedinteger]
_BATCH, _MOST_THREADS = 64, 4


@dataclass(frozen=True)
class Answer:
    """What an engine says of one file.

    file: its path; of a member of an archive, archive/member. name: of its class, or "rejected". probabilities: of every class, by its name, in
    index order.
    """

    file: str
    name: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """Of the likeliest class, 0..1."""
        return max(self.probabilities.values())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"file": self.file, "class": self.name, "probability": self.probability, "probabilities": self.probabilities}


@dataclass(frozen=True)
class _File:
    name: str
    source: Source
    member: str


def predict_files(
    engine: Engine,
    paths: Sequence[str | Path],
    left_out: dict[str, str],
    reject: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    notes: list[str] | None = None,
) -> Iterator[Answer]:
    """The answers for every file of `paths` (image files, folders, zip and tar archives), in the order of the paths, then of the names.

    left_out: takes up what can't be used, by its name, with the reason. reject: as in `Engine.predict`. on_progress: called with files done and
    files in all. notes: takes up what is odd of the bands of the first batch where something is, see `shift`. Raises InputError where nothing can be used; BackendError where the tiles are GeoTIFF and rasterio is not installed.
    """
    # a GeoTIFF is read with warnings silenced, which Python can't do for one thread of several
    threads = min(cores(), _MOST_THREADS) if engine.spec.bands == RGB else 1
    any_answer = False
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(threads) as pool:
        files = [file for path in map(Path, paths) for file in _listed(path, opened, left_out)]
        waiting: list[tuple[_File, Future[Pixels]]] = []
        for start in range(0, len(files) + _BATCH, _BATCH):  # once more than there are batches, for the answers to the last
            contents = _contents(files[start : start + _BATCH], left_out)
            ahead = [(file, pool.submit(_decoded, content, engine.spec)) for file, content in contents]
            for answer in _answers(engine, waiting, reject, left_out, notes):
                any_answer = True
                yield answer
            waiting = ahead
            on_progress(min(start, len(files)), len(files))
    if not any_answer:
        name, reason = next(iter(left_out.items()), ("nothing", "no path was given"))
        first = f"{name}: {reason.rstrip('.')}"
        said = first if len(left_out) < 2 else f"None of {len(left_out)} files can be used. The first is {first}"
        raise InputError(
            f"{said}. Give images of {engine.spec.width}x{engine.spec.height} pixels, or folders, zips or tars of them, or map a scene: sattrt map."
        )


@contextlib.contextmanager
def csv_of_answers(
    path: Path, classes: Sequence[str], sources: Sequence[Path] = (), bundle: Path | None = None
) -> Iterator[Callable[[Answer], object]]:
    """A function that adds an answer to a new CSV file: a row a file, its class, that probability, and a column for every class's.

    sources: what is predicted, none of which it may replace. bundle: the folder of the engine, in which it may not lie. The file is there when the block ends, whole; or not at all. InputError where it
    can't be written, as the block begins if that can be told.
    """
    _refuse_source(path, sources)
    if bundle:
        refuse_inside(bundle, path, "--csv")
    if path.is_dir():
        raise InputError(f"Can't write {path}: it is a folder. Choose another --csv.")
    require_writable(path, "--csv")
    with atomic_path(path, "--csv") as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "class", "probability", *classes))
        yield lambda answer: writer.writerow(
            (answer.file, answer.name, *(f"{value:.7g}" for value in (answer.probability, *answer.probabilities.values())))
        )


def _refuse_source(path: Path, sources: Sequence[Path]) -> None:
    """InputError for a table in the place of a tile: of `--csv *.jpg` the first tile is the table, and no source any more."""
    if path.suffix.lower() in (*EXTENSIONS, *ARCHIVES):
        raise InputError(f"Can't write {path}: by its name it is a tile or an archive, not a table. Choose another --csv.")
    if os.path.realpath(path) in map(os.path.realpath, sources):
        raise InputError(f"Can't write {path}: it is one of the files to predict. Choose another --csv.")


def _listed(path: Path, opened: contextlib.ExitStack, left_out: dict[str, str]) -> list[_File]:
    """The images of one path, whatever else lies beside them; an archive is closed with `opened`."""
    try:
        if path.is_file() and (path.suffix.lower() in EXTENSIONS or not is_archive(path)):
            return [_File(str(path), FolderSource(path.parent), path.name)]
        if not path.exists():
            raise InputError("it does not exist")
        source = opened.enter_context(open_source(path))
        images = [name for name in source.names() if posixpath.splitext(name)[1].lower() in EXTENSIONS]
        irregular = source.irregular
    except (InputError, OSError) as error:
        left_out[str(path)] = (
            (error.strerror or "can't be read") if isinstance(error, OSError) else re.sub(f"^{re.escape(str(path))} ", "it ", str(error))
        )
        return []
    left_out |= {f"{path}/{name}": reason for name, reason in irregular.items()}
    if not images:
        left_out[str(path)] = "it holds no image"
    return [_File(f"{path}/{name}", source, name) for name in images]


def _contents(files: list[_File], left_out: dict[str, str]) -> Iterator[tuple[_File, bytes]]:
    for file in files:
        try:
            yield file, file.source.read(file.member)
        except Unreadable as error:
            left_out[file.name] = error.fault


def _decoded(content: bytes, spec: ModelSpec) -> Pixels:
    tile = read_for(content, spec.bands, spec.offset, spec.file_bands)
    height, width = tile.shape[:2]
    if (height, width) != (spec.height, spec.width):
        del tile  # which the error would keep, of each of a batch
        raise InputError(f"{width}x{height} pixels; the engine takes {spec.width}x{spec.height}")
    return tile


def _answers(
    engine: Engine, waiting: list[tuple[_File, Future[Pixels]]], reject: bool, left_out: dict[str, str], notes: list[str] | None
) -> Iterator[Answer]:
    good, tiles = [], []
    for file, decoding in waiting:
        try:
            tiles.append(decoding.result())
            good.append(file.name)
        except InputError as error:
            left_out[file.name] = str(error)
    if tiles:
        batch = np.stack(tiles)
        if notes is not None and not notes:
            notes += [f"from {good[0]} on: {said}" for said in shifts(engine.spec, batch)]
        for name, found, row in _predicted(engine, good, batch, reject, left_out):
            yield Answer(name, found, dict(zip(engine.classes, map(float, row), strict=True)))


def _predicted(
    engine: Engine, names: list[str], tiles: Pixels, reject: bool, left_out: dict[str, str]
) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Name, class and probabilities of each tile; one that gets no numbers is left out, alone."""
    try:
        result = engine.predict(tiles, reject, _BATCH)
    except NoNumbersError as error:
        if len(tiles) == 1:
            left_out[names[0]] = str(error)
        else:
            for i, name in enumerate(names):
                yield from _predicted(engine, [name], tiles[i : i + 1], reject, left_out)
        return
    yield from zip(names, result.names, result.probabilities, strict=True)
