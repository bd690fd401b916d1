import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import records, respell

from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.plans import RTX_CAPABILITIES, TIMING, _timed_before, plan_recipe, reuse_plan
from sattrt.deploy.triton import write_triton
from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Bundle, open_bundle, read_bundle
from sattrt.runtime.trt import TensorRTBackend, load_module, refusal, silent_log


def installed() -> bool:
    try:
        load_module("tensorrt-rtx")
    except BackendError:
        return False
    return True


pytestmark = pytest.mark.skipif(not installed(), reason="tensorrt-rtx is not installed")


class Hopper:
    """What the driver would say of a GPU that no machine of these tests has."""

    name, compute_capability = "H100", "9.0"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_tensorrt_rtx_builds_without_a_gpu(bundle: Bundle, precision: str) -> None:
    record = records(bundle)[f"tensorrt-rtx-{precision}"]
    assert (bundle.path / record.file).stat().st_size > 20e6
    assert record.record["compute_capabilities"] == list(RTX_CAPABILITIES[precision])
    assert record.record["onnx_sha256"] == bundle.files[f"model.{precision}.onnx"]
    assert record.record["profile"] == {"min": 1, "opt": 64, "max": 256}
    assert json.loads((bundle.path / f"{record.name}.json").read_text()) == dataclasses.asdict(record)


def test_a_plan_is_reused_unless_something_differs_that_is_named(bundle: Bundle, tmp_path: Path) -> None:
    engine = records(bundle)["tensorrt-rtx-fp16"]
    record, _ = reuse_plan(bundle, engine.name, engine.record, tmp_path / "p")
    assert record == {key: value for key, value in engine.record.items() if key != "validation"}
    assert (tmp_path / "p").read_bytes() == (bundle.path / engine.file).read_bytes()
    differences = {
        "builder_version": ("9", "builder_version was .*, is 9"),
        "onnx_sha256": ("f" * 64, "is ffffffff"),
        "flags": ([], "flags was"),
    }
    for field, (value, said) in differences.items():
        record, why = reuse_plan(bundle, engine.name, engine.record | {field: value}, tmp_path / "p")
        assert record is None
        assert re.search(said, why)


def test_plans_are_built_as_the_settings_say_and_once(run: Path, tmp_path: Path) -> None:
    config = ExportConfig(precision="fp32", compute_capabilities="8.6, 8.9", version_compatible=True, max_batch=32, opt_batch=8)
    first = export(run, tmp_path / "b", config)
    assert first.plans == {"tensorrt-rtx-fp32": "built: not built before"}
    made = records(first.bundle)["tensorrt-rtx-fp32"].record
    assert made["compute_capabilities"] == ["8.6", "8.9"]
    assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} <= set(made["flags"])
    assert made["profile"] == {"min": 1, "opt": 8, "max": 32}
    again = export(run, tmp_path / "b", config)
    assert again.plans["tensorrt-rtx-fp32"].startswith("reused: same graph")
    assert records(again.bundle)["tensorrt-rtx-fp32"].record["build_seconds"] == made["build_seconds"]
    other = export(run, tmp_path / "b", dataclasses.replace(config, max_batch=64, rebuild=True))
    assert other.plans["tensorrt-rtx-fp32"] == "built: not built before"  # the old bundle is not looked at


def test_what_a_precision_can_not_run_on_is_said(bundle: Bundle) -> None:
    turing = ExportConfig(compute_capabilities="7.5")
    with pytest.raises(BackendError, match=r"does not run fp32 on compute capability 7.5"):
        plan_recipe("tensorrt-rtx", "fp32", bundle.path / "model.fp32.onnx", turing)
    assert plan_recipe("tensorrt-rtx", "fp16", bundle.path / "model.fp16.onnx", turing)["compute_capabilities"] == ["7.5"]


