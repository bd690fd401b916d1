"""A whole scene against its own truth: a scene of real tiles in a known layout, mapped, and the engine alone on the same tiles.

    python benchmarks/map.py BUNDLE --tiles EuroSAT_RGB.zip --side 10980

It says tiles a second of the map and of the engine alone (before and after it, in this run), the map's peak memory, its accuracy against the
layout beside the engine's own on the same tiles (every cell must agree), and whether a run that was killed half-way and resumed ends
with the same bytes. The last line on stdout is one JSON document. Tiles: a zip of class folders, JPEG for bundles of RGB, or GeoTIFF of 13 bands.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

from sattrt.bands import COMMON, EUROSAT
from sattrt.machine import environment
from sattrt.map.scene import table
from sattrt.map.windows import Grid
from sattrt.runtime import Engine, read_bundle

# what runs in a process of its own: arguments bundle, scene, out, engine, resume
MAP = """
import json, sys, time
from pathlib import Path
from sattrt.map.config import MapConfig
from sattrt.map.run import map_scenes
bundle, scene, out, engine, resume = sys.argv[1:]
clock = []
list(map_scenes(Path(bundle), [Path(scene)], Path(out), MapConfig(engine=engine), resume == "resume", lambda name: lambda *done: clock.append(time.perf_counter())))
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": time.perf_counter() - clock[0], "peak_mb": peak * 1024 / 1e6}))
"""


class Tiles:
    """Tiles out of a zip in a layout that a seed settles. layout: class index of each place (rows, columns)."""

    def __init__(self, source: Path, classes: tuple[str, ...], side: int, tile: int) -> None:
        self._zip = zipfile.ZipFile(source)
        by_class = {name: [] for name in classes}
        for path in sorted(self._zip.namelist()):
            parts = Path(path).parts
            if len(parts) > 1 and parts[-2] in by_class and path.lower().endswith((".jpg", ".tif")):
                by_class[parts[-2]].append(path)
        rng = np.random.default_rng(0)
        count = -(-side // tile)  # those at the edge are cut
        self.layout = rng.integers(0, len(classes), (count, count))
        self._names = [[by_class[classes[index]][rng.integers(len(by_class[classes[index]]))] for index in row] for row in self.layout]

    def row(self, index: int) -> NDArray[Any]:
        """The tiles of a row (N, height, width, bands)."""
        return np.stack([self._decoded(self._zip.read(name)) for name in self._names[index]])

    def _decoded(self, content: bytes) -> NDArray[Any]:
        if content[:2] == b"\xff\xd8":
            return np.asarray(Image.open(io.BytesIO(content)))
        with rasterio.MemoryFile(content) as memory, memory.open() as file:
            return file.read().transpose(1, 2, 0)


def write_scene(path: Path, tiles: Tiles, side: int, tile: int) -> None:
    """The scene as a tiled GeoTIFF."""
    first = tiles.row(0)
    bands, dtype = first.shape[3], first.dtype
    profile = {"driver": "GTiff", "count": bands, "height": side, "width": side, "dtype": dtype, "compress": "deflate", "bigtiff": "yes"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_000)}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel"}
    with rasterio.open(path, "w", **profile, **place, **blocks) as file:
        if bands == len(EUROSAT):
            file.descriptions = EUROSAT
        for row in range(len(tiles.layout)):
            strip = np.concatenate(list(tiles.row(row)), axis=1)[: min(tile, side - row * tile), :side]
            file.write(strip.transpose(2, 0, 1), window=rasterio.windows.Window(0, row * tile, side, len(strip)))


def engine_alone(engine: Engine, tiles: Tiles, rows: int, columns: int) -> tuple[float, NDArray[np.intp]]:
    """Tiles a second of the engine, and its answers (rows, columns), on tiles that lie in memory as it takes them."""
    seconds, answers = 0.0, []
    for row in range(rows):
        given = tiles.row(row)[:columns]
        if given.shape[3] == len(EUROSAT):
            given = given[..., [EUROSAT.index(COMMON.get(name, name)) for name in engine.spec.bands]]
            given = table(0, scaled=engine.spec.dtype == "uint8")[given]
        batches = [np.ascontiguousarray(given[start : start + 64]) for start in range(0, len(given), 64)]
        begin = time.perf_counter()
        found = [engine.infer(batch)[1] for batch in batches]
        seconds += time.perf_counter() - begin
        answers.append(np.concatenate(found).argmax(1))
    return rows * columns / seconds, np.stack(answers)


def mapped(*arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", MAP, *map(str, arguments)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def killed_half_way(blocks: int, out: Path, *arguments: object) -> int:
    """Start a map, kill it when half of its blocks are there, and return how many were."""
    process = subprocess.Popen([sys.executable, "-c", MAP, *map(str, arguments)], stdout=subprocess.DEVNULL)
    work = out.with_name(f".{out.name}.work")
    while process.poll() is None and len(list(work.glob("block-*.npz"))) < blocks // 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(work.glob("block-*.npz")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--side", type=int, default=10_980)
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    engine = bundle.open(arguments.engine)
    tile, side = engine.spec.height, arguments.side
    grid = Grid(height=side, width=side, tile_height=tile, tile_width=tile, stride=tile)
    tiles = Tiles(arguments.tiles, engine.classes, side, tile)
    first, end = grid.rows.voters
    sole = int((end - first == 1)[: side // tile].sum())  # whole tiles that no flush window votes for too
    windows = len(grid.rows.starts) ** 2
    with tempfile.TemporaryDirectory() as folder:
        scene, out, again = (Path(folder) / name for name in ("scene.tif", "map.tif", "again.tif"))
        write_scene(scene, tiles, side, tile)
        print(f"scene of {side} x {side} pixels written; the engine alone on {sole * sole} tiles", flush=True)
        before, answers = engine_alone(engine, tiles, sole, sole)
        engine.close()
        whole = mapped(arguments.bundle, scene, out, engine.name, "")
        engine = bundle.open(engine.name)
        after, _ = engine_alone(engine, tiles, sole, sole)
        engine.close()
        kept = killed_half_way(len(grid.blocks), again, arguments.bundle, scene, again, engine.name, "")
        mapped(arguments.bundle, scene, again, engine.name, "resume")
        same = all(
            out.with_name(f"map{end}").read_bytes() == again.with_name(f"again{end}").read_bytes()
            for end in (".tif", ".tif.aux.xml", ".png")
        )
        with rasterio.open(out) as file:
            classes = file.read(1)[:sole, :sole].astype(int) - 1
    truth = tiles.layout[:sole, :sole]
    result = {
        "engine": engine.name,
        "side": side,
        "tiles": sole * sole,
        "windows": windows,
        "map_tiles_per_second": windows / whole["seconds"],
        "engine_tiles_per_second": {"before": before, "after": after},
        "share_of_engine": windows / whole["seconds"] / ((before + after) / 2),
        "map_seconds": whole["seconds"],
        "map_peak_mb": whole["peak_mb"],
        "map_accuracy": float((classes == truth).mean()),
        "engine_accuracy": float((answers == truth).mean()),
        "cells_that_differ": int((classes != answers).sum()),
        "killed_after_blocks": kept,
        "blocks": len(grid.blocks),
        "resumed_is_the_same": same,
        "environment": environment(),
    }
    for name, value in result.items():
        print(f"{name}: {value}") if name != "environment" else None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
