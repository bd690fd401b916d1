import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refusal

from sattrt.bench import compare as module
from sattrt.bench.compare import Change, _error, against, compare, read_report
from sattrt.errors import ContractError, InputError
from sattrt.runtime import Bundle

TIMINGS = [
    "single-stream p90, ms",
    "multi-stream p90, ms",
    "batch of 64, ms",
    "engine, ms",
    "host to host, ms",
    "file to label, ms",
]
FIGURES = [*TIMINGS, "2 callers, tiles/s", "server, tiles/s"]


def document(
    slower: float = 1.0, wrong: tuple[str, ...] = ("a", "b"), digest: str = "d", names: str = "n", seed: int = 0
) -> dict[str, Any]:
    """A report whose calls of 10 ms come in turns of 0.2 s, each turn a little faster or slower than the others, as on a shared machine."""
    rng = np.random.default_rng(seed)
    pace = np.repeat(rng.normal(1, 0.02, 25), 20)
    seconds = (rng.normal(0.0102, 0.0001, 500) * pace * slower).tolist()
    accuracy = {"tiles": 100, "accuracy": 1 - len(wrong) / 100, "wrong": list(wrong)}
    timed = {"seconds": seconds, "indicative": ["p99"], "images_a_call": 64}
    row = {
        "engine": "e",
        "device": "cpu",
        "threads": 2,
        "accuracy": accuracy,
        "single_stream": timed,
        "multi_stream": timed,
        "offline": {"64": timed},
        "clocks": {"engine": timed, "host_to_host": timed, "file_to_label": timed},
        "callers_rounds": {"2": (rng.normal(900, 5, 5) / slower).tolist()},
        "server": {"rate": 800 / slower, "bound_ms": 50.0, "trials": [{"rate": rate / slower} for rate in (1000, 500, 750, 800, 810)]},
    }
    environment = {"cpu": "c", "cores": 2, "gpu": None, "python": "3.12", "libraries": {"onnxruntime": "1.32"}}
    method = {"seconds": 3.0, "clock_batch": 64, "latency_bound": 50.0, "streams": "1,2"}
    measured = {"environment": environment, "method": method, "dataset": {"digest": digest, "names": names}}
    return {"schema": 5, **measured, "engines": [row], "absent": {}, "warnings": []}


def served(rate: float, *trials: float) -> dict[str, Any]:
    """A report whose server scenario held that rate, and tried those."""
    made = document()
    made["engines"][0]["server"] |= {"rate": rate, "trials": [{"rate": each} for each in (rate, *trials)]}
    return made


def test_a_run_held_against_itself_differs_in_nothing() -> None:
    new = document()
    found = against(document(), new)
    assert [change.figure for change in found.changes] == [*FIGURES, "accuracy, %"]
    assert new["warnings"] == []
    assert not any(change.real for change in found.changes)
    assert found.regression is None
    assert found.failure(0) is None
    assert len(new["changes"]) == len(found.changes)
    assert json.loads(json.dumps(new, allow_nan=False))["changes"][-1]["noise"] is None


def test_the_error_of_a_median_is_that_of_turns_not_of_calls() -> None:
    """Over many runs medians scatter as the bootstrap of one run says; single calls would say a quarter of it."""
    runs = [document(seed=seed)["engines"][0]["offline"]["64"]["seconds"] for seed in range(40)]
    scatter = float(np.std([np.median(seconds) for seconds in runs]))
    said = [_error(seconds, 50) for seconds in runs]
    assert {freedom for _, freedom in said} <= {24, 25}  # a fast turn holds one call more
    assert np.mean([error for error, _ in said]) == pytest.approx(scatter, rel=0.35)
    alone = [np.std(np.median(np.random.default_rng(1).choice(seconds, (200, len(seconds))), 1)) for seconds in runs]
    assert np.mean(alone) < scatter / 2


def test_two_runs_of_one_engine_seldom_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRIFT", 0.0)  # there is none between these two; it would hide the rest
    real = [change.real for seed in range(1, 25) for change in compare(document(), document(seed=seed)) if change.figure in TIMINGS]
    assert len(real) == 6 * 24
    assert sum(real) <= 1  # one in a hundred


def test_a_difference_beyond_the_noise_is_real() -> None:
    found = against(document(), document(slower=1.2))
    assert all(change.real for change in found.changes if change.figure != "accuracy, %")
    assert found.regression is not None
    assert found.regression.percent == pytest.approx(-100 * (1 - 1 / 1.2), abs=0.01)
    assert found.failure(5) == f"worse than the baseline by more than 5 %: {found.regression}"
    assert f"e: {found.regression.figure} " in str(found.failure(5))
    assert found.failure(20) is None
    assert against(document(slower=1.2), document()).regression is None


