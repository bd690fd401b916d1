import json
import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sattrt.cli import app
from sattrt.deploy.triton import model_config, write_triton
from sattrt.errors import ContractError, InputError
from sattrt.runtime import Bundle, EngineRecord, read_bundle

PARSE = """
import json, sys
from pathlib import Path
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
parsed = {}
for path in Path(sys.argv[1]).glob("*/config.pbtxt"):
    config = text_format.Parse(path.read_text(), ModelConfig())  # an unknown field is an error
    parsed[path.parent.name] = json_format.MessageToDict(config, preserving_proto_field_name=True)
print(json.dumps(parsed))
"""


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has Triton's own schema; in an environment of its own, since its pins are not those of onnx."""
    folder = tmp_path_factory.mktemp("triton") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "tritonclient[grpc]"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package registry to install from: {done.stderr.strip()[-200:]}")
    return python


def test_the_repository_is_what_tritons_own_schema_says(schema: Path, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / 'of "ours"', copy_function=os.link)
    bundle = read_bundle(tmp_path / 'of "ours"')
    names = write_triton(bundle, tmp_path / "models")
    assert f"{bundle.path.name}-onnxruntime-int8" in names
    assert not [name for name in names if "rtx" in name or "openvino" in name]
    done = subprocess.run([schema, "-c", PARSE, tmp_path / "models"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    assert set(parsed) == set(names)
    for name, config in parsed.items():
        folder = tmp_path / "models" / name
        record = bundle.engine(name.removeprefix(f"{bundle.path.name}-"))
        assert config["name"] == name
        assert (folder / "1" / config["default_model_filename"]).read_bytes() == (bundle.path / record.file).read_bytes()
        assert config["input"] == [{"name": "input", "data_type": "TYPE_UINT8", "dims": ["64", "64", "3"]}]
        assert [(each["name"], each["data_type"], each["dims"]) for each in config["output"]] == [
            ("logits", "TYPE_FP32", ["3"]),
            ("probabilities", "TYPE_FP32", ["3"]),
        ]
        assert (folder / config["output"][1]["label_filename"]).read_text().split() == list(bundle.spec.classes)
        assert config["dynamic_batching"] == {"preferred_batch_size": [16, 64], "max_queue_delay_microseconds": "2000"}
        assert config["max_batch_size"] == 64
        assert config.get("instance_group") == ([{"kind": "KIND_CPU"}] if name.endswith("onnxruntime-int8") else None)
        if name.endswith("onnxruntime-fp32"):  # as sattrt itself opens it on a GPU
            accelerators = config["optimization"]["execution_accelerators"]
            options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
            assert accelerators == {"gpu_execution_accelerator": [{"name": "cuda", "parameters": options}]}
        on_cuda = name.endswith(("onnxruntime-fp32", "onnxruntime-fp16"))  # whose search Triton takes from here alone
        assert config.get("parameters") == ({"cudnn_conv_algo_search": {"string_value": "1"}} if on_cuda else None)


def test_a_changed_file_is_not_served(copy: Path, bundle: Bundle, tmp_path: Path) -> None:
    for name in ("labels.txt", "model.fp32.onnx"):
        whole, opened = (copy / name).read_bytes(), read_bundle(copy)
        (copy / name).unlink()
        (copy / name).write_bytes(whole[:-1])
        with pytest.raises(ContractError, match=rf"{name} was changed"):
            write_triton(opened, tmp_path / "models")
        assert not (tmp_path / "models").exists()
        (copy / name).write_bytes(whole)


@pytest.mark.parametrize("profile", [None, [], {}, {"max": None}, {"max": 0}, {"max": "8"}])
def test_a_plan_without_a_largest_batch_is_refused(bundle: Bundle, profile: object) -> None:
    record = EngineRecord("tensorrt-fp16", "tensorrt", "fp16", "a.plan", {"profile": profile})
    with pytest.raises(ContractError, match="without its largest batch"):
        model_config("m", bundle.spec, record)


def test_a_plan_that_takes_no_single_tile_is_refused(bundle: Bundle) -> None:
    record = EngineRecord("tensorrt-fp16", "tensorrt", "fp16", "a.plan", {"profile": {"min": 8, "opt": 8, "max": 8}})
    with pytest.raises(ContractError, match="tensorrt-fp16 does not take a single tile"):
        model_config("m", bundle.spec, record)


def test_a_repository_is_replaced_and_nothing_else_is(bundle: Bundle, tmp_path: Path) -> None:
    assert write_triton(bundle, tmp_path / "models") == write_triton(bundle, tmp_path / "models")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("mine")
    with pytest.raises(InputError, match="not overwritten"):
        write_triton(bundle, tmp_path / "mine")
    assert (tmp_path / "mine" / "precious").read_text() == "mine"


def test_what_else_lies_in_a_repository_is_not_lost(bundle: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = write_triton(bundle, models)[0]
    other = read_bundle(Path(shutil.copytree(bundle.path, tmp_path / "other")))
    with pytest.raises(InputError, match="holds the models of the bundle"):
        write_triton(other, models)
    config = models / first / "config.pbtxt"
    written = config.read_text()
    config.write_text(written + "instance_group [ { count: 2 } ]\n")
    with pytest.raises(InputError, match=r"config\.pbtxt was not written by sattrt, or was changed since"):
        write_triton(bundle, models)
    config.write_text(written)
    (models / "ensemble").mkdir()
    assert first in write_triton(bundle, models)  # an empty folder is no loss
    (models / "ensemble").mkdir()
    (models / "ensemble" / "config.pbtxt").write_text("mine")
    with pytest.raises(InputError, match=r"ensemble/config\.pbtxt was not written by sattrt"):
        write_triton(bundle, models)
    assert (models / "ensemble" / "config.pbtxt").read_text() == "mine"


@pytest.mark.parametrize("folder", ["b", "b/models", ".", "mine", "mine/precious", "mine/precious/models"])
def test_a_folder_that_can_not_be_used_is_refused_before_the_export(tmp_path: Path, folder: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("mine")
    words = ["export", str(tmp_path / "no run"), "--out", str(tmp_path / "b"), "--triton", str(tmp_path / folder)]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, InputError)
    assert "no run" not in str(error)
    assert str(error).endswith("Choose another --triton.")


def test_plans_that_do_not_take_a_single_tile_are_refused_before_the_export(tmp_path: Path) -> None:
    words = ["export", str(tmp_path / "no run"), "--triton", str(tmp_path / "models"), "--set", "min_batch=8"]
    assert str(CliRunner().invoke(app, words).exception).startswith("min_batch is 8; Triton's plans must take a single tile.")


def test_a_repository_does_not_lie_in_its_bundle(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="lie in one another"):
        write_triton(bundle, bundle.path / "models")
    assert not (bundle.path / "models").exists()
