"""What lies beside a map under its name: another map that would share it, files that no run made, and what an older map leaves.

check_alone(out, paths)       # before anything is written
left = left_by_older(out)     # before the map takes its name
remove(left)                  # once it has it
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError
from .geo import open_raster
from .mapfile import CHANGE_TAG, TAG
from .output import probabilities_path
from .picture import MADE_BY

_ENDS = (".tif", ".tiff", ".TIF", ".TIFF")
_TITLE = b": sattrt map</title>"  # of every page that `page` makes
_HEAD = 4096  # bytes of a page that its title lies in, and of a picture its note


def check_alone(out: Path, paths: Iterable[Path]) -> None:
    """InputError where one of the paths that are written for a map is there and no run made it, or where another map differs from `out` in
    its ending alone: both have one picture, and one page."""
    for other in (out.with_suffix(end) for end in _ENDS):
        if _same_file(other, out):  # as on a disk that does not tell m.tif from m.TIF
            continue
        if _is_map(other):
            raise InputError(
                f"{out} would replace {out.stem}.png, the picture of the map {other}. Remove that map, or choose another --out."
            )
    for path in paths:
        if path.exists() and not _is_ours(path, out):
            raise InputError(f"{path} is there already, and no run of sattrt map made it. Move it away, or choose another --out.")


def left_by_older(out: Path) -> list[Path]:
    """What shows the scene of the map of ours that is at `out` and is not written by every run: its page, its probabilities, and the overviews
    that QGIS or gdaladdo made of it, which would hide the new map.

    A file of the same name that no run wrote is none of them.
    """
    tags = _described(out)[0]
    left = [path for path in (out.with_suffix(".html"), probabilities_path(out)) if TAG in tags and _is_ours(path, out)]
    overviews = out.with_name(f"{out.name}.ovr")
    return [*left, overviews] if {TAG, CHANGE_TAG} & tags.keys() and overviews.is_file() else left


def remove(paths: Iterable[Path]) -> None:
    """Delete files. InputError for one that can't be."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"Can't remove {path}, which shows an older map: {error.strerror}. Remove it yourself.") from None


def _same_file(one: Path, other: Path) -> bool:
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


def _described(path: Path) -> tuple[dict[str, Any], tuple[str | None, ...]]:
    """The tags of a raster and what its bands are called; nothing of anything else."""
    if not os.path.isfile(path):
        return {}, ()
    try:
        with open_raster(path) as file:
            return file.tags(), file.descriptions
    except InputError:
        return {}, ()


def _is_ours(path: Path, out: Path) -> bool:
    """Whether a run made what lies at a path that is written for the map `out`."""
    if path == probabilities_path(out):
        return _are_probabilities(path)
    if path.suffix == ".html":
        return _says(path, _TITLE)
    if path.suffix == ".png":
        return _says(path, f"Software\0{MADE_BY}".encode())
    if path.suffix == ".xml":
        return _says(path, b"<PAMDataset")  # what GDAL notes of a raster goes with it
    return _is_map(path)


def _is_map(path: Path) -> bool:
    """Of a scene, or of change."""
    return bool({TAG, CHANGE_TAG} & set(_described(path)[0]))


def _says(path: Path, text: bytes) -> bool:
    """Whether a file has this text near its beginning."""
    if not os.path.isfile(path):  # to open a pipe would wait for whoever writes to it
        return False
    try:
        with open(path, "rb") as file:
            return text in file.read(_HEAD)
    except OSError:
        return False


def _are_probabilities(path: Path) -> bool:
    """A map may have that name, too, but its bands are not called as classes are."""
    tags, bands = _described(path)
    try:
        return bool(list(bands) == json.loads(tags[TAG])["classes"])
    except (LookupError, ValueError, TypeError, RecursionError):
        return False
