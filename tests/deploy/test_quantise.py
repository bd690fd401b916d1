import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sattrt.deploy import quantise as quantiser
from sattrt.deploy.quantise import LEVELS, METHODS, Calibration, quantise
from sattrt.errors import InputError
from sattrt.runtime import Bundle

QUANTISED = {"int8": (TensorProto.INT8, 53), "int8-cpu": (TensorProto.UINT8, 53), "fp8": (TensorProto.FLOAT8E4M3FN, 42)}


def test_int8_is_calibrated_by_what_costs_least(bundle: Bundle) -> None:
    calibrated = {engine.record["onnx"]: engine.record["calibration"] for engine in bundle.engines if "calibration" in engine.record}
    assert "model.int8-cpu.onnx" in calibrated
    for file, found in calibrated.items():
        assert found["split"] == "train"
        assert tuple(found["tried"]) == METHODS[file.split(".")[1]]
        errors = {name: each["mean_error"] for name, each in found["tried"].items()}
        assert errors[found["method"]] == min(errors.values())
        rounded = {127: min(errors.values())} | {int(levels): each["mean_error"] for levels, each in found["tried_levels"].items()}
        assert tuple(rounded) == (LEVELS if "int8" in file else LEVELS[:1])
        assert rounded[found["levels"]] == min(rounded.values())
        weights = [
            numpy_helper.to_array(each) for each in onnx.load(bundle.path / file).graph.initializer if each.data_type == TensorProto.INT8
        ]
        if found["sum_bits"] == 32 and weights:
            assert max(np.abs(each.astype(int)).max() for each in weights if each.ndim == 4) == found["levels"]


def test_no_room_for_temporary_files_is_none_of_the_folders_that_is_exported_to(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"A temporary file can't be written .*nowhere.*TMPDIR"):
        Calibration(bundle.path / "model.fp32.onnx", np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_graphs_are_what_their_readers_take(bundle: Bundle, kind: str) -> None:
    path = bundle.path / f"model.{kind}.onnx"
    if not path.exists():
        pytest.skip("nothing that reads such a graph is installed")
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    activation, count = QUANTISED[kind]
    assert {tensors[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"} == {activation}
    [head] = [node for node in graph.node if node.op_type == "Gemm"]
    assert tensors[head.input[1]].data_type == TensorProto.FLOAT
    made_by = {output: node for node in graph.node for output in node.output}
    weights = [made_by[node.input[1]] for node in graph.node if node.op_type == "Conv" and node.input[1] in made_by]
    assert len(weights) == count  # fp8 leaves the first layers in float
    for node in weights:
        values, scale = tensors[node.input[0]], tensors[node.input[1]]
        assert values.data_type == (TensorProto.FLOAT8E4M3FN if kind == "fp8" else TensorProto.INT8)
        assert list(scale.dims) == [values.dims[0]]  # a scale for each output channel


def test_no_two_weights_sum_to_more_than_sixteen_bits_take(bundle: Bundle, tmp_path: Path) -> None:
    """With a byte of activation each: 255 * 128 is below 2**15."""
    source = bundle.path / "model.fp32.onnx"
    ranges = Calibration(source, np.load(bundle.path / "golden.npz")["tiles"]).ranges("max")
    for in_pairs in (True, False):
        quantise(source, tmp_path / "model.onnx", "int8-cpu", ranges, in_pairs)
        graph = onnx.load(tmp_path / "model.onnx").graph
        weights = [numpy_helper.to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT8 and len(each.dims) == 4]
        assert len(weights) == 53
        channels = [np.sort(each.astype(int).reshape(len(each), -1), axis=1) for each in weights]
        pairs = np.concatenate([np.stack((each[:, -2:].sum(1), -each[:, :2].sum(1)), 1) for each in channels]).max(1)
        largest = np.concatenate([np.abs(each).max(1) for each in channels])
        if in_pairs:
            assert 126 <= pairs.min() <= pairs.max() <= 128
            assert largest.min() >= 63  # no less exact than weights of seven bits
            assert largest.mean() > 65
        else:
            assert (largest == 127).all()
            assert pairs.max() > 128


@pytest.mark.parametrize("kind", ["int8", "int8-cpu"])
def test_scales_of_weights_are_those_that_the_quantiser_finds(
    bundle: Bundle, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(bundle.path / "model.fp32.onnx")
    [first] = [each for each in model.graph.initializer if each.name == "backbone.conv1.weight"]
    weights = numpy_helper.to_array(first).copy()
    weights[3] = 0
    first.CopyFrom(numpy_helper.from_array(weights, first.name))
    onnx.save(model, tmp_path / "model.onnx")
    ranges = Calibration(tmp_path / "model.onnx", np.load(bundle.path / "golden.npz")["tiles"]).ranges("max")
    quantise(tmp_path / "model.onnx", tmp_path / "ours.onnx", kind, ranges)
    monkeypatch.setattr(quantiser, "_weight_scales", lambda source, in_pairs, levels: {})
    quantise(tmp_path / "model.onnx", tmp_path / "its.onnx", kind, ranges)
    assert (tmp_path / "ours.onnx").read_bytes() == (tmp_path / "its.onnx").read_bytes()
