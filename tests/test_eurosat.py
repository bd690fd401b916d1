"""The whole flow on a small share of the real EuroSAT tiles: scan, train, export, bench."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import EUROSAT, QUICK, WEIGHTS, brief, running

from sattrt.bench.run import bench
from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.quantise import METHODS
from sattrt.training.config import TrainConfig
from sattrt.training.loop import train

pytestmark = pytest.mark.skipif(
    not (EUROSAT.exists() and WEIGHTS.exists()), reason="the EuroSAT tiles and weights are not at ../shared/data"
)


@pytest.fixture(scope="module")
def eurosat() -> Dataset:
    return scan(EUROSAT, SplitRule(), workers=2)


def test_the_scan_sees_all_of_it(eurosat: Dataset) -> None:
    assert len(eurosat.classes) == 10
    assert (eurosat.width, eurosat.height, eurosat.left_out) == (64, 64, {})
    counts = {split: sum(by_class.values()) for split, by_class in eurosat.counts().items()}
    total = sum(counts.values())
    assert total == len(eurosat.all_tiles)
    # five standard deviations of a draw
    assert counts["valid"] / total == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / total) ** 0.5)
    assert counts["test"] / total == pytest.approx(0.01, abs=5 * (0.01 * 0.99 / total) ** 0.5)
    # published channel means of EuroSAT RGB
    np.testing.assert_allclose(eurosat.mean, (0.3444, 0.3803, 0.4078), atol=0.002)


def test_tiles_to_engine(eurosat: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("int8", "int8-cpu"):  # all of them are tried on the small bundle
        monkeypatch.setitem(METHODS, kind, ("max", "percentile 99.99"))
    monkeypatch.setattr("sattrt.deploy.graphs.LEVELS", (127, 115))
    share = (*balanced(eurosat.tiles("train"), 1280), *balanced(eurosat.tiles("valid"), 120), *balanced(eurosat.tiles("test"), 130))
    dataset = replace(eurosat, all_tiles=share)
    result = train(dataset, tmp_path / "run", TrainConfig(weights=str(WEIGHTS), epochs=1, batch_size=32))
    # measured: 0.80 to 0.85; ten classes by chance give 0.1
    assert result.accuracy > 0.7
    touchy = ExportConfig(precision="int8", gate=2, calibration_tiles=100)  # as a network after 40 steps is
    exported = export(tmp_path / "run", tmp_path / "eurosat", touchy)
    assert exported.failed == {}
    with brief(tiles=32):
        document = bench([exported.bundle], dataset, replace(QUICK, scenarios="offline", batches="8")).document
    rows = {row["engine"]: row["accuracy"] for row in document["engines"]}
    torch, onnx = rows["torch-eager-fp32"], rows["onnxruntime-fp32"]
    assert onnx["flips"] == []
    assert onnx["wrong"] == torch["wrong"]
    assert onnx["largest_logit_error"] < 1e-3
    for name in ("onnxruntime-int8", "openvino-int8"):
        assert rows[name]["accuracy"] > torch["accuracy"] - 0.03


def is_open(file: Path, process: int) -> bool:
    """Whether a process has a file open now; what it closes meanwhile is none."""
    with contextlib.suppress(FileNotFoundError):
        return any(os.readlink(link) == str(file.resolve()) for link in Path(f"/proc/{process}/fd").iterdir())
    return False


def test_an_interrupted_scan_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sattrt", "data", str(EUROSAT), "--out", str(tmp_path / "dataset")]
    # a job in the background has Ctrl-C switched off, and its children inherit that
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    end = time.monotonic() + 120
    with running(command, stderr=subprocess.PIPE, preexec_fn=listens) as process:
        while not is_open(EUROSAT, process.pid):
            assert time.monotonic() < end, "the scan did not begin"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
