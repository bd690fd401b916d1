import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import records, running

from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.deploy.graphs import Graphs
from sattrt.deploy.onnx_export import DeployedClassifier, fold_batchnorm, write_onnx
from sattrt.errors import BackendError, ContractError, InputError, ParityError
from sattrt.machine import version
from sattrt.model import TileClassifier
from sattrt.runtime import MANIFEST, Bundle, Engine, EngineRecord, open_bundle, open_engine
from sattrt.runtime.bundle import EXTERNAL
from sattrt.runtime.ort import save_optimised, this_place
from sattrt.spec import ModelSpec
from sattrt.trained import load_trained, read_samples


def test_the_graph_is_what_the_contract_says(bundle: Bundle) -> None:
    for precision in ("fp32", "fp16"):
        graph = onnx.load(bundle.path / f"model.{precision}.onnx").graph
        [tiles] = graph.input
        assert tiles.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [dim.dim_value or dim.dim_param for dim in tiles.type.tensor_type.shape.dim] == ["batch", 64, 64, 3]
        assert [(each.name, each.type.tensor_type.elem_type) for each in graph.output] == [
            ("logits", onnx.TensorProto.FLOAT),
            ("probabilities", onnx.TensorProto.FLOAT),
        ]
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("Conv") == 53
        assert "BatchNormalization" not in kinds


def test_every_graph_says_what_goes_in_and_which_classes_come_out(bundle: Bundle) -> None:
    graphs = list(bundle.path.glob("*.onnx"))
    assert len(graphs) >= 3
    for path in graphs:
        said = {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props if each.key.startswith("sattrt.")}
        assert said == {
            "sattrt.classes": list(bundle.spec.classes),
            "sattrt.bands": list(bundle.spec.bands),
            "sattrt.input": {"dtype": "uint8", "layout": "NHWC", "height": 64, "width": 64},
        }, path


def test_a_class_may_have_the_name_by_which_weights_in_another_file_are_found(run: Path, tmp_path: Path) -> None:
    model, spec = load_trained(run)
    classes = ("Field", "Relocation \\location", "Wäter")
    write_onnx(model, replace(spec, classes=classes), tmp_path / "m.onnx", "fp32")
    assert EXTERNAL not in (tmp_path / "m.onnx").read_bytes()
    [text] = [each.value for each in onnx.load(tmp_path / "m.onnx").metadata_props if each.key == "sattrt.classes"]
    assert tuple(json.loads(text)) == classes


def test_no_graph_says_where_it_was_made(bundle: Bundle) -> None:
    here = str(Path(__file__).parents[2]).encode()
    graphs = list(bundle.path.glob("*.onnx"))
    assert len(graphs) >= 3
    assert [graph.name for graph in graphs if here in graph.read_bytes()] == []


def test_half_precision_is_in_the_weights(bundle: Bundle) -> None:
    sizes = [(bundle.path / f"model.{precision}.onnx").stat().st_size for precision in ("fp32", "fp16")]
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.02)


def test_the_bundle_proves_that_it_agrees(bundle: Bundle, run: Path) -> None:
    model, spec = load_trained(run)
    golden = np.load(bundle.path / "golden.npz")
    with torch.inference_mode():
        expected = (model(torch.from_numpy(golden["tiles"])) / spec.temperature).numpy()
    np.testing.assert_allclose(golden["torch-fp32"], expected, atol=1e-4)
    for name in golden.keys() - {"tiles", "labels", "torch-fp32"}:
        proof = records(bundle)[name].record["validation"]
        assert proof["tiles"] == spec.training["valid_tiles"]
        assert proof["batches"] == [1, 3, 64]
        np.testing.assert_allclose(golden[name], expected, atol=proof["largest_error"] + 1e-6)
    assert {"onnxruntime-fp32", "onnxruntime-fp16"} <= golden.keys()
    assert ("openvino-fp32" in golden) == bool(version("openvino"))
    assert records(bundle)["onnxruntime-fp32"].record["validation"]["flips"] == []
    assert bundle.spec == spec
    card = (bundle.path / "MODEL_CARD.md").read_text()
    accuracy = records(bundle)["onnxruntime-fp32"].record["validation"]["accuracy"]  # which does not differ from the network's on any tile
    assert f"in fp32, on {spec.training['valid_tiles']} validation tiles: {100 * accuracy:.2f} % right" in card
    assert "\n## Data\n`tiles`. Split: random, tile by tile (60:20:20, seed 0)" in card


