import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import plans_here, random_tiles
from signals import Interrupted, handled, interrupt

from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Batcher, Bundle, Engine, open_bundle, open_engine, ort
from sattrt.runtime.engine import largest_batch


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


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
def test_a_fork_is_told_to_open_an_engine_of_its_own(bundle: Bundle, name: str) -> None:
    """In a program of its own, whose child ends as those of multiprocessing do."""
    script = f"""
import os
import numpy as np
from sattrt.errors import BackendError
from sattrt.runtime import open_bundle
tile = np.zeros((64, 64, 3), np.uint8)
with open_bundle({str(bundle.path)!r}, {name!r}, threads=2) as engine:
    engine.predict(tile)
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        engine.predict(tile)
    else:
        try:
            with engine:
                engine.predict(tile)
        except BackendError as error:
            print(error, flush=True)
        engine.close()
        os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    said = f"{name} was opened before this process was forked, and a fork has none of its threads. Open it in the child.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_openvino_tells_nobody_that_it_is_used(bundle: Bundle, tmp_path: Path) -> None:
    script = f"""
import sys
from sattrt.runtime import open_bundle
open_bundle({str(bundle.path)!r}, "openvino-fp32").close()
print("openvino" in sys.modules, "openvino_telemetry" in sys.modules)
import openvino_telemetry  # of whoever wants it, it is there
"""
    if not importlib.util.find_spec("openvino_telemetry"):
        pytest.skip("openvino's telemetry is not installed")
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\n", "")
    assert not list(tmp_path.iterdir())


def test_of_many_tiles_that_are_not_contiguous_no_more_than_a_batch_is_copied_at_once(bundle: Bundle) -> None:
    tiles = np.concatenate([random_tiles(600)] * 2)
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        expected = engine.predict(np.ascontiguousarray(tiles[..., ::-1]))
        tracemalloc.start()
        found = engine.predict(tiles[..., ::-1])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        many = engine.infer(tiles[:300, ..., ::-1], 64)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(many[0], expected.logits[:300], atol=1e-4)
    assert peak < tiles.nbytes / 2


def test_a_folder_whose_name_is_no_text_is_named(copy: Path) -> None:
    odd = Path(os.fsdecode(bytes(copy) + b"\xe9"))
    copy.rename(odd)
    with pytest.raises(BackendError, match=r"no path that is not UTF-8: .*udce9.*Rename the folder"):
        open_bundle(odd, "onnxruntime-fp32")


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
    plans, samples = plans_here(bundle), golden(bundle)
    if not plans:
        pytest.skip("no GPU here that a plan of this bundle was built for")
    for plan in plans:
        with open_bundle(bundle.path, plan.name) as engine:
            for count in (20, 20, 20, 7, 7, 20, 1, 20):  # a size that comes again is recorded, and launched as one
                assert (engine.predict(samples["tiles"][:count]).labels == samples["torch-fp32"][:count].argmax(1)).all(), plan.name


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


@contextlib.contextmanager
def within_a_call(engine: Engine, handler: Callable[[], object]) -> Iterator[None]:
    """The handler is called in the middle of OpenVINO's next call, while that call keeps others waiting."""
    request = engine._backend._request  # type: ignore[attr-defined]

    class Interrupted:
        def __getattr__(self, name: str) -> object:
            return getattr(request, name)

        def infer(self, *arguments: object, **options: object) -> None:
            engine._backend._request = request  # type: ignore[attr-defined]
            handler()
            request.infer(*arguments, **options)

    engine._backend._request = Interrupted()  # type: ignore[attr-defined]
    yield


def test_a_handler_may_close_while_another_thread_waits_for_the_call_that_it_interrupts(bundle: Bundle) -> None:
    engine, image = bundle.open("openvino-int8", threads=1), np.zeros((64, 64, 3), np.uint8)
    others: list[threading.Thread] = []

    def handler() -> None:
        others.append(threading.Thread(target=engine.predict, args=(image,), daemon=True))
        others[0].start()
        while len(engine._calls) < 2:  # it waits for the call that was interrupted
            time.sleep(0.01)
        time.sleep(0.1)
        engine.close()

    with within_a_call(engine, handler):
        assert ends(lambda: engine.predict(image))
    assert ends(others[0].join)
    with pytest.raises(BackendError, match="was closed"):
        engine.predict(image)
    assert not hasattr(engine._backend, "_model")  # freed


