"""Maps of all 13 bands, of three resolutions, by a network that takes them as they come: the same answers as tiles cut by hand, in little memory."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
from conftest import reseal, respell
from onnx import TensorProto, helper, numpy_helper
from scenes import CRS, ENGINE, RESOLUTION, TRANSFORM, interpolated, mapped, noise, write_safe

from sattrt.bands import ESA, EUROSAT
from sattrt.runtime import MANIFEST, Bundle, open_bundle, read_bundle

SEEN = ("B04", "B05", "B09")  # of 10, 20 and 60 m


@pytest.fixture(scope="module")
def spectral(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle's network behind a graph that takes 13 bands of digital numbers, and shows it a hundredth of three."""
    folder = tmp_path_factory.mktemp("spectral")
    record = dataclasses.asdict(bundle.engine(ENGINE))
    files = {name: bundle.files[name] for name in (record["file"], "spec.json", "labels.txt")}
    for name in (MANIFEST, *files):
        shutil.copy(bundle.path / name, folder)
    ones = [1.0] * 13
    spec = json.loads((folder / "spec.json").read_text()) | {"bands": EUROSAT, "dtype": "uint16", "mean": ones, "std": ones}
    model = onnx.load(folder / record["file"])
    graph = model.graph
    graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.UINT16, ["batch", 64, 64, 13]))
    graph.initializer.append(numpy_helper.from_array(np.array([EUROSAT.index(name) for name in SEEN]), "seen"))
    graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "hundredth"))
    cast = next(node for node in graph.node if "input" in node.input)
    before = (("Gather", ["input", "seen"], "few", {"axis": 3}), ("Cast", ["few"], "exact", {"to": TensorProto.FLOAT}))
    for place, (kind, inputs, output, attributes) in enumerate((*before, ("Mul", ["exact", "hundredth"], "shown", {}))):
        graph.node.insert(place, helper.make_node(kind, inputs, [output], **attributes))
    cast.input[0] = "shown"
    respell(folder, engines=[record], files=files)
    reseal(folder, "spec.json", json.dumps(spec).encode())
    reseal(folder, record["file"], model.SerializeToString())
    return read_bundle(folder)


def test_a_product_of_13_bands_is_mapped_as_its_tiles_are_judged(spectral: Bundle, tmp_path: Path) -> None:
    bands = {}
    for index, name in enumerate(ESA):
        side = 2400 // RESOLUTION[name]
        slope = 24 * np.arange(side, dtype=np.uint16) // side  # tiles of unlike brightness
        # multiples of 144: what lies between them is a whole number, too
        bands[name] = (noise(1, side, side, index, 7, 16)[0] + slope[:, None] + slope) * 144
    found = mapped(spectral, write_safe(tmp_path / "S2A_MSIL1C_x.SAFE", "1C", bands, -1000, "05.09"), tmp_path / "map.tif")
    assert "offset of 1000 subtracted" in found.scene.says
    exact = {name: interpolated(band, RESOLUTION[name] // 10) for name, band in bands.items()}
    numbers = np.stack([exact[name] for name in EUROSAT], axis=2).astype(np.uint16).clip(1000) - 1000
    starts = (0, 64, 128, 176)  # the last is flush with the edge
    with open_bundle(spectral.path, ENGINE) as engine:
        answers = engine.predict(np.stack([numbers[top : top + 64, left : left + 64] for top in starts for left in starts]))
    with rasterio.open(tmp_path / "map.tif") as file:
        classes, confidence = file.read()
    assert (classes.ravel() == answers.labels + 1).all()
    assert (confidence.ravel() == np.rint(100 * answers.probabilities.max(1))).all()
    assert len(np.unique(confidence)) > 3


def test_memory_stays_small_for_a_scene_of_full_width(spectral: Bundle, tmp_path: Path) -> None:
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
        pixels = noise(13, 64, 10_980)  # a row of tiles; what is left out holds no data, and is read as if it did
        pixels[ESA.index("B10")] = 8
        file.write(pixels, window=rasterio.windows.Window(0, 128, 10_980, 64))
    # not getrusage: a process begins with the peak of the one that forked it
    script = (
        "import sys; from sattrt.cli import app; sys.argv[0] = 'sattrt'; app(standalone_mode=False); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", script, "map", spectral.path, path, "--out", tmp_path / "map.tif", "--engine", ENGINE]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1_000_000  # kB