def test_temperature_is_applied_in_the_graph(run: Path, tmp_path: Path) -> None:
    model, _ = load_trained(run)
    tiles = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits, probabilities = DeployedClassifier(model, 2.5, torch.float32).eval()(tiles)
        torch.testing.assert_close(logits, model(tiles) / 2.5, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(probabilities, logits.softmax(1))


def test_a_resize_is_part_of_the_graph(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    _, spec = load_trained(run)
    torch.manual_seed(1)
    model = TileClassifier(3, spec.mean, spec.std, size=96).eval()
    write_onnx(model, replace(spec, temperature=1.0), tmp_path / "m.onnx", "fp32")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    tiles = np.load(run / "samples.npz")["valid"][:3]
    assert "Resize" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    with torch.inference_mode():
        expected = model(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"input": tiles})[0], expected, atol=1e-3)


def test_symmetries_are_averaged_in_the_graph(run: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    symmetric = export(run, Path("."), ExportConfig(symmetries=True, precision="fp32"))
    monkeypatch.chdir(tmp_path)
    wanted = {name for name in records(bundle) if name.endswith("fp32")}
    assert set(records(symmetric.bundle)) == wanted  # every builder takes the graph
    assert symmetric.bundle.spec.views == 8
    assert symmetric.bundle.spec.temperature == symmetric.bundle.spec.training["calibration"]["temperature"]
    assert symmetric.bundle.spec.training["calibration"]["ece"] != bundle.spec.training["calibration"]["ece"]
    tiles = np.load(run / "samples.npz")["valid"][:4]
    turned = np.ascontiguousarray(np.rot90(tiles, axes=(1, 2)))
    with open_bundle(tmp_path / "b", "onnxruntime-fp32") as engine:
        np.testing.assert_allclose(engine.predict(turned).logits, engine.predict(tiles).logits, atol=1e-3)
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        assert np.abs(engine.predict(turned).logits - engine.predict(tiles).logits).max() > 1e-3


@pytest.mark.skipif(this_place()["provider"] != "cpu", reason="ONNX Runtime rewrites graphs only for the CPU")
def test_an_optimised_graph_is_kept_and_opened_where_it_was_made_for(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    made = export(run, tmp_path / "b", ExportConfig(precision="fp32", optimised=True)).bundle
    optimised = records(made)["onnxruntime-fp32"].record["optimised"]
    path = tmp_path / "b" / optimised["file"]
    assert "com.microsoft.nchwc" in {node.domain for node in onnx.load(path).graph.node}  # made for this CPU
    golden = np.load(tmp_path / "b" / "golden.npz")
    np.testing.assert_allclose(golden["onnxruntime-fp32"], golden["torch-fp32"], atol=1e-4)
    with open_bundle(tmp_path / "b", "onnxruntime-fp32") as engine:
        assert engine._backend._path == path  # type: ignore[attr-defined]
    elsewhere = replace(records(made)["onnxruntime-fp32"], record={"optimised": {**optimised, "for": {"onnxruntime": "1.0", "cpu": ""}}})
    with open_engine(elsewhere, tmp_path / "b", made.spec) as engine:
        assert engine._backend._path == tmp_path / "b" / "model.fp32.onnx"  # type: ignore[attr-defined]
        np.testing.assert_allclose(engine.predict(golden["tiles"]).logits, golden["onnxruntime-fp32"], atol=1e-4)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ContractError, match=r"optimised.onnx was changed"):
        open_bundle(tmp_path / "b", "onnxruntime-fp32")


def test_a_graph_that_can_not_be_rewritten_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes((bundle.path / "model.fp32.onnx").read_bytes()[:1000])
    for source, target in ((tmp_path / "cut.onnx", tmp_path / "o.onnx"), (bundle.path / "model.fp32.onnx", tmp_path / "none" / "o.onnx")):
        with pytest.raises(BackendError, match=rf"can't rewrite {source.name} .*Leave optimised out"):
            save_optimised(source, target)


@pytest.mark.skipif(this_place()["provider"] != "cpu", reason="ONNX Runtime rewrites graphs only for the CPU")
def test_both_files_of_an_optimised_engine_are_judged(run: Path, premade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(source: Path, target: Path) -> dict[str, str]:
        place, model = save_optimised(source, target), onnx.load(source)
        weights = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        weights.raw_data = bytes(len(weights.raw_data))
        onnx.save(model, source)
        return place

    monkeypatch.setattr("sattrt.deploy.bundle.save_optimised", spoil)
    with pytest.raises(ParityError, match="onnxruntime-fp32 differs from the trained network"):
        export(run, tmp_path / "b", ExportConfig(precision="fp32", optimised=True))


def test_where_nothing_can_judge_nothing_is_exported(run: Path, premade: None, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / "bundle.json").read_bytes()
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)  # as where they are not installed
    with pytest.raises(BackendError, match=r"No engine can be judged here.*ONNX Runtime is not installed"):
        export(run, copy, ExportConfig(precision="fp32"))
    assert (copy / "bundle.json").read_bytes() == before


def test_folding_changes_no_answer(run: Path) -> None:
    model, _ = load_trained(run)
    values = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        expected = model.backbone(values)
        folded = fold_batchnorm(model.backbone)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(values), expected, atol=1e-4, rtol=1e-4)


