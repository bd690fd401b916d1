"""Tiles that say where they lie: spatial splits, neighbours, ground sampling distances."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import write_geotiff
from PIL import Image
from test_bands import RULE, pixels, refused, write_classes

from sattrt.bands import EUROSAT as EUROSAT_ORDER
from sattrt.data import neighbours
from sattrt.data.dataset import Dataset, Tile
from sattrt.data.geotiff import Place, read_geotiff, read_place
from sattrt.data.neighbours import near_duplicates, thumbnail, touching
from sattrt.data.scan import BLOCK_DEGREES, SplitRule, scan
from sattrt.errors import InputError
from sattrt.training.handover import spec_of

pytest.importorskip("rasterio", reason="GeoTIFF is read by rasterio")


def test_a_spatial_split_keeps_blocks_of_longitude_together(tmp_path: Path, tiles: Path) -> None:
    folder = write_classes(tmp_path / "t", ("B02", "B03", "B04"), described=True, count=40)
    dataset = scan(folder, SplitRule.parse("spatial:50:25:25", seed=1), workers=1)
    splits: dict[int, set[str]] = {}
    for tile in dataset.all_tiles:
        place = read_geotiff((folder / tile.name).read_bytes()).place
        assert place is not None
        splits.setdefault(int(place.longitude // BLOCK_DEGREES), set()).add(tile.split)
    assert len(splits) > 3
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "valid", "test"}
    assert dataset.split == "spatial:50:25:25"
    assert "blocks of longitude" in dataset.split_description
    with pytest.raises(InputError, match="--split spatial needs tiles that say where they lie"):
        scan(tiles, SplitRule.parse("spatial"), workers=1)
    with pytest.raises(InputError, match="--split"):
        SplitRule.parse("spatially:1:1:1")


def test_8_bit_geotiff_has_a_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    for index, name in enumerate(("One", "Other")):
        (tmp_path / "t" / name).mkdir(parents=True)
        (plain / name).mkdir(parents=True)
        for i in range(20):  # four rows of tiles, each beside the last, in blocks of longitude of their own
            tile = np.random.default_rng(50 * index + i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            write_geotiff(tmp_path / "t" / name / f"{i}.tif", tile, None, 400_000 + 640 * i + i // 5 * 30_000, 5_000_000 + 50_000 * index)
            Image.fromarray(tile).save(plain / name / f"{i}.tif")
    found = scan(tmp_path / "t", RULE, workers=1)
    assert (found.dtype, found.gsd, found.left_out) == ("uint8", 10, {})
    assert found.leaks.touching
    found, without = (scan(folder, SplitRule((1, 0, 0)), workers=1) for folder in (tmp_path / "t", plain))
    assert (without.gsd, without.leaks.touching) == (None, None)
    assert (found.mean, found.std) == (without.mean, without.std)  # the pixels are Pillow's
    spatial = SplitRule.parse("spatial:50:25:25", seed=1)
    splits: dict[int, set[str]] = {}
    for each in scan(tmp_path / "t", spatial, workers=1).all_tiles:
        place = read_place((tmp_path / "t" / each.name).read_bytes())
        assert place is not None
        splits.setdefault(int(place.longitude // BLOCK_DEGREES), set()).add(each.split)
    assert len(splits) > 3
    assert all(len(found) == 1 for found in splits.values())
    assert "Use GeoTIFF tiles with coordinates" in refused(scan, plain, spatial, workers=1)
    monkeypatch.setitem(sys.modules, "rasterio", None)  # as where it is not installed
    assert scan(tmp_path / "t", RULE, workers=1).leaks.touching is None
    assert "40 of 40 tiles" in refused(scan, tmp_path / "t", spatial, workers=1)
    assert "pip install 'sattrt[geo]'" in refused(scan, tmp_path / "t", spatial, workers=1)


def test_tiles_of_several_distances_have_none_between_them(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "t", ("B02", "B03", "B04"), described=True)
    rasterio = pytest.importorskip("rasterio")
    for path in sorted((folder / "Dark").glob("*.tif")):
        with rasterio.open(path, "r+") as file:
            file.transform = file.transform @ rasterio.Affine.scale(6)
    assert "show 10 m, of others 60 m. Give those of the scenes to be mapped: --gsd 60" in refused(scan, folder, SplitRule(), workers=1)
    assert scan(folder, SplitRule(), workers=1, gsd=10).gsd == 10


def test_the_ground_sampling_distance_is_that_of_the_coordinates_or_what_is_given(tmp_path: Path, tiles: Path) -> None:
    folder = write_classes(tmp_path / "t", ("B02", "B03", "B04"), described=True)
    found = scan(folder, SplitRule(), workers=1, gsd=9.5).gsd
    assert found == 10  # of the tiles, whatever is given
    with pytest.raises(InputError, match="--gsd is 20; the coordinates"):
        scan(folder, SplitRule(), workers=1, gsd=20)
    assert scan(tiles, SplitRule(), workers=1).gsd is None
    given = scan(tiles, SplitRule(), workers=1, gsd=0.5)
    given.write(tmp_path)
    assert Dataset.read(tmp_path).gsd == spec_of(Dataset.read(tmp_path), 0, {}).gsd == 0.5


def test_neighbours_on_both_sides_are_counted(tmp_path: Path) -> None:
    order = ("B02", "B03", "B04")
    for index, name in enumerate(("One", "Other")):
        (tmp_path / "t" / name).mkdir(parents=True)
        for i in range(20):  # a row of tiles, each beside the last
            write_geotiff(
                tmp_path / "t" / name / f"{i}.tif", pixels(order, 50 * index + i), order, 400_000 + 640 * i, 5_000_000 + 50_000 * index
            )
    dataset = scan(tmp_path / "t", RULE, workers=1)
    sides = {tile.name: tile.split for tile in dataset.all_tiles}
    expected = sum(sides[f"{name}/{i}.tif"] != sides[f"{name}/{i + 1}.tif"] for name in ("One", "Other") for i in range(19))
    assert expected > 0
    assert dataset.leaks.touching == expected


def test_the_same_ground_is_known_again_though_it_is_shifted() -> None:
    rng = np.random.default_rng(0)
    ground = [
        np.kron(rng.normal(1000, 250, (5, 5)), np.ones((16, 16))) + np.kron(rng.normal(0, 60, (40, 40)), np.ones((2, 2))) for _ in range(30)
    ]
    calm = np.full((64, 64), 500.0)
    views = [each[:64, :64] for each in ground] + [ground[3][4:68, 2:66], ground[5][:64, 2:66], calm, calm + 1]
    tiles = [Tile(str(i), 0, "train" if i < 30 or i == 32 else "test", "", 0) for i in range(len(views))]
    small = [thumbnail(view[:, :, None].astype(np.uint16)) for view in views]
    assert sorted(near_duplicates(tiles, np.stack([each for each in small if each is not None]))) == [("30", "3"), ("31", "5")]


def test_a_crs_that_has_no_place_on_earth_is_no_place(tmp_path: Path) -> None:
    import rasterio

    path = tmp_path / "t.tif"
    write_geotiff(path, pixels(EUROSAT_ORDER, 0))
    with rasterio.open(path, "r+") as file:
        file.crs = rasterio.crs.CRS.from_wkt('LOCAL_CS["mine",UNIT["metre",1]]')
    assert read_geotiff(path.read_bytes()).place is None


@pytest.mark.parametrize("transform", [(10, 400_000, 5_000_000), (10, 400_000, 50), (10, 9, 5_000_000), (1e-18, 9, 45)])
def test_metres_that_are_tagged_as_degrees_are_no_place(tmp_path: Path, transform: tuple[float, float, float]) -> None:
    import rasterio

    side, east, north = transform
    folder = write_classes(tmp_path / "t", ("B02", "B03", "B04"), described=True, count=4)
    for path in folder.rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.crs, file.transform = "EPSG:4326", rasterio.Affine(side, 0, east, 0, -side, north)
    found = scan(folder, RULE, workers=1, gsd=20)
    assert (found.gsd, found.leaks.touching) == (20, None)


def test_one_outsized_tile_does_not_make_all_others_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    half, across = 0.003, 30
    places = [Place(9 + 2 * half * (i % across), 45 + 2 * half * (i // across), half, half) for i in range(across**2)]
    places += [Place(9, 45, 20, 20), Place(9, 45, 0.1, 1e-12)]
    tiles = [Tile(f"{i:03}", 0, "test" if i % 3 == 0 else "train", str(i), 1) for i in range(len(places))]
    placed = list(zip(tiles, places, strict=True))
    expected = sorted((one[0].name, other[0].name) for one, other in combinations(placed, 2) if neighbours._touch(one, other))
    held: list[str] = []
    touch = neighbours._touch
    monkeypatch.setattr(neighbours, "_touch", lambda one, other: held.append(one[0].name) or touch(one, other))
    assert touching(tiles, places) == expected
    assert len(expected) > 2000
    assert len(held) < 20 * len(places)  # of 900 a tile, if each is held against each


def test_places_of_next_to_no_size_can_be_compared() -> None:
    tiles = [Tile(str(i), 0, split, str(i), 1) for i, split in enumerate(("train", "valid", "test"))]
    dots = [Place(9 + i, 45, 1e-18, 0) for i in (0, 0, 1)]
    assert touching(tiles, dots) == []
    half = 0.003
    for east, west in ((179.999, -179.996), (-0.001, 0.004)):  # across the 180th meridian, and the first
        assert touching(tiles, [Place(east, 66, half, half), Place(west, 66, half, half), Place(90, 66, half, half)]) == [("0", "1")]
    assert touching(tiles, [Place(9 + i, 45, 1e-18, 1e-18) for i in (0, 0, 1)]) == [("0", "1")]
