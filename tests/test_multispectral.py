"""The whole flow on the 13-band EuroSAT sample: GeoTIFF tiles to an engine that takes uint16."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import MULTISPECTRAL, QUICK, SMALL, WEIGHTS, brief, sattrt, write_geotiff

from sattrt.bands import EUROSAT
from sattrt.bench.run import bench
from sattrt.data.cache import write_cache
from sattrt.data.dataset import Dataset
from sattrt.data.loader import decode_tiles
from sattrt.data.scan import SplitRule, scan
from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.gate import torch_logits
from sattrt.deploy.plans import fed_with_bytes
from sattrt.deploy.triton import model_config
from sattrt.errors import ContractError, InputError
from sattrt.map.config import MapConfig
from sattrt.map.run import map_scenes
from sattrt.runtime import Bundle, open_bundle
from sattrt.trained import load_trained
from sattrt.training.loop import train

pytest.importorskip("rasterio", reason="GeoTIFF is read by rasterio")
pytestmark = pytest.mark.skipif(
    not (MULTISPECTRAL.exists() and WEIGHTS.exists()), reason="the 13-band EuroSAT tiles and weights are not at ../shared/data"
)


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("spectral")
    dataset = write_cache(scan(MULTISPECTRAL, SplitRule((30, 20, 50)), workers=1), folder, workers=1)
    dataset.write(folder)
    return Dataset.read(folder)


@pytest.fixture(scope="module")
def trained(spectral: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectral-run") / "run"
    train(
        spectral,
        folder,
        replace(SMALL, weights=str(WEIGHTS), epochs=8, precision="auto", symmetries=False, label_smoothing=0.0),
    )
    return folder


@pytest.fixture(scope="module")
def engines(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    report = export(trained, tmp_path_factory.mktemp("spectral-engines") / "b", ExportConfig(precision="fp32,fp16", gate=5))
    assert report.failed == {}
    return report.bundle


def test_it_learns_the_sample_by_heart(spectral: Dataset, trained: Path) -> None:
    model, spec = load_trained(trained)
    assert (spec.bands, spec.dtype) == (EUROSAT, "uint16")
    assert spec.gsd == 10
    tiles, labels = decode_tiles(spectral, spectral.tiles("train"))
    assert (torch_logits(model, tiles, 1).argmax(1) == labels).mean() > 0.9  # ten classes by chance: 0.1


def test_engines_take_uint16_and_agree_with_the_network(spectral: Dataset, trained: Path, engines: Bundle) -> None:
    assert {"onnxruntime-fp32", "onnxruntime-fp16"} <= {engine.name for engine in engines.engines}
    for engine in engines.engines:
        if "accuracy" in (found := engine.record["validation"]):
            assert found["largest_error"] < (1e-3 if engine.precision == "fp32" else 0.1)
    tiles, _ = decode_tiles(spectral, spectral.tiles("test"))
    with open_bundle(engines.path, "onnxruntime-fp32") as engine:
        assert engine.predict(tiles).probabilities.shape == (len(tiles), 10)
        with pytest.raises(InputError, match="takes a uint16 array, not uint8"):
            engine.predict((tiles // 256).astype(np.uint8))
        with pytest.raises(InputError, match=r"64, 64, 13"):
            engine.predict(tiles[..., :12])


def test_the_bench_scores_it_from_the_files(spectral: Dataset, engines: Bundle) -> None:
    with brief(tiles=32):
        document = bench(
            [engines], spectral, replace(QUICK, scenarios="offline", batches="4", engines="onnxruntime-fp32,torch-eager-fp32")
        ).document
    rows = {row["engine"]: row["accuracy"] for row in document["engines"]}
    assert rows["onnxruntime-fp32"]["wrong"] == rows["torch-eager-fp32"]["wrong"]
    assert document["dataset"]["decoder"] == "rasterio on the CPU"
    assert "0 pairs of touching tiles" in document["dataset"]["split_description"]
    fewer = replace(spectral, bands=EUROSAT[:4], mean=spectral.mean[:4], std=spectral.std[:4])
    with pytest.raises(ContractError, match=r"takes B01, .* as uint16; the dataset has B01, B02, B03, B04 as uint16"):
        bench([engines], fewer, QUICK)


def test_tensorrts_graph_takes_the_same_memory_as_bytes(spectral: Dataset, engines: Bundle) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the graph")
    content = fed_with_bytes(engines.path / "model.fp32.onnx")
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    tiles, _ = decode_tiles(spectral, spectral.tiles("test"))
    [logits] = session.run(["logits"], {"input": tiles.view(np.uint8)})
    with open_bundle(engines.path, "onnxruntime-fp32") as engine:
        np.testing.assert_allclose(logits, engine.predict(tiles).logits, atol=1e-4)
    if plans := [engine for engine in engines.engines if engine.backend == "tensorrt-rtx"]:
        assert plans[0].record["dtype"] == "uint16"
        assert "TYPE_UINT8 dims: [ 64, 64, 26 ]" in model_config("m", engines.spec, replace(plans[0], backend="tensorrt"))
    assert "TYPE_UINT16 dims: [ 64, 64, 13 ]" in model_config("m", engines.spec, engines.engine("onnxruntime-fp32"))


def test_a_scene_of_13_bands_is_mapped_as_its_tiles_are_judged(spectral: Dataset, engines: Bundle, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    tiles, _ = decode_tiles(spectral, spectral.tiles("test")[:12])
    scene = tiles.reshape(3, 4, 64, 64, 13).transpose(0, 2, 1, 3, 4).reshape(192, 256, 13)
    write_geotiff(tmp_path / "scene.tif", scene)  # without names: EuroSAT's order is found
    [mapped] = map_scenes(
        engines.path,
        [tmp_path / "scene.tif"],
        tmp_path / "map.tif",
        MapConfig(engine="onnxruntime-fp32"),
        False,
        lambda name: lambda done, total: None,
    )
    assert any("EuroSAT's order" in line for line in mapped.scene.says)
    with rasterio.open(tmp_path / "map.tif") as file, open_bundle(engines.path, "onnxruntime-fp32") as engine:
        np.testing.assert_array_equal(file.read(1).ravel(), engine.predict(tiles).labels + 1)


def test_lone_files_are_classified(engines: Bundle, tmp_path: Path) -> None:
    tile = np.random.default_rng(0).integers(1, 3000, (64, 64, 13)).astype(np.uint16)
    tile[..., 9] = 10
    write_geotiff(tmp_path / "t.tif", tile)
    done = sattrt("predict", engines.path, tmp_path / "t.tif", "--engine", "onnxruntime-fp32", "--json")
    assert json.loads(done.stdout)["predictions"][0]["class"] in engines.spec.classes
    write_geotiff(tmp_path / "few.tif", tile[..., :3], ("B04", "B03", "B02"))
    done = sattrt("predict", engines.path, tmp_path / "few.tif")
    assert (done.returncode, done.stdout) == (1, "")
    assert "few.tif: it has no band B01 (it holds B04, B03, B02)" in done.stderr