def test_a_folder_that_is_no_bundle_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a bundle"):
        export(run, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "manifest", ["{}", "[1]", "{", '{"schema": 1, "files": {}, "engines": []}', '{"schema": 1, "files": 3, "engines": [1]}']
)
def test_a_folder_is_no_bundle_because_a_file_is_called_so(run: Path, tmp_path: Path, manifest: str) -> None:
    (tmp_path / "bundle.json").write_text(manifest)
    with pytest.raises(InputError, match="is not a bundle"):
        export(run, tmp_path)
    assert (tmp_path / "bundle.json").read_text() == manifest


@pytest.mark.parametrize("name", ["precious.txt", "notes/precious.txt"])
def test_a_bundle_with_something_else_in_its_folder_is_not_overwritten(run: Path, copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name.partition('/')[0]} is not part of the bundle there"):
        export(run, copy)
    assert (copy / name).read_text() == "mine"


def test_a_bundle_that_was_changed_is_replaced(run: Path, copy: Path) -> None:
    (copy / "MODEL_CARD.md").write_text("x")
    (copy / "labels.txt").unlink()
    (copy / "bundle.sig").write_bytes(b"")
    export(run, copy, ExportConfig(precision="fp32")).bundle.verify()


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        export(tmp_path / "nothing", tmp_path / "b")


