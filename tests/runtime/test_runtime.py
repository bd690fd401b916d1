import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import venv
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import rename_classes, reseal, respell
from signals import Interrupted, handled, interrupt

from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Bundle, open_bundle, ort, read_bundle
from sattrt.runtime.bundle import unlisted

ROOT = Path(__file__).parents[2]


def golden(bundle: Bundle) -> dict[str, np.ndarray]:
    return dict(np.load(bundle.path / "golden.npz"))


def test_it_predicts_labels_probabilities_and_names(bundle: Bundle) -> None:
    samples = golden(bundle)
    with open_bundle(str(bundle.path)) as engine:
        assert engine.name == "onnxruntime-fp32"
        result = engine.predict(samples["tiles"])
        np.testing.assert_allclose(result.logits, samples["onnxruntime-fp32"], atol=1e-4)
        np.testing.assert_allclose(result.probabilities.sum(1), 1, atol=1e-5)
        assert result.labels.dtype == np.int64
        assert result.names == [engine.classes[label] for label in result.logits.argmax(1)]


def test_one_tile_and_more_than_a_batch(bundle: Bundle) -> None:
    tiles = golden(bundle)["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32", threads=1) as engine:
        one = engine.predict(tiles[0])
        assert one.probabilities.shape == (1, 3)
        many = engine.predict(np.resize(tiles, (300, 64, 64, 3)))
        assert len(many.names) == 300
        np.testing.assert_allclose(many.logits[len(tiles)], one.logits[0], atol=1e-4)
        view = engine.predict(np.repeat(tiles, 2, axis=0)[::2])  # not contiguous
        np.testing.assert_allclose(view.logits, many.logits[: len(tiles)], atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "uint8 array, not float32"),
        ([[1, 2]], "uint8 array, not list"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"\(N, 64, 64, 3\), not \(1, 3, 64, 64\)"),
        (np.zeros((1, 32, 64, 3), np.uint8), "not"),
        (np.zeros((64, 64), np.uint8), "not"),
        (np.zeros((0, 64, 64, 3), np.uint8), "no tile"),
    ],
)
def test_an_array_of_the_wrong_kind_is_one_line(bundle: Bundle, images: np.ndarray, message: str) -> None:
    with open_bundle(bundle.path) as engine, pytest.raises(InputError, match=message):
        engine.predict(images)


@pytest.mark.parametrize("name", ["bundle.json", "spec.json", "golden.npz", "MODEL_CARD.md", "onnxruntime-fp32.json", "model.fp32.onnx"])
def test_one_changed_byte_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).unlink()
    (copy / name).write_bytes(content)
    with pytest.raises(ContractError, match=name.replace(".", r"\.")):
        open_bundle(copy)


def test_a_changed_engine_is_found_when_it_is_opened(copy: Path, bundle: Bundle) -> None:
    content = bytearray((bundle.path / "model.fp16.onnx").read_bytes())
    content[1000] ^= 1
    (copy / "model.fp16.onnx").unlink()
    (copy / "model.fp16.onnx").write_bytes(content)
    open_bundle(copy, "onnxruntime-fp32").close()
    with pytest.raises(ContractError, match=r"model.fp16.onnx was changed"):
        open_bundle(copy, "onnxruntime-fp16")
    with pytest.raises(ContractError, match=r"model.fp16.onnx was changed"):
        read_bundle(copy).verify()


def test_an_engine_needs_no_file_of_another(copy: Path, bundle: Bundle) -> None:
    own = bundle.engine("onnxruntime-int8").file
    others = {str(file) for record in bundle.engines for file in (record.file, record.record["onnx"])} - {own}
    assert others >= {"model.fp32.onnx", "model.fp16.onnx"}
    for name in others:
        (copy / name).unlink()
    open_bundle(copy, "onnxruntime-int8").close()
    open_bundle(copy, "openvino-int8").close()


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.fp32.onnx").unlink()
    with pytest.raises(ContractError, match=r"model.fp32.onnx is missing"):
        open_bundle(copy)


