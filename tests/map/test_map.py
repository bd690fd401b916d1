"""`sattrt map` from scene to files, with a real engine: what is in the map, what a kill leaves, and what is refused."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from scenes import CRS, TRANSFORM, colourful, noise, write_raster

from sattrt.bands import ESA
from sattrt.errors import ContractError, InputError
from sattrt.map.blocks import Plan
from sattrt.map.config import MapConfig
from sattrt.map.mapfile import MapFile
from sattrt.map.output import Layout, names_beside, write_cog
from sattrt.map.run import Job, Mapped, make_plan, map_scene, map_scenes
from sattrt.map.windows import Answers
from sattrt.runtime import Bundle, Engine

ENGINE = "onnxruntime-fp32"


def quiet(done: int, total: int) -> None:
    """No progress bar."""


def mapped(bundle: Bundle, scene: Path, out: Path, resume: bool = False, **settings: object) -> Mapped:
    config = MapConfig(engine=ENGINE, **settings)  # type: ignore[arg-type]
    (found,) = map_scenes(bundle.path, [scene], out, config, resume, lambda name: quiet)
    return found


def sattrt(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sattrt", "map", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]


def refusal(*arguments: object, **options: object) -> str:
    """The one line that a refused command says."""
    done = sattrt(*arguments, **options)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sattrt: ")
    assert not done.stdout
    return done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    with bundle.open(ENGINE) as opened:
        yield opened


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 x 6 tiles and 40 pixels more."""
    return write_raster(tmp_path_factory.mktemp("scene") / "scene.tif", colourful(5, 6, 40)[0])


def test_a_map_of_tiles_says_what_the_engine_says_of_each(bundle: Bundle, engine: Engine, scene: Path, tmp_path: Path) -> None:
    found = mapped(bundle, scene, tmp_path / "map.tif", probabilities=True)
    assert [path.name for path in found.files] == ["map.tif", "map.tif.aux.xml", "map-probabilities.tif", "map.png"]
    assert sorted(contents(tmp_path)) == sorted(path.name for path in found.files)  # and no work folder
    pixels = colourful(5, 6, 40)[0].transpose(1, 2, 0)
    tiles = np.stack([pixels[row : row + 64, column : column + 64] for row in range(0, 320, 64) for column in range(0, 384, 64)])
    answers = engine.predict(np.ascontiguousarray(tiles))
    with rasterio.open(tmp_path / "map.tif") as file:
        classes, confidence = file.read()
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (file.crs.to_string(), file.transform) == (CRS, TRANSFORM @ TRANSFORM.scale(64))
        assert [meaning.name for meaning in file.colorinterp] == ["palette", "undefined"]  # a confidence is no transparency
        assert file.nodata == 0
        assert len({file.colormap(1)[value] for value in range(4)}) == 4
        assert file.tags(1) == {f"CLASS_{i}": name for i, name in enumerate(bundle.spec.classes, 1)}
        made = json.loads(file.tags()["SATTRT"])
    assert (made["bundle"], made["engine"], made["stride"], made["classes"]) == (bundle.digest, ENGINE, 64, list(bundle.spec.classes))
    assert classes.shape == (6, 7)
    assert (classes[:5, :6].ravel() == answers.labels + 1).all()
    assert (confidence[:5, :6].ravel() == np.rint(100 * answers.probabilities.max(1))).all()
    with rasterio.open(tmp_path / "map-probabilities.tif") as file:
        assert file.descriptions == bundle.spec.classes
        assert (file.read()[:, :5, :6].reshape(3, -1) == np.rint(100 * answers.probabilities.T)).all()


