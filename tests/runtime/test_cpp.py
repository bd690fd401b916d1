import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import plans_here

from sattrt.machine import version
from sattrt.runtime import Bundle

SOURCE = Path(__file__).parents[2] / "engines" / "cpp"
pytestmark = pytest.mark.skipif(
    not (version("openvino") and shutil.which("cmake") and shutil.which("c++")), reason="OpenVINO, cmake or a C++ compiler is not installed"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, built with the headers and libraries of the openvino package."""
    import openvino

    build = tmp_path_factory.mktemp("build")
    packages = Path(openvino.__file__).parent / "cmake"
    for command in (["cmake", "-S", SOURCE, "-B", build, f"-DOpenVINO_DIR={packages}"], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "embed_openvino"


@pytest.mark.parametrize(("model", "engine"), [("model.fp32.onnx", "openvino-fp32"), ("model.int8-cpu.onnx", "openvino-int8")])
def test_the_cpp_example_gives_the_golden_answers(program: Path, bundle: Bundle, tmp_path: Path, model: str, engine: str) -> None:
    golden = np.load(bundle.path / "golden.npz")
    np.resize(golden["tiles"], (520, 64, 64, 3)).tofile(tmp_path / "tiles.raw")  # batches of 256, 256 and 8
    done = subprocess.run([program, bundle.path, model, tmp_path / "tiles.raw"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [line.split("\t") for line in done.stdout.splitlines()]
    logits = np.resize(golden[engine], (520, 3)).astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    assert [name for name, _ in answers] == [bundle.spec.classes[label] for label in logits.argmax(1)]
    np.testing.assert_allclose(
        [float(probability) for _, probability in answers], (powers / powers.sum(1, keepdims=True)).max(1), atol=1e-3
    )


def test_the_tensorrt_example_gives_the_golden_answers(program: Path, bundle: Bundle, tmp_path: Path) -> None:
    example = program.with_name("embed_tensorrt")
    if not example.exists():
        pytest.skip("no TensorRT headers and libraries here: CMake left the example out")
    plans = [record.file for record in plans_here(bundle)]
    if not plans:
        pytest.skip("built, but no GPU here that a plan of this bundle was built for")
    golden = np.load(bundle.path / "golden.npz")
    golden["tiles"].tofile(tmp_path / "tiles.raw")
    for plan in plans:
        done = subprocess.run([example, bundle.path, plan, tmp_path / "tiles.raw"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        names = [bundle.spec.classes[label] for label in golden["torch-fp32"].argmax(1)]
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == names


def test_the_cpp_example_refuses_a_model_of_tiles_without_a_size(program: Path, bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(bundle.path / "model.fp32.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    (tmp_path / "tiles.raw").write_bytes(b"123")
    done = subprocess.run([program, tmp_path, "model.onnx", tmp_path / "tiles.raw"], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "no fixed size" in done.stderr


@pytest.mark.parametrize("shape", [["batch", 12288], ["batch", 64, 192], ["batch", 4, 16, 64, 3]])
def test_the_cpp_example_refuses_a_model_of_what_is_no_tile(program: Path, tmp_path: Path, shape: list[object]) -> None:
    from onnx import TensorProto, helper, save

    given = helper.make_tensor_value_info("input", TensorProto.UINT8, shape)
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    node = helper.make_node("Cast", ["input"], ["probabilities"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "other", [given], [answer])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    (tmp_path / "tiles.raw").write_bytes(bytes(12288))
    done = subprocess.run([program, tmp_path, "model.onnx", tmp_path / "tiles.raw"], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "takes no tiles of height, width and bands" in done.stderr


def test_the_cpp_example_refuses_answers_that_are_no_numbers(program: Path, bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(bundle.path / "model.fp32.onnx")
    bias = next(each for each in model.graph.initializer if list(each.dims) == [3])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "model.onnx")
    shutil.copy(bundle.path / "labels.txt", tmp_path)
    np.load(bundle.path / "golden.npz")["tiles"][:2].tofile(tmp_path / "tiles.raw")
    done = subprocess.run([program, tmp_path, "model.onnx", tmp_path / "tiles.raw"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("returned NaN or infinity. Use another model, or export again.\n")


def test_the_cpp_example_says_when_its_answers_are_lost(program: Path, bundle: Bundle, tmp_path: Path) -> None:
    np.load(bundle.path / "golden.npz")["tiles"].tofile(tmp_path / "tiles.raw")
    command = [program, bundle.path, "model.fp32.onnx", tmp_path / "tiles.raw"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "embed_openvino: The answers can't be written. Check where they go, and its free space.\n")


def test_the_cpp_example_refuses_what_is_no_tile(program: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tiles.raw").write_bytes(b"123")
    shutil.copy(bundle.path / "labels.txt", tmp_path)
    (tmp_path / "cut.onnx").write_bytes((bundle.path / "model.fp32.onnx").read_bytes()[:1000])
    for arguments in (
        [bundle.path, "model.fp32.onnx", tmp_path / "tiles.raw"],
        [bundle.path, "model.fp32.onnx", tmp_path],
        [bundle.path / "none", "x", "y"],
        [tmp_path, "none.onnx", tmp_path / "tiles.raw"],
        [tmp_path, "cut.onnx", tmp_path / "tiles.raw"],
        [],
    ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
