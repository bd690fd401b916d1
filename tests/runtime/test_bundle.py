import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import rename_classes, reseal, respell

from sattrt.errors import ContractError, InputError
from sattrt.runtime import Bundle, open_bundle, read_bundle
from sattrt.runtime.bundle import unlisted


@pytest.mark.parametrize("name", ["bundle.json", "spec.json", "golden.npz", "MODEL_CARD.md", "onnxruntime-fp32.json", "model.fp32.onnx"])
def test_one_changed_byte_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).unlink()
    (copy / name).write_bytes(content)
    with pytest.raises(ContractError, match=name.replace(".", r"\.")):
        open_bundle(copy)


def test_a_changed_engine_is_found_when_it_is_opened(copy: Path, bundle: Bundle) -> None:
    content = bytearray((bundle.path / "model.fp16.onnx").read_bytes())
    content[1000] ^= 1
    (copy / "model.fp16.onnx").unlink()
    (copy / "model.fp16.onnx").write_bytes(content)
    open_bundle(copy, "onnxruntime-fp32").close()
    with pytest.raises(ContractError, match=r"model.fp16.onnx was changed"):
        open_bundle(copy, "onnxruntime-fp16")
    with pytest.raises(ContractError, match=r"model.fp16.onnx was changed"):
        read_bundle(copy).verify()


def test_an_engine_needs_no_file_of_another(copy: Path, bundle: Bundle) -> None:
    own = bundle.engine("onnxruntime-int8").file
    others = {str(file) for record in bundle.engines for file in (record.file, record.record["onnx"])} - {own}
    assert others >= {"model.fp32.onnx", "model.fp16.onnx"}
    for name in others:
        (copy / name).unlink()
    open_bundle(copy, "onnxruntime-int8").close()
    open_bundle(copy, "openvino-int8").close()


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.fp32.onnx").unlink()
    with pytest.raises(ContractError, match=r"model.fp32.onnx is missing"):
        open_bundle(copy)


def test_what_is_no_bundle_is_said(tmp_path: Path, bundle: Bundle) -> None:
    for path in (tmp_path, tmp_path / "nothing", bundle.path / "spec.json"):
        with pytest.raises(InputError, match="is not a bundle"):
            open_bundle(path)


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"):
        open_bundle("a" * 5000)
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "bundle.json").write_text("{}")
    folder.chmod(0)
    mine = os.geteuid()
    try:
        if not mine:  # nothing is refused to root
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"Can't read .*bundle\.json: Permission denied"):
            open_bundle(folder)
        with pytest.raises(InputError, match=r"Can't read .*: Permission denied"):
            unlisted(folder, ())
    finally:
        os.seteuid(mine)
        folder.chmod(0o700)


def test_an_unknown_engine_is_said_with_those_there_are(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"no engine 'int4'. It has: onnxruntime-fp32"):
        open_bundle(bundle.path, "int4")


def test_a_manifest_can_not_reach_outside(copy: Path) -> None:
    files = json.loads((copy / "bundle.json").read_text())["files"]
    respell(copy, files=files | {"../evil": "0"})
    with pytest.raises(ContractError, match="outside the bundle"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["a" * 300, "..", ".hidden", "a b", "a/b", 'a"b', ""])
def test_files_and_engines_have_plain_names(copy: Path, bundle: Bundle, name: str) -> None:
    respell(copy, files=bundle.files | {name: "0"})
    with pytest.raises(ContractError, match="not a plain name"):
        open_bundle(copy)
    respell(copy, files=bundle.files, engines=[asdict(replace(bundle.engine("onnxruntime-fp32"), name=name))])
    with pytest.raises(ContractError, match="not a plain name"):
        open_bundle(copy)
    respell(copy, engines=[asdict(replace(bundle.engine("onnxruntime-fp32"), file=name))])
    with pytest.raises(ContractError, match="is missing from the bundle"):
        open_bundle(copy)


def test_a_contract_that_the_manifest_does_not_list_is_refused(copy: Path, bundle: Bundle) -> None:
    respell(copy, files={name: digest for name, digest in bundle.files.items() if name != "spec.json"})
    with pytest.raises(ContractError, match=r"spec.json is missing"):
        open_bundle(copy)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("respelt", [False, True], ids=["as protobuf writes it", "its length in two bytes"])
