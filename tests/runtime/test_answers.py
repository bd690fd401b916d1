"""Graphs that open, and answer with what the contract does not promise: one line each, by either backend on a CPU."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import reseal, respell
from onnx import TensorProto, helper, numpy_helper

from sattrt.deploy.gate import judge
from sattrt.errors import BackendError, ContractError, ParityError
from sattrt.runtime import Bundle, Engine, NoNumbersError, open_bundle

TILES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
# the mean of a tile, times a weight a class
LOGITS = [
    helper.make_node("Cast", ["input"], ["values"], to=TensorProto.FLOAT),
    helper.make_node("ReduceMean", ["values"], ["mean"], axes=[1, 2], keepdims=0),
    helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
]
SOFTMAX = helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)


def graph(nodes: list, weights: object = 0.01, logits: tuple = ("n", 3), probabilities: tuple = ("m", 3), batch: object = "batch") -> bytes:
    """An ONNX file of these nodes, with these shapes promised for its outputs."""
    constants = {"weights": np.broadcast_to(np.float32(weights), (3, 3)), "zero": np.array([0]), "two": np.array([2]), "one": np.array([1])}
    constants["largest"] = np.array([64], np.float32)
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, (batch, 64, 64, 3))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("logits", logits), ("probabilities", probabilities))
        ],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def few(name: str) -> list:
    return [*LOGITS, helper.make_node("Slice", ["logits", "zero", "two", name], ["probabilities"])]


TWICE = [
    *LOGITS[:2],
    helper.make_node("Concat", ["mean", "mean"], ["means"], axis=0),
    helper.make_node("MatMul", ["means", "weights"], ["logits"]),
    SOFTMAX,
]
SYMBOLIC = [
    helper.make_node("Cast", ["input"], ["values"], to=TensorProto.FLOAT),
    helper.make_node("Flatten", ["values"], ["flat"]),
    helper.make_node("NonZero", ["flat"], ["places"]),
    helper.make_node("Cast", ["places"], ["logits"], to=TensorProto.FLOAT),
    SOFTMAX,
]
FLAT = [*LOGITS, helper.make_node("ReduceMean", ["logits"], ["probabilities"], axes=[1], keepdims=0)]


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize(
    "content",
    [
        graph(SYMBOLIC, logits=("batch", "classes"), probabilities=("batch", "classes")),
        graph(TWICE),
        graph(few("one"), probabilities=("batch", 2)),
        graph(FLAT, probabilities=("batch",)),
    ],
    ids=["no number of classes", "twice the tiles", "two of three probabilities", "one probability a tile"],
)
def test_answers_of_another_shape_are_refused(copy: Path, name: str, content: bytes) -> None:
    reseal(copy, "model.fp32.onnx", content)
    with pytest.raises(ContractError), open_bundle(copy, name) as engine:
        engine.predict(TILES)


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize(
    "content",
    [
        graph([*LOGITS, SOFTMAX]).replace(b"probabilities", b"prob\xff\xfebilities"),
        graph([*LOGITS, SOFTMAX]).replace(b"logits", b"lo\xc0its"),
        b"hello",
        b"PK\x03\x04 archive",
        b"",
    ],
    ids=["a name of no text", "another name of no text", "text", "an archive", "nothing"],
)
def test_what_is_no_graph_is_one_line_and_nothing_is_printed(
    copy: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    reseal(copy, "model.fp32.onnx", content)
    with pytest.raises((BackendError, ContractError)) as error:
        open_bundle(copy, name)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_an_engine_that_this_version_does_not_know_is_passed_over(copy: Path, bundle: Bundle) -> None:
    model = onnx.load_from_string(graph([*LOGITS, SOFTMAX]))
    model.opset_import[0].version = 99
    reseal(copy, "model.fp16.onnx", model.SerializeToString())
    respell(copy, engines=[asdict(bundle.engine(name)) for name in ("onnxruntime-fp16", "onnxruntime-int8")])
    with open_bundle(copy) as engine:
        assert engine.name == "onnxruntime-int8"
    with pytest.raises(BackendError, match=r"ONNX Runtime [\d.]+ can't load .*model.fp16.onnx"):
        open_bundle(copy, "onnxruntime-fp16")


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_no_answers(copy: Path, name: str, weight: float) -> None:
    reseal(copy, "model.fp32.onnx", graph([*LOGITS, SOFTMAX], weight))
    with open_bundle(copy, name) as engine:
        with pytest.raises(NoNumbersError, match="returned NaN or infinity"):
            engine.predict(TILES)
        with pytest.raises(ParityError, match="returned NaN or infinity"):
            judge(engine, TILES, np.zeros(2, int), np.zeros((2, 3), np.float32), 0.0)


SMALL_ARE_NAN = [
    *LOGITS[:2],
    helper.make_node("MatMul", ["mean", "weights"], ["right"]),
    helper.make_node("Shape", ["right"], ["shape"]),
    helper.make_node("Slice", ["shape", "zero", "one"], ["count"]),
    helper.make_node("Cast", ["count"], ["tiles"], to=TensorProto.FLOAT),
    helper.make_node("Sub", ["tiles", "largest"], ["missing"]),  # below 64 negative, which has no root
    helper.make_node("Sqrt", ["missing"], ["nothing"]),
    helper.make_node("Add", ["right", "nothing"], ["logits"]),
    SOFTMAX,
]


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(graph(SMALL_ARE_NAN), "returned NaN or infinity"), (graph([*LOGITS, SOFTMAX], batch=64), "was opened but failed to run")],
    ids=["no numbers for few tiles", "no answer for few tiles"],
)
def test_the_gate_takes_no_engine_that_fails_for_few_tiles(copy: Path, name: str, content: bytes, message: str) -> None:
    reseal(copy, "model.int8-cpu.onnx", content)
    tiles = np.resize(TILES, (64, 64, 64, 3))
    with open_bundle(copy, name) as engine:
        expected = engine.predict(tiles).logits
        with pytest.raises(ParityError, match=message):
            judge(engine, tiles, expected.argmax(1), expected, 0.0)


def test_a_probability_that_is_no_number_is_rejected(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = np.zeros((2, 3), np.float32), np.array([[np.nan] * 3, [0, 0, 1]], np.float32)
    monkeypatch.setattr(Engine, "infer", lambda self, tiles, batch=0: answers)
    with open_bundle(bundle.path, "onnxruntime-int8") as engine:
        assert engine.predict(TILES, reject=True).labels[0] == -1
