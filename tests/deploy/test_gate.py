import contextlib
import csv
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SMALL
from typer.testing import CliRunner, Result

from sattrt.accuracy import mcnemar, reject_threshold
from sattrt.cli import app
from sattrt.data.dataset import Dataset
from sattrt.deploy.bundle import export
from sattrt.deploy.card import write_flips
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.gate import Verdict, judge, torch_logits
from sattrt.errors import InputError, ParityError
from sattrt.runtime import Bundle, Engine, open_bundle, read_bundle
from sattrt.trained import load_trained, read_samples
from sattrt.training.loop import train


def test_mcnemar_is_the_exact_test() -> None:
    # scipy.stats.binomtest(k, n).pvalue
    for lost, gained, p in ((0, 0, 1.0), (5, 5, 1.0), (6, 0, 0.03125), (1, 9, 0.021484375), (3, 12, 0.03515625)):
        assert mcnemar(lost, gained) == pytest.approx(p)
        assert mcnemar(gained, lost) == pytest.approx(p)


def test_the_reject_threshold_answers_as_much_as_the_error_allows() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.5], np.float32)
    right = np.array([True, True, False, True, True, False])
    found = reject_threshold(confidence, right, 0.2)
    assert (found["threshold"], found["coverage"], found["error"]) == (pytest.approx(0.6), pytest.approx(5 / 6), pytest.approx(0.2))
    assert reject_threshold(confidence, right, 0.0)["coverage"] == pytest.approx(2 / 6)
    assert reject_threshold(confidence, ~right | False, 0.0)["coverage"] == 0  # the most certain answer is wrong
    assert reject_threshold(confidence, ~right, 0.0)["threshold"] > 1


@pytest.mark.parametrize(("percent", "wrong"), [(0.7, 7), (2.9, 29), (1.0, 10)])
def test_the_reject_threshold_loses_no_tile_to_rounding(percent: float, wrong: int) -> None:
    confidence = np.linspace(1, 0.5, 1000)
    assert reject_threshold(confidence, np.arange(1000) < 1000 - wrong, percent / 100)["coverage"] == 1
    assert reject_threshold(confidence, np.arange(1000) < 999 - wrong, percent / 100)["coverage"] < 1


def test_an_exporter_that_goes_wrong_is_caught(run: Path, bundle: Bundle) -> None:
    """The engine of one network against the answers of another: what a faulty exporter would amount to."""
    model, spec = load_trained(run)
    samples = read_samples(run, spec)
    expected = torch_logits(model, samples.valid, spec.temperature)
    with torch.no_grad():
        model.backbone.layer4[2].conv3.weight.mul_(1.2)
    other = torch_logits(model, samples.valid, spec.temperature)
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        judge(engine, samples.valid, samples.valid_labels, expected, 0.0)
        with pytest.raises(ParityError, match="differs from the trained network"):
            judge(engine, samples.valid, samples.valid_labels, other, 0.0)


@pytest.mark.parametrize(("device", "allowed"), [("cpu", 1e-4), ("cuda", 1e-3), ("NVIDIA H200", 1e-3)])
def test_fp32_may_be_further_off_on_a_gpu(run: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, device: str, allowed: float) -> None:
    samples = read_samples(run, bundle.spec)
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        monkeypatch.setattr(engine._backend, "device", device)
        expected = engine.predict(samples.valid).logits
        largest, where = np.abs(expected).max(), np.unravel_index(np.abs(expected).argmin(), expected.shape)
        for error, judged in ((0.5 * allowed, contextlib.nullcontext()), (2 * allowed, pytest.raises(ParityError, match="differs from"))):
            off = expected.copy()
            off[where] += error * largest
            with judged:
                judge(engine, samples.valid, samples.valid_labels, off, 1.0)


def test_the_verdict_counts_what_was_lost_and_gained(run: Path, bundle: Bundle) -> None:
    _, spec = load_trained(run)
    samples = read_samples(run, spec)
    labels = samples.valid_labels
    with open_bundle(bundle.path, "onnxruntime-fp16") as engine:
        own = engine.predict(samples.valid)
        # an fp32 that knows every tile but three which this engine has right
        expected = np.eye(3, dtype=np.float32)[labels]
        right, wrong = np.flatnonzero(own.labels == labels)[:3], np.flatnonzero(own.labels != labels)
        expected[right] = np.eye(3, dtype=np.float32)[(labels[right] + 1) % 3]
        verdict, logits = judge(engine, samples.valid, labels, expected, 0.0)
        np.testing.assert_allclose(logits, own.logits, atol=1e-3)
        assert (verdict.lost, verdict.gained) == (len(wrong), len(right))
        assert verdict.flips == sorted([*right.tolist(), *wrong.tolist()])
        assert verdict.fp32_accuracy - verdict.accuracy == pytest.approx((len(wrong) - len(right)) / len(labels))
        for drop in (-1.0, 1.0):
            assert judge(engine, samples.valid, labels, expected, drop)[0].passed == (drop > 0)


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells the classes apart, so that there is something to lose."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(dataset, folder, dataclasses.replace(SMALL, epochs=6, batch_size=8, learning_rate=0.01, precision="auto")).accuracy > 0.9
    return folder


