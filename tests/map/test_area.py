"""Scenes on the ground: how large their pixels are, in which projection."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scenes import CRS, LAMBERT, noise, spec, write_raster

from sattrt.errors import InputError
from sattrt.map.area import cell_areas
from sattrt.map.config import MapConfig
from sattrt.map.finding import find_scene
from sattrt.map.geo import same_crs

WGS84 = rasterio.crs.CRS.from_epsg(4326).to_wkt()


@pytest.mark.parametrize(
    ("crs", "transform", "found"),
    [
        ("EPSG:32632", rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_000), "10"),
        ("EPSG:3857", rasterio.Affine(10, 0, 1_000_000, 0, -10, 8_399_738), "5.01"),  # at 60 degrees north, twice as large in Mercator
        ("EPSG:4326", rasterio.Affine(1e-4, 0, 9, 0, -1e-4, 0.003), "11.1"),
    ],
)
def test_another_ground_sampling_distance_than_the_tiles_is_said(tmp_path: Path, crs: str, transform: rasterio.Affine, found: str) -> None:
    path = write_raster(tmp_path / "s.tif", noise(1, 64, 64), ("B04",), crs=crs, transform=transform)
    for gsd, said in ((None, False), (0.9 * float(found), False), (1.1 * float(found), False), (1.3 * float(found), True), (0.5, True)):
        says = find_scene(path, replace(spec(("B04",), "uint16"), gsd=gsd), MapConfig()).says
        assert any(f"its pixels are {found} m wide" in text for text in says) == said
        assert any("m wide" in text for text in says) == said
    bare = write_raster(tmp_path / "bare.tif", noise(1, 64, 64), ("B04",), placed=False)
    assert find_scene(bare, replace(spec(("B04",), "uint16"), gsd=0.5), MapConfig()).says == ("no georeference: mapped in pixels",)
    for place in (rasterio.Affine(float("nan"), 0, 9, 0, -1, 9), rasterio.Affine(10, 0, float("inf"), 0, -10, 9)):
        nowhere = find_scene(
            write_raster(tmp_path / "n.tif", noise(1, 64, 64), ("B04",), transform=place), spec(("B04",), "uint16"), MapConfig()
        )
        assert (nowhere.crs, nowhere.transform, nowhere.says) == ("", None, ("no georeference: mapped in pixels",))


def test_a_projection_is_the_same_however_it_is_spelt(tmp_path: Path) -> None:
    own = rasterio.crs.CRS.from_proj4("+proj=lcc +lat_1=41 +lat_2=47 +lat_0=44 +lon_0=9.5 +x_0=500000 +y_0=0 +ellps=GRS80 +units=m")
    path = write_raster(tmp_path / "s.tif", noise(1, 64, 64), crs=own)
    with rasterio.open(path) as file:
        read_back = file.crs.to_wkt()
    assert read_back != own.to_wkt()
    assert same_crs(read_back, own.to_wkt())
    assert not same_crs(own.to_wkt(), own.to_wkt().replace("44", "45"))
    assert not same_crs(own.to_wkt(), WGS84)
    assert same_crs("", "")
    assert not same_crs("", WGS84)


def test_turned_scenes_are_as_large_as_others(tmp_path: Path) -> None:
    rows, columns = np.full(4, 10), np.full(5, 10)
    straight = cell_areas(WGS84, (1e-4, 0.0, 9.0, 0.0, -1e-4, 48.0), rows, columns)
    turned = rasterio.Affine.translation(9, 48) @ rasterio.Affine.rotation(30) @ rasterio.Affine.scale(1e-4, -1e-4)
    aslant = cell_areas(WGS84, tuple(turned)[:6], rows, columns)
    assert straight.unit == aslant.unit == "ha"
    assert aslant.strip(0, 4).sum() == pytest.approx(straight.strip(0, 4).sum(), rel=1e-4)


def test_beyond_a_pole_there_is_nothing_to_count_in_hectares() -> None:
    wide, turned = np.full(4, 90), rasterio.Affine.rotation(30) @ rasterio.Affine.scale(0.01, -0.01)
    for top, unit in ((90.0, "ha"), (90.00001, "ha"), (91.0, "pixels"), (89.0, "pixels")):  # the last ends at 91 degrees south
        assert cell_areas(WGS84, (1.0, 0.0, -180.0, 0.0, -0.5, top), np.full(4, 90), wide).unit == unit
    for top, unit in ((80.0, "ha"), (89.9, "pixels"), (95.0, "pixels")):
        placed = rasterio.Affine.translation(9, top) @ turned
        assert cell_areas(WGS84, tuple(placed)[:6], np.full(4, 10), np.full(5, 10)).unit == unit


def test_bands_whose_crs_is_spelt_otherwise_lie_on_one_grid(tmp_path: Path) -> None:
    for band, crs in (("B04", LAMBERT.format("unknown")), ("B08", LAMBERT.format("mine")), ("B11", CRS)):
        write_raster(tmp_path / f"{band}.tif", noise(1, 70, 70), crs=crs)
    assert find_scene(tmp_path, spec(("B04", "B08"), "uint16"), MapConfig()).height == 70
    with pytest.raises(InputError, match="doesn't fit"):
        find_scene(tmp_path, spec(("B04", "B11"), "uint16"), MapConfig())