def test_slow_calls_count_by_what_they_cost() -> None:
    slow = document()
    slow["engines"][0]["offline"]["64"]["seconds"] = [
        2 * s if i % 4 == 0 else s for i, s in enumerate(document()["engines"][0]["offline"]["64"]["seconds"])
    ]
    [offline] = [change for change in compare(document(), slow) if change.figure == "batch of 64, ms"]
    assert offline.percent == pytest.approx(-20, abs=0.5)  # a quarter of the calls takes twice as long; the median call does not
    assert offline.real


def test_noise_hides_a_small_difference() -> None:
    assert not any(change.real for change in compare(document(), document(slower=1.02)))


def test_a_percentile_of_too_few_samples_gives_way_to_one_that_both_have_enough_for() -> None:
    def figure(calls: int) -> str:
        few = document()
        few["engines"][0]["multi_stream"] = {"images_a_call": 64, "seconds": [0.01] * calls}
        return next(change.figure for change in compare(few, document()) if "multi-stream" in change.figure)

    assert [figure(calls) for calls in (2000, 99, 20, 19)] == [
        "multi-stream p90, ms",  # of 500 calls in the other run
        "multi-stream p50, ms",
        "multi-stream p50, ms",
        "multi-stream p50 (indicative), ms",
    ]
    many = document()
    many["engines"][0]["multi_stream"] = {"images_a_call": 64, "seconds": [0.01] * 1000}
    assert "multi-stream p99, ms" in [change.figure for change in compare(many, many)]


def test_a_run_under_other_conditions_is_said_in_one_line() -> None:
    old, new = document(), document()
    old["environment"] |= {"cpu": "d", "libraries": {"onnxruntime": "1.31"}}
    old["method"] |= {"seconds": 0.5}
    old["engines"][0] |= {"device": "cuda", "threads": 1}
    assert against(old, new).fault is None
    assert new["warnings"] == [
        "The baseline was measured differently: cpu d -> c; onnxruntime 1.31 -> 1.32; seconds 0.5 -> 3.0; e's device cuda -> cpu; "
        "e's threads 1 -> 2."
    ]


def test_a_figure_that_is_gone_fails_the_check() -> None:
    new = document()
    row = new["engines"][0]
    row |= {"multi_stream": None, "offline": {}, "callers_rounds": {}, "server": None}
    row["clocks"]["engine"] = row["clocks"]["engine"] | {"images_a_call": 32}
    found = against(document(), new)
    said = "In the baseline, but not measured now: e (multi-stream, batch of 64, engine, 2 callers, server)."
    assert new["warnings"] == [said]
    assert "not measured now: e (multi-stream" in str(found.failure(50))


def test_several_callers_are_compared_beyond_the_noise_of_their_rounds() -> None:
    def callers(rates: list[float]) -> Change:
        new = document()
        new["engines"][0]["callers_rounds"] = {"2": rates}
        return next(change for change in compare(document(), new) if "callers" in change.figure)

    assert callers([700, 702, 704, 698, 699]).real
    assert callers([700, 702, 704, 698, 699]).percent == pytest.approx(-22, abs=1)
    assert not callers([300, 1500, 200, 900, 600]).real  # they differ by more among themselves
    assert not callers([700]).real


def test_a_single_turn_tells_nothing() -> None:
    few = document(slower=3)
    few["engines"][0]["offline"]["64"]["seconds"] = [0.03] * 5
    [offline] = [change for change in compare(document(), few) if change.figure == "batch of 64, ms"]
    assert offline.percent < -60
    assert not offline.real


def test_a_check_that_could_compare_nothing_fails() -> None:
    old, few = document(), document(digest="other")
    for each in (old, few):
        each["engines"][0] |= {
            "single_stream": None,
            "multi_stream": None,
            "offline": {},
            "clocks": None,
            "callers_rounds": {},
            "server": None,
        }
    assert "nothing of the baseline could be compared" in str(against(old, few).failure(50))


def test_accuracy_is_judged_by_the_tiles_that_changed() -> None:
    few = compare(document(), document(wrong=("a", "b", "c")))[-1]
    assert few.percent == pytest.approx(-1)
    assert not few.real
    many = compare(document(), document(wrong=("a", "b", *"cdefghij")))[-1]
    assert many.real


def test_a_rate_is_known_up_to_the_next_that_failed() -> None:
    [rate] = [change for change in compare(document(), document(slower=1.01)) if change.figure == "server, tiles/s"]
    assert isinstance(rate, Change)
    assert (rate.old, rate.new) == (800, pytest.approx(800 / 1.01))
    assert rate.noise == pytest.approx(100 * (2 * 10 / 800 + 0.05))