@pytest.mark.parametrize("wanted", ["8.6,9.0", "8.6,foo", "12", "8,6"])
def test_a_capability_that_can_not_be_targeted_is_refused(wanted: str) -> None:
    with pytest.raises(InputError, match=r"knows no compute capability '(9.0|foo|12|8)'; choose some of 7.5, 8.0, .*12.1"):
        ExportConfig(compute_capabilities=wanted)


def test_what_is_not_built_for_a_wanted_capability_is_said(run: Path, premade: None, tmp_path: Path) -> None:
    report = export(run, tmp_path / "b", ExportConfig(precision="fp16", compute_capabilities="7.5, 12.1"))
    made = {record.name: record.record.get("compute_capabilities") for record in report.bundle.engines}
    assert (made["tensorrt-rtx-fp16"], made["tensorrt-rtx-fp32"]) == (["7.5", "12.1"], ["12.1"])
    assert report.plans["tensorrt-rtx-fp16"] == "built: not built before"
    assert report.plans["tensorrt-rtx-fp32"] == "built: not built before; not for 7.5, which can't run fp32"


def test_rtx_plans_are_for_what_they_were_built_for_alone(
    run: Path, premade: None, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = export(run, tmp_path / "b", ExportConfig(precision="fp32", hardware_compatible=True))
    assert "Leave hardware_compatible out" in report.skipped["tensorrt-rtx-fp32"]
    monkeypatch.setattr("sattrt.runtime.trt.Device", Hopper)
    record = records(bundle)["tensorrt-rtx-fp32"].record
    for flags in ([], ["AMPERE_PLUS"]):
        with pytest.raises(BackendError, match=r"was built for compute capability .*; H100 has 9.0"):
            TensorRTBackend(tmp_path / "x.plan", record | {"flags": flags})
    with pytest.raises(ContractError, match="is invalid"):  # by which the graph that its weights come from would not be checked
        TensorRTBackend(tmp_path / "x.plan", record | {"flags": {"STRIP_PLAN": 1}})


def test_the_plan_that_is_deserialised_is_the_one_whose_digest_was_checked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody exchanges it just after that."""
    record = records(read_bundle(copy))["tensorrt-rtx-fp32"]
    digest, given = hashlib.sha256((copy / record.file).read_bytes()).hexdigest(), []

    class Exchanged:
        name, compute_capability, handle = "L4", "8.9", 0

        def __init__(self) -> None:
            (copy / record.file).unlink()
            (copy / record.file).write_bytes(b"other code")

        def call(self, *arguments: object) -> None: ...

    def deserialise(self: TensorRTBackend, trt: object, plan: bytes, *others: object) -> None:
        given.append(plan)
        raise BackendError("no GPU")

    monkeypatch.setattr("sattrt.runtime.trt.Device", Exchanged)
    monkeypatch.setattr(TensorRTBackend, "_load", deserialise)
    with pytest.raises(BackendError, match="no GPU"):
        open_bundle(copy, record.name)
    assert [hashlib.sha256(plan).hexdigest() for plan in given] == [digest]


def test_weights_are_stripped_of_plans_of_tensorrt_alone(run: Path, premade: None, bundle: Bundle, tmp_path: Path) -> None:
    report = export(run, tmp_path / "b", ExportConfig(precision="fp32", strip_weights=True))
    assert "Leave strip_weights out" in report.skipped["tensorrt-rtx-fp32"]
    flags = plan_recipe("tensorrt-rtx", "fp32", bundle.path / "model.fp32.onnx", ExportConfig(strip_weights=True))["flags"]
    assert "STRIP_PLAN" in flags


def test_the_graph_that_a_stripped_plan_takes_its_weights_from_is_checked(bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    engines = [dataclasses.asdict(record) for record in bundle.engines]
    for each in engines:
        if each["name"] == "tensorrt-rtx-fp16":
            each["record"] = {**each["record"], "flags": [*each["record"]["flags"], "STRIP_PLAN"]}
    respell(copy, engines=engines)
    assert f"{copy.name}-tensorrt-rtx-fp16" not in write_triton(read_bundle(copy), tmp_path / "models")  # Triton puts no weights in
    content = (copy / "model.fp16.onnx").read_bytes()
    (copy / "model.fp16.onnx").unlink()
    (copy / "model.fp16.onnx").write_bytes(content[:-1] + b"x")
    with pytest.raises(ContractError, match=r"model.fp16.onnx was changed"):
        read_bundle(copy).open("tensorrt-rtx-fp16")


def test_why_a_plan_is_refused_is_said(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    trt = load_module("tensorrt-rtx")
    log = silent_log(trt)
    runtime = trt.Runtime(log)
    assert runtime.deserialize_cuda_engine(b"junk" * 100) is None
    assert log.last != "no reason given"
    said = refusal(trt, runtime, b"junk" * 100, "1.0", log.last)
    assert said == f"it was built by 1.0, and {trt.__version__} is installed; MALFORMED_ENGINE; {log.last}"
    plan = (bundle.path / "tensorrt-rtx-fp32.plan").read_bytes()
    assert "it was built by" not in refusal(trt, runtime, plan, trt.__version__, log.last)
    assert capfd.readouterr() == ("", "")


def test_a_plan_is_of_the_gpu_it_was_timed_on(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sattrt.deploy.plans.Device", Hopper)
    monkeypatch.setattr("sattrt.deploy.plans.load_module", lambda *asked, **named: load_module("tensorrt-rtx"))
    recipe = plan_recipe("tensorrt", "fp32", bundle.path / "model.fp32.onnx", ExportConfig(hardware_compatible=True))
    assert (recipe["compute_capabilities"], recipe["gpu"]) == (["9.0"], "H100")
    assert "AMPERE_PLUS" in recipe["flags"]
    engine = dataclasses.replace(records(bundle)["tensorrt-rtx-fp32"], record=recipe)
    old = dataclasses.replace(bundle, engines=(engine,))
    assert reuse_plan(old, engine.name, recipe, tmp_path / "p")[0] is not None
    for field, value in (("gpu", "H200"), ("sattrt", "0.0")):
        assert f"{field} was {recipe[field]}, is {value}" == reuse_plan(old, engine.name, recipe | {field: value}, tmp_path / "p")[1]


def test_what_was_timed_before_is_asked_of_the_bundle_before(copy: Path, tmp_path: Path) -> None:
    """By the builder of RTX, which has the calls, and takes any cache for an empty one: that TensorRT makes use of it takes a GPU to see."""
    settings = load_module("tensorrt-rtx").Builder(load_module("tensorrt-rtx").Logger()).create_builder_config()
    (copy / TIMING).write_bytes(b"of another GPU")
    respell(copy, files=read_bundle(copy).files | {TIMING: hashlib.sha256(b"of another GPU").hexdigest()})
    for old in (None, read_bundle(copy)):
        assert bytes(_timed_before(settings, tmp_path / TIMING, old).serialize())


def test_a_bf16_plan_is_judged_where_no_cpu_multiplies_bf16(
    run: Path, premade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason="only OpenVINO runs a bf16 graph here")
    config = ExportConfig(precision="bf16", gate=100, compute_capabilities="8.9")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *asked: ["FP32", "INT8"])  # as on a CPU without bf16
    report = export(run, tmp_path / "b", config)
    assert "openvino-bf16" not in records(report.bundle)
    assert "nothing here can judge it: This CPU does not multiply bf16" in report.skipped["openvino-bf16"]
    found = records(report.bundle)["tensorrt-rtx-bf16"].record["validation"]
    assert (found["graph_on"], found["passed"]) == ("openvino in fp32", True)
    assert found["largest_error"] > 1e-3
    monkeypatch.setitem(sys.modules, "openvino", None)
    report = export(run, tmp_path / "b", config)
    assert {record.precision for record in report.bundle.engines} == {"fp32"}
    assert "nothing here can judge model.bf16.onnx" in report.skipped["tensorrt-rtx-bf16"]
    assert not list((tmp_path / "b").glob("*bf16*"))
