"""`sattrt map` from scene to files, with a real engine: what is in the map, what a kill leaves, and what is refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from conftest import refusal, running, sattrt
from scenes import CRS, ENGINE, TRANSFORM, colourful, contents, mapped, noise, write_raster

from sattrt.errors import InputError
from sattrt.map.config import MapConfig
from sattrt.map.mapfile import MapFile
from sattrt.map.output import Layout, names_beside, write_cog
from sattrt.map.run import Job, _manifest, make_plan, map_scenes
from sattrt.runtime import Bundle, Engine


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
    percents = np.random.default_rng(0).integers(0, 101, (600, 700)).astype(np.uint8)
    write_cog(tmp_path / "p.tif", tmp_path, replace(layout, bands=("a",), nodata=255, colours={}), (row[None] for row in percents))
    with rasterio.open(tmp_path / "p.tif", overview_level=0) as file:  # of probabilities the mean means something
        assert np.abs(file.read(1) - percents.reshape(300, 2, 350, 2).mean((1, 3))).max() <= 0.5
    (tmp_path / "p.tif").unlink()
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
    assert empty.table() == [("no data", f"{16 * 40.96:,.1f}", "", "")]


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


def heeds_ctrl_c() -> None:
    """For a process that is begun from one in the background, which would not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(bundle: Bundle, tmp_path: Path, how: signal.Signals) -> None:
    path = write_raster(tmp_path / "wide.tif", colourful(1, 9, 4)[0])  # three blocks, a row of windows each
    arguments = (bundle.path, path, "--stride", 2, "--engine", ENGINE, "--report")
    assert sattrt("map", *arguments, "--out", tmp_path / "whole" / "map.tif").returncode == 0
    out = tmp_path / "killed" / "map.tif"
    command = [sys.executable, "-m", "sattrt", "map", *map(str, arguments), "--out", str(out)]
    work = out.with_name(".map.tif.work")
    deadline = time.monotonic() + 120
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heeds_ctrl_c) as process:
        while len(list(work.glob("block-*.npz"))) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 128 + how
        assert said.strip().splitlines()[-1] == "sattrt: Interrupted. Add --resume to continue, if it had started."
    left = sorted(work.glob("block-*.npz"))
    assert 1 <= len(left) < 3
    assert not out.exists()
    if how == signal.SIGTERM:
        return  # what follows is the same as after Ctrl-C
    kept = {name: name.stat().st_mtime_ns for name in left}

    assert f"holds {len(left)} of its blocks. Continue with --resume" in refusal("map", *arguments, "--out", out)
    other = write_raster(tmp_path / "other.tif", colourful(1, 9, 4)[0])
    assert "started with the scene wide.tif, not other.tif" in refusal("map", bundle.path, other, *arguments[2:], "--out", out, "--resume")
    assert "started with another stride: 2, not 8" in refusal(
        "map", bundle.path, path, "--stride", 8, "--engine", ENGINE, "--out", out, "--resume"
    )
    os.utime(path, ns=(1, 1))
    assert "started with wide.tif as it was before it changed" in refusal("map", *arguments, "--out", out, "--resume")
    manifest = json.loads((work / "manifest.json").read_text())
    os.utime(path, ns=(1, manifest["file wide.tif"][1]))

    unchanged = []

    def progress(done: int, total: int) -> None:
        unchanged.append(all(name.stat().st_mtime_ns == written for name, written in kept.items()))

    config = MapConfig(engine=ENGINE, stride=2, report=True)
    list(map_scenes(bundle.path, [path], out, config, True, lambda name: progress))
    assert unchanged == [True] * (4 - len(left))
    assert contents(out.parent) == contents(tmp_path / "whole")


def test_a_map_does_not_go_on_with_bands_that_were_read_in_another_order(bundle: Bundle, engine: Engine, tmp_path: Path) -> None:
    """The names that an engine takes come in its own order: it is their place in the file that differs."""
    path = write_raster(tmp_path / "scene.tif", noise(4, 128, 128))
    found = []
    for bands in ("B02,B03,B04,B08", "B04,B03,B02,B08"):
        config = MapConfig(engine=ENGINE, bands=bands)
        plan = make_plan(bundle, path, config)
        found.append(_manifest(plan, Job(bundle=bundle, engine=engine, config=config, compute=lambda plan, blocks: iter(()))))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"bands"}
    assert found[0]["bands"] == [f"{name}: band {place} of scene.tif, less 0" for name, place in (("B04", 3), ("B03", 2), ("B02", 1))]


def test_a_scene_without_georeference_is_counted_in_pixels(bundle: Bundle, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(2, 3, 10)[0], placed=False)
    done = sattrt("map", bundle.path, path, "--out", tmp_path / "map.tif", "--engine", ENGINE)
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
        "-3": "stride is -3; give 1 or more",
        "half": "valid integer",
        "2.5": "valid integer",
    }.items():
        assert reason in refusal("map", bundle.path, scene, "--out", out, "--stride", stride)
    assert "at least one scene" in refusal("map", bundle.path)
    assert "does not exist" in refusal("map", bundle.path, tmp_path / "none.tif", "--out", out)
    assert "no engine 'fast'" in refusal("map", bundle.path, scene, "--out", out, "--engine", "fast")
    assert "ends in .tif" in refusal("map", bundle.path, scene, "--out", tmp_path / "out" / "map.png")
    assert "is the scene itself" in refusal("map", bundle.path, scene, "--out", scene)
    assert "it lies in the bundle" in refusal("map", bundle.path, scene, "--out", bundle.path / "map.tif")
    (tmp_path / "file").write_text("")
    assert "Can't write" in refusal("map", bundle.path, scene, "--out", tmp_path / "file" / "map.tif", "--engine", ENGINE)
    (tmp_path / "map.toml").write_text("ofset = 1000\n")
    assert "Did you mean 'offset'" in refusal("map", bundle.path, scene, "--out", out, "--config", tmp_path / "map.toml")
    (tmp_path / "map.toml").write_text("valid = 0\n")
    assert "valid is 0" in refusal("map", bundle.path, scene, "--out", out, "--config", tmp_path / "map.toml")
    assert not out.parent.exists()


