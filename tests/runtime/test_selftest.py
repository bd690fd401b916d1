import io
import re
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import reseal, respell
from test_answers import LOGITS, SOFTMAX, graph
from typer.testing import CliRunner

from sattrt.cli import app
from sattrt.errors import ContractError, InputError
from sattrt.runtime import Bundle, read_bundle, selftest


def test_every_engine_that_runs_here_agrees_with_its_golden_answers(bundle: Bundle) -> None:
    checks = {check.engine: check for check in selftest(bundle)}
    assert set(checks) == {engine.name for engine in bundle.engines}
    assert checks["onnxruntime-int8"].passed
    for check in checks.values():
        assert check.passed in (True, None), check
        assert check.says


def test_an_engine_that_is_named_has_to_run(bundle: Bundle) -> None:
    [check] = selftest(bundle, "onnxruntime-fp32")
    assert (check.engine, check.passed) == ("onnxruntime-fp32", True)
    here = {each.engine: each.passed for each in selftest(bundle)}
    for name, passed in here.items():  # TensorRT-RTX's are not run without a GPU
        assert CliRunner().invoke(app, ["selftest", str(bundle.path), "--engine", name]).exit_code == (0 if passed else 1)
    assert CliRunner().invoke(app, ["selftest", str(bundle.path)]).exit_code == 0
    with pytest.raises(InputError, match=r"has no engine 'onnxruntime-fp3'. It has: .*onnxruntime-fp32"):
        selftest(bundle, "onnxruntime-fp3")


def test_of_one_engine_its_own_files_are_enough(copy: Path, bundle: Bundle) -> None:
    kept = {bundle.engine("onnxruntime-int8").file}
    for path in copy.iterdir():
        if path.suffix in (".onnx", ".plan") and path.name not in kept:
            path.unlink()
    [check] = selftest(read_bundle(str(copy)), "onnxruntime-int8")
    assert check.passed
    with pytest.raises(ContractError, match="is missing from the bundle"):
        selftest(read_bundle(copy))


def test_an_engine_that_answers_otherwise_is_found(copy: Path) -> None:
    with np.load(copy / "golden.npz") as file:
        arrays = dict(file)
    arrays["onnxruntime-fp32"] = arrays["onnxruntime-fp32"] * np.float32(1.01)
    content = io.BytesIO()
    np.savez(content, **arrays)
    reseal(copy, "golden.npz", content.getvalue())
    checks = {check.engine: check for check in selftest(read_bundle(copy))}
    assert checks["onnxruntime-fp32"].passed is False
    assert checks["onnxruntime-fp16"].passed is True


@pytest.mark.parametrize(("exported_on", "passed"), [("cpu", False), ("NVIDIA H200", True)])
def test_where_a_gpu_answered_at_export_kernels_may_differ_as_its_gate_allowed(
    copy: Path, bundle: Bundle, exported_on: str, passed: bool
) -> None:
    with np.load(copy / "golden.npz") as file:
        arrays = dict(file)
    arrays["onnxruntime-fp32"] = arrays["onnxruntime-fp32"] + 5e-4 * np.abs(arrays["onnxruntime-fp32"]).max()
    content = io.BytesIO()
    np.savez(content, **arrays)
    reseal(copy, "golden.npz", content.getvalue())
    engine = bundle.engine("onnxruntime-fp32")
    validation = engine.record["validation"] | {"device": exported_on}
    respell(copy, engines=[asdict(replace(engine, record=engine.record | {"validation": validation}))])
    assert [check.passed for check in selftest(read_bundle(copy))] == [passed]


@pytest.mark.parametrize(
    "validation",
    [
        None,
        [],
        "abc",
        {"largest_error": "abc"},
        {"largest_error": float("inf")},
        {"largest_error": 10**400},
        {"largest_error": -1},
    ],
)
def test_a_record_without_a_largest_error_is_refused(copy: Path, bundle: Bundle, validation: object) -> None:
    record = bundle.engine("onnxruntime-int8")
    unrecorded = replace(record, name="unrecorded", record=record.record | {"validation": validation})
    respell(copy, engines=[asdict(unrecorded)])
    with pytest.raises(ContractError, match="unrecorded has a record of its validation without a largest error"):
        selftest(read_bundle(copy))


def test_golden_samples_that_promise_more_than_memory_are_refused(copy: Path) -> None:
    header, content = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**14, 64, 64, 3)})
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("tiles.npy", header.getvalue())
    reseal(copy, "golden.npz", content.getvalue())
    with pytest.raises(ContractError, match="no golden samples"):
        selftest(read_bundle(copy))


@pytest.mark.parametrize("engine", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize("fault", [{"weights": np.nan}, {"batch": 7}], ids=["no numbers", "no answer"])
def test_an_engine_that_opens_and_does_not_answer_has_failed(copy: Path, bundle: Bundle, engine: str, fault: dict[str, Any]) -> None:
    reseal(copy, "model.fp32.onnx", graph([*LOGITS, SOFTMAX], **fault))
    respell(copy, engines=[asdict(bundle.engine(name)) for name in (engine, "onnxruntime-int8")])
    assert [check.passed for check in selftest(read_bundle(copy))] == [False, True]


def test_two_engines_of_one_name_are_refused(copy: Path, bundle: Bundle) -> None:
    record = bundle.engine("onnxruntime-int8")
    respell(copy, engines=[asdict(record), asdict(replace(record, file="model.fp32.onnx"))])
    with pytest.raises(ContractError, match="two engines of one name: onnxruntime-int8"):
        read_bundle(copy)


def test_an_engine_called_as_a_part_of_the_golden_samples_is_refused(copy: Path, bundle: Bundle) -> None:
    respell(copy, engines=[asdict(replace(bundle.engine("onnxruntime-int8"), name="tiles"))])
    with pytest.raises(ContractError, match="engine called 'tiles'"):
        read_bundle(copy)


def test_a_record_that_is_nested_deeply_does_no_harm(copy: Path, bundle: Bundle) -> None:
    record = bundle.engine("onnxruntime-int8")
    nested: list[Any] = []
    for _ in range(600):
        nested = [nested]
    respell(copy, engines=[vars(record) | {"record": record.record | {"x": nested}}])
    assert [check.passed for check in selftest(read_bundle(copy))] == [True]


@pytest.mark.parametrize(
    ("place", "value"), [(8, 1), (10, 12), (10, 14), (10, 99)], ids=["encrypted", "bzip2", "lzma", "by a method of the future"]
)
def test_golden_samples_packed_in_another_way_are_refused(copy: Path, place: int, value: int) -> None:
    content = bytearray((copy / "golden.npz").read_bytes())
    for found in re.finditer(b"PK\x01\x02", content):
        content[found.start() + place] = value
    reseal(copy, "golden.npz", bytes(content))
    with pytest.raises(ContractError, match="no golden samples"):
        selftest(read_bundle(copy))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_golden_samples_that_are_none_are_refused(copy: Path, content: bytes) -> None:
    reseal(copy, "golden.npz", content)
    with pytest.raises(ContractError, match="no golden samples"):
        selftest(read_bundle(copy))


def test_logits_of_other_classes_are_refused(copy: Path) -> None:
    with np.load(copy / "golden.npz") as file:
        arrays = dict(file)
    arrays["onnxruntime-fp32"] = arrays["onnxruntime-fp32"][:, :2]
    content = io.BytesIO()
    np.savez(content, **arrays)
    reseal(copy, "golden.npz", content.getvalue())
    with pytest.raises(ContractError, match="no golden samples"):
        selftest(read_bundle(copy))
