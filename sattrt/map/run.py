"""A scene to a map: stage one asks the engine, block by block; stage two counts the votes and writes the files, all of them or none.

for mapped in map_scenes(Path("engines/eurosat"), [Path("scene.tif")], Path("map.tif"), MapConfig(), False, started):
    print(mapped.statistics.area)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..bands import band_name
from ..errors import InputError
from ..runtime import Bundle, Engine, read_bundle, refuse_inside
from ..spec import atomic_path, remove_temporaries, require_space
from .area import gsd_of
from .beside import check_alone, left_by_older, remove
from .blocks import Plan, compute_here
from .colours import Colour, class_colours
from .config import MapConfig
from .finding import find_scene
from .geo import same_crs
from .mapfile import MOST_CLASSES, TAG, MapFile, Statistics
from .output import Layout, files_of, names_beside, names_path, probabilities_path, write_cog
from .page import to_html
from .picture import NOTHING, map_picture, save_picture, scene_picture
from .scene import Scene, stamps
from .windows import Answers, Grid, votes
from .work import Work

Progress = Callable[[int, int], None]
# answers of blocks of a plan, from wherever they are computed
Compute = Callable[[Plan, list[int]], Iterable[tuple[int, Answers]]]
NO_PROBABILITY = 255
_ENDS = (".tif", ".tiff")
# settings that the pixels of a map depend on, beside engine and stride: others have no place in it, so that the same map has the same bytes
_SETTLING = ("offset", "nodata", "bands", "valid", "batch_size", "threads")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every scene of a run shares. compute: where blocks are answered."""

    bundle: Bundle
    engine: Engine
    config: MapConfig
    compute: Compute


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A map that was written. files: all that were, the map first. seconds: that it took; None where an earlier run had made it."""

    files: tuple[Path, ...]
    scene: Scene
    map: MapFile
    statistics: Statistics
    seconds: float | None = None

    def table(self) -> list[tuple[str, ...]]:
        """Class, area, share and mean confidence in percent of each class that was found, and the area of no data, as text."""
        found: list[tuple[str, ...]] = [
            (each.name, f"{each.area:,.1f}", f"{each.share:.1f}", f"{each.confidence:.1f}")
            for each in self.map.shares(self.statistics)
            if each.confidence is not None
        ]
        return found + [("no data", f"{self.statistics.nothing:,.1f}", "", "")] * bool(self.statistics.nothing)

    def document(self) -> dict[str, Any]:
        """The same and how it was made, as plain values for JSON; areas in `unit`, the side of a cell in pixels and, where it lies on the ground, in metres."""
        made, scene = self.map.made, self.scene
        gsd = gsd_of(scene.crs, scene.transform, scene.height, scene.width)
        return {
            "file": str(self.files[0]),
            "files": list(map(str, self.files)),
            "scene": scene.path,
            "kind": made["kind"],
            "says": list(made["says"]),
            "engine": made["engine"],
            "device": made["device"],
            "seconds": self.seconds,
            "width": self.map.width,
            "height": self.map.height,
            "cell_pixels": made["stride"],
            "cell_metres": gsd and gsd * made["stride"],
            "unit": self.map.unit,
            "nodata": {"cells": int(self.statistics.cells[0]), "area": self.statistics.nothing},
            "classes": [dataclasses.asdict(each) for each in self.map.shares(self.statistics)],
        }


def map_scenes(
    bundle: Path, scenes: Sequence[Path], out: Path | None, config: MapConfig, resume: bool, started: Callable[[str], Progress]
) -> Iterator[Mapped]:
    """Map scenes one after another. All are looked at before the first is mapped.

    out: the map, or a folder for the maps of several scenes; None for map.tif, or maps. resume: go on with what a killed run left. started: called with the name of
    each scene. InputError for a scene or stride that doesn't fit the engine, or an output that can't be written.
    """
    outs = _outs(scenes, out)
    for target in outs:
        refuse_inside(bundle, target, "--out")
    checked = read_bundle(bundle, config.signed_by)
    plans = [make_plan(checked, scene, config) for scene in scenes]
    _keep_apart(plans, outs, config)
    with contextlib.ExitStack() as stack:
        # the next strip is read on the same cores: whoever waits should leave them
        engine = stack.enter_context(checked.open(config.engine, config.threads, spinning=False))
        if config.cluster:
            from .cluster import connect

            compute = stack.enter_context(connect(checked, engine, config))
        else:
            compute = partial(compute_here, engine)
        job = Job(bundle=checked, engine=engine, config=config, compute=compute)
        for plan, target in zip(plans, outs, strict=True):
            done = _finished(plan, job, target) if resume else None
            yield done or map_scene(plan, job, target, resume, started(_name(plan.scene)))


def _outs(scenes: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the map of each scene goes. InputError for names that clash."""
    several = len(scenes) > 1
    out = out or Path("maps" if several else "map.tif")
    if several and out.suffix.lower() in _ENDS and not out.is_dir():
        raise InputError(f"--out is {out}; several scenes go into a folder, a map each. Give the name of a folder.")
    outs = [out / f"{_title(scene)}.tif" for scene in scenes] if several or out.is_dir() else [out]
    for target in outs:
        if target.suffix.lower() not in _ENDS:
            raise InputError(f"--out is {target}; a map is a GeoTIFF. Give a name that ends in .tif.")
        if outs.count(target) > 1:
            raise InputError(f"Several scenes would be mapped to {target}. Give scenes of different names, or map them one by one.")
        if not target.name.isprintable():
            raise InputError(f"--out has the name {target.name!a}, which is not readable text. Choose another --out.")
    return outs


