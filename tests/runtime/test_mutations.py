"""Five hundred spoilt bundles, by a fixed seed: each is refused in one line, or proved wrong by the golden samples, in a program and by the
command. Each has one engine: most one of ONNX Runtime, which is quick to open, some a plan, a few one of OpenVINO.

What may pass: under a forged digest, a change that alters no answer by more than another CPU may, to the golden tiles or others."""

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import re
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import reseal, respell
from typer.testing import CliRunner

from sattrt.cli import app
from sattrt.errors import BackendError, SattrtError
from sattrt.runtime import MANIFEST, Bundle, EngineRecord, Prediction, open_bundle
from sattrt.runtime.selftest import TOLERANCES

MODEL, PLAN = "model.int8-cpu.onnx", "a.plan"
HUGE: list[object] = [1e308, -1, 10**400, None, [], {}, "", "../../etc/passwd", True, [[]] * 50, "x" * 100_000, 0]
HUGE += [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(scope="module")
def small(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundle with one engine alone: quick to copy and to check. One folder an engine, as often as it is to be drawn."""
    ours, theirs = (bundle.engine(f"{backend}-int8") for backend in ("onnxruntime", "openvino"))
    profile = {"min": 1, "opt": 64, "max": 256}
    built = {"builder": "tensorrt-rtx", "builder_version": "1", "compute_capabilities": ["8.6"], "profile": profile, "dtype": "uint8"}
    plan = EngineRecord("tensorrt-rtx-int8", "tensorrt-rtx", "int8", PLAN, {**ours.record, **built, "flags": []})
    folders = []
    for engine, share in ((ours, 7), (plan, 2), (theirs, 1)):
        folder = tmp_path_factory.mktemp("small") / "b"
        folder.mkdir()
        for name in ("spec.json", "golden.npz", "MODEL_CARD.md", "labels.txt", MODEL, MANIFEST):
            shutil.copy(bundle.path / name, folder)
        (folder / f"{engine.name}.json").write_text(json.dumps(dataclasses.asdict(engine)))
        if engine is plan:
            (folder / PLAN).write_bytes(b"what a GPU alone can read")
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != MANIFEST}
        respell(folder, engines=[dataclasses.asdict(engine)], files=digests)
        folders += [folder] * share
    return folders


@pytest.fixture(scope="module")
def others(small: list[Path]) -> tuple[np.ndarray, dict[Path, Prediction]]:
    """Tiles that are not the golden ones, and the answers to them of each sound bundle that can be opened here."""
    with np.load(small[0] / "golden.npz") as file:
        tiles = file["tiles"][:8, ::-1]
    answers = {}
    for folder in dict.fromkeys(small):
        with contextlib.suppress(BackendError), open_bundle(folder) as engine:
            answers[folder] = engine.predict(tiles, reject=True)
    return tiles, answers


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.signal(signal.SIGALRM, lambda number, frame: (_ for _ in ()).throw(TimeoutError("a spoilt bundle hangs")))
    yield
    signal.alarm(0)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def flip_bytes(folder: Path, draw: random.Random) -> None:
    path = draw.choice(files(folder))
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 5, 100))):
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    if path.name == MANIFEST and content.split() == path.read_bytes().split():  # a blank for another blank says the same
        content[0] ^= 1
    path.unlink()
    path.write_bytes(content)


def truncate(folder: Path, draw: random.Random) -> None:
    path = draw.choice(files(folder))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: draw.randrange(len(content))])


def remove(folder: Path, draw: random.Random) -> None:
    draw.choice(files(folder)).unlink()


def swap(folder: Path, draw: random.Random) -> None:
    one, other = draw.sample(files(folder), 2)
    one.rename(folder / "swap")
    other.rename(one)
    (folder / "swap").rename(other)


def nested(value: object, draw: random.Random) -> object:
    """The value with one leaf, or branch, anywhere in it replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        if draw.random() < 0.15:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: nested(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], nested(value[place], draw), *value[place + 1 :]]
    return draw.choice(HUGE)


def wrong_json(folder: Path, draw: random.Random) -> None:
    """With intent: the digests fit."""
    if draw.random() < 0.5:
        data = json.loads((folder / MANIFEST).read_text())
        respell(folder, **{key: nested(data[key], draw) for key in draw.sample(["engines", "files", "schema", "source", "export"], 1)})
    else:
        spec = json.loads((folder / "spec.json").read_text())
        # training is for people; nothing is decided by it
        fields = sorted(
            spec.keys() - {"training", "dataset_digest", "mean", "std", "bands", "temperature", "resize", "views", "output_meaning"}
        )
        key = draw.choice(fields)
        reseal(folder, "spec.json", json.dumps(spec | {key: draw.choice([value for value in HUGE if value != spec[key]])}).encode())


def deep_json(folder: Path, draw: random.Random) -> None:
    text = draw.choice(["[", '{"a":']) * draw.choice((100, 10_000, 300_000))
    name = draw.choice(["spec.json", MANIFEST])
    if name == MANIFEST:
        (folder / name).write_text(text)
    else:
        reseal(folder, name, text.encode())


def broken_graph(folder: Path, draw: random.Random) -> None:
    """With intent: an ONNX file whose bytes were flipped, or cut, under a digest that fits."""
    content = bytearray((folder / MODEL).read_bytes())
    for _ in range(draw.choice((20, 200, 2000))):
        content[draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(4000)] ^= draw.randrange(1, 256)
    reseal(folder, MODEL, bytes(content[: draw.randrange(len(content))] if draw.random() < 0.3 else content))


def no_graph(folder: Path, draw: random.Random) -> None:
    """With intent: a zip, text, nothing, or the ONNX of another network under the engine's name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model.onnx", b"hello")
    tiles = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, ["batch", 64, 64, 3])
    answers = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 64, 64, 3]) for name in ("logits", "probabilities")
    ]
    nodes = [onnx.helper.make_node("Cast", ["input"], [name], to=onnx.TensorProto.FLOAT) for name in ("logits", "probabilities")]
    other = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "other", [tiles], answers), opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    reseal(folder, MODEL, draw.choice([archive.getvalue(), b"", b"hello", other.SerializeToString(), other.SerializeToString()[:-40]]))


def wrong_golden(folder: Path, draw: random.Random) -> None:
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    engine = json.loads((folder / MANIFEST).read_text())["engines"][0]["name"]
    name = draw.choice(["tiles", engine if engine in arrays else "torch-fp32"])
    spoil: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda array: array[:, :1],
        lambda array: array.astype(np.complex64),
        lambda array: array[:0],
        lambda array: np.zeros((3, 3), np.int8),
        lambda array: array.astype(np.float32) + 1000,
        lambda array: np.full(array.shape, np.nan, np.float32),
    ]
    arrays[name] = draw.choice(spoil)(arrays[name])
    content = io.BytesIO()
    np.savez(content, **arrays)
    reseal(folder, "golden.npz", content.getvalue())


def wrong_archive(folder: Path, draw: random.Random) -> None:
    """With intent: golden samples in a zip whose own entries were changed: flags, methods, sizes, places."""
    content = bytearray((folder / "golden.npz").read_bytes())
    entries = [found.start() for found in re.finditer(b"PK\x01\x02|PK\x03\x04|PK\x05\x06", content)]
    for _ in range(draw.choice((1, 1, 3))):
        content[min(draw.choice(entries) + draw.randrange(4, 46), len(content) - 1)] = draw.choice((0, 1, 8, 14, 99, 255))
    reseal(folder, "golden.npz", bytes(content))


KINDS = [flip_bytes, truncate, remove, swap, wrong_json, wrong_json, deep_json, broken_graph, no_graph, wrong_golden, wrong_archive]


@pytest.mark.parametrize("part", range(10))
def test_no_spoilt_bundle_is_believed(
    small: list[Path], others: tuple[np.ndarray, dict[Path, Prediction]], tmp_path: Path, part: int
) -> None:
    draw, passed = random.Random(part), 0
    for number in range(50):
        kind, whole = KINDS[number % len(KINDS)], draw.choice(small)
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in files(whole):
            (folder / path.name).hardlink_to(path) if path.name == MODEL else shutil.copy(path, folder)
        kind(folder, draw)
        signal.alarm(30)
        said, found = "", None
        try:
            with open_bundle(folder) as engine:
                found = engine.predict(others[0], reject=True)
        except SattrtError as error:
            said = str(error)
        result = CliRunner().invoke(app, ["selftest", str(folder)])
        signal.alarm(0)
        if result.exception and not isinstance(result.exception, SattrtError | SystemExit):
            raise result.exception
        for line in (said, str(result.exception)):
            assert "\n" not in line, (kind, line)
            assert len(line) < 2000, (kind, line)
        if result.exit_code == 0:  # bytes of a weight that are rounded away, the date of a file in a zip
            passed += 1
            assert kind in (wrong_json, broken_graph, wrong_archive), (part, number, kind)
            assert found is not None, (part, number, kind)
            sound = others[1][whole]
            assert found.names == sound.names, (part, number, kind)
            assert np.abs(found.logits - sound.logits).max() <= TOLERANCES["int8"] * np.abs(sound.logits).max(), (part, number, kind)
    assert passed <= 6, passed