@pytest.mark.parametrize(
    ("old", "new", "percent", "noise", "real"),
    [
        (served(800, 810), served(0, 1000, 500, 31), -100, 100 * (10 / 800 + 0.05), True),  # all of them failed
        (served(800), served(80, 81), -90, 100 * (1 / 80 + 0.05), True),  # a fall from a lower bound
        (served(800), served(700), -12.5, None, False),  # to a lower bound: it may be none
        (served(80, 81), served(800), 900, 100 * (1 / 80 + 0.05), True),
        (served(800), served(800), 0, None, False),
    ],
)
def test_a_rate_that_no_trial_failed_above_is_a_lower_bound(
    old: dict[str, Any], new: dict[str, Any], percent: float, noise: float | None, real: bool
) -> None:
    found = against(old, new)
    [rate] = [change for change in found.changes if change.figure == "server, tiles/s"]
    assert rate.percent == pytest.approx(percent)
    assert rate.noise == (pytest.approx(noise) if noise else math.inf)
    assert rate.real == real
    assert (found.failure(5) is not None) == (real and percent < 0)


def test_a_rate_that_was_none_before_is_not_compared() -> None:
    assert not [change for change in compare(served(0, 5), served(800, 810)) if change.figure == "server, tiles/s"]


def test_an_engine_that_is_gone_fails_the_check() -> None:
    new = document()
    new["engines"][0]["engine"] = "other"
    found = against(document(), new)
    assert found.changes == ()
    assert found.failure(50) == "in the baseline, but not measured now: e. Measure them, or make a new baseline"
    assert new["warnings"] == ["In the baseline, but not measured now: e."]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"schema": 1}, "has schema 1; this sattrt reads schema 5"),
        ({"engines": [3]}, "no list of engines"),
        ({"engines": None}, "no list of engines"),
        ({"engines": []}, "no list of engines"),
        ({"engines": [{"engine": [1]}]}, "no list of engines"),
        ({"engines": [document()["engines"][0] | {"single_stream": {"seconds": [float("nan")] * 9, "indicative": []}}]}, "damaged"),
        ({"dataset": 3}, "baseline is damaged"),
        ({"engines": [{"engine": "e"}]}, "baseline is damaged"),
        ({"engines": [document()["engines"][0] | {"offline": 3}]}, "baseline is damaged"),
        ({"engines": [document()["engines"][0] | {"accuracy": None}]}, "baseline is damaged"),
        (
            {"engines": [document()["engines"][0] | {"accuracy": {"tiles": 100, "accuracy": float("nan"), "wrong": []}}]},
            "contains NaN or infinity",
        ),
        ({"engines": [document()["engines"][0] | {"accuracy": {"tiles": 100, "accuracy": 98.0, "wrong": []}}]}, "accuracy of 98"),
        ({"engines": served(float("inf"))["engines"]}, "contains NaN or infinity"),
        ({"engines": served(float("nan"), 900)["engines"]}, "contains NaN or infinity"),
        ({"engines": served(-5)["engines"]}, "a server rate of -5"),
        ({"engines": [document()["engines"][0] | {"single_stream": {"seconds": "x", "indicative": []}}]}, "baseline is damaged"),
        ({"engines": [document()["engines"][0] | {"single_stream": {"seconds": [0.0] * 9, "indicative": []}}]}, "baseline is damaged"),
    ],
)
def test_a_baseline_that_can_not_be_compared_with_is_said_and_nothing_is_lost(damage: dict[str, Any], message: str) -> None:
    new = document()
    before = copy.deepcopy(new)
    found = against(document() | damage, new)
    assert isinstance(found.fault, ContractError)
    assert message in str(found.fault)
    assert new == before | {"warnings": [str(found.fault)]}


def test_a_baseline_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Can't read"):
        read_report(tmp_path)
    for text, message in (("{", "JSON"), (json.dumps(document() | {"schema": 4}), "has schema 4"), ('{"schema": 5}', "no list of engines")):
        (tmp_path / "bench.json").write_text(text)
        with pytest.raises(ContractError, match=message):
            read_report(tmp_path)


@pytest.mark.parametrize("baseline", ["bench.json", ""])
def test_a_baseline_is_not_replaced_by_what_is_compared_with_it(bundle: Bundle, tmp_path: Path, baseline: str) -> None:
    (tmp_path / "bench.json").write_text(text := json.dumps(document()))
    said = refusal("bench", bundle.path, "--out", tmp_path, "--baseline", tmp_path / "." / baseline)
    assert "would be replaced by this report. Choose another --out." in said
    assert (tmp_path / "bench.json").read_text() == text


@pytest.mark.parametrize("other", [{"digest": "other"}, {"names": "other"}])
def test_accuracies_on_other_tiles_are_not_compared(other: dict[str, str]) -> None:
    figures = [change.figure for change in compare(document(), document(wrong=("a",), **other))]
    assert figures == FIGURES
    new = document(wrong=("a",), **other)
    failure = against(document(), new).failure(5)
    assert failure == "accuracy of e is of other tiles than the baseline's. Make a new baseline"
    assert new["warnings"] == ["Accuracy of e was not compared: the baseline was measured on other tiles, or on these under other names."]
