import contextlib
import dataclasses
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from conftest import random_tiles

from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Batcher, Bundle, Engine, NoNumbersError, open_bundle, open_engine
from sattrt.runtime.cuda import NoGpuError


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        yield engine


@contextlib.contextmanager
def watched_sizes(engine: Engine) -> Iterator[list[int]]:
    """The sizes of the batches that the engine's library is given."""
    sizes: list[int] = []
    run = engine._backend.run

    def watched(batch: np.ndarray):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        return run(batch)

    engine._backend.run = watched  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        del engine._backend.run  # type: ignore[method-assign]


def test_threads_get_the_answer_to_their_own_tile(engine: Engine) -> None:
    images = random_tiles(40)
    expected = engine.predict(images)
    with watched_sizes(engine) as sizes, Batcher(engine, latency=0.5, max_batch=16) as batcher, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(batcher.predict, images))
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer.logits, expected.logits[i : i + 1], atol=1e-3)
        assert (answer.names, answer.labels.tolist()) == ([expected.names[i]], [int(expected.labels[i])])
    if engine.device == "cpu":
        assert sum(sizes) == 40
    else:
        assert set(sizes) == {16}
    assert max(sizes) <= 16
    assert len(sizes) < 40  # they came in batches


@pytest.mark.parametrize(
    ("prepared", "sent"), [((128,), [16, 16]), ((1, 2, 4, 8, 16), [1, 2, 4, 8, 16, 8]), ((2, 4), [2, 4, 16, 16]), ((), [5])]
)
def test_a_batch_is_filled_up_to_a_size_that_is_prepared(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, prepared: tuple[int, ...], sent: list[int]
) -> None:
    images = random_tiles(5)
    expected = engine.predict(images)
    monkeypatch.setattr(engine._backend, "sizes", prepared)
    monkeypatch.setattr(engine, "_sent", set())
    with watched_sizes(engine) as sizes, Batcher(engine, latency=3600, max_batch=16) as batcher:
        assert not engine.unprepared(16)
        requests = [batcher.submit(image) for image in images]
        batcher.close()
        answers = [request.result() for request in requests]
    assert sizes == sent
    for i, answer in enumerate(answers):
        assert answer.logits.shape == (1, len(engine.classes))
        np.testing.assert_allclose(answer.logits, expected.logits[i : i + 1], atol=1e-3)
        assert answer.names == [expected.names[i]]


def test_a_tile_that_gets_no_numbers_fails_alone(engine: Engine) -> None:
    images = random_tiles(6)
    expected, spoilt = engine.predict(images), images[2]
    run = engine._run

    def overflows(backend: Any, batch: np.ndarray) -> Any:
        if (batch == spoilt).all((1, 2, 3)).any():
            raise NoNumbersError("NaN or infinity")
        return run(backend, batch)

    engine._run = overflows  # type: ignore[method-assign]
    try:
        with Batcher(engine, latency=0.5) as batcher:
            answers = [batcher.submit(image) for image in images]
            for i, answer in enumerate(answers):
                if i == 2:
                    with pytest.raises(NoNumbersError):
                        answer.result()
                else:
                    np.testing.assert_allclose(answer.result().logits, expected.logits[i : i + 1], atol=1e-3)
    finally:
        del engine._run  # type: ignore[method-assign]


def test_a_lonely_request_waits_no_longer_than_the_bound_less_the_engines_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's speed: it is what the batcher asks to wait for that is held against the bound."""
    waits: list[float] = []

    class Noted(SimpleQueue):  # type: ignore[type-arg]
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if timeout is not None:
                waits.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr("sattrt.runtime.batcher.SimpleQueue", Noted)
    with Batcher(engine, latency=1.5) as batcher:
        batcher.predict(random_tiles(1)[0])
        assert waits  # for others, who did not come
        assert max(waits) <= 1.5
        waits.clear()
        engines = batcher._queue._seconds
        assert engines > 0
        batcher.predict(random_tiles(1)[0])
        assert all(each <= 1.5 - engines for each in waits)


def test_a_batch_is_waited_for_and_no_longer_than_until_it_is_full(engine: Engine) -> None:
    with Batcher(engine, latency=3600, max_batch=5) as batcher, watched_sizes(engine) as sizes:
        answers = [batcher.submit(tile) for tile in random_tiles(5)]
        for answer in answers:
            answer.result(timeout=60)
    assert sizes == [5]


def test_what_is_uncertain_is_rejected_in_a_batch_too(bundle: Bundle) -> None:
    images = np.load(bundle.path / "golden.npz")["tiles"]
    record = bundle.engine("onnxruntime-fp32")
    with open_engine(record, bundle.path, bundle.spec) as engine:
        between = float(np.median(engine.predict(images).probabilities.max(1)))
    record = dataclasses.replace(record, record={"validation": {"reject": {"threshold": between}}})
    with open_engine(record, bundle.path, bundle.spec) as engine:
        expected = engine.predict(images, reject=True).labels.tolist()
        assert 0 < expected.count(-1) < len(images)
        for reject in (True, False):
            with Batcher(engine, latency=0.5, reject=reject) as batcher:
                answers = [batcher.submit(tile) for tile in images]
            rejected = [answer.result().labels[0] == -1 for answer in answers]
            assert rejected == [reject and label == -1 for label in expected]


