import itertools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from sattrt.bench import measure as module
from sattrt.bench import rows, scenarios, tables
from sattrt.bench.ceiling import _quantised, ceilings, work_per_tile
from sattrt.bench.config import BenchConfig
from sattrt.bench.contenders import Contender, Contenders
from sattrt.bench.measure import Budget, Samples, Timed, measure, turns, wall
from sattrt.bench.passes import Passes
from sattrt.bench.scenarios import ServerRate, Trial, moments, queries, server, streams
from sattrt.bench.verdict import Clocks, verdict
from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Bundle, Engine, open_bundle


def test_contenders_are_timed_in_turns() -> None:
    calls: list[str] = []

    def contender(name: str) -> Timed:
        def work() -> None:
            calls.append(name)
            time.sleep(0.02)

        return Timed(wall(work), 4)

    samples = measure({"a": contender("a"), "b": contender("b")}, Budget(seconds=0, calls=40))
    for each in samples.values():
        assert len(each.seconds) >= 40
        assert min(each.seconds) >= 0.02
        assert each.images_per_second == pytest.approx(4 * len(each.seconds) / sum(each.seconds))
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert len(turns) >= 6  # a and b warmed up, then at least two turns of each


def test_the_order_of_turns_is_drawn_anew_each_time() -> None:
    """Calls that say how long they took, so that a turn is one call."""
    calls: list[str] = []

    def contender(name: str) -> Timed:
        def call() -> float:
            calls.append(name)
            return 0.3

        return Timed(call)

    orders = set()
    for seed in range(8):
        calls.clear()
        measure({name: contender(name) for name in "abc"}, Budget(seconds=0, calls=4, warm_up=False), seed)
        turns = calls[6:]  # in the first turn each has an uncounted call
        rounds = ["".join(turns[i : i + 3]) for i in range(0, 9, 3)]
        assert [sorted(each) for each in rounds] == [list("abc")] * 3
        orders.add(tuple(rounds))
    assert len({rounds[0] for rounds in orders}) > 2  # over seeds
    assert max(len(set(rounds)) for rounds in orders) > 1  # and from round to round


def test_calls_that_a_percentile_wants_are_taken_where_they_fit() -> None:
    budget = Budget(seconds=1.0, hoped=1000)
    assert not budget.spent([0.003] * 400)
    assert budget.spent([0.003] * 1000)
    assert not budget.spent([0.01] * 99)
    assert budget.spent([0.01] * 101)  # a thousand would take ten times the seconds


def test_long_work_has_one_call_that_does_not_count() -> None:
    calls: list[float] = []
    pace = iter([9.0, 1.0, 1.0, 1.02, 1.0, 2.0])

    def call() -> float:
        calls.append(next(pace))
        return calls[-1]

    found = measure({"pass": Timed(call, 7)}, Budget(seconds=0, calls=5, warm_up=False))["pass"]
    assert (found.seconds, found.steady, len(calls)) == ([1.0, 1.0, 1.02, 1.0, 2.0], True, 6)
    pace = iter([9.0, 1.0, 1.5, 1.0])
    assert not measure({"pass": Timed(call, 7)}, Budget(seconds=0, calls=3, warm_up=False))["pass"].steady


def test_the_warm_up_goes_on_until_it_rests() -> None:
    pace = iter([0.1] * 4 + [0.05] * 4 + [0.02] * 1000)  # seconds of each call: slow at first

    assert module._warm_up(lambda: next(pace)) is True
    left = sum(1 for _ in pace)
    assert left < 1000  # it had reached the pace that stays
    restless = iter(0.01 * 1.2**i for i in range(10_000))
    assert module._warm_up(lambda: next(restless)) is False


def test_what_fails_is_left_out_with_its_reason_and_the_others_go_on() -> None:
    def after(count: int) -> Callable[[], float]:
        left = iter(range(count))

        def call() -> float:
            if next(left, None) is None:
                raise BackendError("it gave up")
            time.sleep(0.01)
            return 0.01

        return call

    failed: dict[str, str] = {}
    contenders = {"at once": Timed(after(0)), "later": Timed(after(70)), "never": Timed(wall(lambda: time.sleep(0.005)))}
    samples = measure(contenders, Budget(seconds=1.0), failed=failed)
    assert set(samples) == {"never"}
    assert failed == {"at once": "it gave up", "later": "it gave up"}
    with pytest.raises(BackendError, match="gave up"):
        measure({"at once": Timed(after(0))})


