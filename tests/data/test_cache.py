"""Tiles decoded once, in a file beside dataset.json."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_bands import RULE, write_classes

from sattrt.bands import EUROSAT as EUROSAT_ORDER
from sattrt.data.cache import open_cache, write_cache
from sattrt.data.dataset import Dataset
from sattrt.data.scan import scan

pytest.importorskip("rasterio", reason="GeoTIFF is read by rasterio")


def test_large_tiles_are_handed_over_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scan(write_classes(tmp_path / "t", EUROSAT_ORDER, count=4), RULE, workers=1)
    for side, expected in ((16, 256), (256, 19), (4096, 1)):  # at most 34 MB, or one tile
        chunks = list[int]()
        monkeypatch.setattr("sattrt.data.cache.each_file", lambda *given, chunks=chunks: chunks.append(given[4]) or [])
        write_cache(replace(found, height=side, width=side), tmp_path, workers=2)
        assert chunks == [expected]


@pytest.mark.parametrize("linked", ["tiles.npy", "dataset.json"])
def test_decoded_tiles_or_their_dataset_may_be_a_link(tmp_path: Path, linked: str) -> None:
    for name in ("d", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "d" / linked).symlink_to(tmp_path / "elsewhere" / "other name")
    found = write_cache(scan(write_classes(tmp_path / "t", EUROSAT_ORDER, count=6), RULE, workers=1), tmp_path / "d", workers=1)
    found.write(tmp_path / "d")
    assert (tmp_path / "elsewhere" / "other name").is_file()
    read = Dataset.read(tmp_path / "d")
    assert read == found
    assert len(open_cache(read)) == len(found.all_tiles)


def test_a_folder_may_link_to_the_dataset_alone(tmp_path: Path) -> None:
    for name in ("d", "other"):
        (tmp_path / name).mkdir()
    write_cache(scan(write_classes(tmp_path / "t", EUROSAT_ORDER, count=6), RULE, workers=1), tmp_path / "d", workers=1).write(
        tmp_path / "d"
    )
    (tmp_path / "other" / "dataset.json").symlink_to(tmp_path / "d" / "dataset.json")
    assert open_cache(Dataset.read(tmp_path / "other")).shape == open_cache(Dataset.read(tmp_path / "d")).shape