def test_gdal_finds_the_names_of_the_classes(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    mapped(bundle, scene, tmp_path / "map.tif")
    rasterio.shutil.copy(tmp_path / "map.tif", tmp_path / "copy.vrt", driver="VRT")  # which writes down all that GDAL knows
    text = (tmp_path / "copy.vrt").read_text()
    names = text.split("<CategoryNames>")[1].split("</CategoryNames>")[0].replace("<Category />", "<Category></Category>")
    assert [part.split("</Category>")[0] for part in names.split("<Category>")[1:]] == ["", *bundle.spec.classes]


def test_a_large_map_has_overviews_of_classes_and_no_transparency(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(1, 4, (300, 350)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    layout = Layout(
        height=600, width=700, bands=("class", "confidence"), nodata=0, crs="", transform=None,
        colours={1: ("a", (1, 2, 3)), 2: ("b", (4, 5, 6)), 3: ("c & <d>", (7, 8, 9))}, tags={}, band_tags={},
    )  # fmt: skip
    write_cog(tmp_path / "map.tif", tmp_path, layout, (np.stack([row, row + 50]) for row in classes))
    for options, step in (({}, 1), ({"overview_level": 0}, 2)):
        with rasterio.open(tmp_path / "map.tif", **options) as file:
            assert (file.read() == np.stack([classes, classes + 50])[:, ::step, ::step]).all()
            assert [meaning.name for meaning in file.colorinterp] == ["palette", "undefined"]
            assert file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT", "COG") == "COG"
            assert file.colormap(1)[3] == (7, 8, 9, 255)
    assert b"<Category>c &amp; &lt;d&gt;</Category>" in names_beside(layout)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_overlapping_windows_vote(bundle: Bundle, engine: Engine, scene: Path, tmp_path: Path) -> None:
    found = mapped(bundle, scene, tmp_path / "map.tif", stride=40, probabilities=True)
    pixels = np.ascontiguousarray(colourful(5, 6, 40)[0].transpose(1, 2, 0))
    rows, columns = [*range(0, 296, 40), 296], [*range(0, 361, 40)]
    answers = {(y, x): engine.predict(pixels[y : y + 64, x : x + 64]).probabilities[0] for y in rows for x in columns}
    assert (found.map.height, found.map.width) == (9, 11)
    with rasterio.open(tmp_path / "map-probabilities.tif") as file:
        percents = file.read()
    for row, column in np.ndindex(9, 11):
        y, x = row * 40 + min(40, 360 - row * 40) / 2, column * 40 + min(40, 424 - column * 40) / 2
        expected = np.mean([given for (top, left), given in answers.items() if top <= y < top + 64 and left <= x < left + 64], axis=0)
        assert np.abs(percents[:, row, column] - 100 * expected).max() < 0.51


def test_no_data_stays_no_data(bundle: Bundle, tmp_path: Path) -> None:
    pixels = colourful(4, 4)[0]
    pixels[:, :64, :64] = 0
    pixels[:, 64:128, :40] = 0  # more than half of the window; its cell has data, and no voter
    pixels[:, 128:192, :20] = 0
    path = write_raster(tmp_path / "scene.tif", pixels)
    found = mapped(bundle, path, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        classes, confidence = file.read()
    assert ((classes == 0) == (confidence == 0)).all()
    assert np.argwhere(classes == 0).tolist() == [[0, 0], [1, 0]]
    assert found.statistics.nothing == pytest.approx(2 * 40.96)
    assert found.statistics.area.sum() == pytest.approx(14 * 40.96)
    strict = mapped(bundle, path, tmp_path / "strict.tif", valid=1.0)
    assert strict.statistics.area.sum() == pytest.approx(13 * 40.96)
    pixels[:] = 0
    empty = mapped(bundle, write_raster(tmp_path / "empty.tif", pixels), tmp_path / "nothing.tif", report=True)
    assert empty.statistics.area.sum() == 0
    assert empty.table() == []


@pytest.mark.parametrize(("valid", "cells"), [(0.5, [128, 160, 192, 224]), (1.0, [160, 192, 224]), (0.2, [96, 128, 160, 192, 224])])
def test_a_cell_counts_where_enough_of_it_holds_data(bundle: Bundle, tmp_path: Path, valid: float, cells: list[int]) -> None:
    pixels = colourful(4, 4)[0]
    pixels[:, :, :120] = 0  # a quarter of the cells from 96 is left, and nothing of those before
    pixels[:, :, 136:140] = 0
    found = mapped(bundle, write_raster(tmp_path / "s.tif", pixels), tmp_path / "map.tif", stride=32, valid=valid)
    with rasterio.open(tmp_path / "map.tif") as file:
        shown = file.read(1) > 0
    assert (shown == np.isin(32 * np.arange(8), cells)).all()
    assert found.statistics.area.sum() == pytest.approx(8 * len(cells) * 32 * 32 / 100)


def test_what_stands_for_no_data_is_not_seen_by_the_engine(bundle: Bundle, engine: Engine, tmp_path: Path) -> None:
    pixels = colourful(4, 4)[0].clip(1, 254)
    maps = []
    for nodata in (0, 255):
        pixels.reshape(3, 4, 64, 256)[:, :, :20] = nodata  # the upper rows of every window
        mapped(bundle, write_raster(tmp_path / f"{nodata}.tif", pixels, nodata=nodata), tmp_path / f"map-{nodata}.tif")
        with rasterio.open(tmp_path / f"map-{nodata}.tif") as file:
            maps.append(file.read())
    tiles = pixels.reshape(3, 4, 64, 4, 64).transpose(1, 3, 2, 4, 0).reshape(16, 64, 64, 3).copy()
    tiles[:, :20] = np.rint(tiles[:, 20:].mean((1, 2)))[:, None, None]
    answers = engine.predict(tiles)
    for classes, confidence in maps:
        assert (classes.ravel() == answers.labels + 1).all()
        assert (confidence.ravel() == np.rint(100 * answers.probabilities.max(1))).all()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "wide.tif", colourful(1, 9, 4)[0])  # three blocks, a row of windows each
    arguments = (bundle.path, path, "--stride", 2, "--engine", ENGINE, "--report")
    assert sattrt(*arguments, "--out", tmp_path / "whole" / "map.tif").returncode == 0
    out = tmp_path / "killed" / "map.tif"
    command = [sys.executable, "-m", "sattrt", "map", *map(str, arguments), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    work = out.with_name(".map.tif.work")
    deadline = time.monotonic() + 120
    while len(list(work.glob("block-*.npz"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = sorted(work.glob("block-*.npz"))
    assert 1 <= len(left) < 3
    assert not out.exists()
    kept = {name: name.stat().st_mtime_ns for name in left}

    assert "begun with another stride: 2, not 8" in refusal(bundle.path, path, "--stride", 8, "--engine", ENGINE, "--out", out, "--resume")
    os.utime(path, ns=(1, 1))
    assert "begun with another file wide.tif" in refusal(*arguments, "--out", out, "--resume")
    manifest = json.loads((work / "manifest.json").read_text())
    os.utime(path, ns=(1, manifest["file wide.tif"][1]))

    unchanged = []

    def progress(done: int, total: int) -> None:
        unchanged.append(all(name.stat().st_mtime_ns == written for name, written in kept.items()))

    config = MapConfig(engine=ENGINE, stride=2, report=True)
    list(map_scenes(bundle.path, [path], out, config, True, lambda name: progress))
    assert unchanged == [True] * (4 - len(left))
    assert contents(out.parent) == contents(tmp_path / "whole")


def test_several_scenes_go_into_a_folder_and_finished_ones_are_kept(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "other.tif", colourful(2, 2)[0])
    out = tmp_path / "maps"
    done = sattrt(bundle.path, scene, other, "--out", out, "--engine", ENGINE)
    assert done.returncode == 0, done.stderr
    assert sorted(contents(out)) == [f"{name}.{end}" for name in ("other", "scene") for end in ("png", "tif", "tif.aux.xml")]
    assert str(out / "other.tif") in done.stdout
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "other.tif").unlink()
    assert sattrt(bundle.path, scene, other, "--out", out, "--engine", ENGINE, "--resume").returncode == 0
    assert [path.name for path in sorted(out.iterdir()) if path.stat().st_mtime_ns == before[path]] == [
        "scene.png",
        "scene.tif",
        "scene.tif.aux.xml",
    ]
    (tmp_path / "again").mkdir()
    shutil.copy(other, tmp_path / "again")
    assert "Several scenes would be mapped to" in refusal(bundle.path, other, tmp_path / "again" / "other.tif", "--out", out)


def test_a_scene_without_georeference_is_counted_in_pixels(bundle: Bundle, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(2, 3, 10)[0], placed=False)
    done = sattrt(bundle.path, path, "--out", tmp_path / "map.tif", "--engine", ENGINE)
    assert done.returncode == 0
    assert not done.stderr
    assert "no georeference: mapped in pixels" in done.stdout
    assert "area, pixels" in done.stdout
    found = MapFile.read(tmp_path / "map.tif")
    assert found.transform is None
    assert found.statistics().area.sum() == 138 * 202


def test_what_can_not_be_mapped_is_refused_in_one_line(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "map.tif"
    for stride, reason in {
        "0": "stride is 0",
        "65": "stride is 65",
        "-3": "--stride is '-3'",
        "half": "--stride is 'half'",
        "2.5": "'2.5'",
    }.items():
        assert reason in refusal(bundle.path, scene, "--out", out, "--stride", stride)
    assert "at least one scene" in refusal(bundle.path)
    assert "does not exist" in refusal(bundle.path, tmp_path / "none.tif", "--out", out)
    assert "no engine 'fast'" in refusal(bundle.path, scene, "--out", out, "--engine", "fast")
    assert "ends in .tif" in refusal(bundle.path, scene, "--out", tmp_path / "out" / "map.png")
    assert "is the scene itself" in refusal(bundle.path, scene, "--out", scene)
    (tmp_path / "file").write_text("")
    assert "Can't write" in refusal(bundle.path, scene, "--out", tmp_path / "file" / "map.tif", "--engine", ENGINE)
    (tmp_path / "map.toml").write_text("ofset = 1000\n")
    assert "Did you mean 'offset'" in refusal(bundle.path, scene, "--out", out, "--config", tmp_path / "map.toml")
    (tmp_path / "map.toml").write_text("valid = 0\n")
    assert "valid is 0" in refusal(bundle.path, scene, "--out", out, "--config", tmp_path / "map.toml")
    assert not out.parent.exists()


def test_a_scene_that_is_cut_short_further_down_leaves_no_map(bundle: Bundle, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(12, 12)[0], blockysize=64, interleave="pixel")
    os.truncate(path, path.stat().st_size - 60_000)
    message = refusal(bundle.path, path, "--out", tmp_path / "out" / "map.tif", "--engine", ENGINE)
    assert "scene.tif" in message
    assert "cut short" in message
    assert not [each for each in (tmp_path / "out").glob("*") if not each.name.endswith(".work")]


@pytest.mark.parametrize("limit", [2_000, 12_000])
def test_a_disk_that_fills_up_leaves_nothing_half_written(bundle: Bundle, tmp_path: Path, limit: int) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(4, 4)[0])
    out = tmp_path / "out" / "map.tif"
    out.parent.mkdir()
    out.write_text("an older map")
    message = refusal(
        bundle.path, path, "--out", out, "--stride", 8, "--engine", ENGINE, "--report",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert "Can't write" in message or "disk is full" in message
    assert out.read_text() == "an older map"
    assert [each.name for each in out.parent.iterdir() if not each.name.endswith(".work")] == ["map.tif"]


def test_memory_stays_small_for_a_scene_of_full_width(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "wide.tif"
    profile = {
        "driver": "GTiff",
        "count": 13,
        "height": 1200,
        "width": 10_980,
        "dtype": "uint16",
        "tiled": True,
        "crs": CRS,
        "transform": TRANSFORM,
    }
    with rasterio.open(path, "w", **profile, blockxsize=512, blockysize=512, sparse_ok=True) as file:
        file.descriptions = ESA
        pixels = noise(13, 600, 200)
        pixels[ESA.index("B10")] = 8
        file.write(pixels, window=rasterio.windows.Window(5000, 100, 200, 600))
    # not getrusage: a process begins with the peak of the one that forked it
    script = (
        "import sys; from sattrt.cli import app; sys.argv[0] = 'sattrt'; app(standalone_mode=False); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", script, "map", bundle.path, path, "--out", tmp_path / "map.tif", "--engine", ENGINE]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1_000_000  # kB


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    def stopped(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
        raise KeyboardInterrupt
        yield

    from sattrt.map.run import Job, make_plan, map_scene

    with bundle.open(ENGINE) as opened:
        job = Job(bundle=bundle, engine=opened, config=MapConfig(engine=ENGINE), compute=stopped)
        with pytest.raises(KeyboardInterrupt):
            map_scene(make_plan(bundle, scene, job.config), job, tmp_path / "map.tif", False, quiet)
    with pytest.raises(ContractError, match="begun with another batch_size: 64, not 32"):
        mapped(bundle, scene, tmp_path / "map.tif", resume=True, batch_size=32)
    (tmp_path / ".map.tif.work" / "block-000000.npz").write_bytes(b"half")
    with pytest.raises(ContractError, match=r"block-000000\.npz can't be read"):
        mapped(bundle, scene, tmp_path / "map.tif", resume=True)
    assert mapped(bundle, scene, tmp_path / "map.tif").files


def test_without_rasterio_the_way_out_is_named(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['{}'] = None; sys.argv[0] = 'sattrt'; from sattrt.cli import main; main()"
    for package, extra, more in (("rasterio", "geo", ()), ("distributed", "cluster", ("--cluster", "local"))):
        command = [sys.executable, "-c", script.format(package), "map", bundle.path, scene, "--out", tmp_path / "map.tif", *more]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"pip install 'sattrt[{extra}]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_maps_are_read_as_maps_alone(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no map that `sattrt map` wrote"):
        MapFile.read(scene)
    with pytest.raises(InputError, match="does not exist"):
        MapFile.read(tmp_path / "none.tif")
    for tag in ('{"classes": [], "stride": 1, "width": 1, "height": Infinity}', "[" * 100_000):
        with rasterio.open(write_raster(tmp_path / "spoilt.tif", colourful(1, 1)[0]), "r+") as file:
            file.update_tags(SATTRT=tag)
        with pytest.raises(InputError, match="is no map that `sattrt map` wrote"):
            MapFile.read(tmp_path / "spoilt.tif")


def test_nothing_is_written_over_a_scene(bundle: Bundle, tmp_path: Path) -> None:
    pixels = colourful(1, 2)[0]
    picture = write_raster(tmp_path / "scene.png", pixels, placed=False, driver="PNG")
    folder = tmp_path / "bands"
    folder.mkdir()
    for name, band in zip(("B04", "B03", "B02", "B08"), (*pixels, pixels[0]), strict=True):
        write_raster(folder / f"x_{name}.tif", band[None])
    before = picture.read_bytes(), contents(folder)
    assert "scene.png is the scene itself" in refusal(bundle.path, picture, "--out", tmp_path / "scene.tif")
    for name in ("x_B04.tif", "x_B08.tif"):
        assert f"{name} is the scene itself, or a part of it" in refusal(bundle.path, folder, "--out", folder / name)
    (tmp_path / "r.tif.aux.xml").mkdir()
    assert "r.tif.aux.xml is a folder" in refusal(bundle.path, picture, "--out", tmp_path / "r.tif")
    assert (picture.read_bytes(), contents(folder)) == before


def test_two_runs_do_not_share_a_map(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"

    def second(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
        with pytest.raises(InputError, match="is being made by another run"):
            mapped(bundle, scene, out)
        raise KeyboardInterrupt
        yield

    with bundle.open(ENGINE) as engine, pytest.raises(KeyboardInterrupt):
        config = MapConfig(engine=ENGINE)
        map_scene(make_plan(bundle, scene, config), Job(bundle=bundle, engine=engine, config=config, compute=second), out, False, quiet)
    mapped(bundle, scene, out)


def test_a_finished_map_of_another_scene_is_not_this_ones(bundle: Bundle, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        pixels = noise(3, 128, 128, seed, 1, 255).astype(np.uint8)
        os.utime(write_raster(tmp_path / name / "scene.tif", pixels), (1.7e9 + seed, 1.7e9 + seed))
    out = tmp_path / "map.tif"
    mapped(bundle, tmp_path / "a" / "scene.tif", out)
    again = mapped(bundle, tmp_path / "b" / "scene.tif", out, resume=True)
    fresh = mapped(bundle, tmp_path / "b" / "scene.tif", tmp_path / "fresh.tif")
    assert (again.statistics.area == fresh.statistics.area).all()
    assert out.read_bytes() == (tmp_path / "fresh.tif").read_bytes()


def test_a_finished_map_is_not_that_of_another_report(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    mapped(bundle, scene, out, report=True)
    old = out.with_suffix(".html").read_bytes()
    mapped(bundle, scene, out, stride=32)
    mapped(bundle, scene, out, resume=True, stride=32, report=True)
    fresh = mapped(bundle, scene, tmp_path / "other" / "map.tif", stride=32, report=True)
    assert out.with_suffix(".html").read_bytes() == fresh.files[-1].read_bytes() != old
    before = out.stat().st_mtime_ns
    mapped(bundle, scene, out, resume=True, stride=32, report=True)
    assert out.stat().st_mtime_ns == before


def test_a_work_folder_that_is_a_link_is_left_alone(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("a")
    (tmp_path / ".map.tif.work").symlink_to("precious")
    assert "is a link; what it points to would be deleted" in refusal(bundle.path, scene, "--out", tmp_path / "map.tif")
    assert contents(tmp_path / "precious") == {"a": b"a"}


@pytest.mark.parametrize("name", ["notes.txt", "block-1.npz", "lock", "manifest.json", ".git"])
def test_a_work_folder_that_no_run_made_is_left_alone(bundle: Bundle, scene: Path, tmp_path: Path, name: str) -> None:
    work = tmp_path / ".map.tif.work"
    work.mkdir()
    (work / name).write_text('["precious"]')
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"\.map\.tif\.work holds {re.escape(name)}, which no run of sattrt map made"):
            mapped(bundle, scene, tmp_path / "map.tif", resume=resume)
    assert contents(work) == {name: b'["precious"]'}
    assert not (tmp_path / "map.tif").exists()


def test_a_run_deletes_what_it_made_alone(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    work = tmp_path / ".map.tif.work"

    def progress(done: int, total: int) -> None:
        (work / "notes.txt").write_text("precious")

    config = MapConfig(engine=ENGINE)
    list(map_scenes(bundle.path, [scene], tmp_path / "map.tif", config, False, lambda name: progress))
    assert contents(work) == {"notes.txt": b"precious"}


def test_maps_are_called_as_their_scenes_are(bundle: Bundle, tmp_path: Path) -> None:
    pixels = colourful(2, 2)[0]
    scenes = [write_raster(tmp_path / f"T32.{year}.tif", pixels) for year in (2018, 2024)]
    for name in ("2018.06", "2018.07"):
        (tmp_path / name).mkdir()
        for band, each in zip(("B04", "B03", "B02"), pixels, strict=True):
            write_raster(tmp_path / name / f"{band}.tif", each[None])
        scenes.append(tmp_path / name)
    done = sattrt(bundle.path, *scenes, "--engine", ENGINE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["2018.06.tif", "2018.07.tif", "T32.2018.tif", "T32.2024.tif"]
    assert "several scenes go into a folder" in refusal(bundle.path, *scenes, "--out", tmp_path / "map.tif")
    (tmp_path / "T32.2018").mkdir()
    assert "Several scenes would be mapped to" in refusal(bundle.path, scenes[0], tmp_path / "T32.2018")
    assert mapped(bundle, scenes[0], tmp_path / "maps").files[0].name == "T32.2018.tif"


def test_a_path_that_the_system_refuses_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    assert "name too long" in refusal(bundle.path, tmp_path / ("x" * 300 + ".tif"), "--out", tmp_path / "m.tif")
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    assert "loop.tif" in refusal(bundle.path, tmp_path / "loop.tif", "--out", tmp_path / "m.tif")