def test_what_is_no_bundle_is_said(tmp_path: Path, bundle: Bundle) -> None:
    for path in (tmp_path, tmp_path / "nothing", bundle.path / "spec.json"):
        with pytest.raises(InputError, match="is not a bundle"):
            open_bundle(path)


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"):
        open_bundle("a" * 5000)
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "bundle.json").write_text("{}")
    folder.chmod(0)
    mine = os.geteuid()
    try:
        if not mine:  # nothing is refused to root
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"Can't read .*bundle\.json: Permission denied"):
            open_bundle(folder)
        with pytest.raises(InputError, match=r"Can't read .*: Permission denied"):
            unlisted(folder, ())
    finally:
        os.seteuid(mine)
        folder.chmod(0o700)


def test_an_unknown_engine_is_said_with_those_there_are(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"no engine 'int4'. It has: onnxruntime-fp32"):
        open_bundle(bundle.path, "int4")


def test_a_manifest_can_not_reach_outside(copy: Path) -> None:
    files = json.loads((copy / "bundle.json").read_text())["files"]
    respell(copy, files=files | {"../evil": "0"})
    with pytest.raises(ContractError, match="outside the bundle"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["a" * 300, "..", ".hidden", "a b", "a/b", 'a"b', ""])
def test_files_and_engines_have_plain_names(copy: Path, bundle: Bundle, name: str) -> None:
    respell(copy, files=bundle.files | {name: "0"})
    with pytest.raises(ContractError, match="not a plain name"):
        open_bundle(copy)
    respell(copy, files=bundle.files, engines=[asdict(replace(bundle.engine("onnxruntime-fp32"), name=name))])
    with pytest.raises(ContractError, match="not a plain name"):
        open_bundle(copy)
    respell(copy, engines=[asdict(replace(bundle.engine("onnxruntime-fp32"), file=name))])
    with pytest.raises(ContractError, match="is missing from the bundle"):
        open_bundle(copy)


def test_a_contract_that_the_manifest_does_not_list_is_refused(copy: Path, bundle: Bundle) -> None:
    respell(copy, files={name: digest for name, digest in bundle.files.items() if name != "spec.json"})
    with pytest.raises(ContractError, match=r"spec.json is missing"):
        open_bundle(copy)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("respelt", [False, True], ids=["as protobuf writes it", "its length in two bytes"])
def test_weights_in_another_file_are_refused(copy: Path, bundle: Bundle, backend: str, respelt: bool) -> None:
    import onnx

    model = onnx.load(copy / "model.fp32.onnx")
    onnx.save(model, copy / "outside.onnx", save_as_external_data=True, location="weights.bin")
    content = (copy / "outside.onnx").read_bytes()
    if respelt:  # a byte more for the key, one less for the value
        content = content.replace(b"\n\x08location\x12\x0bweights.bin", b"\n\x88\x00location\x12\x0aweight.bin")
    named = onnx.load_from_string(content).graph.initializer[0].external_data[0]
    assert (named.key, named.value) == ("location", "weight.bin" if respelt else "weights.bin")
    reseal(copy, "model.fp32.onnx", content)
    with pytest.raises(ContractError, match="keeps weights in another file"):
        open_bundle(copy, f"{backend}-fp32")


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize("threads", [-1, "2", 2.5, 1025, 2**31])
def test_threads_are_a_number_of_them(bundle: Bundle, name: str, threads: object) -> None:
    with pytest.raises(InputError, match="threads is "):
        open_bundle(bundle.path, name, threads=threads)  # type: ignore[arg-type]


def test_a_plan_without_a_gpu_is_refused_with_the_way_out(bundle: Bundle) -> None:
    from sattrt.machine import gpu

    names = [record.name for record in bundle.engines if record.backend.startswith("tensorrt")]
    if not names:
        pytest.skip("no TensorRT of any kind is installed")
    if gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"No NVIDIA driver .*onnxruntime engine"):
        open_bundle(bundle.path, names[0])


