import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sattrt.bench.compare import compare, read_report, to_json, worst_regression
from sattrt.errors import ContractError, InputError


def document(slower: float = 1.0, wrong: tuple[str, ...] = ("a", "b"), digest: str = "d") -> dict[str, Any]:
    seconds = (np.random.default_rng(0).normal(0.010, 0.0005, 500) * slower).tolist()
    accuracy = {"tiles": 100, "accuracy": 1 - len(wrong) / 100, "wrong": list(wrong)}
    row = {
        "engine": "e",
        "accuracy": accuracy,
        "single_stream": {"seconds": seconds},
        "multi_stream": None,
        "offline": {"64": {"seconds": seconds}},
    }
    return {"schema": 2, "dataset": {"digest": digest}, "engines": [row]}


def test_a_run_held_against_itself_differs_in_nothing() -> None:
    changes = compare(document(), document())
    assert [change.figure for change in changes] == ["single_stream p90, ms", "offline at 64, ms", "accuracy, points"]
    assert not any(change.real for change in changes)
    assert worst_regression(changes) == 0


def test_a_difference_beyond_the_noise_is_real() -> None:
    changes = compare(document(), document(slower=1.1))
    timings = [change for change in changes if "ms" in change.figure]
    assert all(change.real for change in timings)
    assert worst_regression(changes) == pytest.approx(100 * (1 - 1 / 1.1), abs=0.01)
    faster = compare(document(slower=1.1), document())
    assert worst_regression(faster) == 0
    assert json.loads(json.dumps(to_json(changes[-1]), allow_nan=False))["noise"] is None


def test_noise_hides_a_small_difference() -> None:
    changes = compare(document(), document(slower=1.001))
    assert not any(change.real for change in changes)


def test_accuracy_is_judged_by_the_tiles_that_changed() -> None:
    few = compare(document(), document(wrong=("a", "b", "c")))[-1]
    assert few.percent == pytest.approx(-1)
    assert not few.real
    many = compare(document(), document(wrong=("a", "b", *"cdefghij")))[-1]
    assert many.real


def test_a_baseline_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(document() | {"schema": 1}))
    with pytest.raises(ContractError, match="has schema 1; this sattrt reads schema 2"):
        read_report(tmp_path)
    (tmp_path / "bench.json").write_text('{"schema": 2, "engines": [3]}')
    with pytest.raises(ContractError, match="no list of engines"):
        read_report(tmp_path / "bench.json")
    with pytest.raises(InputError, match="Can't read"):
        read_report(tmp_path / "nothing.json")
    damaged = copy.deepcopy(document())
    del damaged["engines"][0]["accuracy"]
    with pytest.raises(ContractError, match="baseline is damaged"):
        compare(damaged, document())


def test_accuracies_on_other_tiles_are_not_compared() -> None:
    figures = [change.figure for change in compare(document(), document(wrong=("a",), digest="other"))]
    assert figures == ["single_stream p90, ms", "offline at 64, ms"]


def test_a_baseline_of_no_time_is_damaged() -> None:
    with pytest.raises(ContractError, match="baseline is damaged"):
        compare(document(slower=0), document())