def test_weights_in_another_file_are_refused(copy: Path, bundle: Bundle, backend: str, respelt: bool) -> None:
    import onnx

    model = onnx.load(copy / "model.fp32.onnx")
    onnx.save(model, copy / "outside.onnx", save_as_external_data=True, location="weights.bin")
    content = (copy / "outside.onnx").read_bytes()
    if respelt:  # a byte more for the key, one less for the value
        content = content.replace(b"\n\x08location\x12\x0bweights.bin", b"\n\x88\x00location\x12\x0aweight.bin")
    named = onnx.load_from_string(content).graph.initializer[0].external_data[0]
    assert (named.key, named.value) == ("location", "weight.bin" if respelt else "weights.bin")
    reseal(copy, "model.fp32.onnx", content)
    with pytest.raises(ContractError, match="keeps weights in another file"):
        open_bundle(copy, f"{backend}-fp32")


ENDLESS = {
    "onnx": "model.fp32.onnx",
    "builder": "tensorrt-rtx",
    "builder_version": "1.7",
    "compute_capabilities": ["8.6"],
    "profile": {"min": 1, "max": float("inf")},
    "dtype": "uint8",
}


FOREIGN = {**ENDLESS, "profile": {"min": 1, "max": 8}, "builder": "another"}


@pytest.mark.parametrize(
    "change",
    [
        {"engines": []},
        {"engines": [{"name": 5, "backend": "onnxruntime", "precision": "fp32", "file": "model.fp32.onnx", "record": {}}]},
        {"engines": [{"name": "a", "backend": "onnxruntime", "precision": "fp32", "file": ["a"], "record": {}}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": {}}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": {"builder": "x"}}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": ENDLESS}]},
        {"engines": [{"name": "a", "backend": "tensorrt", "precision": "fp32", "file": "model.fp32.onnx", "record": FOREIGN}]},
        {"engines": [{"name": "a", "backend": "abacus", "precision": "fp32", "file": "model.fp32.onnx", "record": {}}]},
        {"files": [[1, 2]]},
        {"source": {}},
        {"source": {"run": 5, "checkpoint_sha256": ""}},
        {"schema": 2},
    ],
)
def test_a_manifest_of_wrong_types_is_refused(copy: Path, change: dict[str, object]) -> None:
    respell(copy, **change)
    with pytest.raises(ContractError):
        open_bundle(copy)


def test_another_network_under_the_same_name_is_refused(copy: Path) -> None:
    from onnx import TensorProto, helper

    tiles = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [tiles], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    reseal(copy, "model.fp32.onnx", model.SerializeToString())
    with pytest.raises(ContractError, match="not a graph that sattrt exported"):
        open_bundle(copy, "onnxruntime-fp32")


def test_a_contract_of_other_classes_than_the_graph_is_refused(copy: Path) -> None:
    rename_classes(copy, ["a", "b", "c", "d"])
    with pytest.raises(ContractError, match="knows 3 classes"):
        open_bundle(copy)


def test_files_that_say_different_things_are_refused(copy: Path, bundle: Bundle) -> None:
    reseal(copy, "labels.txt", "".join(f"{name}\n" for name in bundle.spec.classes[::-1]).encode())
    with pytest.raises(ContractError, match=r"labels.txt and .*spec.json name other classes, or in another order"):
        read_bundle(copy)
    reseal(copy, "labels.txt", (bundle.path / "labels.txt").read_bytes())
    name = "onnxruntime-fp32.json"
    reseal(copy, name, (bundle.path / name).read_bytes().replace(b'"fp32"', b'"fp16"'))
    with pytest.raises(ContractError, match=rf"{name} is not what bundle.json says of that engine"):
        read_bundle(copy)
    (copy / name).unlink()
    respell(copy, files={file: digest for file, digest in bundle.files.items() if file != name})
    with pytest.raises(ContractError, match=rf"{name} is missing from the bundle"):
        read_bundle(copy)
