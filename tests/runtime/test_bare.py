import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from sattrt.runtime import Bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with numpy, onnxruntime and sattrt's own code, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    source = tmp_path_factory.mktemp("source")  # a build leaves files behind: not in the checkout
    shutil.copytree(ROOT / "sattrt", source / "sattrt")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [python, "-m", "pip", "install", "--quiet"]
    done = subprocess.run([*pip, "numpy", "onnxruntime", "setuptools>=77"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package registry to install from: {done.stderr.strip()[-200:]}")
    done = subprocess.run([*pip, "--no-deps", "--no-build-isolation", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


def test_what_is_installed_has_all_its_files(bare_python: Path) -> None:
    script = "import importlib.util as u; print(u.find_spec('sattrt').submodule_search_locations[0])"
    done = subprocess.run([bare_python, "-c", script], capture_output=True, text=True, check=True, cwd=bare_python.parent)
    installed = Path(done.stdout.strip())
    assert installed.is_relative_to(bare_python.parents[1])
    ours = {
        path.relative_to(ROOT / "sattrt") for path in (ROOT / "sattrt").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.relative_to(installed) for path in installed.rglob("*") if "__pycache__" not in path.parts and path.is_file()} == ours


def test_the_runtime_needs_numpy_and_a_backend_alone(bare_python: Path, bundle: Bundle) -> None:
    script = f"""
import importlib.util, sys
absent = ["torch", "torchvision", "nvidia", "onnx", "typer", "rich", "PIL", "safetensors"]
assert not [name for name in absent if importlib.util.find_spec(name)]
import numpy as np
from sattrt.runtime import open_bundle
golden = np.load({str(bundle.path / "golden.npz")!r})
with open_bundle({str(bundle.path)!r}) as engine:
    result = engine.predict(golden["tiles"])
assert np.abs(result.logits - golden["onnxruntime-fp32"]).max() < 1e-3
assert result.names == [engine.classes[i] for i in golden["torch-fp32"].argmax(1)]
print(engine.name)
"""
    done = subprocess.run([bare_python, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "onnxruntime-fp32\n"


def test_the_command_says_what_it_needs(bare_python: Path) -> None:
    for command in (["-m", "sattrt", "doctor"], [bare_python.with_name("sattrt"), "--help"]):
        done = subprocess.run([bare_python, *command], capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "typer is not installed here, and the command needs it. In a checkout: pip install '.[cpu]'" in done.stderr


def test_the_embedding_example_runs_on_it(bare_python: Path, bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "tiles.npy", np.load(bundle.path / "golden.npz")["tiles"][:2])
    for arguments, lines in (([], 21), ([tmp_path / "tiles.npy"], 3)):
        done = subprocess.run([bare_python, ROOT / "engines" / "embed.py", bundle.path, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("onnxruntime-fp32 on ")
        assert len(done.stdout.splitlines()) == lines
    done = subprocess.run([bare_python, ROOT / "engines" / "embed.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: python engines/embed.py BUNDLE [TILES.npy]\n")


def test_the_embedding_example_ends_in_one_line(bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "cut.npz").write_bytes((bundle.path / "golden.npz").read_bytes()[:1000])
    (copy / "golden.npz").write_bytes((copy / "golden.npz").read_bytes()[:-1])
    for arguments, message in (
        ([tmp_path], "is not a bundle"),
        ([copy], "golden.npz was changed"),
        ([bundle.path, tmp_path / "nothing.npy"], "nothing.npy"),
        *(
            ([bundle.path, tmp_path / name], f"{name} is not an array that numpy.save wrote")
            for name in ("text.npy", "empty.npy", "cut.npz")
        ),
        ([bundle.path, bundle.path / "golden.npz"], "not NpzFile"),
    ):
        command = [sys.executable, ROOT / "engines" / "embed.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert message in done.stderr


def test_importing_the_runtime_loads_no_other_part() -> None:
    script = "import sys, sattrt.runtime; print(*sorted(name.split('.')[0] for name in sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "onnx", "onnxruntime", "typer", "rich", "PIL", "nvidia", "tensorrt", "tensorrt_rtx"}
