import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sattrt.errors import ContractError, InputError
from sattrt.runtime import Batcher, Bundle, Engine, open_bundle, open_engine


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        yield engine


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_threads_get_the_answer_to_their_own_tile(engine: Engine) -> None:
    images = tiles(40)
    expected = engine.predict(images)
    sizes: list[int] = []
    infer = engine.infer

    def watched(batch: np.ndarray):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        return infer(batch)

    engine.infer = watched  # type: ignore[method-assign]
    try:
        with Batcher(engine, latency=0.5, max_batch=16) as batcher, ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(batcher.predict, images))
    finally:
        del engine.infer  # type: ignore[method-assign]
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer.logits, expected.logits[i : i + 1], atol=1e-3)
        assert (answer.names, answer.labels.tolist()) == ([expected.names[i]], [int(expected.labels[i])])
    assert sum(sizes) == 40
    assert max(sizes) <= 16
    assert len(sizes) < 40  # they came in batches


def test_a_lonely_request_does_not_wait_for_others(engine: Engine) -> None:
    with Batcher(engine, latency=0.2) as batcher:
        begin = time.monotonic()
        batcher.predict(tiles(1)[0])
        assert time.monotonic() - begin < 30  # it returns though no batch was ever filled


def test_a_tile_may_be_written_over_once_it_is_handed_in(engine: Engine) -> None:
    image = tiles(1)[0]
    expected = engine.predict(image).logits
    with Batcher(engine, latency=0.3) as batcher:
        answer = batcher.submit(image)
        image[:] = 0
        np.testing.assert_allclose(answer.result().logits, expected, atol=1e-4)


def test_closing_answers_what_is_queued_and_refuses_more(engine: Engine) -> None:
    batcher = Batcher(engine, latency=60, max_batch=100)
    answers = [batcher.submit(tile) for tile in tiles(5)]
    batcher.close()
    assert all(answer.done() and answer.result().logits.shape == (1, 3) for answer in answers)
    with pytest.raises(InputError, match="closed"):
        batcher.submit(tiles(1)[0])


def test_what_is_no_tile_is_refused_at_once_and_harms_nobody(engine: Engine) -> None:
    with Batcher(engine, latency=0.05) as batcher:
        for wrong in (tiles(2), np.zeros((64, 64, 3)), np.zeros((8, 8, 3), np.uint8)):
            with pytest.raises(InputError):
                batcher.submit(wrong)
        given_up = batcher.submit(tiles(1)[0])
        given_up.cancel()
        assert batcher.predict(tiles(1)[0]).logits.shape == (1, 3)
    with pytest.raises(InputError, match="latency"):
        Batcher(engine, latency=-1)


def test_an_engine_that_fails_fails_its_requests_alone(engine: Engine) -> None:
    infer = engine.infer
    fail = threading.Event()

    def flaky(batch: np.ndarray):  # type: ignore[no-untyped-def]
        if fail.is_set():
            raise MemoryError("no memory left")
        return infer(batch)

    engine.infer = flaky  # type: ignore[method-assign]
    try:
        with Batcher(engine, latency=0.0) as batcher:
            fail.set()
            with pytest.raises(MemoryError):
                batcher.predict(tiles(1)[0])
            fail.clear()
            assert batcher.predict(tiles(1)[0]).logits.shape == (1, 3)
    finally:
        del engine.infer  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_an_engine_may_be_called_from_many_threads(bundle: Bundle, name: str) -> None:
    images = tiles(24)
    with open_bundle(bundle.path, name) as engine, ThreadPoolExecutor(8) as threads:
        expected = engine.predict(images).logits
        for i, answer in enumerate(threads.map(engine.predict, list(images) * 4)):
            np.testing.assert_allclose(answer.logits[0], expected[i % 24], atol=0.02 * float(np.abs(expected).max()))


def grown(folder: Path) -> float:
    """Megabytes by which 2,000 predictions move the resident size, after 500 that warm up."""

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6

    image = tiles(1)[0]
    with open_bundle(folder, "onnxruntime-int8") as engine:
        for _ in range(500):
            engine.predict(image)
        before = resident()
        for _ in range(2000):
            engine.predict(image)
        return resident() - before


def test_memory_stays_where_it_is(bundle: Bundle) -> None:
    # in a process of its own: this one has trained, and keeps what it freed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(grown, bundle.path).result() < 5


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
    for threshold in (float("nan"), "high", None):
        record = dataclasses.replace(bundle.engine("onnxruntime-fp32"), record={"validation": {"reject": {"threshold": threshold}}})
        with open_engine(record, bundle.path, bundle.spec) as engine, pytest.raises(ContractError, match="no reject threshold"):
            engine.predict(images, reject=True)
