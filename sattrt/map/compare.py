"""What changed between two maps: from which class to which, in hectares, and how certain it is.

change = compare_maps(Path("2018.tif"), Path("2024.tif"), certain=70, out=Path("change.tif"))
change.possible[0, 3]      # from the first class to the fourth
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ContractError, InputError
from ..spec import atomic_path, unwritable
from .beside import check_alone, left_by_older, remove
from .colours import Colour, class_colours
from .geo import same_crs
from .mapfile import CHANGE_TAG, Bytes, MapFile
from .output import Layout, files_of, names_beside, names_path, write_cog
from .picture import NOTHING, map_picture, save_picture

UNCHANGED, _PALE = 255, (224, 220, 206)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Areas from class to class, (classes, classes) each, in `unit`, the rows the older map's.

    possible: wherever the two maps differ, or agree. certain: where both are at least `least` percent confident. old, new: the maps.
    files: what was written.
    """

    old: Path
    new: Path
    classes: tuple[str, ...]
    unit: str
    least: float
    possible: NDArray[np.float64]
    certain: NDArray[np.float64]
    files: tuple[Path, ...]

    def table(self) -> list[tuple[str, ...]]:
        """From, to, certain and possible area of every change, the largest first; then what stayed, and all, as text."""
        places = [(old, new) for old, new in np.ndindex(self.possible.shape) if old != new and self.possible[old, new]]
        places.sort(key=lambda place: (-self.certain[place], -self.possible[place]))
        lines = [
            (self.classes[old], self.classes[new], float(self.certain[old, new]), float(self.possible[old, new])) for old, new in places
        ]
        lines.append(("unchanged", "", float(np.trace(self.certain)), float(np.trace(self.possible))))
        lines.append(("all", "", float(self.certain.sum()), float(self.possible.sum())))
        return [(old, new, f"{certain:,.1f}", f"{possible:,.1f}") for old, new, certain, possible in lines]

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON: areas in `unit` by the older map's class, then by the newer's."""

        def by_name(areas: NDArray[np.float64]) -> dict[str, dict[str, float]]:
            return {name: dict(zip(self.classes, row, strict=True)) for name, row in zip(self.classes, areas.tolist(), strict=True)}

        return {
            "old": str(self.old),
            "new": str(self.new),
            "files": list(map(str, self.files)),
            "unit": self.unit,
            "certain_percent": self.least,
            "certain": by_name(self.certain),
            "possible": by_name(self.possible),
        }


def compare_maps(old: Path, new: Path, certain: float, out: Path | None = None) -> Change:
    """Compare two maps of one grid. certain: percent that both must have. out: a map of the change, written if given, and a PNG.

    ContractError for maps of another grid, CRS or classes, InputError for files that are no maps or an output that can't be written.
    """
    before, after = MapFile.read(old), MapFile.read(new)
    _check(before, after)
    count = len(before.classes) + 1
    possible, sure = np.zeros((count, count)), np.zeros((count, count))
    for first, second, least, areas in _pairs(before, after):
        both = (count * first.astype(np.int64) + second).ravel()
        possible += np.bincount(both, areas.ravel(), count**2)[: count**2].reshape(count, count)
        sure += np.bincount(both, np.where(least >= certain, areas, 0).ravel(), count**2)[: count**2].reshape(count, count)
    # a class that both maps lack data for is no change
    matrices = {"possible": possible[1:, 1:], "certain": sure[1:, 1:]}
    files = _write(before, after, matrices["possible"], certain, out) if out else ()
    return Change(old=old, new=new, classes=before.classes, unit=before.unit, least=certain, files=files, **matrices)


def _check(before: MapFile, after: MapFile) -> None:
    faults = {
        f"has the classes {', '.join(after.classes)}": before.classes != after.classes,
        f"has {after.width}x{after.height} cells": (before.width, before.height) != (after.width, after.height),
        "has another CRS": not same_crs(before.crs, after.crs),
        _placed(after.transform): before.transform != after.transform,
        f"is of {after.made['width']}x{after.made['height']} pixels": any(
            before.made[side] != after.made[side] for side in ("width", "height")
        ),
    }
    for fault, found in faults.items():
        if found:
            raise ContractError(f"{after.path} {fault}, unlike {before.path}. Compare maps of one grid, made with one stride and bundle.")


def _placed(transform: tuple[float, ...] | None) -> str:
    if not transform:
        return "has no georeference"
    a, b, left, d, e, top = transform
    turned = ", turned" if b or d else ""
    return f"begins at {left:.10g}, {top:.10g}, with cells of {math.hypot(a, d):.10g} x {math.hypot(b, e):.10g}{turned}"


def _pairs(before: MapFile, after: MapFile) -> Iterator[tuple[Bytes, Bytes, Bytes, NDArray[np.float64]]]:
    """Both classes, the lesser confidence and the area, (rows, width) each, strip by strip."""
    for (first, sure, areas), (second, as_sure, _) in zip(before.strips(), after.strips(), strict=True):
        yield first, second, np.minimum(sure, as_sure), areas


def _write(before: MapFile, after: MapFile, possible: NDArray[np.float64], certain: float, out: Path) -> tuple[Path, ...]:
    """The class after, where it changed, with the lesser confidence in the second band."""
    names = (out, names_path(out), out.with_suffix(".png"))
    given = {os.path.realpath(file) for path in (before.path, after.path) for file in files_of(path)}
    if out.suffix.lower() not in (".tif", ".tiff") or any(os.path.realpath(name) in given or os.path.isdir(name) for name in names):
        raise InputError(f"--out is {out}; give the map of change a name of its own that ends in .tif.")
    check_alone(out, names)
    colours: dict[int, tuple[str, Colour]] = dict(enumerate(zip(after.classes, class_colours(after.classes), strict=True), 1))
    made = {"old": before.made, "new": after.made, "old_file": before.path.name, "new_file": after.path.name, "certain": certain}
    layout = Layout(
        height=after.height,
        width=after.width,
        bands=("class after a change", "lesser confidence in percent"),
        nodata=0,
        crs=after.crs,
        transform=after.transform,
        colours=colours | {UNCHANGED: ("unchanged", _PALE)},
        tags={CHANGE_TAG: json.dumps(made)},
        band_tags={f"CLASS_{value}": name for value, (name, _) in colours.items()},
    )

    def rows() -> Iterator[Bytes]:
        for first, second, least, _ in _pairs(before, after):
            known = (first > 0) & (second > 0)
            changed = np.where(first == second, UNCHANGED, second)
            yield from np.stack([np.where(known, changed, 0), np.where(known, least, 0)], axis=1).astype(np.uint8)

    gained = possible.sum(0) - np.diag(possible)
    legend: list[tuple[Colour | None, str, str]] = [
        (colour, f"to {name}", f"{area:,.1f} {after.unit}") for (name, colour), area in zip(colours.values(), gained, strict=True) if area
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        left = left_by_older(out)
        with contextlib.ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")))
            written, named, drawn = (stack.enter_context(atomic_path(name)) for name in names)
            write_cog(written, work, layout, rows())
            named.write_bytes(names_beside(layout))
            picture = map_picture(written, {value: colour for value, (_, colour) in layout.colours.items()}, certain)
            legend += [(_PALE, "unchanged", ""), (NOTHING, "no data", ""), (None, f"pale: less than {certain:g} % sure", "")]
            save_picture(drawn, f"{before.path.name} to {after.path.name}", picture, legend)
    except OSError as error:
        raise unwritable(out, error) from None
    remove(left)
    return names