def _name(scene: Scene) -> str:
    """The last part of its path, that of "." too."""
    return os.path.basename(os.path.abspath(scene.path))


def _title(scene: Path) -> str:
    """The name of a scene without the ending of a file or a product; that of a folder may have dots of its own."""
    path = Path(os.path.abspath(scene))
    return path.stem if path.suffix.lower() == ".safe" or not path.is_dir() else path.name


def _keep_apart(plans: Sequence[Plan], outs: Sequence[Path], config: MapConfig) -> None:
    """InputError where a file that would be written is one of a scene, is written twice, is a folder or no run's, or where another map has its picture."""
    own = {os.path.realpath(file) for plan in plans for file in (plan.scene.path, *plan.scene.files)}
    for plan in plans:  # bands that this engine does not take, too
        own |= {os.path.realpath(file) for file in Path(plan.scene.path).rglob("*") if band_name(file.stem)}
    taken: set[str] = set()
    for out in outs:
        paths = files_of(out, config.probabilities, config.report)
        for path in paths:
            real = os.path.realpath(path)
            if os.path.isdir(real):
                raise InputError(f"{path} is a folder. Choose another --out.")
            if real in own:
                raise InputError(f"{path} is the scene itself, or a part of it. Choose another --out.")
            if real in taken:
                raise InputError(f"{path} would be written for two scenes. Map them one by one, or give them other names.")
            taken.add(real)
        check_alone(out, paths)


def make_plan(bundle: Bundle, path: Path, config: MapConfig) -> Plan:
    """Find a scene and lay the grid. InputError for a scene or a stride that doesn't fit the bundle."""
    spec = bundle.spec
    if len(spec.classes) > MOST_CLASSES:
        raise InputError(f"{bundle.path} knows {len(spec.classes)} classes; a map holds {MOST_CLASSES}. Use another bundle.")
    side = min(spec.height, spec.width)
    stride = side if config.stride is None else config.stride
    if stride > side:
        raise InputError(f"stride is {stride}; give 1 to {side} pixels, the side of a tile, so that no pixel is left out.")
    scene = find_scene(path, spec, config)
    grid = Grid(height=scene.height, width=scene.width, tile_height=spec.height, tile_width=spec.width, stride=stride)
    return Plan(scene=scene, grid=grid, batch_size=config.batch_size, valid=config.valid)


def map_scene(plan: Plan, job: Job, out: Path, resume: bool, progress: Progress) -> Mapped:
    """Map one scene. InputError where an output can't be written."""
    begun = time.perf_counter()
    with Work.begin(out, _manifest(plan, job), resume) as work:
        # once more: the run that had the lock before may have made another
        check_alone(out, files_of(out, job.config.probabilities, job.config.report))
        remove_temporaries(*files_of(out))
        missing = work.missing(plan.grid)
        require_space(out, _space(plan, missing, len(job.engine.classes), job.config.probabilities))
        _answer(plan, job, work, missing, progress)
        mapped = _write(plan, job, out, work)
        work.remove()
    return dataclasses.replace(mapped, seconds=time.perf_counter() - begun)


def _space(plan: Plan, missing: list[int], classes: int, probabilities: bool) -> int:
    """Bytes that a map still takes while it is made, at most: the answers that are missing, a plain GeoTIFF and the COG with its overviews, pictures."""
    grid = plan.grid
    windows = sum(len(grid.blocks[index].windows) for index in missing) * len(grid.columns.starts)
    cells = grid.rows.cells * grid.columns.cells
    return 4 * windows * classes + 5 * cells * (1 + probabilities * classes) + 4_000_000


def _finished(plan: Plan, job: Job, out: Path) -> Mapped | None:
    """The map of a scene that an earlier run of the same kind has finished."""
    wanted = files_of(out, job.config.probabilities, job.config.report)
    if not all(path.is_file() for path in wanted) or out.stat().st_mtime < max(Path(file).stat().st_mtime for file in plan.scene.files):
        return None
    if (
        min(path.stat().st_mtime_ns for path in wanted) < out.stat().st_mtime_ns
    ):  # the map's pixels are written first: these are another map's
        return None
    try:
        found = MapFile.read(out)
    except InputError:
        return None
    layout = _layout(plan, job)
    if found.made != json.loads(layout.tags[TAG]) or not same_crs(found.crs, layout.crs) or found.transform != layout.transform:
        return None
    return Mapped(files=tuple(wanted), scene=plan.scene, map=found, statistics=found.statistics())