@pytest.mark.parametrize("error", [ContractError("it answers with other arrays"), InputError("the tiles are gone"), MemoryError()])
def test_whatever_a_user_can_mend_leaves_one_out_not_all(error: Exception) -> None:
    def refuse() -> float:
        raise error

    failed: dict[str, str] = {}
    samples = measure({"refuses": Timed(refuse), "works": Timed(wall(lambda: time.sleep(0.005)))}, Budget(seconds=0.1), failed=failed)
    assert (set(samples), failed) == ({"works"}, {"refuses": module.why(error)})


def test_a_percentile_is_claimed_with_ten_samples_beyond_it() -> None:
    hundred = Samples(1, [0.001 * i for i in range(1, 101)])
    assert hundred.tells(50)
    assert hundred.tells(90)
    assert not hundred.tells(99)
    assert Samples(1, [0.001] * 1000).tells(99)
    assert hundred.milliseconds(50) == pytest.approx(50.5)
    assert Samples(1, [1.0, 3.0]).variation == pytest.approx(0.5)


def test_images_a_second_are_all_images_over_all_seconds() -> None:
    assert Samples(10, [1.0, 1.0, 4.0]).images_per_second == pytest.approx(30 / 6)


def test_every_query_is_another_one() -> None:
    seen: list[bytes] = []
    tiles = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((5, 2, 2, 3), np.uint8)
    timed = queries(lambda images: seen.append(images.tobytes()), tiles, 1, seed=3)
    for _ in range(5):
        timed.call()
    assert len(set(seen)) == 5


def _closed(trials: list[Trial], floor: float) -> bool:
    """Whether the search ends after these trials."""
    low = max((trial.rate for trial in trials if trial.held), default=floor)
    return min((trial.rate for trial in trials if not trial.held), default=np.inf) <= 1.05 * low


def test_a_server_searches_by_what_was_answered_in_time(bundle: Bundle) -> None:
    """What holds depends on how busy this machine is; the search has to follow from what did."""
    tiles = np.load(bundle.path / "golden.npz")["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32", threads=1) as engine:
        alone = measure({"e": queries(engine.infer, tiles, 16, 0)}, Budget(0.3))["e"].images_per_second
        found = server(engine, tiles, bound=0.5, highest=alone, seconds=0.5, seed=0)
        count = next((i for i in range(1, len(found.trials)) if _closed(found.trials[:i], 2.0)), 9)
        low, high, rate = 2.0, np.inf, alone
        for trial in found.trials[:count]:
            assert trial.rate == pytest.approx(rate)
            assert not trial.held or np.mean(np.array(trial.seconds) <= 0.5) >= 0.99
            low, high = (trial.rate, high) if trial.held else (low, trial.rate)
            rate = np.sqrt(low * high) if high < np.inf else low * 1.3
        confirming = found.trials[count:]
        held = sorted((trial.rate for trial in found.trials[:count] if trial.held), reverse=True)
        assert [trial.rate for trial in confirming] == held[: len(confirming)]
        assert [trial.held for trial in confirming[:-1]] == [False] * len(confirming[:-1])
        assert found.rate == (confirming[-1].rate if confirming and confirming[-1].held else 0)
        assert (found.latency is not None) == (found.rate > 0)
        hopeless = server(engine, tiles, bound=1e-4, highest=alone, seconds=0.1, seed=0)
        assert (hopeless.rate, hopeless.latency, hopeless.at_least) == (0, None, False)
        assert hopeless.lowest_tried == min(trial.rate for trial in hopeless.trials)
        assert streams(engine.infer, tiles, 4, callers=2, seconds=0.2) > 0
        assert streams(engine.infer, tiles, 4, callers=2, seconds=0) > 0  # however late a thread begins


def test_an_engine_that_takes_callers_in_turn_is_not_faster_by_more_of_them() -> None:
    turn = threading.Lock()

    def infer(_: object) -> None:
        with turn:
            time.sleep(0.05)

    assert streams(infer, np.zeros((1, 2, 2, 3), np.uint8), 4, callers=3, seconds=0.1) <= 4 / 0.05


def test_a_server_that_always_answers_in_time_is_asked_for_more_and_more(bundle: Bundle) -> None:
    tiles = np.load(bundle.path / "golden.npz")["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32", threads=1) as engine:
        easy = server(engine, tiles, bound=60, highest=10, seconds=0.05, seed=0, max_batch=1)  # no tile waits for another
    assert [trial.rate for trial in easy.trials] == pytest.approx([10 * 1.3 ** min(i, 8) for i in range(10)])
    assert len(easy.trials[9].seconds) >= len(easy.trials[8].seconds)
    assert easy.rate == easy.trials[-1].rate
    assert easy.at_least
    assert easy.latency is not None
    assert easy.latency.seconds == easy.trials[-1].seconds


