"""Real tiles, a real ResNet-50, a real bundle: made once a session, small enough for two cores."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sattrt.__main__ import main
from sattrt.bench import ceiling, measure, passes
from sattrt.bench import tiles as bench_tiles
from sattrt.bench.config import SCENARIOS, BenchConfig
from sattrt.bench.report import Report
from sattrt.bench.run import bench
from sattrt.data.dataset import Dataset
from sattrt.data.scan import SplitRule, scan
from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.graphs import Graphs
from sattrt.machine import gpu
from sattrt.rmldnn.config import RmldnnConfig
from sattrt.rmldnn.network import Network, build
from sattrt.runtime import MANIFEST, Bundle, EngineRecord, manifest_digest, read_bundle
from sattrt.training.config import TrainConfig
from sattrt.training.loop import train

CLASSES = {"Field": (180, 160, 60), "Forest": (30, 90, 40), "Water": (20, 40, 120)}
SHARED = Path(__file__).parents[2] / "shared" / "data"
EUROSAT = SHARED / "EuroSAT_RGB.zip"
MULTISPECTRAL = SHARED / "EuroSAT_MS_sample.zip"
BENCHED = ("onnxruntime-fp32", "onnxruntime-fp16", "tensorrt-rtx-fp32")
QUICK = BenchConfig(seconds=0.1, batches="1,4", scenarios="single-stream,offline", streams="1", clock_batch=4)
# SGD, whose steps take the least time where the network is nearly all there is
SMALL = TrainConfig(
    weights="none", epochs=2, batch_size=16, optimizer="sgd", learning_rate=0.005, layer_decay=1.0, ema=0.0, precision="fp32"
)
WEIGHTS = SHARED / "resnet50_imagenet.safetensors"

# what takes longest, first, so that two processes end at about the same time
LONG = ("tests/test_eurosat.py", "tests/training/", "tests/test_gpu_benchmarks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> Iterator[None]:
    """Commands write to no terminal, are no rank of a launcher, and reach a server on this machine without a proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended, with all that it started, whatever becomes of the test."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def sattrt(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it. options: of `subprocess.run`."""
    command = [sys.executable, "-m", "sattrt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def refusal(*arguments: object, **options: Any) -> str:
    """The one line that a refused command says on stderr, with the exit code 1; in this process, which has imported what takes seconds.

    options: of `subprocess.run`, which ask for a process of its own.
    """
    if options:
        done = sattrt(*arguments, **options)
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        [line] = done.stderr.splitlines()
        assert line.startswith("sattrt: ")
        return line
    said = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["sattrt", *map(str, arguments)])
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    line = ended.value.code
    assert isinstance(line, str), (line, said.getvalue())  # which Python prints, and ends with 1
    assert line.startswith("sattrt: ")
    assert said.getvalue() == ""
    assert len(line.splitlines()) == 1
    return line


def documented() -> set[str]:
    """The fields that the page on embedding names under "For programs", where a command prints JSON."""
    [section] = re.findall(r"^### For programs\n(.*?)^##", (Path(__file__).parents[1] / "engines" / "README.md").read_text(), re.M | re.S)
    return set(re.findall(r"`(\w+)`", section))