def test_where_a_later_scene_fails_the_maps_before_it_are_told_of(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    cut = write_raster(tmp_path / "cut.tif", colourful(12, 12)[0], blockysize=64, interleave="pixel", compress="deflate")
    with open(cut, "rb+") as file:  # in the second and third of twelve rows of tiles, where nobody looks beforehand
        file.seek(cut.stat().st_size // 6)
        file.write(b"\xff" * 25_000)  # more than a block, and so the beginning of one
    left = tmp_path / "maps" / ".scene.tif.0123abcd.tmp"  # as a killed run leaves it
    left.parent.mkdir()
    left.touch()
    done = sattrt("map", bundle.path, scene, cut, "--out", tmp_path / "maps", "--engine", ENGINE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cut.tif" in done.stderr
    assert str(tmp_path / "maps" / "scene.tif") in done.stdout
    assert not left.exists()
    done = sattrt("map", bundle.path, scene, cut, "--out", tmp_path / "maps", "--engine", ENGINE, "--json")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert [each["file"] for each in json.loads(done.stdout)["maps"]] == [str(tmp_path / "maps" / "scene.tif")]


def test_a_scene_that_is_cut_short_further_down_leaves_no_map(bundle: Bundle, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(12, 12)[0], blockysize=64, interleave="pixel")
    os.truncate(path, path.stat().st_size - 60_000)
    message = refusal("map", bundle.path, path, "--out", tmp_path / "out" / "map.tif", "--engine", ENGINE)
    assert "scene.tif" in message
    assert "cut short" in message
    assert not [each for each in (tmp_path / "out").glob("*") if not each.name.endswith(".work")]


@pytest.mark.parametrize("limit", [2_000, 12_000])
def test_a_disk_that_fills_up_leaves_nothing_half_written(bundle: Bundle, tmp_path: Path, limit: int) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(4, 4)[0])
    out = tmp_path / "out" / "map.tif"
    mapped(bundle, path, out)
    before = {each.name: each.read_bytes() for each in out.parent.iterdir()}
    message = refusal(
        "map", bundle.path, path, "--out", out, "--stride", 8, "--engine", ENGINE, "--report",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert "Can't write" in message or "disk is full" in message
    assert {each.name: each.read_bytes() for each in out.parent.iterdir() if not each.name.endswith(".work")} == before


def test_without_rasterio_the_way_out_is_named(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['{}'] = None; sys.argv[0] = 'sattrt'; from sattrt.__main__ import main; main()"
    for package, extra, more in (("rasterio", "geo", ()), ("distributed", "cluster", ("--cluster", "local"))):
        command = [sys.executable, "-c", script.format(package), "map", bundle.path, scene, "--out", tmp_path / "map.tif", *more]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"pip install 'sattrt[{extra}]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_maps_are_read_as_maps_alone(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a map of classes that `sattrt map` wrote"):
        MapFile.read(scene)
    with pytest.raises(InputError, match="does not exist"):
        MapFile.read(tmp_path / "none.tif")
    with rasterio.open(write_raster(tmp_path / "change.tif", colourful(1, 1)[0]), "r+") as file:
        file.update_tags(SATTRT_CHANGE="{}")
    with pytest.raises(InputError, match="is a map of change, not of one scene"):
        MapFile.read(tmp_path / "change.tif")
    for tag in ('{"classes": [], "stride": 1, "width": 1, "height": Infinity}', "[" * 100_000):
        with rasterio.open(write_raster(tmp_path / "spoilt.tif", colourful(1, 1)[0]), "r+") as file:
            file.update_tags(SATTRT=tag)
        with pytest.raises(InputError, match="is not a map of classes that `sattrt map` wrote"):
            MapFile.read(tmp_path / "spoilt.tif")


def test_a_map_has_no_more_classes_than_its_bytes_hold(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "map.tif", colourful(1, 1)[0][:2])
    for count in (254, 255):
        with rasterio.open(path, "r+") as file:
            file.update_tags(SATTRT=json.dumps({"classes": [f"{each}" for each in range(count)], "stride": 1, "width": 64, "height": 64}))
        if count == 254:
            assert len(MapFile.read(path).classes) == count
    with pytest.raises(InputError, match="is not a map of classes that `sattrt map` wrote"):
        MapFile.read(path)


def test_a_path_that_the_system_refuses_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    assert "name too long" in refusal("map", bundle.path, tmp_path / ("x" * 300 + ".tif"), "--out", tmp_path / "m.tif")
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    assert "loop.tif" in refusal("map", bundle.path, tmp_path / "loop.tif", "--out", tmp_path / "m.tif")
