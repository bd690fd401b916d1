"""The files of a run: what they are called, what is kept, gone on with or left alone, and what is never written over or deleted."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refusal, sattrt
from scenes import ENGINE, colourful, contents, mapped, noise, quiet, write_raster

from sattrt.errors import ContractError, InputError
from sattrt.map.blocks import Plan
from sattrt.map.config import MapConfig
from sattrt.map.run import Job, _space, make_plan, map_scene, map_scenes
from sattrt.map.windows import Answers
from sattrt.runtime import Bundle


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 x 6 tiles and 40 pixels more."""
    return write_raster(tmp_path_factory.mktemp("scene") / "scene.tif", colourful(5, 6, 40)[0])


def test_several_scenes_go_into_a_folder_and_finished_ones_are_kept(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "other.tif", colourful(2, 2)[0])
    out = tmp_path / "maps"
    done = sattrt("map", bundle.path, scene, other, "--out", out, "--engine", ENGINE)
    assert done.returncode == 0, done.stderr
    assert sorted(contents(out)) == [f"{name}.{end}" for name in ("other", "scene") for end in ("png", "tif", "tif.aux.xml")]
    assert str(out / "other.tif") in done.stdout
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "other.tif").unlink()
    assert sattrt("map", bundle.path, scene, other, "--out", out, "--engine", ENGINE, "--resume").returncode == 0
    assert [path.name for path in sorted(out.iterdir()) if path.stat().st_mtime_ns == before[path]] == [
        "scene.png",
        "scene.tif",
        "scene.tif.aux.xml",
    ]
    (tmp_path / "again").mkdir()
    shutil.copy(other, tmp_path / "again")
    assert "Several scenes would be mapped to" in refusal("map", bundle.path, other, tmp_path / "again" / "other.tif", "--out", out)