def jpeg(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """A noisy tile around a colour, as JPEG (as PNG where JPEG has no such mode)."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    image = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if mode in ("RGBA", "P") else "JPEG", quality=95)
    return buffer.getvalue()


def random_tiles(count: int) -> np.ndarray:
    """Tiles of noise (count, 64, 64, 3), the same each time."""
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def write_tiles(folder: Path, per_class: int = 40, side: int = 64) -> Path:
    """A folder of class folders with real JPEG tiles."""
    for index, (name, colour) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            (folder / name / f"{name}_{i}.jpg").write_bytes(jpeg(colour, 1000 * index + i, (side, side)))
    return folder


def write_geotiff(
    path: Path, pixels: np.ndarray, names: tuple[str, ...] | None = None, east: float = 400_000, north: float = 5_000_000
) -> None:
    """A GeoTIFF of (H, W, bands) with pixels of 10 m in UTM zone 32 north; names: descriptions of the bands."""
    rasterio = pytest.importorskip("rasterio", reason="GeoTIFF is written by rasterio")
    height, width, count = pixels.shape
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, east, 0, -10, north)}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **place) as file:
        file.write(pixels.transpose(2, 0, 1))
        for number, name in enumerate(names or (), 1):
            file.set_band_description(number, name)


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A small folder of tiles that a test may spoil."""
    return write_tiles(tmp_path / "tiles", 12)


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what all processes of a session use and none changes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder as the first process that wants it makes it; the others wait."""
    done = folder.with_suffix(".done")
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def dataset(together: Path) -> Dataset:
    """120 tiles in three classes, split 60:20:20."""
    return scan(once(together / "tiles", write_tiles), SplitRule((60, 20, 20)), workers=1)


@pytest.fixture(scope="session")
def dataset_folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its dataset.json."""
    return dataset.write(tmp_path_factory.mktemp("dataset")).parent


@pytest.fixture(scope="session")
def run(dataset: Dataset, together: Path) -> Path:
    """One epoch of ResNet-50 from random weights."""
    config = dataclasses.replace(SMALL, epochs=1, batch_size=8, precision="auto")
    return once(together / "run", lambda folder: train(dataset, folder, config))


@pytest.fixture(scope="session")
def bundle(run: Path, together: Path) -> Bundle:
    """Its bundle, with every engine that can be built here, however bad: a network of nine steps is nothing that int8 can be judged by."""
    return read_bundle(once(together / "small", lambda folder: export(run, folder, ExportConfig(precision="all", gate=100))))


def records(bundle: Bundle) -> dict[str, EngineRecord]:
    """Its engines, by name."""
    return {record.name: record for record in bundle.engines}


def plans_here(bundle: Bundle) -> list[EngineRecord]:
    """The plans that were built for the GPU of this machine; none without one."""
    found = gpu()
    return [
        each for each in bundle.engines if each.backend.startswith("tensorrt") and found and found[1] in each.record["compute_capabilities"]
    ]


@contextlib.contextmanager
def brief(calls: int = 2, tiles: int = 1024) -> Iterator[None]:
    """A bench whose windows and turns are as short as a tenth, with few calls of each clock, over so many tiles at most: what is tested is not
    how fast anything is."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((measure, "_WINDOW_SECONDS"), (measure, "_TURN_SECONDS"), (ceiling, "_SECONDS")):
            patch.setattr(module, name, getattr(module, name) / 10)
        for module, name, value in ((passes, "_CALLS", calls), (passes, "_PASSES", calls), (bench_tiles, "_PASS", tiles)):
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="session")
def report(bundle: Bundle, dataset: Dataset, together: Path) -> Report:
    """A bench in every scenario, by every clock, beside two foreign programs, one of which fails."""
    config = dataclasses.replace(QUICK, scenarios=",".join(SCENARIOS), streams="1,2", latency_bound=500.0)
    theirs = "import sys, time, numpy as np; n = len(np.load(sys.argv[1])); time.sleep(0.03 * n); print(*[1] * n, sep=chr(10))"
    few = dataclasses.replace(bundle, engines=tuple(record for record in bundle.engines if record.name in BENCHED))

    def make(folder: Path) -> None:
        with brief(calls=5):
            made = bench([few], dataset, config, (f'"{sys.executable}" -c "{theirs}"', "false"))
        folder.mkdir()
        (folder / "report").write_bytes(pickle.dumps(made))

    found: Report = pickle.loads((once(together / "report", make) / "report").read_bytes())
    return found


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may spoil; big files are linked, not copied, unless they are the one spoilt."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in bundle.path.iterdir():
        (target / path.name).hardlink_to(path) if path.stat().st_size > 1_000_000 else shutil.copy(path, target)
    return target


@pytest.fixture
def premade(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export takes its graphs from the bundle of the same run: they are the same, and take longer to make than all the rest."""

    def make(graphs: Graphs, kind: str) -> tuple[str, dict[str, Any]]:
        shutil.copy(bundle.path / f"model.{kind}.onnx", graphs._folder)
        return f"model.{kind}.onnx", {}

    monkeypatch.setattr(Graphs, "make", make)


def respell(folder: Path, **changes: object) -> None:
    """Change the manifest and give it a digest that fits, as somebody with intent would."""
    data = json.loads((folder / MANIFEST).read_text()) | changes
    data.pop("digest")
    engines = changes.get("engines")
    for engine in engines if isinstance(engines, list) else ():
        name = engine.get("name") if isinstance(engine, dict) else None
        if isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,190}", name):  # the engine's own file says the same
            content = json.dumps(engine).encode()
            (folder / f"{name}.json").unlink(missing_ok=True)
            (folder / f"{name}.json").write_bytes(content)
            data["files"] = data["files"] | {f"{name}.json": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(data | {"digest": manifest_digest(data)}))