@pytest.fixture
def blunt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration that cuts half of every activation: int8 graphs that are really bad."""
    monkeypatch.setattr("sattrt.deploy.graphs.METHODS", dict.fromkeys(("int8", "int8-cpu", "fp8"), ("percentile 50",)))
    monkeypatch.setattr("sattrt.deploy.graphs.LEVELS", (127,))


def exported(run: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["export", str(run), "--out", str(out), "--precision", "int8", *options])


def test_what_fails_the_gate_is_left_out_and_the_exit_code_says_so(trained: Path, tmp_path: Path, blunt: None) -> None:
    result = exported(trained, tmp_path / "b")
    assert result.exit_code == 1
    for name in ("onnxruntime-int8", "openvino-int8"):
        assert re.search(rf"{name}: failed the gate and was left out: .* more than 0.2 points below\n", result.output)
    assert {engine.precision for engine in read_bundle(tmp_path / "b").engines} == {"fp32"}
    assert not list((tmp_path / "b").glob("*int8*"))
    read_bundle(tmp_path / "b").verify()


def test_best_effort_takes_the_next_simpler_precision_and_says_so(trained: Path, tmp_path: Path, blunt: None) -> None:
    result = exported(trained, tmp_path / "b", "--best-effort")
    assert result.exit_code == 0
    assert "onnxruntime-fp16 replaces it" in result.output
    assert "openvino-fp32 replaces it" in result.output
    assert {"onnxruntime-fp16", "onnxruntime-fp32", "openvino-fp32"} <= {engine.name for engine in read_bundle(tmp_path / "b").engines}


def test_an_engine_that_can_not_run_here_is_judged_by_its_graph(
    trained: Path, tmp_path: Path, blunt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    result = exported(trained, tmp_path / "b")
    assert result.exit_code == 1
    assert re.search(r"openvino-int8: failed the gate and was left out: .* more than 0.2 points below\n", result.output)
    engines = {engine.name: engine.record["validation"] for engine in read_bundle(tmp_path / "b").engines}
    assert not [name for name in engines if name.endswith("int8")]
    assert engines["openvino-fp32"]["graph_on"] == "onnxruntime-fp32"
    assert "OpenVINO is not installed" in engines["openvino-fp32"]["not_run"]
    assert all(found["passed"] for found in engines.values())


def test_what_onnxruntime_can_not_open_by_tensorrt_is_left_out(
    run: Path, premade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = onnxruntime.get_available_providers()
    if "TensorrtExecutionProvider" in providers:
        pytest.skip("it may be able to")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", *providers]
    )  # as a build for GPUs says
    report = export(run, tmp_path / "b", ExportConfig(precision="fp16"))
    assert "left out, since nothing here can judge it: ONNX Runtime can't" in report.skipped["onnxruntime-tensorrt-fp16"]
    assert "onnxruntime-fp16" in {engine.name for engine in report.bundle.engines}
    assert "onnxruntime-tensorrt-fp16" not in {engine.name for engine in report.bundle.engines}


def test_what_stands_in_is_said_of_what_was_made(run: Path, premade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fp32_alone(engine: Engine, *asked: Any) -> tuple[Verdict, np.ndarray]:
        verdict, logits = judge(engine, *asked)
        return dataclasses.replace(verdict, passed=engine.precision == "fp32"), logits

    monkeypatch.setattr("sattrt.deploy.bundle.judge", fp32_alone)
    report = export(run, tmp_path / "b", ExportConfig(precision="int8", best_effort=True))
    assert {engine.precision for engine in report.bundle.engines} == {"fp32"}
    for name in ("onnxruntime-int8", "onnxruntime-fp16", "openvino-int8"):
        assert re.search(rf"points below; {name.partition('-')[0]}-fp32 replaces it$", report.failed[name])


def test_flips_are_listed_by_tile(bundle: Bundle, dataset: Dataset) -> None:
    rows = list(csv.DictReader((bundle.path / "flips.csv").open()))
    names = {tile.name for tile in dataset.tiles("valid")}
    for engine in bundle.engines:
        own = [row for row in rows if row["engine"] == engine.name]
        assert engine.record["validation"]["passed"]
        assert len(own) == len(engine.record["validation"]["flips"])
    assert all(row["tile"] in names and row["fp32"] != row["engine_answer"] for row in rows)
    assert (bundle.path / "flips.png").exists() == bool(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        ({"precision": ""}, "precision '' is unknown"),
        ({"gate": -1.0}, "gate is -1"),
        ({"gate": float("nan")}, "gate is nan"),
        ({"opt_batch": 500}, "in order"),
        ({"calibration_tiles": 0}, "calibration_tiles is 0"),
        ({"calibration_tiles": 1025}, "calibration_tiles is 1025"),
    ],
)
def test_a_wrong_export_setting_is_one_line(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportConfig.from_dict(settings, "export.toml")


def test_without_matplotlib_flips_are_listed_and_not_drawn(
    bundle: Bundle, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = read_samples(run, bundle.spec)
    expected = np.eye(3, dtype=np.float32)[samples.valid_labels]
    monkeypatch.setitem(sys.modules, "sattrt.figure", None)
    said = write_flips(samples, expected, {"a": expected[:, [1, 2, 0]]}, bundle.spec, tmp_path)
    assert said == "flips.png was left out: matplotlib is not installed (pip install matplotlib)"
    assert len((tmp_path / "flips.csv").read_text().splitlines()) == 1 + len(expected)
    assert not (tmp_path / "flips.png").exists()