def test_plans_run_on_a_gpu(bundle: Bundle) -> None:
    from sattrt.machine import gpu

    found, samples = gpu(), golden(bundle)
    names = [
        record.name
        for record in bundle.engines
        if record.backend.startswith("tensorrt") and found and found[1] in record.record["compute_capabilities"]
    ]
    if not names:
        pytest.skip("no GPU here that a plan of this bundle was built for")
    for name in names:
        with open_bundle(bundle.path, name) as engine:
            for count in (20, 20, 20, 7, 7, 20, 1, 20):  # a size that comes again is recorded, and launched as one
                assert (engine.predict(samples["tiles"][:count]).labels == samples["torch-fp32"][:count].argmax(1)).all(), name


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with numpy, onnxruntime and sattrt's own code, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    source = tmp_path_factory.mktemp("source")  # a build leaves files behind: not in the checkout
    shutil.copytree(ROOT / "sattrt", source / "sattrt")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [python, "-m", "pip", "install", "--quiet"]
    done = subprocess.run([*pip, "numpy", "onnxruntime", "setuptools>=77"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package registry to install from: {done.stderr.strip()[-200:]}")
    done = subprocess.run([*pip, "--no-deps", "--no-build-isolation", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


def test_what_is_installed_has_all_its_files(bare_python: Path) -> None:
    script = "import importlib.util as u; print(u.find_spec('sattrt').submodule_search_locations[0])"
    done = subprocess.run([bare_python, "-c", script], capture_output=True, text=True, check=True, cwd=bare_python.parent)
    installed = Path(done.stdout.strip())
    assert installed.is_relative_to(bare_python.parents[1])
    ours = {
        path.relative_to(ROOT / "sattrt") for path in (ROOT / "sattrt").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.relative_to(installed) for path in installed.rglob("*") if "__pycache__" not in path.parts and path.is_file()} == ours


def test_the_runtime_needs_numpy_and_a_backend_alone(bare_python: Path, bundle: Bundle) -> None:
    script = f"""
import importlib.util, sys
absent = ["torch", "torchvision", "nvidia", "onnx", "typer", "rich", "PIL", "safetensors"]
assert not [name for name in absent if importlib.util.find_spec(name)]
import numpy as np
from sattrt.runtime import open_bundle
golden = np.load({str(bundle.path / "golden.npz")!r})
with open_bundle({str(bundle.path)!r}) as engine:
    result = engine.predict(golden["tiles"])
assert np.abs(result.logits - golden["onnxruntime-fp32"]).max() < 1e-3
assert result.names == [engine.classes[i] for i in golden["torch-fp32"].argmax(1)]
print(engine.name)
"""
    done = subprocess.run([bare_python, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "onnxruntime-fp32\n"


def test_the_embedding_example_runs_on_it(bare_python: Path, bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "tiles.npy", golden(bundle)["tiles"][:2])
    for arguments, lines in (([], 21), ([tmp_path / "tiles.npy"], 3)):
        done = subprocess.run([bare_python, ROOT / "engines" / "embed.py", bundle.path, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("onnxruntime-fp32 on ")
        assert len(done.stdout.splitlines()) == lines
    done = subprocess.run([bare_python, ROOT / "engines" / "embed.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: python engines/embed.py BUNDLE [TILES.npy]\n")


def test_the_embedding_example_ends_in_one_line(bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "cut.npz").write_bytes((bundle.path / "golden.npz").read_bytes()[:1000])
    (copy / "golden.npz").write_bytes((copy / "golden.npz").read_bytes()[:-1])
    for arguments, message in (
        ([tmp_path], "is not a bundle"),
        ([copy], "golden.npz was changed"),
        ([bundle.path, tmp_path / "nothing.npy"], "nothing.npy"),
        ([bundle.path, tmp_path / "text.npy"], "embed.py: "),
        ([bundle.path, tmp_path / "empty.npy"], "embed.py: "),
        ([bundle.path, tmp_path / "cut.npz"], "embed.py: "),
        ([bundle.path, bundle.path / "golden.npz"], "not NpzFile"),
    ):
        command = [sys.executable, ROOT / "engines" / "embed.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert message in done.stderr


def test_importing_the_runtime_loads_no_other_part() -> None:
    script = "import sys, sattrt.runtime; print(*sorted(name.split('.')[0] for name in sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "onnx", "onnxruntime", "typer", "rich", "PIL", "nvidia", "tensorrt", "tensorrt_rtx"}


ENDLESS = {
    "onnx": "model.fp32.onnx",
    "builder": "tensorrt-rtx",
    "builder_version": "1.7",
    "compute_capabilities": ["8.6"],
    "profile": {"min": 1, "max": float("inf")},
    "dtype": "uint8",
}


FOREIGN = {**ENDLESS, "profile": {"min": 1, "max": 8}, "builder": "another"}


@pytest.mark.parametrize(
    "change",
    [
        {"engines": []},
        {"engines": [{"name": 5, "backend": "onnxruntime", "precision": "fp32", "file": "model.fp32.onnx", "record": {}}]},
        {"engines": [{"name": "a", "backend": "onnxruntime", "precision": "fp32", "file": ["a"], "record": {}}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": {}}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": {"builder": "x"}}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": ENDLESS}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": FOREIGN}]},
        {"engines": [{"name": "a", "backend": "abacus", "precision": "fp32", "file": "model.fp32.onnx", "record": {}}]},
        {"files": [[1, 2]]},
        {"source": {}},
        {"source": {"run": 5, "checkpoint_sha256": ""}},
        {"schema": 2},
    ],
)
def test_a_manifest_of_wrong_types_is_refused(copy: Path, change: dict[str, object]) -> None:
    respell(copy, **change)
    with pytest.raises(ContractError):
        open_bundle(copy)


def test_another_network_under_the_same_name_is_refused(copy: Path) -> None:
    from onnx import TensorProto, helper

    tiles = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [tiles], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    reseal(copy, "model.fp32.onnx", model.SerializeToString())
    with pytest.raises(ContractError, match="not a graph that sattrt exported"):
        open_bundle(copy, "onnxruntime-fp32")


def test_a_contract_of_other_classes_than_the_graph_is_refused(copy: Path) -> None:
    rename_classes(copy, ["a", "b", "c", "d"])
    with pytest.raises(ContractError, match="knows 3 classes"):
        open_bundle(copy)


def test_files_that_say_different_things_are_refused(copy: Path, bundle: Bundle) -> None:
    reseal(copy, "labels.txt", "".join(f"{name}\n" for name in bundle.spec.classes[::-1]).encode())
    with pytest.raises(ContractError, match=r"labels.txt and .*spec.json name other classes, or in another order"):
        read_bundle(copy)
    reseal(copy, "labels.txt", (bundle.path / "labels.txt").read_bytes())
    name = "onnxruntime-fp32.json"
    reseal(copy, name, (bundle.path / name).read_bytes().replace(b'"fp32"', b'"fp16"'))
    with pytest.raises(ContractError, match=rf"{name} is not what bundle.json says of that engine"):
        read_bundle(copy)
    (copy / name).unlink()
    respell(copy, files={file: digest for file, digest in bundle.files.items() if file != name})
    with pytest.raises(ContractError, match=rf"{name} is missing from the bundle"):
        read_bundle(copy)


def test_a_closed_engine_says_so(bundle: Bundle) -> None:
    engine = bundle.open("onnxruntime-fp32", spinning=False)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="was closed"):
        engine.predict(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_closing_waits_for_the_calls_under_way(bundle: Bundle, name: str) -> None:
    engine, images, begun = bundle.open(name, threads=1), np.zeros((300, 64, 64, 3), np.uint8), threading.Event()

    def call() -> str:
        while True:
            try:
                engine.predict(images)
                begun.set()
            except BackendError as error:
                return str(error)

    with ThreadPoolExecutor(3) as threads:
        said = [threads.submit(call) for _ in range(2)]
        assert begun.wait(60)
        closings = [threads.submit(engine.close), engine.close()]
        assert {each.result(timeout=60) for each in said} == {f"{name} was closed. Open it again."}
        assert closings[0].result(timeout=60) is None


def ends(call: Callable[[], object]) -> bool:
    """Whether a call ends, in a thread that is left behind where it does not."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_a_call_that_was_interrupted_at_any_moment_is_over(bundle: Bundle, name: str) -> None:
    engine, image = bundle.open(name, threads=1), np.zeros((64, 64, 3), np.uint8)
    last = next(moment for moment in itertools.count(1) if not handled(interrupt, moment, lambda: engine.predict(image)))
    assert last > 10
    assert ends(engine.close)


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_a_handler_may_close_the_engine_whose_call_it_interrupts(bundle: Bundle, name: str) -> None:
    engine, images, done = bundle.open(name, threads=1), np.zeros((300, 64, 64, 3), np.uint8), []
    run, close = engine._backend.run, engine._backend.close
    engine._backend.run = lambda tiles: (engine.close(), run(tiles))[1]  # type: ignore[method-assign]
    engine._backend.close = lambda: done.append(close())  # type: ignore[method-assign]
    assert ends(lambda: done.append(len(engine.predict(images).names)))
    assert done == [None, 300]
    with pytest.raises(BackendError, match="was closed"):
        engine.predict(images)


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_a_signal_does_no_harm_once_another_thread_has_closed_the_engine(bundle: Bundle, name: str) -> None:
    script = f"""
import signal, threading
from sattrt.runtime import open_bundle
signal.signal(signal.SIGTERM, lambda number, frame: print("handled", flush=True))
closing = threading.Thread(target=open_bundle({str(bundle.path)!r}, {name!r}, threads=1).close)
closing.start()
closing.join()
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")


def test_closing_that_was_interrupted_is_done_by_closing_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, begun, go_on, freed = bundle.open("onnxruntime-int8", threads=1), threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(engine._backend, "run", lambda tiles: (begun.set(), go_on.wait()))
    monkeypatch.setattr(engine._backend, "close", freed.set)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: interrupt())
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(engine.predict, np.zeros((64, 64, 3), np.uint8))
        try:
            assert begun.wait(60)
            with pytest.raises(Interrupted):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                engine.close()  # waits for the call
            assert not freed.is_set()
        finally:
            signal.signal(signal.SIGUSR1, before)
            go_on.set()
        assert call.exception(60)  # of an answer that is none
    assert not freed.is_set()  # by another thread than the one that closes
    assert ends(engine.close)
    assert freed.is_set()


def test_what_is_measured_on_the_device_keeps_the_engine_open_too(bundle: Bundle) -> None:
    with bundle.open("onnxruntime-int8", threads=1) as engine:
        call = engine.resident(np.zeros((2, 64, 64, 3), np.uint8))
        assert call() > 0
    with pytest.raises(BackendError, match="was closed"):
        call()


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_tiles_that_may_not_be_written_are_measured_too(bundle: Bundle, name: str) -> None:
    images = np.broadcast_to(np.zeros((64, 64, 3), np.uint8), (2, 64, 64, 3))
    with bundle.open(name, threads=1) as engine:
        assert engine.resident(images)() > 0


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_an_engine_does_not_keep_the_tiles_that_it_was_given(bundle: Bundle, name: str) -> None:
    with bundle.open(name, threads=1) as engine:
        images = np.zeros((2, 64, 64, 3), np.uint8)
        kept = weakref.ref(images)
        engine.predict(images)
        del images
        gc.collect()
        assert kept() is None


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="a GPU is there, and not hidden")
def test_a_build_for_cuda_without_a_gpu_runs_on_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert ort.this_place()["provider"] == "cpu"
    with bundle.open("onnxruntime-fp32", threads=1) as engine:
        assert engine.device == "cpu"

    class Broken:  # a driver that was updated, and wants the machine to start anew
        def __init__(self) -> None:
            raise BackendError("The NVIDIA driver refuses cuInit: system driver mismatch.")

    monkeypatch.setattr(ort, "Device", Broken)
    with pytest.raises(BackendError, match="driver mismatch"):
        bundle.open("onnxruntime-fp32", threads=1)


def test_what_onnxruntime_says_of_lost_libraries_is_kept_and_not_printed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "cuda_version", "12.0")  # as a build for a CUDA whose libraries are not here
    monkeypatch.setattr(ort, "_preloaded", None)
    bundle.open("onnxruntime-int8", threads=1).close()
    assert "Failed to load" in str(ort._preloaded)
    assert not hasattr(onnxruntime, "print")
    assert capfd.readouterr().out == ""