def reseal(folder: Path, name: str, content: bytes) -> None:
    """Change a file of a bundle, and its digest in the manifest."""
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    respell(folder, files=files | {name: hashlib.sha256(content).hexdigest()})


def rename_classes(folder: Path, classes: list[str]) -> None:
    """Give a bundle other classes, or another order, in every file that names them."""
    spec = json.loads((folder / "spec.json").read_text())
    reseal(folder, "spec.json", json.dumps(spec | {"classes": classes}).encode())
    reseal(folder, "labels.txt", "".join(f"{name}\n" for name in classes).encode())


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as rmldnn's tutorial has it: tiles in data/, layers.json and model.h5 of Keras' own ResNet-50 with random weights."""
    pytest.importorskip("h5py", reason="Keras' .h5 files need h5py")
    keras = keras_by_torch()
    folder = tmp_path_factory.mktemp("tutorial")
    for seed, (split, count) in enumerate((("train", 10), ("valid", 5), ("test", 6))):
        for index, (name, colour) in enumerate(CLASSES.items()):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / "data" / split / name / f"{name}_{i}.jpg").write_bytes(jpeg(colour, 10_000 * seed + 1000 * index + i))
    keras.utils.set_random_seed(0)
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg")
    model = keras.Model(base.input, keras.layers.Dense(len(CLASSES), activation="log_softmax")(base.output))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.trainable = isinstance(layer, keras.layers.BatchNormalization | keras.layers.Dense)
        weights = layer.get_weights()
        for place, values in enumerate(weights):
            if values.ndim == 1:  # Keras begins with zeros and ones, which prove nothing; gamma and variance are positive
                drawn = rng.uniform(0.7, 1.1, values.shape) if len(weights) == 4 and place in (0, 3) else rng.normal(0, 0.1, values.shape)
                weights[place] = drawn.astype(np.float32)
        layer.set_weights(weights)
    (folder / "layers.json").write_text(model.to_json())
    model.save(folder / "model.h5")
    return folder


def keras_by_torch() -> Any:
    """Keras on torch; a test without it is skipped."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="Keras is what layer files and weights are compared with")


def configuration(folder: Path, kind: str = "train", **changes: Any) -> dict[str, Any]:
    """The tutorial's configuration for that folder, for two epochs of small batches; `changes` go into its sections."""
    sections: dict[str, Any] = {
        "layers": str(folder / "layers.json"),
        "checkpoints": {"load": str(folder / "model.h5")},
        "data": {"input_type": "images", "transforms": [{"resize": [64, 64]}]},
    }
    if kind == "test":
        sections["data"] |= {"test_input_path": f"{folder}/data/test/", "test_output_path": f"{folder}/predictions/"}
    else:
        sections |= {"num_epochs": 2, "outfile": f"{folder}/out_classifier.txt", "loss": {"function": "NLL"}}
        sections["checkpoints"] |= {"save": f"{folder}/model_checkpoints_save/", "interval": 1}
        paths = {"input_path": f"{folder}/data/train/", "test_input_path": f"{folder}/data/valid/"}
        sections["data"] |= {"target_type": "labels", **paths, "batch_size": 10, "test_batch_size": 8, "preload": True}
        sections["optimizer"] = {"type": "Adam", "learning_rate": 0.005, "lr_scheduler": {"type": "Exponential", "gamma": 0.95}}
    for name, values in changes.items():
        sections[name] = {**sections.get(name, {}), **values} if isinstance(values, dict) and name != "layers" else values
    return {"neural_network": sections}


def write_configuration(path: Path, document: Any) -> Path:
    """The file of a configuration, or of any text in its place."""
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.fixture(scope="session")
def layer_file(tutorial: Path) -> dict[str, Any]:
    """The tutorial's layer file."""
    return json.loads((tutorial / "layers.json").read_text())  # type: ignore[no-any-return]


def network(folder: Path, tmp_path: Path, kind: str = "test", **changes: Any) -> Network:
    """The network of the tutorial's configuration, for tiles of 64x64 pixels."""
    config = RmldnnConfig.read(write_configuration(tmp_path / "c.json", configuration(folder, kind, **changes)))
    return build(config, 64, 64)


def by_name(layers: dict[str, Any], name: str) -> dict[str, Any]:
    """The config of one layer of a layer file."""
    return next(layer["config"] for layer in layers["config"]["layers"] if layer["config"]["name"] == name)


def steps_done(path: Path) -> int:
    """Optimizer steps that a checkpoint was written after; 0 too where there is none yet."""
    from sattrt.checkpoint import read_state

    return int(read_state(path, ["step"])["step"]) if path.exists() else 0