@pytest.mark.parametrize("settings", [{"latency": float("inf")}, {"latency": float("nan")}, {"latency": 1e10}, {"latency": -1}])
@pytest.mark.parametrize("more", [{}, {"max_batch": 4}])
def test_a_latency_without_an_end_is_refused(engine: Engine, settings: dict[str, float], more: dict[str, int]) -> None:
    with pytest.raises(InputError, match="latency"):
        Batcher(engine, **settings, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_batch", [2.5, 64.0, 0, "4"])
def test_a_batch_is_a_whole_number_of_tiles(engine: Engine, max_batch: int) -> None:
    with pytest.raises(InputError, match="whole number of tiles"):
        Batcher(engine, max_batch=max_batch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_the_thread_leaves_nobody_waiting(engine: Engine) -> None:
    def leave(answer: object) -> None:
        raise SystemExit("enough")

    batcher = Batcher(engine, latency=3600, max_batch=3)
    first = batcher.submit(random_tiles(1)[0])
    first.add_done_callback(leave)
    others = [batcher.submit(tile) for tile in random_tiles(3)]
    assert first.result(timeout=60).logits.shape == (1, 3)
    for other in others:
        with pytest.raises(SystemExit, match="enough"):
            other.result(timeout=60)
    assert len({other.exception() for other in others}) == 3
    with pytest.raises(InputError, match="closed"):
        batcher.submit(random_tiles(1)[0])
    batcher.close()


def test_a_callback_can_submit_close_and_not_wait(engine: Engine) -> None:
    said: list[object] = []
    called = threading.Event()

    def again(answer: object) -> None:
        try:
            batcher.predict(random_tiles(1)[0])
        except InputError as error:
            said.append(str(error))
        said.append(batcher.submit(random_tiles(1)[0]))
        batcher.close()
        called.set()

    batcher = Batcher(engine, latency=3600, max_batch=2)
    batcher.submit(random_tiles(1)[0]).add_done_callback(again)
    batcher.submit(random_tiles(1)[0])
    assert called.wait(timeout=60)
    assert "done-callback" in str(said[0])
    assert said[1].result(timeout=60).logits.shape == (1, 3)  # type: ignore[attr-defined]


def test_a_batcher_that_nobody_knows_any_more_stops(engine: Engine) -> None:
    batcher = Batcher(engine, latency=0)
    worker = batcher._queue._worker
    answer = batcher.submit(random_tiles(1)[0])
    del batcher
    gc.collect()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert answer.result().logits.shape == (1, 3)


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
def test_a_program_that_ends_without_closing_ends_well(bundle: Bundle, name: str) -> None:
    script = f"""
import numpy as np
from sattrt.runtime import Batcher, open_bundle
batcher = Batcher(open_bundle({str(bundle.path)!r}, {name!r}, threads=1), latency=0.001)
answers = [batcher.submit(np.zeros((64, 64, 3), np.uint8)) for _ in range(300)]
answers[-1].add_done_callback(lambda answer: print("answered", flush=True))
answers[0].result()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answered\n", "")  # else a thread is inside the backend, which may abort


SIGNALLED = """
import itertools, sys
sys.path.insert(0, {tests!r})
import numpy as np
from signals import handled, interrupt
from sattrt.errors import InputError
from sattrt.runtime import Batcher, open_bundle
engine, tile = open_bundle({bundle!r}, "onnxruntime-int8", threads=1), np.zeros((64, 64, 3), np.uint8)
batcher = Batcher(engine, latency=0)

def at_every_moment(handler, call):
    assert next(moment for moment in itertools.count(1) if not handled(handler(), moment, call)) > 3

{script}
print("done", flush=True)
"""


@pytest.mark.parametrize(
    "script",
    [
        "at_every_moment(lambda: interrupt, lambda: batcher.predict(tile))",
        "at_every_moment(lambda: interrupt, lambda: batcher.submit(tile))",
        """
answers = [batcher.submit(tile) for _ in range(200)]
at_every_moment(lambda: interrupt, batcher.close)
assert all(answer.done() for answer in answers)
""",
        """
def another():
    global batcher
    batcher = Batcher(engine, latency=0)
    return batcher.close

def submit():
    try:
        answer = batcher.submit(tile)
    except InputError:
        return
    batcher.close()
    assert answer.done()

at_every_moment(another, submit)
""",
    ],
    ids=["interrupt-predict", "interrupt-submit", "interrupt-close", "close-in-submit"],
)
def test_a_signal_at_any_moment_leaves_nobody_waiting(bundle: Bundle, script: str) -> None:
    """In a program of its own, which also has to end."""
    script = SIGNALLED.format(tests=str(Path(__file__).parent), bundle=str(bundle.path), script=script)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("wrong", [{"latency": "1"}, {"latency": None}, {"max_batch": None}])
def test_what_is_no_number_is_refused(engine: Engine, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="A Batcher takes"):
        Batcher(engine, **wrong)


def test_numbers_of_numpy_are_as_good(engine: Engine) -> None:
    with Batcher(engine, latency=np.float32(0.01), max_batch=np.int64(4)) as batcher:
        assert len(batcher.predict(random_tiles(1)[0]).labels) == 1


def test_a_fork_is_told_to_make_a_batcher_of_its_own(bundle: Bundle) -> None:
    """In a program of its own, whose child ends as those of multiprocessing do: ONNX Runtime's own clean-up would wait for ever."""
    script = f"""
import os, sys
import numpy as np
from sattrt.errors import BackendError
from sattrt.runtime import Batcher, open_bundle
batcher, tile = Batcher(open_bundle({str(bundle.path)!r}, "onnxruntime-int8", threads=1)), np.zeros((64, 64, 3), np.uint8)
batcher.predict(tile)
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    batcher.predict(tile)
else:
    for call in (batcher.submit, batcher.predict):
        try:
            call(tile)
        except BackendError as error:
            print(error, flush=True)
    batcher.close()
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    said = "A fork has no thread of the Batcher that was made before it. Open an engine and make a Batcher in the child.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, 2 * said, "")


def test_a_tile_may_be_written_over_once_it_is_handed_in(engine: Engine) -> None:
    image = random_tiles(1)[0]
    expected = engine.predict(image).logits
    with Batcher(engine, latency=0.3) as batcher:
        answer = batcher.submit(image)
        image[:] = 0
        np.testing.assert_allclose(answer.result().logits, expected, atol=1e-4)


def test_closing_answers_what_is_queued_and_refuses_more(engine: Engine) -> None:
    batcher = Batcher(engine, latency=60, max_batch=100)
    answers = [batcher.submit(tile) for tile in random_tiles(5)]
    batcher.close()
    assert all(answer.done() and answer.result().logits.shape == (1, 3) for answer in answers)
    with pytest.raises(InputError, match="closed"):
        batcher.submit(random_tiles(1)[0])


def test_what_is_no_tile_is_refused_at_once_and_harms_nobody(engine: Engine) -> None:
    with Batcher(engine, latency=0.05) as batcher:
        for wrong in (random_tiles(2), np.zeros((64, 64, 3)), np.zeros((8, 8, 3), np.uint8)):
            with pytest.raises(InputError):
                batcher.submit(wrong)
        given_up = batcher.submit(random_tiles(1)[0])
        given_up.cancel()
        assert batcher.predict(random_tiles(1)[0]).logits.shape == (1, 3)


def test_an_engine_that_fails_fails_its_requests_alone(engine: Engine) -> None:
    infer = engine.infer
    fail = threading.Event()

    def flaky(tiles: np.ndarray, batch: int = 0):  # type: ignore[no-untyped-def]
        if fail.is_set():
            raise MemoryError("no memory left")
        return infer(tiles, batch)

    engine.infer = flaky  # type: ignore[method-assign]
    try:
        with Batcher(engine, latency=0.0) as batcher:
            fail.set()
            with pytest.raises(MemoryError):
                batcher.predict(random_tiles(1)[0])
            fail.clear()
            assert batcher.predict(random_tiles(1)[0]).logits.shape == (1, 3)
    finally:
        del engine.infer  # type: ignore[method-assign]


class Odd(Exception):
    """One that can't be made from its own arguments."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


class Other(Odd):
    """One that becomes another if it is made from its own arguments."""

    def __init__(self, name: str, reason: str = "?") -> None:
        super().__init__(name, reason)


@pytest.mark.parametrize(
    "error",
    [
        *(kind("no memory left") for kind in (BackendError, ContractError, NoGpuError, MemoryError)),
        OSError(5, "no", "a"),
        Odd("a", "no"),
        Other("a", "no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_request_of_a_batch_that_fails_has_an_error_of_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(tiles: np.ndarray, batch: int = 0) -> None:
        raise error

    monkeypatch.setattr(engine, "infer", fails)
    with Batcher(engine, latency=3600, max_batch=3) as batcher:
        found = [answer.exception(60) for answer in [batcher.submit(tile) for tile in random_tiles(3)]]
    assert [(type(each), str(each)) for each in found] == 3 * [(type(error), str(error))]
    if not isinstance(error, Odd):
        assert len({error, *found}) == 4
        assert [each.__cause__ for each in found if each] == 3 * [error]