def test_a_checkpoint_of_another_class_list_is_refused(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    _, spec = load_trained(run)
    replace(spec, classes=("Field", "Forest", "Wood")).write(other / "spec.json")
    with pytest.raises(ContractError, match="different class lists"):
        export(other, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_network_that_changes_while_it_is_read_is_not_exported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "run")

    def load_and_train_on(folder: Path) -> tuple[TileClassifier, ModelSpec]:
        found = load_trained(folder)
        (folder / "best.safetensors").write_bytes((folder / "best.safetensors").read_bytes() + b" ")
        return found

    monkeypatch.setattr("sattrt.deploy.bundle.load_trained", load_and_train_on)
    with pytest.raises(InputError, match="saved a better network while it was read"):
        export(tmp_path / "run", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_run_without_a_temperature_says_so(run: Path, premade: None, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    spec = ModelSpec.read(run / "spec.json")
    training = {key: value for key, value in spec.training.items() if key != "calibration"}
    for said, also in (("was stopped before its end", {}), ("transforms before the network", {"tiles_after": "center_crop"})):
        replace(spec, training=training | also).write(tmp_path / "run" / "spec.json")
        assert said in export(tmp_path / "run", tmp_path / "b", ExportConfig(precision="fp32")).skipped["temperature"]
    assert "temperature" not in export(run, tmp_path / "c", ExportConfig(precision="fp32")).skipped


def test_an_export_that_fails_keeps_the_old_bundle(run: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundle.path, tmp_path / "b")
    before = (tmp_path / "b" / "bundle.json").read_bytes()
    monkeypatch.setattr("sattrt.deploy.gate.FP32_ERROR", 0.0)  # no engine sums in quite the order of torch
    with pytest.raises(ParityError, match="onnxruntime-fp32"):
        export(run, tmp_path / "b", ExportConfig(precision="fp32"))
    assert (tmp_path / "b" / "bundle.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_engine_that_differs_is_left_out_under_best_effort(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sattrt.deploy.gate.FP32_ERROR", 0.0)  # no engine sums in quite the order of torch
    report = export(run, tmp_path / "b", ExportConfig(precision="fp32,fp16", best_effort=True))
    assert "onnxruntime-fp32" in report.failed
    assert {engine.precision for engine in report.bundle.engines} == {"fp16"}
    with pytest.raises(ParityError, match=r"No engine is left: onnxruntime-fp32: .*differs"):
        export(run, tmp_path / "c", ExportConfig(precision="fp32", best_effort=True))
    assert not (tmp_path / "c").exists()


def test_a_precision_that_gives_no_numbers_is_left_out_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(model: TileClassifier, spec: ModelSpec, path: Path, kind: str) -> None:
        write_onnx(model, spec, path, kind)
        if kind == "fp16":  # as where an activation is beyond 65,504
            graph = onnx.load(path)
            head = next(each for each in graph.graph.initializer if each.name.endswith("fc.weight"))
            head.CopyFrom(onnx.numpy_helper.from_array(np.full(head.dims, np.inf, onnx.numpy_helper.to_array(head).dtype), head.name))
            onnx.save(graph, path)

    monkeypatch.setattr("sattrt.deploy.graphs.write_onnx", overflowing)
    report = export(run, tmp_path / "b", ExportConfig(precision="fp16"))
    assert "onnxruntime-fp16 returned NaN or infinity" in report.failed["onnxruntime-fp16"]
    assert {engine.precision for engine in report.bundle.engines} == {"fp32"}


def test_digests_are_there_for_who_has_no_python(bundle: Bundle, tmp_path: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {line.partition(":")[0] for line in done.stdout.splitlines()} == set(bundle.files) - {"SHA256SUMS"}


def test_any_batch_can_be_asked_for(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(1)
    model = TileClassifier(3, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)).eval()
    _, spec = load_trained(run)
    write_onnx(model, spec, tmp_path / "m.onnx", "fp32")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5, 33):
        tiles = np.random.default_rng(batch).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = (model(torch.from_numpy(tiles)) / spec.temperature).numpy()
        np.testing.assert_allclose(session.run(["logits"], {"input": tiles})[0], expected, atol=1e-3)


def test_export_needs_no_dali_and_says_what_it_skips(run: Path, tmp_path: Path) -> None:
    script = f"""
import json, sys
sys.modules["nvidia.dali"] = sys.modules["tensorrt"] = sys.modules["tensorrt_rtx"] = sys.modules["tensorrt_rtx_bindings"] = None
from pathlib import Path
from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
report = export(Path({str(run)!r}), Path({str(tmp_path / "b")!r}), ExportConfig(precision="fp32"))
print(json.dumps([[engine.name for engine in report.bundle.engines], report.skipped]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, skipped = json.loads(done.stdout)
    assert names == ["onnxruntime-fp32", "openvino-fp32"]
    for backend in ("tensorrt", "tensorrt-rtx"):
        assert f"pip install 'sattrt[{backend}]'" in skipped[f"{backend}-fp32"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", "half", "npy", "labels", "encrypted"])
def test_samples_that_are_damaged_are_refused(run: Path, tmp_path: Path, content: bytes | str) -> None:
    other = tmp_path / "run"
    other.mkdir()
    for path in filter(Path.is_file, run.iterdir()):
        (other / path.name).hardlink_to(path)
    samples = (other / "samples.npz").read_bytes()
    arrays = dict(np.load(run / "samples.npz"))
    (other / "samples.npz").unlink()
    if content == "half":
        content = samples[: len(samples) // 2]
    elif content == "encrypted":
        at = samples.index(b"PK\x01\x02") + 8
        content = samples[:at] + b"\x01" + samples[at + 1 :]
    if content == "npy":
        with open(other / "samples.npz", "wb") as file:
            np.save(file, np.zeros(3))
    elif content == "labels":
        np.savez(other / "samples.npz", **arrays | {"valid_labels": arrays["valid_labels"][:-1]})
    else:
        (other / "samples.npz").write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"samples.npz"):
        export(other, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_was_put_into_the_bundle_meanwhile_is_not_deleted(run: Path, premade: None, bundle: Bundle, copy: Path) -> None:
    before = (copy / MANIFEST).read_bytes()

    def save_notes(line: str) -> None:
        (copy / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"notes.txt"):
        export(run, copy, ExportConfig(precision="fp32", gate=100), save_notes)
    assert (copy / "notes.txt").read_text() == "mine"
    assert (copy / MANIFEST).read_bytes() == before


def test_an_export_that_is_told_to_stop_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines" / "small"
    end = time.monotonic() + 120
    with running([sys.executable, "-m", "sattrt", "export", str(run), "--out", str(out)], stderr=subprocess.PIPE) as process:
        while not list(out.parent.glob(".small.*.tmp/*.onnx")) and time.monotonic() < end:
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert list(out.parent.iterdir()) == []


def test_fp8_is_asked_of_no_library_that_has_none(run: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(record: EngineRecord, *more: Any) -> Engine:
        if record.backend == "onnxruntime":
            raise BackendError("no GPU that it could use")
        return open_engine(record, *more)

    monkeypatch.setattr("sattrt.deploy.graphs.open_engine", refused)
    graphs = Graphs(bundle.path, *load_trained(run), read_samples(run, bundle.spec), ExportConfig(), print)
    with pytest.raises(BackendError, match="Nothing here can run the fp8 graph to judge it: no GPU"):
        graphs._answers("fp8", "model.fp8.onnx", np.zeros((1, 64, 64, 3), np.uint8))