def _answer(plan: Plan, job: Job, work: Work, missing: list[int], progress: Progress) -> None:
    """Stage one: every block that has no answers yet."""
    grid = plan.grid
    across = len(grid.columns.starts)
    total = len(grid.rows.starts) * across
    done = total - sum(len(grid.blocks[index].windows) for index in missing) * across
    progress(done, total)
    for index, answers in job.compute(plan, missing):
        work.write(index, answers)
        done += len(grid.blocks[index].windows) * across
        progress(done, total)


def _manifest(plan: Plan, job: Job) -> dict[str, Any]:
    """What the answers depend on, under names that a message can use."""
    scene = plan.scene
    return {
        **{f"file {name}": stamp for name, stamp in stamps(scene.files).items()},
        "bundle": job.bundle.digest,
        "engine": f"{job.engine.name} on {job.engine.device}",
        "stride": plan.grid.stride,
        "batch_size": plan.batch_size,
        "valid": plan.valid,
        "threads": job.config.threads,
        "nodata": scene.nodata,
        "bands": [f"{band.name}: band {band.index} of {Path(band.path).name}, less {band.offset}" for band in scene.bands],
        "sattrt": __version__,
    }


def _write(plan: Plan, job: Job, out: Path, work: Work) -> Mapped:
    """Stage two: votes to files. They take their names at the end, the map as the last; then what was an older map's alone goes."""
    classes, grid = job.engine.classes, plan.grid
    layout, left = _layout(plan, job), left_by_older(out)

    def probabilities() -> Iterator[NDArray[np.float32]]:
        return votes(grid, work.read)

    with contextlib.ExitStack() as stack:
        written: dict[Path, Path] = {}

        def place(path: Path) -> Path:
            return written.setdefault(path, stack.enter_context(atomic_path(path)))

        write_cog(place(out), work.folder, layout, map(_cells, probabilities()))
        place(names_path(out)).write_bytes(names_beside(layout))
        if job.config.probabilities:
            many = dataclasses.replace(layout, bands=classes, nodata=NO_PROBABILITY, colours={}, band_tags={})
            write_cog(place(probabilities_path(out)), work.folder, many, map(_percents, probabilities()))
        found = MapFile.read(written[out])
        statistics, colours = found.statistics(), class_colours(classes)
        drawn = map_picture(found.path, dict(enumerate(colours, 1)))
        found = dataclasses.replace(found, path=out)
        save_picture(place(out.with_suffix(".png")), _name(plan.scene), drawn, _legend(found, statistics))
        if job.config.report:
            html = to_html(found, statistics, *scene_picture(plan.scene), drawn, colours)
            place(out.with_suffix(".html")).write_text(html, encoding="utf-8")
    remove(path for path in left if path not in written and os.path.realpath(path) not in map(os.path.realpath, plan.scene.files))
    return Mapped(files=tuple(written), scene=plan.scene, map=found, statistics=statistics)


def _legend(found: MapFile, statistics: Statistics) -> list[tuple[Colour, str, str]]:
    """A line for each class that the map has: colour, name, share of the area; and one for no data."""
    lines = zip(class_colours(found.classes), found.shares(statistics), strict=True)
    shares = [(colour, each.name, f"{each.share:.1f} %") for colour, each in lines if each.area]
    return shares + [(NOTHING, "no data", "")] * bool(statistics.nothing)


def _layout(plan: Plan, job: Job) -> Layout:
    scene, stride, classes = plan.scene, plan.grid.stride, job.engine.classes
    made = {
        "sattrt": __version__,
        "scene": _name(scene),
        "files": stamps(scene.files),
        "kind": scene.kind,
        "says": scene.says,
        "height": scene.height,
        "width": scene.width,
        "stride": stride,
        "tile": [plan.grid.tile_height, plan.grid.tile_width],
        "bundle": job.bundle.digest,
        "engine": job.engine.name,
        "device": job.engine.device,
        "classes": classes,
        "settings": {name: getattr(job.config, name) for name in _SETTLING},
    }
    transform = scene.transform and tuple(value * stride if i in (0, 1, 3, 4) else value for i, value in enumerate(scene.transform))
    colours = dict(enumerate(zip(classes, class_colours(classes), strict=True), 1))
    return Layout(
        height=plan.grid.rows.cells,
        width=plan.grid.columns.cells,
        bands=("class", "confidence in percent"),
        nodata=0,
        crs=scene.crs,
        transform=transform,
        colours=colours,
        tags={TAG: json.dumps(made)},
        band_tags={f"CLASS_{value}": name for value, (name, _) in colours.items()},
    )


def _cells(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class from 1 and confidence in percent from 1, uint8 (2, cells), of float32 (cells, classes); 0 where nothing voted."""
    best = probabilities.max(1)
    classes = np.where(best > 0, probabilities.argmax(1) + 1, 0)
    return np.stack([classes, np.where(best > 0, np.clip(np.rint(100 * best), 1, 100), 0)]).astype(np.uint8)


def _percents(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Percent of each class, uint8 (classes, cells)."""
    voted = probabilities.any(1)
    return np.where(voted, np.rint(100 * probabilities.T), NO_PROBABILITY).astype(np.uint8)