def test_maps_are_called_as_their_scenes_are(bundle: Bundle, tmp_path: Path) -> None:
    pixels = colourful(2, 2)[0]
    scenes = [write_raster(tmp_path / f"T32.{year}.tif", pixels) for year in (2018, 2024)]
    for name in ("2018.06", "2018.07"):
        (tmp_path / name).mkdir()
        for band, each in zip(("B04", "B03", "B02"), pixels, strict=True):
            write_raster(tmp_path / name / f"{band}.tif", each[None])
        scenes.append(tmp_path / name)
    done = sattrt("map", bundle.path, *scenes, "--engine", ENGINE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["2018.06.tif", "2018.07.tif", "T32.2018.tif", "T32.2024.tif"]
    assert "several scenes go into a folder" in refusal("map", bundle.path, *scenes, "--out", tmp_path / "map.tif")
    (tmp_path / "T32.2018").mkdir()
    assert "Several scenes would be mapped to" in refusal("map", bundle.path, scenes[0], tmp_path / "T32.2018")
    assert mapped(bundle, scenes[0], tmp_path / "maps").files[0].name == "T32.2018.tif"


def test_nothing_is_written_over_a_scene(bundle: Bundle, tmp_path: Path) -> None:
    pixels = colourful(1, 2)[0]
    picture = write_raster(tmp_path / "scene.png", pixels, placed=False, driver="PNG")
    folder = tmp_path / "bands"
    folder.mkdir()
    for name, band in zip(("B04", "B03", "B02", "B08"), (*pixels, pixels[0]), strict=True):
        write_raster(folder / f"x_{name}.tif", band[None])
    before = picture.read_bytes(), contents(folder)
    assert "scene.png is the scene itself" in refusal("map", bundle.path, picture, "--out", tmp_path / "scene.tif")
    for name in ("x_B04.tif", "x_B08.tif"):
        assert f"{name} is the scene itself, or a part of it" in refusal("map", bundle.path, folder, "--out", folder / name)
    (tmp_path / "r.tif.aux.xml").mkdir()
    assert "r.tif.aux.xml is a folder" in refusal("map", bundle.path, picture, "--out", tmp_path / "r.tif")
    assert (picture.read_bytes(), contents(folder)) == before


def test_nothing_is_written_over_what_no_run_made(bundle: Bundle, tmp_path: Path) -> None:
    for day, seed in (("day1", 0), ("day2", 1)):
        (tmp_path / day).mkdir()
        write_raster(tmp_path / day / "scene.tif", noise(3, 128, 128, seed, 1, 255).astype(np.uint8))
    given, folder = tmp_path / "day1" / "scene.tif", tmp_path / "day2"
    before = contents(folder)
    assert "scene.tif is there already, and no run of sattrt map made it" in refusal("map", bundle.path, given, "--out", folder)
    for name in ("map.png", "map.html", "map-probabilities.tif"):
        (folder / name).write_bytes(before["scene.tif"])
        with pytest.raises(InputError, match=f"{name} is there already"):
            mapped(bundle, given, folder / "map.tif", report=True, probabilities=True)
        assert contents(folder) == before | {name: before["scene.tif"]}
        (folder / name).unlink()
    notes = folder / "map.tif.aux.xml"
    notes.write_text("of somebody's")
    with pytest.raises(InputError, match=r"map\.tif\.aux\.xml is there already"):
        mapped(bundle, given, folder / "map.tif")
    notes.unlink()
    out = mapped(bundle, given, folder / "map.tif", report=True, probabilities=True).files[0]
    out.unlink()  # as a run leaves it that is killed between the names that it gives
    assert mapped(bundle, given, out, report=True, probabilities=True)
    out.with_suffix(".png").write_bytes(before["scene.tif"])
    with pytest.raises(InputError, match=r"map\.png is there already"):
        mapped(bundle, given, out)


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    def stopped(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
        raise KeyboardInterrupt
        yield

    def stop() -> None:
        with bundle.open(ENGINE) as opened, pytest.raises(KeyboardInterrupt):
            job = Job(bundle=bundle, engine=opened, config=MapConfig(engine=ENGINE), compute=stopped)
            map_scene(make_plan(bundle, scene, job.config), job, out, False, quiet)

    out = tmp_path / "map.tif"
    stop()
    with pytest.raises(ContractError, match="started with another batch_size: 64, not 32"):
        mapped(bundle, scene, out, resume=True, batch_size=32)
    mapped(bundle, scene, out, resume=True)
    fresh = out.read_bytes()
    out.unlink()  # or it would be found finished
    stop()
    block = tmp_path / ".map.tif.work" / "block-000000.npz"
    block.write_bytes(b"half")  # damaged since
    mapped(bundle, scene, out, resume=True)
    assert out.read_bytes() == fresh
    out.unlink()
    stop()
    np.savez(block, probabilities=np.zeros((1, 7, 3), np.float32), seen=np.zeros((1, 7), np.bool_))  # of another grid
    mapped(bundle, scene, out, resume=True)
    assert out.read_bytes() == fresh


def test_a_run_that_goes_on_needs_no_space_for_what_it_has(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are made up here: it is their size that matters."""
    path = write_raster(tmp_path / "wide.tif", colourful(1, 9, 4)[0])  # three blocks, a row of windows each
    out, config = tmp_path / "map.tif", MapConfig(engine=ENGINE, stride=2)
    plan = make_plan(bundle, path, config)
    across, cells = len(plan.grid.columns.starts), plan.grid.columns.cells

    def all_but(count: int) -> Callable[[Plan, list[int]], Iterator[tuple[int, Answers]]]:
        def compute(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
            for index in blocks[: len(blocks) - count]:
                block = plan.grid.blocks[index]
                given = np.full((len(block.windows), across, 3), 1 / 3, np.float32)
                yield index, Answers(given, np.ones((len(block.cells), cells), np.bool_))
            if count:
                raise KeyboardInterrupt

        return compute

    with bundle.open(ENGINE) as engine:
        jobs = [Job(bundle=bundle, engine=engine, config=config, compute=all_but(count)) for count in (0, 1)]
        with pytest.raises(KeyboardInterrupt):
            map_scene(plan, jobs[1], out, False, quiet)
        half = tmp_path / ".map.tif.work" / ".map.tif.0123abcd.tmp.plain"  # as a run leaves it that is killed in its second stage
        half.write_bytes(b"half")
        enough = _space(plan, [2], 3, False)
        assert enough == _space(plan, [0, 1, 2], 3, False) - 2 * 4 * across * 3
        for free in (enough - 1, enough):
            monkeypatch.setattr("shutil.disk_usage", lambda place, free=free: SimpleNamespace(free=free))
            if free < enough:
                with pytest.raises(InputError, match="The disk is full"):
                    map_scene(plan, jobs[0], out, True, quiet)
                assert not half.exists()
                assert len(list(half.parent.glob("block-*.npz"))) == 2
        assert map_scene(plan, jobs[0], out, True, quiet).files[0] == out


def test_maps_whose_names_differ_in_the_ending_alone_do_not_share_a_picture(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "map.tiff", colourful(2, 2)[0])  # a scene is no map, whatever it is called
    mapped(bundle, other, tmp_path / "map.tif")
    other.rename(tmp_path / "other.tif")
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(InputError, match=r"map\.tiff would replace map\.png, the picture of the map .*map\.tif\. Remove that map"):
            mapped(bundle, scene, tmp_path / "map.tiff", resume=resume)
    assert contents(tmp_path) == before
    assert mapped(bundle, scene, tmp_path / "MAP.tiff").files[0].name == "MAP.tiff"


def test_two_runs_do_not_share_a_map(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"

    def second(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
        for name in (out, out.with_suffix(".tiff")):  # which would have the same picture
            with pytest.raises(InputError, match="is being made by another run"):
                mapped(bundle, scene, name)
        raise KeyboardInterrupt
        yield

    with bundle.open(ENGINE) as engine, pytest.raises(KeyboardInterrupt) as first:
        config = MapConfig(engine=ENGINE)
        map_scene(make_plan(bundle, scene, config), Job(bundle=bundle, engine=engine, config=config, compute=second), out, False, quiet)
    with pytest.raises(InputError, match=r"holds the unfinished map map\.tif, .* Finish that map with --resume") as other:
        mapped(bundle, scene, out.with_suffix(".tiff"))
    mapped(bundle, scene, out)  # no lock is left, though what was raised, and by it every variable of those runs, is still there
    del first, other


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


def test_nothing_of_an_older_map_is_left_beside_another(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "other.tif", colourful(2, 2)[0])
    folder = tmp_path / "maps"
    out, names = folder / "map.tif", ["map.png", "map.tif", "map.tif.aux.xml"]
    mapped(bundle, other, out, report=True, probabilities=True)
    before = contents(folder)
    assert sorted(before) == ["map-probabilities.tif", "map.html", *names]

    def stopped(plan: Plan, blocks: list[int]) -> Iterator[tuple[int, Answers]]:
        raise KeyboardInterrupt
        yield

    with bundle.open(ENGINE) as engine, pytest.raises(KeyboardInterrupt):
        job = Job(bundle=bundle, engine=engine, config=MapConfig(engine=ENGINE), compute=stopped)
        map_scene(make_plan(bundle, scene, job.config), job, out, False, quiet)
    shutil.rmtree(folder / ".map.tif.work")
    assert contents(folder) == before  # a run that ends early leaves the older map as it was
    found = mapped(bundle, scene, out, probabilities=True)
    assert sorted(contents(folder)) == ["map-probabilities.tif", *names]
    assert found.files[0] == out
    shutil.copy(out, out.with_name("map.tif.ovr"))  # as QGIS makes them, but for the size
    mapped(bundle, other, out)
    assert sorted(contents(folder)) == names


def test_what_no_run_wrote_stays_beside_a_map(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "map.tif", tmp_path / "map-probabilities.tif"
    mapped(bundle, scene, own)  # a map, for all its name
    page = "<title>map.tif: sattrt map</title>"
    out.with_suffix(".html").write_text(page)  # of a map that is gone
    mapped(bundle, scene, out)
    assert out.with_suffix(".html").read_text() == page
    out.with_suffix(".html").write_text("precious")
    before = own.read_bytes()
    mapped(bundle, scene, out)
    assert (out.with_suffix(".html").read_text(), own.read_bytes()) == ("precious", before)


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
    assert "is a link; what it points to would be deleted" in refusal("map", bundle.path, scene, "--out", tmp_path / "map.tif")
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
