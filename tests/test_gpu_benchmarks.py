"""What the benchmarks for a GPU do where something goes wrong; what they measure needs one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tiles

from sattrt import machine
from sattrt.runtime import Bundle

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402
from gpu_training import judged  # noqa: E402


def test_a_run_that_fails_is_recorded_and_the_others_are_made(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles")
    command = [sys.executable, str(BENCHMARKS / "gpu_training.py"), "--tiles", str(tiles), "--weights", "absent.safetensors"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "found.json"), "--runs", "fast", "quick", "--share", "48"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(done.stdout.splitlines()[-1])
    assert found["environment"]["cores"] > 0
    for name in ("fast", "quick"):
        [run] = found["runs"][name]
        assert "absent.safetensors is not a file" in run["failed"]


def test_a_run_is_held_against_an_accuracy_in_time_and_a_speed_at_the_size_of_the_tiles() -> None:
    own = {"config": {"image_size": 0}, "images_per_second": 19_999}
    slow = {**own, "seconds_to": {"97 %": 16.0, "98.57 %": 61.0, "99 %": 200.0}}
    assert [judged(name, slow)["met"] for name in ("fast", "quick", "full")] == [False, False, True]
    poor = {**own, "images_per_second": 20_000, "seconds_to": {"97 %": 15.0, "98.57 %": 59.0, "99 %": None}}
    assert [judged(name, poor)["met"] for name in ("fast", "quick", "full")] == [True, True, False]
    assert [judged("fast", run)["speed_met"] for run in (slow, poor)] == [False, True]
    assert "speed_met" not in judged("full", {**slow, "config": {"image_size": 128}})


BLOCKED = """
import ctypes, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
while True:
    ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock, as a build of TensorRT may: no signal handler of Python's runs
"""


def is_alive(pid: str) -> bool:
    """Whether a process is neither gone nor dead and waiting for whoever reaps it."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_that_is_deep_in_a_library_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert gpu.within([sys.executable, "-c", BLOCKED, str(pids)], 5) == "it took longer than its share of the eight minutes"
    end = time.monotonic() + 30  # who was killed on another core takes a moment to die
    while any(map(is_alive, pids.read_text().split())):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert gpu.within([sys.executable, "-c", ""], 60) is None
    assert gpu.within([sys.executable, "-c", "raise SystemExit(3)"], 60) == "it ended with exit code 3"


def run_without(tmp_path: Path, script: str, *modules: str, share: int) -> tuple[subprocess.CompletedProcess[str], Any]:
    """A script on small tiles where some modules can't be imported, by it or any process of its; and the document that it wrote."""
    tiles, hidden = write_tiles(tmp_path / "tiles"), tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n")
    path = os.pathsep.join(map(str, (hidden, BENCHMARKS.parent)))
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / script),
            "--tiles",
            str(tiles),
            "--weights",
            "none",
            "--share",
            str(share),
            "--out",
            "found.json",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        timeout=600,
    )
    return done, json.loads((tmp_path / "found.json").read_text())


@pytest.mark.parametrize("script", ["gpu.py", "gpu_training.py"])
def test_what_nothing_works_without_is_said_in_a_line_and_in_the_file(tmp_path: Path, script: str) -> None:
    done, found = run_without(tmp_path, script, "safetensors", share=48)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith("safetensors: pip install safetensors\n")
    assert json.loads(done.stdout.splitlines()[-1]) == found
    assert "safetensors" in str(found["failed"])
    if script == "gpu.py":
        assert found["without"]["safetensors"] == "training, export, bench: need safetensors"
        assert done.stdout.splitlines()[0] == "without safetensors: training, export, bench: need safetensors"


def test_without_onnxscript_and_matplotlib_it_trains_and_says_what_it_left_out(tmp_path: Path) -> None:
    done, found = run_without(tmp_path, "gpu.py", "onnxscript", "matplotlib", share=48)
    assert done.returncode == 0, done.stderr
    assert found["without"] | {"onnxscript": "export: needs onnxscript", "matplotlib": "no pictures of the run"} == found["without"]
    assert len(found["training"]["epochs"]) == 2
    assert found["failed"] == {"export": "needs onnxscript: pip install onnxscript", "bench": "there is no bundle to measure"}
    assert "The run's pictures were left out: matplotlib is not installed" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == found


def test_the_fastest_engine_is_one_that_opens_here(bundle: Bundle) -> None:
    found = gpu.fastest(bundle)
    bundle.open(found.name).close()
    assert (found.backend, found.precision) == ("onnxruntime", "int8") or machine.gpu()
