from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sattrt.deploy import quantise as quantiser
from sattrt.deploy.quantise import METHODS, Calibration, quantise
from sattrt.runtime import Bundle

QUANTISED = {"int8": (TensorProto.INT8, 53), "int8-cpu": (TensorProto.UINT8, 53), "fp8": (TensorProto.FLOAT8E4M3FN, 42)}


def test_int8_is_calibrated_by_what_costs_least(bundle: Bundle) -> None:
    calibrated = {engine.record["onnx"]: engine.record["calibration"] for engine in bundle.engines if "calibration" in engine.record}
    assert "model.int8-cpu.onnx" in calibrated
    for file, found in calibrated.items():
        assert found["split"] == "train"
        assert tuple(found["tried"]) == METHODS[file.split(".")[1]]
        best = max(found["tried"].values(), key=lambda each: -each["mean_error"])
        assert found["tried"][found["method"]] == best


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


def test_weights_of_seven_bits_leave_room_for_sums_in_sixteen(bundle: Bundle, tmp_path: Path) -> None:
    """A product of a byte of activation and a weight, two of them summed: 2 * 255 * 64 is below 2**15."""
    source = bundle.path / "model.fp32.onnx"
    ranges = Calibration(source, np.load(bundle.path / "golden.npz")["tiles"]).ranges("max")
    largest = {}
    for seven_bits in (True, False):
        quantise(source, tmp_path / "model.onnx", "int8-cpu", ranges, seven_bits)
        graph = onnx.load(tmp_path / "model.onnx").graph
        weights = [numpy_helper.to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT8 and len(each.dims) == 4]
        assert len(weights) == 53
        largest[seven_bits] = max(int(np.abs(each.astype(int)).max()) for each in weights)
    assert largest == {True: 64, False: 127}


@pytest.mark.parametrize(("kind", "seven_bits"), [("int8", False), ("int8-cpu", False), ("int8-cpu", True)])
def test_scales_of_weights_are_those_that_the_quantiser_finds(
    bundle: Bundle, tmp_path: Path, kind: str, seven_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(bundle.path / "model.fp32.onnx")
    [first] = [each for each in model.graph.initializer if each.name == "backbone.conv1.weight"]
    weights = numpy_helper.to_array(first).copy()
    weights[3] = 0
    first.CopyFrom(numpy_helper.from_array(weights, first.name))
    onnx.save(model, tmp_path / "model.onnx")
    ranges = Calibration(tmp_path / "model.onnx", np.load(bundle.path / "golden.npz")["tiles"]).ranges("max")
    quantise(tmp_path / "model.onnx", tmp_path / "ours.onnx", kind, ranges, seven_bits)
    monkeypatch.setattr(quantiser, "_weight_scales", lambda source, levels: {})
    quantise(tmp_path / "model.onnx", tmp_path / "its.onnx", kind, ranges, seven_bits)
    assert (tmp_path / "ours.onnx").read_bytes() == (tmp_path / "its.onnx").read_bytes()
