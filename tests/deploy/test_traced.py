"""Graphs that are made where onnxscript is not installed, by torch's older exporter: whatever follows takes them as it takes the others."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.onnx_export import write_onnx
from sattrt.deploy.plans import fed_with_bytes
from sattrt.deploy.quantise import METHODS
from sattrt.errors import BackendError
from sattrt.model import TileClassifier
from sattrt.runtime import Bundle
from sattrt.runtime.selftest import selftest
from sattrt.spec import ModelSpec
from sattrt.trained import load_trained


@pytest.fixture
def without_onnxscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)


def logits_of(graph: Path | bytes, tiles: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": tiles})[0])


@pytest.mark.parametrize(("size", "views"), [(0, 1), (96, 1), (0, 8)])
def test_both_exporters_write_the_same_network(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, views: int) -> None:
    model, spec = load_trained(run)
    model.size, model.views = size, views
    spec = replace(spec, temperature=1.5)
    write_onnx(model, spec, tmp_path / "exported.onnx", "fp32")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    write_onnx(model, spec, tmp_path / "traced.onnx", "fp32")
    tiles = np.load(run / "samples.npz")["valid"][:7]
    for batch in (1, 7):
        expected = logits_of(tmp_path / "exported.onnx", tiles[:batch])
        np.testing.assert_allclose(logits_of(tmp_path / "traced.onnx", tiles[:batch]), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    exported, traced = (onnx.load(tmp_path / f"{name}.onnx") for name in ("exported", "traced"))
    assert exported.metadata_props == traced.metadata_props
    given, answers = (
        [*zip(*sides, strict=True)] for sides in ((exported.graph.input, traced.graph.input), (exported.graph.output, traced.graph.output))
    )
    for one, other in given + answers:
        assert (one.name, one.type) == (other.name, other.type)
    weights = [{each.name for each in model.graph.initializer if each.name.startswith("backbone.")} for model in (exported, traced)]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 2 * 54  # of 53 convolutions and the head
    kinds = [Counter(node.op_type for node in model.graph.node) for model in (exported, traced)]
    assert kinds[0]["Conv"] == kinds[1]["Conv"] == 53
    assert all(node.name for node in traced.graph.node)  # the quantiser leaves nodes out by their names


def test_a_bundle_is_made_and_proved_without_onnxscript(
    run: Path, bundle: Bundle, without_onnxscript: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in METHODS:  # all of them are tried on the small bundle
        monkeypatch.setitem(METHODS, kind, ("max",))
    monkeypatch.setattr("sattrt.deploy.graphs.LEVELS", (127,))
    made = export(run, tmp_path / "b", ExportConfig(precision="all", gate=100))
    there = {engine.name for engine in bundle.engines}
    of_bf16 = {name for name in there if name.startswith("tensorrt") and name.endswith("bf16")}
    assert {engine.name for engine in made.bundle.engines} == there - of_bf16
    for name in of_bf16:
        assert made.skipped[name].startswith("Without onnxscript torch writes ONNX of opset 20 at most, and this graph needs 22.")
    checks = selftest(made.bundle)
    assert [check for check in checks if check.passed is False] == []
    assert {"onnxruntime-fp32", "onnxruntime-fp16", "onnxruntime-int8"} <= {check.engine for check in checks if check.passed}
    here = str(Path(__file__).parents[2]).encode()
    assert [path.name for path in made.bundle.path.glob("*.onnx") if here in path.read_bytes()] == []


def test_a_graph_in_bf16_is_refused_in_a_line(run: Path, without_onnxscript: None, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"^Without onnxscript .* needs 22\. Install it with: pip install 'sattrt\[train\]'$"):
        write_onnx(*load_trained(run), tmp_path / "m.onnx", "bf16")
    assert not (tmp_path / "m.onnx").exists()


def test_tiles_of_16_bits_go_in(run: Path, without_onnxscript: None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    bands = ("B02", "B03", "B04", "B08")
    model = TileClassifier(3, (0.02,) * 4, (0.01,) * 4, dtype="uint16").eval()
    spec: ModelSpec = replace(load_trained(run)[1], bands=bands, dtype="uint16", mean=(0.02,) * 4, std=(0.01,) * 4, temperature=1.0)
    write_onnx(model, spec, tmp_path / "m.onnx", "fp32")
    tiles = np.random.default_rng(0).integers(0, 10_000, (3, 64, 64, 4), dtype=np.uint16)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "m.onnx", tiles), expected, atol=1e-3)
    as_bytes = fed_with_bytes(tmp_path / "m.onnx")
    np.testing.assert_allclose(logits_of(as_bytes, tiles.view(np.uint8)), expected, atol=1e-3)