def test_a_handler_may_close_a_batcher_whose_engine_it_interrupts(bundle: Bundle) -> None:
    with bundle.open("openvino-int8", threads=1) as engine:
        batcher, images, answers = Batcher(engine, max_batch=1), random_tiles(2), []

        def handler() -> None:
            answers.append(batcher.submit(images[1]))
            while len(engine._calls) < 2:
                time.sleep(0.01)
            batcher.close()

        with within_a_call(engine, handler):
            assert ends(lambda: answers.append(engine.predict(images[0])))
        np.testing.assert_allclose(answers[0].result(60).logits, engine.predict(images[1]).logits, atol=1e-3)
        with pytest.raises(InputError, match="The Batcher is closed"):
            batcher.submit(images[0])


def test_a_library_that_is_there_and_broken_says_why(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    script = f"from sattrt.runtime import open_bundle; open_bundle({str(bundle.path)!r}, 'onnxruntime-fp32')"
    path = os.pathsep.join((str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path}
    )
    assert "ONNX Runtime is installed and can't be imported (libcudart.so.13: cannot open shared object file)." in done.stderr


def test_large_tiles_are_sent_in_smaller_batches(bundle: Bundle) -> None:
    with bundle.open("openvino-int8", threads=1) as engine:
        assert engine.max_batch == 256
    assert [largest_batch((side, side, 3)) for side in (256, 512, 1024, 8192)] == [256, 64, 16, 1]


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
def test_what_is_measured_on_the_device_is_not_written_over(bundle: Bundle, name: str) -> None:
    measured, others = random_tiles(8), 255 - random_tiles(8)
    with bundle.open(name, threads=1) as engine:
        engine.predict(others)
        engine.resident(measured)()
        for count in (8, 2):
            engine.predict(others[:count])
        np.testing.assert_array_equal(measured, random_tiles(8))


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


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_an_engine_may_be_called_from_many_threads(bundle: Bundle, name: str) -> None:
    images = random_tiles(24)
    with open_bundle(bundle.path, name) as engine, ThreadPoolExecutor(8) as threads:
        expected = engine.predict(images).logits
        for i, answer in enumerate(threads.map(engine.predict, list(images) * 4)):
            np.testing.assert_allclose(answer.logits[0], expected[i % 24], atol=0.02 * float(np.abs(expected).max()))


def resident() -> float:
    """Megabytes that this process holds and no file does: what the system drops of libraries, and reads again, comes and goes."""
    with open("/proc/self/statm") as file:
        _, pages, of_files, *_ = map(int, file.read().split())
        return (pages - of_files) * 4096 / 1e6


def grown_by_sizes(folder: Path) -> float:
    """Megabytes by which batches of every size up to 48 move the resident size, after one of 48."""
    images = random_tiles(48)
    with open_bundle(folder, "openvino-int8", threads=1) as engine:
        engine.predict(images)
        before = resident()
        for size in range(1, 48):
            engine.predict(images[:size])
        return resident() - before


def grown(folder: Path, name: str) -> float:
    """Megabytes by which 2,000 predictions move the resident size, after 1,500 that warm up."""
    image = random_tiles(1)[0]
    with open_bundle(folder, name, threads=1) as engine:
        for _ in range(1500):
            engine.predict(image)
        before = resident()
        for _ in range(2000):
            engine.predict(image)
        return resident() - before


def test_memory_stays_where_it_is(bundle: Bundle) -> None:
    # in a process of its own: this one has trained, and keeps what it freed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name in ("onnxruntime-int8", "openvino-int8"):  # 0 as a rule, 0.2 MB once: what leaks a third of a kilobyte a time would show
            assert pool.submit(grown, bundle.path, name).result() < 0.6
        assert pool.submit(grown_by_sizes, bundle.path).result() < 100  # 190 where OpenVINO keeps what it prepared for each


def test_what_is_uncertain_is_rejected_when_asked(bundle: Bundle) -> None:
    images = np.load(bundle.path / "golden.npz")["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        all_of_them = engine.predict(images)
        some = engine.predict(images, reject=True)
        sure = all_of_them.probabilities.max(1) >= engine.reject_threshold
        assert (some.labels >= 0).tolist() == sure.tolist()
        assert [name == "rejected" for name in some.names] == (~sure).tolist()
        np.testing.assert_array_equal(some.labels[sure], all_of_them.labels[sure])
        recorded = bundle.engine("onnxruntime-fp32").record["validation"]["reject"]
        assert recorded["threshold"] == engine.reject_threshold
        assert recorded["error"] <= recorded["error_rate"] == 0.01
    for threshold in (float("nan"), "high", None, 10**400):
        record = dataclasses.replace(bundle.engine("onnxruntime-fp32"), record={"validation": {"reject": {"threshold": threshold}}})
        with open_engine(record, bundle.path, bundle.spec) as engine, pytest.raises(ContractError, match="no reject threshold"):
            engine.predict(images, reject=True)
