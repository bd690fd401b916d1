"""Whether pixels are known to be others than those that a network learned from, and those of the same kind not."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MULTISPECTRAL
from numpy.typing import NDArray

from sattrt.bands import EUROSAT
from sattrt.data.dataset import Dataset
from sattrt.data.geotiff import read_geotiff
from sattrt.data.loader import decode_tiles
from sattrt.errors import ContractError
from sattrt.shift import percentiles, shifts
from sattrt.spec import ModelSpec
from sattrt.training.handover import sampled_percentiles, spec_of, write_samples

BANDS = ("B02", "B08")
SPEC = ModelSpec(classes=("a", "b"), height=64, width=64, mean=(0.1,) * 2, std=(0.1,) * 2, dataset_digest="", bands=BANDS, dtype="uint16")


def learned(spec: ModelSpec, tiles: NDArray[np.unsignedinteger]) -> ModelSpec:
    return replace(spec, training={"percentiles": percentiles(tiles, spec.bands)})


def test_percentiles_are_values_that_occur() -> None:
    ramp = np.stack([np.arange(101), np.full(101, 7)], -1).astype(np.uint16)
    assert percentiles(ramp, BANDS) == {"B02": [1, 50, 99], "B08": [7, 7, 7]}


def test_a_band_that_lies_elsewhere_is_named_with_both_figures() -> None:
    tiles = np.random.default_rng(0).integers(1000, 2000, (9, 64, 64, 2)).astype(np.uint16)
    spec = learned(SPEC, tiles)
    assert shifts(spec, tiles[:1]) == shifts(spec, tiles // 2 + 800) == []
    for shifted, median in ((tiles + 1000, 2500), (tiles // 3, 500)):
        shifted[..., 0] = tiles[..., 0]
        [said] = shifts(spec, shifted)
        assert said.startswith("the median of B08 is ")
        assert float(said.split()[5].rstrip(",")) == pytest.approx(median, abs=10)
        assert re.search(r"lie between 10(09|10) and 19(89|90): another offset, scaling or sensor\?", said)
    edge = tiles.copy()
    edge[..., 1] = 2050  # beyond the 99th percentile by less than a tenth of the range: a dark sea, a bright field
    assert shifts(spec, edge) == []
    assert shifts(SPEC, tiles + 1000) == []  # an older contract
    assert shifts(spec, tiles[:0]) == []
    assert shifts(replace(SPEC, training={"percentiles": {"B03": [1, 2, 3]}}), tiles) == []
    with pytest.raises(ContractError, match="has invalid percentiles for B02"):
        shifts(replace(SPEC, training={"percentiles": {"B02": [1, None, 3]}}), tiles)


def test_a_run_keeps_those_of_its_train_tiles(dataset: Dataset, tmp_path: Path) -> None:
    write_samples(dataset, tmp_path)
    found = sampled_percentiles(tmp_path, dataset.bands)
    tiles, _ = decode_tiles(dataset, dataset.tiles("train"))
    assert found == percentiles(tiles, dataset.bands)
    spec = spec_of(dataset, 0, {"percentiles": found})
    for tile in decode_tiles(dataset, dataset.tiles("test"))[0]:
        assert shifts(spec, tile) == []
    assert [said.split()[3] for said in shifts(spec, np.full_like(tiles, 255))] == ["red", "green", "blue"]


@pytest.mark.skipif(not MULTISPECTRAL.exists(), reason="the 13-band EuroSAT tiles are not at ../shared/data")
def test_it_says_nothing_of_eurosats_own_tiles_and_something_of_the_same_with_an_offset() -> None:
    pytest.importorskip("rasterio", reason="GeoTIFF is read by rasterio")
    with zipfile.ZipFile(MULTISPECTRAL) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".tif"))
        tiles = np.stack([read_geotiff(archive.read(name)).pixels for name in names])
    spec = replace(learned(replace(SPEC, bands=EUROSAT), tiles[::2]), mean=(0.1,) * 13, std=(0.1,) * 13)
    others = tiles[1::2]
    assert shifts(spec, others) == []
    by_class = {name.split("/")[-2] for name in names}
    for each in by_class:
        assert shifts(spec, others[[name.split("/")[-2] == each for name in names[1::2]]]) == [], each
    alone = [bool(shifts(spec, tile)) for tile in others]
    assert np.mean(alone) < 0.05
    assert {"B01", "B10"} <= {said.split()[3] for said in shifts(spec, others + 1000)}
    assert np.mean([bool(shifts(spec, tile + 1000)) for tile in others]) == 1
    assert shifts(spec, others // 2)
    assert shifts(spec, others * 2)