def test_a_rate_that_only_seemed_to_hold_is_not_reported_and_batches_are_warm(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    asked: list[tuple[float, int]] = []

    def trial(
        engine: Engine, tiles: np.ndarray, bound: float, rate: float, seconds: float, seed: int, max_batch: int, fewest: int = 0
    ) -> Trial:
        asked.append((rate, max_batch))
        held = rate < 900 and not (fewest and rate > 500)  # long trials fail above 500
        return Trial(rate, [0.01], float(held), 0.0, 1.0 if rate > 880 else 0.0)

    monkeypatch.setattr(scenarios, "_trial", trial)
    tiles = np.load(bundle.path / "golden.npz")["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32", threads=1) as engine:
        monkeypatch.setattr(Engine, "infer", lambda self, tiles, batch=0: sizes.append(len(tiles)))
        found = server(engine, tiles, bound=0.5, highest=1000, seconds=1, seed=0, max_batch=24)
    assert sizes == [1, 2, 4, 8, 16, 24]
    assert {size for _, size in asked} == {24}
    assert 250 < found.rate <= 500
    assert not found.at_least
    assert [rate for rate, _ in asked[:3]] == pytest.approx([1000, (2 * 1000) ** 0.5, (2 * 1000**3) ** 0.25])
    assert not found.generator_limited
    assert ServerRate(800, 0.5, [Trial(800, [0.1], 1.0, 0.0, 1.0), Trial(900, [0.1], 0.9, 0.3, 1.0)]).generator_limited


@pytest.mark.parametrize("limit", [30.0, 300.0, 2000.0, 9000.0])
def test_a_rate_far_below_that_of_full_batches_is_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """As on a fast GPU, which single tiles reach late."""

    def trial(engine: Engine, tiles: np.ndarray, bound: float, rate: float, *rest: object) -> Trial:
        return Trial(rate, [0.01], float(rate <= limit), 0.0, 0.0)

    monkeypatch.setattr(scenarios, "_trial", trial)
    tiles = np.load(bundle.path / "golden.npz")["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32", threads=1) as engine:
        found = server(engine, tiles, bound=0.05, highest=100_000, seconds=1, seed=0, max_batch=1)
        assert limit / 1.06 < found.rate <= limit
        assert len(found.trials) <= 10
        limit = 1.0
        none = server(engine, tiles, bound=0.05, highest=100_000, seconds=1, seed=0, max_batch=1)
    assert none.rate == 0
    assert 20 <= none.lowest_tried < 22  # a tile in each bound
    row = rows._server(none)
    assert row is not None
    assert tables.rate(row) in ("below 20", "below 21")
    assert tables.rate(row | {"lowest_tried": 0.52}) == "below 0.52"


def test_a_generator_that_is_held_up_before_the_first_tile_hands_it_over_nevertheless(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.chain([0.0], itertools.count(5.0, 1e-3))  # five seconds pass between the start and the first look
    tiles = np.load(bundle.path / "golden.npz")["tiles"]
    with open_bundle(bundle.path, "onnxruntime-fp32", threads=1) as engine:
        monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
        trial = scenarios._trial(engine, tiles, 1e-4, 100.0, 1.0, 0, 4)
    assert not trial.held
    assert len(trial.seconds) >= 1


def test_tiles_arrive_as_a_poisson_process() -> None:
    gaps = np.diff(moments(250, 20_001, np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(1 / 250, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert (gaps > 2 / 250).mean() == pytest.approx(np.exp(-2), abs=0.01)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


def test_samples_are_divided_into_the_turns_they_were_taken_in() -> None:
    seconds = [0.15, 0.15, *[0.06] * 4, 0.3, 0.05]
    assert turns(seconds) == [[0.15, 0.15], [0.06] * 4, [0.3], [0.05]]


def test_the_clock_of_the_engine_alone_is_within_that_of_the_host(bundle: Bundle) -> None:
    tiles = np.resize(np.load(bundle.path / "golden.npz")["tiles"], (32, 64, 64, 3))
    for name in ("onnxruntime-fp32", "openvino-fp32"):
        if name not in {record.name for record in bundle.engines}:
            continue
        with open_bundle(bundle.path, name) as engine:
            alone = engine.resident(tiles)
            taken = sorted(alone() for _ in range(5))
            assert 0 < taken[2] < 5
            begin = time.perf_counter()
            alone()
            assert alone() < time.perf_counter() - begin


def test_ceilings_and_operations_are_measured(bundle: Bundle) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ceilings.cache_clear()
    try:
        found = ceilings()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert found.matrix["fp32"] > 1e9
    assert found.memory > 1e8
    work = work_per_tile(bundle.spec)
    assert work is not None
    assert work.weights == 23_508_032 + 3 * 2049  # torchvision's resnet50, and a head of three classes
    assert work.operations == pytest.approx(0.67e9, rel=0.1)  # ResNet-50 at 64x64: a twelfth of the 8.2 GFLOP at 224x224


def test_the_quantised_products_are_products() -> None:
    rng = np.random.default_rng(0)
    tiles, weights = rng.integers(0, 256, (256, 256), np.uint8), rng.integers(-64, 65, (256, 256), np.int8)
    exact = (tiles.astype(np.int64) @ weights / 2**14).round().clip(0, 255)
    products = list(_quantised(256))
    assert products
    for product in products:
        answer = product()
        [found] = answer if isinstance(answer, list) else answer.values()  # type: ignore[attr-defined]
        assert np.abs(found - exact).max() <= 1
    assert exact.max() > 10


def clocks(engine: float, host: float, decode: float, whole: float) -> Clocks:
    return Clocks(*(Samples(10, [10 * seconds]) for seconds in (engine, host, decode, whole)))


def test_the_verdict_names_what_takes_most() -> None:
    assert verdict(clocks(engine=1e-3, host=1.1e-3, decode=4e-3, whole=6e-3)).startswith(
        "Limited by reading and decoding the files: 67 % of 6.00 ms per tile"
    )
    text = verdict(clocks(engine=4e-3, host=4.1e-3, decode=1e-3, whole=6e-3), of_ceiling=0.5)
    assert text.startswith("Limited by the engine: 67 %")
    assert text.endswith("It reaches 50 % of the machine's matrix rate.")
    assert "matrix rate" not in verdict(clocks(engine=4e-3, host=4.1e-3, decode=1e-3, whole=6e-3), of_ceiling=1.19)  # that was no ceiling
    assert "in parallel" in verdict(clocks(engine=4e-3, host=4e-3, decode=4e-3, whole=5e-3))
    assert "by the engine: 100 %" in verdict(clocks(engine=6e-3, host=6e-3, decode=1e-9, whole=5.9e-3))


def test_the_verdict_tells_nothing_that_lies_within_the_spread_of_the_clocks() -> None:
    text = verdict(clocks(engine=6e-3, host=6e-3, decode=1e-3, whole=5e-3))
    assert text.startswith("The clocks disagree: file to label was 17 % faster than host to host")
    assert "Limited by" not in text
    assert "host to host was 50 % faster than the engine alone" in verdict(clocks(engine=4e-3, host=2e-3, decode=1e-3, whole=5e-3))
    restless = Samples(10, [0.03] * 10 + [0.05] * 10)  # a mean of 4 ms an image, known to a tenth
    noisy = Clocks(restless, Samples(10, [0.0405] * 20), Samples(10, [0.01]), Samples(10, [0.06] * 20))
    assert "copies" not in verdict(noisy)
    assert "copy" not in verdict(noisy)
    assert "copy 1 %" in verdict(Clocks(Samples(10, [0.04] * 20), *(noisy.host, noisy.decode, noisy.whole)))
    slower = Samples(10, [0.2, 0.4] * 3)
    assert slower.spread > 0.2
    assert not verdict(Clocks(slower, Samples(10, [0.28] * 6), Samples(10, [0.01]), Samples(10, [0.3] * 6))).startswith("The clocks")


def test_the_clocks_of_a_slow_engine_are_of_five_calls_at_least(bundle: Bundle) -> None:
    class Reader:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            time.sleep(0.05)
            yield np.zeros((4, 64, 64, 3), np.uint8), np.zeros(4, np.int64)

    def infer(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.11)
        return np.zeros((len(tiles), 3), np.float32), np.zeros((len(tiles), 3), np.float32)

    slow = Contender("slow", bundle, "b", "numpy", "fp32", "cpu", 1, infer, lambda tiles: wall(lambda: infer(tiles)), None)
    images = np.zeros((4, 64, 64, 3), np.uint8)
    passes = Passes(Contenders({"slow": slow}), images, BenchConfig(seconds=0.1, clock_batch=4), lambda _: None)
    found = passes.clocks(Reader())["slow"]  # type: ignore[arg-type]
    assert min(len(each.seconds) for each in (found.engine, found.host, found.whole)) >= 5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scenarios": "offline,serving"}, "'serving' is unknown"),
        ({"engines": ","}, "engines is ','"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"batches": "1,x"}, "batches is '1,x'"),
        ({"batches": ""}, "batches is ''"),
        ({"threads": "-1"}, "threads is '-1'"),
        ({"streams": "0"}, "streams is '0'"),
        ({"latency_bound": float("nan")}, "latency_bound is nan"),
        ({"second": 1.0}, "Did you mean 'seconds'"),
    ],
)
def test_a_setting_that_can_not_be_measured_with_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchConfig.from_dict(setting, "bench.toml")
