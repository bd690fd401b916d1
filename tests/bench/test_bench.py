import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sattrt.accuracy import evaluate, wilson
from sattrt.bench.measure import Budget, Speed, measure
from sattrt.bench.report import to_json, write_report
from sattrt.bench.run import Report, bench
from sattrt.bench.tiles import TileReader
from sattrt.data.dataset import Dataset
from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Bundle, open_bundle

QUICK = Budget(latency_seconds=0.05, latency_calls=3, throughput_seconds=0.05, throughput_calls=2)


@pytest.fixture(scope="module")
def report(bundle: Bundle, dataset: Dataset) -> Report:
    return bench(bundle, dataset, batches=(1, 4), budget=QUICK)


def test_wilson_is_wilsons() -> None:
    # the worked values of Newcombe, Statistics in Medicine 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_the_evaluator_counts() -> None:
    score = evaluate(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), ("a", "b", "c"), np.array([0, 0, 1, 2]))
    assert (score.correct, score.tiles, score.accuracy) == (3, 4, 0.75)
    assert score.per_class == {"a": (1, 1), "b": (1, 1), "c": (1, 2)}
    assert score.flips == [1]


def test_engines_are_measured_in_turns() -> None:
    calls: list[str] = []

    def engine(name: str):  # type: ignore[no-untyped-def]
        def predict(tiles: np.ndarray) -> None:
            assert tiles.shape == (4, 2, 2, 3)
            calls.append(name)
            time.sleep(0.02)

        return predict

    budget = Budget(throughput_calls=40, throughput_seconds=0.0)
    speeds = measure({"a": engine("a"), "b": engine("b")}, np.zeros((3, 2, 2, 3), np.uint8), (4,), budget)
    for speed in speeds.values():
        assert len(speed.seconds[4]) >= 40
        assert min(speed.seconds[4]) >= 0.02
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert len(turns) >= 6  # a and b warmed up, then at least two turns of each


def test_speed_is_read_from_raw_samples() -> None:
    speed = Speed({1: [0.001, 0.002, 0.003], 10: [0.004, 0.005, 0.1]})
    assert speed.latency_ms(50) == pytest.approx(2)
    assert speed.throughput(10) == pytest.approx(2000)
    assert speed.best_batch == 10


def test_every_engine_that_runs_here_has_a_row(report: Report, bundle: Bundle) -> None:
    measured = {row.name for row in report.rows}
    assert {"torch-eager-fp32", "onnxruntime-fp32", "onnxruntime-fp16"} <= measured
    assert measured | set(report.absent) == {record.name for record in bundle.engines} | {"torch-eager-fp32"}
    assert all(report.absent.values())


def test_exported_fp32_and_torch_agree(report: Report, dataset: Dataset) -> None:
    [fp32] = [row for row in report.rows if row.name == "onnxruntime-fp32"]
    assert (report.reference, fp32.score.tiles) == ("torch-eager-fp32", len(dataset.tiles("test")))
    assert fp32.score.flips == []
    assert 0 < fp32.largest_logit_error < 1e-3


def test_the_accuracy_is_that_of_the_engine(report: Report, bundle: Bundle, dataset: Dataset) -> None:
    [fp32] = [row for row in report.rows if row.name == "onnxruntime-fp32"]
    images, labels = (
        np.concatenate(parts) for parts in zip(*[(i.copy(), y) for i, y in TileReader(dataset, dataset.tiles("test"), 2)], strict=True)
    )
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        assert fp32.score.correct == (engine.predict(images).labels == labels).sum()


def test_the_report_is_written_for_people_and_machines(report: Report, tmp_path: Path) -> None:
    json_path, markdown = write_report(report, tmp_path)
    assert json.loads(json_path.read_text()) == json.loads(json.dumps(to_json(report)))
    text = markdown.read_text()
    for row in report.rows:
        assert f"| {row.name} |" in text
        assert f"{row.speed.latency_ms(99):.1f}" in text
    for name in report.absent:
        assert f"| {name} | not here | {report.absent[name]} |" in text
    assert "decoded by DALI" in text


def test_without_dali_pillow_decodes_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = dataset.tiles("test")
    with_dali = TileReader(dataset, tiles, 2)
    monkeypatch.setitem(sys.modules, "sattrt.data.loader", None)
    without = TileReader(dataset, tiles, 2)
    assert (with_dali.decoder, without.decoder) == ("DALI", "Pillow")
    for (images, labels), (same, same_labels) in zip(with_dali, without, strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels, same_labels)


def test_without_the_run_torch_is_a_row_that_says_why(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    report = bench(bundle, dataset, run=tmp_path, batches=(1,), budget=QUICK)
    assert "--run" in report.absent["torch-eager-fp32"]
    assert report.reference == "onnxruntime-fp32"


def test_another_run_is_not_taken_for_its_own(bundle: Bundle, dataset: Dataset, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    with open(other / "best.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    report = bench(bundle, dataset, run=other, batches=(1,), budget=QUICK)
    assert "not the checkpoint" in report.absent["torch-eager-fp32"]


def test_a_dataset_of_other_classes_is_refused(bundle: Bundle, dataset: Dataset) -> None:
    with pytest.raises(ContractError, match="knows the classes Field, Forest, Water"):
        bench(bundle, replace(dataset, classes=("Field", "Water", "Forest")))
    with pytest.raises(ContractError, match="takes 64x64"):
        bench(bundle, replace(dataset, width=32))


def test_an_empty_test_split_is_said(bundle: Bundle, dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"test split .* is empty"):
        bench(bundle, replace(dataset, all_tiles=tuple(dataset.tiles("train"))))


def test_nothing_that_runs_is_an_error_with_every_reason(bundle: Bundle, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    plans_only = replace(bundle, engines=tuple(record for record in bundle.engines if record.backend == "onnxruntime"))
    with pytest.raises(BackendError, match="ONNX Runtime is not installed"):
        bench(plans_only, dataset)


def test_another_split_is_noted(bundle: Bundle, dataset: Dataset) -> None:
    report = bench(bundle, replace(dataset, all_tiles=dataset.all_tiles[1:]), batches=(1,), budget=QUICK)
    assert not report.same_split
