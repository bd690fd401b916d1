"""The change between two maps: areas from class to class, what is certain, and maps that can't be compared."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import refusal, sattrt
from numpy.typing import NDArray
from scenes import LAMBERT, colourful, write_raster

from sattrt.errors import ContractError, InputError
from sattrt.map.compare import UNCHANGED, compare_maps
from sattrt.map.config import MapConfig
from sattrt.map.mapfile import MapFile
from sattrt.map.run import map_scenes
from sattrt.runtime import Bundle

Mapper = Callable[..., Path]


@pytest.fixture(scope="module")
def mapper(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Mapper:
    """Maps a scene of 4 x 4 tiles and 20 pixels more."""

    def map_it(name: str, pixels: NDArray[np.uint8] | None = None, stride: int = 64, **profile: object) -> Path:
        folder = tmp_path_factory.mktemp(name)
        path = write_raster(folder / "scene.tif", colourful(4, 4, 20)[0] if pixels is None else pixels, **profile)
        config = MapConfig(engine="onnxruntime-fp32", stride=stride)
        list(map_scenes(bundle.path, [path], folder / f"{name}.tif", config, False, lambda name: lambda done, total: None))
        return folder / f"{name}.tif"

    return map_it


def spoil(path: Path, out: Path, classes: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> Path:
    """A copy of a map with other cells."""
    shutil.copy(path, out)
    with rasterio.open(out, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write(np.stack([classes, confidence]))
    return out


def test_changes_are_counted_in_hectares(mapper: Mapper, tmp_path: Path) -> None:
    first = mapper("first")
    classes, sure = np.ones((5, 5), np.uint8), np.full((5, 5), 90, np.uint8)
    classes[0, 0] = 0
    old = spoil(first, tmp_path / "old.tif", classes, sure)
    after, as_sure = classes.copy(), sure.copy()
    after[1, 1], after[2, 2], after[4, 4], after[0, 0], after[3, 3] = 2, 2, 3, 2, 0
    as_sure[2, 2] = 69
    new = spoil(first, tmp_path / "new.tif", after, as_sure)
    change = compare_maps(old, new, 70, tmp_path / "change.tif")
    cell, corner = 64 * 64 / 100, 20 * 20 / 100
    assert change.unit == "ha"
    assert change.possible[0].tolist() == pytest.approx([276**2 / 100 - 4 * cell - corner, 2 * cell, corner])
    assert change.certain[0].tolist() == pytest.approx([276**2 / 100 - 4 * cell - corner, cell, corner])
    assert change.possible[1:].sum() == 0
    table = change.table()
    assert table[0] == ("Field", "Forest", f"{cell:,.1f}", f"{2 * cell:,.1f}")
    assert [line[0] for line in table[-2:]] == ["unchanged", "all"]
    with rasterio.open(tmp_path / "change.tif") as file:
        changed, least = file.read()
        assert file.crs.to_epsg() == 32632
    expected = np.full((5, 5), UNCHANGED)
    expected[1, 1], expected[2, 2], expected[4, 4], expected[0, 0], expected[3, 3] = 2, 2, 3, 0, 0
    assert (changed == expected).all()
    assert (least[2, 2], least[1, 1], least[0, 0]) == (69, 90, 0)
    assert [path.name for path in sorted(tmp_path.glob("change*"))] == ["change.png", "change.tif", "change.tif.aux.xml"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_command_prints_the_table(mapper: Mapper, tmp_path: Path) -> None:
    old, new = mapper("before"), mapper("after", colourful(4, 4, 20)[0][:, ::-1].copy())
    done = sattrt("map", "--compare", old, new)
    assert done.returncode == 0, done.stderr
    assert "certain, ha" in done.stdout
    assert "unchanged" in done.stdout
    assert compare_maps(old, old, 0).certain.sum() == pytest.approx(276**2 / 100)
    assert "takes two maps, --out, --config, --set certain=N and --json" in refusal("map", tmp_path, "--compare", old, new)
    assert "Leave the rest out" in refusal("map", "--compare", old, new, "--set", "stride=16")


def test_a_crs_that_is_spelt_otherwise_is_the_same(mapper: Mapper) -> None:
    own, respelt = (mapper(name, crs=LAMBERT.format(name)) for name in ("unknown", "mine"))
    found = MapFile.read(own)
    assert found.crs != MapFile.read(respelt).crs
    assert compare_maps(own, respelt, 0).certain.sum() == pytest.approx(found.statistics().area.sum())


def test_a_map_of_change_leaves_nothing_of_a_map_that_was_there(mapper: Mapper, tmp_path: Path) -> None:
    old = mapper("unchanged")
    out = Path(shutil.copy(old, tmp_path / "change.tif"))
    out.with_suffix(".html").write_text("<title>change.tif: sattrt map</title>")
    compare_maps(old, old, 70, out)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["change.png", "change.tif", "change.tif.aux.xml"]
    with pytest.raises(InputError, match=r"would replace change\.png"):
        compare_maps(old, old, 70, tmp_path / "change.tiff")


def test_maps_that_do_not_fit_are_refused_by_name(mapper: Mapper, tmp_path: Path) -> None:
    old = mapper("one")
    others = {
        "cells": mapper("fine", stride=32),
        "begins at 600640, 5300000, with cells of 640 x 640, unlike": mapper(
            "moved", transform=rasterio.Affine(10, 0, 600_640, 0, -10, 5_300_000)
        ),
        "another CRS": mapper("elsewhere", crs="EPSG:32633"),
        "276x260 pixels": mapper("shorter", colourful(4, 4, 20)[0][:, :260].copy()),
    }
    for reason, new in others.items():
        with pytest.raises(ContractError, match=reason) as caught:
            compare_maps(old, new, 70)
        assert str(new) in str(caught.value)
    with pytest.raises(InputError, match="is not a map"):
        compare_maps(old, old.with_name("scene.tif"), 70)
    with pytest.raises(InputError, match="a name of its own"):
        compare_maps(old, old, 70, old)
    for name in (f"{old.stem}-probabilities.tif", f"{old.stem}.tiff"):  # the picture of the last would be that of the map
        with pytest.raises(InputError, match="a name of its own"):
            compare_maps(old, old, 70, old.with_name(name))
    with pytest.raises(InputError, match=r"scene\.tif is there already, and no run of sattrt map made it"):
        compare_maps(old, old, 70, others["cells"].with_name("scene.tif"))
    with pytest.raises(InputError, match="Can't write"):
        (tmp_path / "file").write_text("")
        compare_maps(old, old, 70, tmp_path / "file" / "change.tif")
