"""What the benchmarks for a GPU do where something goes wrong; what they measure needs one."""

import argparse
import io
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, running, write_tiles
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sattrt import machine
from sattrt.runtime import Bundle
from sattrt.runtime.engine import EngineRecord

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402
from gpu_training import apart, ended, has_dali, judged, libraries_read, runs_of, speed_of  # noqa: E402


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
    decoders = ["auto", "torchvision"] if has_dali() else ["auto"]  # it might be DALI that failed
    for name in ("fast", "quick"):
        assert [run["config"]["decoder"] for run in found["runs"][name]] == decoders
        assert all("absent.safetensors is not a file" in run["failed"] for run in found["runs"][name])
        assert all(run["epochs"] == [] for run in found["runs"][name])


def test_what_is_known_of_the_machine_is_in_the_file_before_the_first_run(tmp_path: Path) -> None:
    tiles, out, end = write_tiles(tmp_path / "tiles"), tmp_path / "found.json", time.monotonic() + 120
    command = [sys.executable, str(BENCHMARKS / "gpu_training.py"), "--tiles", str(tiles), "--weights", "none", "--share", "48"]
    with running([*command, "--out", str(out)], env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "CUDA_VISIBLE_DEVICES": ""}):
        while not out.exists() and time.monotonic() < end:
            time.sleep(0.01)
        found = json.loads(out.read_text())
    assert found["runs"] == {"fast": [], "quick": [], "full": []}
    assert found["scan_seconds"] > 0
    assert found["environment"]["cores"] > 0


def test_a_run_in_hand_is_ended_with_the_program(tmp_path: Path) -> None:
    tiles, out, end = write_tiles(tmp_path / "tiles"), tmp_path / "found.json", time.monotonic() + 120
    command = [sys.executable, str(BENCHMARKS / "gpu_training.py"), "--tiles", str(tiles), "--weights", "none", "--share", "48"]
    with running(
        [*command, "--out", str(out)], env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "CUDA_VISIBLE_DEVICES": ""}
    ) as process:
        children = Path("/proc", str(process.pid), "task", str(process.pid), "children")
        while not (out.exists() and "spawn_main" in "".join(map(command_of, children.read_text().split()))):
            assert time.monotonic() < end
            time.sleep(0.01)
        started = [pid for pid in children.read_text().split() if "spawn_main" in command_of(pid)]
        process.terminate()
        assert process.wait(60) == 143
        assert not any(map(is_alive, started))


def command_of(pid: str) -> str:
    """The command line of a process; nothing where it is gone."""
    try:
        return Path("/proc", pid, "cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("TOGETHER = 5", ["skipped: [0-5] s are left for it"]),  # none is begun
        ("LONGEST = {'fast': 1.0}; gpu_training.SHORTEST = 0", ["it took longer than 1 s"] * (2 if has_dali() else 1)),
    ],
)
def test_runs_are_limited_in_time_without_a_gpu_too(tmp_path: Path, settings: str, says: list[str]) -> None:
    tiles, out = write_tiles(tmp_path / "tiles", 12), tmp_path / "found.json"
    program = f"import gpu_training; gpu_training.{settings}; gpu_training.main()"
    options = ["--tiles", str(tiles), "--weights", "none", "--runs", "fast", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent))), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["runs"]["fast"]
    assert len(found) == len(says)
    assert all(re.fullmatch(said, run["failed"]) for said, run in zip(says, found, strict=True)), found


def test_a_run_that_failed_is_not_repeated_where_no_time_is_left(dataset_folder: Path, tmp_path: Path) -> None:
    config = replace(SMALL, weights=str(tmp_path / "absent.safetensors"))
    [found] = runs_of(dataset_folder, config, tmp_path / "run", 60.0, time.perf_counter() - 1.0)
    assert found["failed"] == "skipped: 0 s are left for it"
    assert not (tmp_path / "run").exists()


def test_what_the_libraries_took_is_known_and_whether_that_was_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = libraries_read(0.2)
    assert found["libraries_killed"]
    assert 0.2 <= found["libraries_seconds"] < 60
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert libraries_read() == {}


def test_a_process_of_its_own_is_ended_in_time_and_its_failure_said() -> None:
    assert apart(60, math.sqrt, 4.0) == 2.0
    for seconds, says, work, argument in (
        (0.5, r"^it took longer than 0.5 s$", time.sleep, 600),
        (60, r"(?s)^ValueError: [^\n]+\nTraceback .*, in _answer\n.*\nValueError: [^\n]+\n$", math.sqrt, -1.0),
        (None, r"^its process ended with exit code 3$", os._exit, 3),  # as where a library ends it
    ):
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match=says):
            apart(seconds, work, argument)
        assert time.monotonic() - begin < 60


def fail_at_length() -> None:
    raise ValueError("in vain\n" + 10_000 * "x" + "\nthe end")


def test_of_a_long_failure_the_beginning_and_the_end_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as told:
        apart(60, fail_at_length)
    first, *_, last = str(told.value).splitlines()
    assert (first, last) == ("ValueError: in vain", "the end")
    assert len(str(told.value)) < 2500
    assert "in fail_at_length" in capfd.readouterr().err  # the whole of it


def test_of_a_run_that_fails_late_its_epochs_are_known(run: Path, tmp_path: Path) -> None:
    [epoch] = ended(run)
    state = json.loads((run / "best.json").read_text())
    assert epoch["valid_accuracy"] == pytest.approx(state["best_accuracy"], abs=1e-6)
    assert epoch["seconds"] > 0
    assert ended(tmp_path) == []


def test_speed_is_that_of_whole_windows_once_it_runs() -> None:
    assert speed_of([(20, 5.0), (20, 100.0), (4, 900.0), (16, 1.0), (20, 110.0), (20, 105.0)]) == 105.0
    assert speed_of([(1, 5.0), (1, 7.0), (1, 8.0), (1, 9.0)]) == 8.0
    assert speed_of([(3, 7.0)]) == 7.0


def test_a_run_is_held_against_an_accuracy_in_time_and_a_speed_at_the_size_of_the_tiles() -> None:
    own = {"config": {"image_size": 0}, "images_per_second": 19_999}
    slow = {**own, "seconds_to": {"97 %": 16.0, "98.57 %": 61.0, "99 %": 200.0}}
    assert [judged(name, slow, 0.0)["met"] for name in ("fast", "quick", "full")] == [False, False, True]
    poor = {**own, "images_per_second": 20_000, "seconds_to": {"97 %": 13.0, "98.57 %": 58.0, "99 %": None}}
    assert [judged(name, poor, 2.0)["met"] for name in ("fast", "quick", "full")] == [True, True, False]
    assert [judged(name, poor, 2.5)["met"] for name in ("fast", "quick")] == [False, False]  # the scan counts
    assert [judged("fast", run, 0.0)["speed_met"] for run in (slow, poor)] == [False, True]
    assert "speed_met" not in judged("full", {**slow, "config": {"image_size": 128}}, 0.0)


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


HIDING = """
import importlib.machinery, sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in {modules!r}:  # what is installed is not there; what the checkout brings is
            path = [each for each in path or sys.path if "site-packages" not in each]
            found = importlib.machinery.PathFinder.find_spec(name, path, target)
            return found if found and found.loader else None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hiding
"""


def run_without(
    tmp_path: Path, script: str, *modules: str, share: int, more: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], Any]:
    """A script on small tiles where some modules are not installed, for it and any process of its; and the document that it wrote."""
    tiles, hidden = write_tiles(tmp_path / "tiles"), tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDING.format(modules=modules))
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
            *more,
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
    done, found = run_without(tmp_path, script, "torchvision", share=48)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.endswith("torchvision: pip install torchvision\n")
    assert json.loads(done.stdout.splitlines()[-1]) == found
    assert "torchvision" in str(found["failed"])
    if script == "gpu.py":
        assert found["without"]["torchvision"] == "training, export, bench: need torchvision"
        assert done.stdout.splitlines()[0] == "without torchvision: training, export, bench: need torchvision"


# all but torch, torchvision, numpy, Pillow, typer, rich and onnx, with what those need
NOT_ON_A_BARE_MACHINE = ("safetensors", "nvidia.dali", "matplotlib", "tensorboard", "onnxruntime", "onnxscript", "openvino", "tensorrt_rtx")
NOT_ON_A_BARE_MACHINE += ("onnx_ir", "tensorrt", "tensorrt_lean", "tensorrt_rtx_bindings")
NOT_ON_A_BARE_MACHINE += ("timm", "rasterio", "h5py", "distributed", "cryptography", "scipy", "huggingface_hub")


def test_it_trains_on_a_machine_that_has_hardly_more_than_torch(tmp_path: Path) -> None:
    done, found = run_without(tmp_path, "gpu_training.py", *NOT_ON_A_BARE_MACHINE, share=48, more=("--runs", "fast"))
    assert done.returncode == 0, done.stderr
    [run] = found["runs"]["fast"]
    assert "failed" not in run, run
    assert len(run["epochs"]) == 2
    assert run["images_per_second"] > 0
    until = run["seconds_until"]
    assert list(until) == ["network", "recorded", "samples", "set up", "first tiles", "first report"]
    assert [0.0, *until.values(), run["epochs"][0]["seconds"]] == sorted([0.0, *until.values(), run["epochs"][0]["seconds"]])


def test_the_stand_in_for_safetensors_reads_what_the_library_wrote_and_the_other_way_round(tmp_path: Path) -> None:
    there = f"import sys; sys.path.insert(0, {str(BENCHMARKS / 'bare')!r})\n"
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor(7),
        "c": torch.rand(5).bfloat16(),
        "d": torch.tensor([True, False]),
        "e": torch.empty(0, 4),
        "f": torch.rand(3, 3).half(),
    }
    save_file(tensors, tmp_path / "library", {"sattrt": "{}"})
    copy = """
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from pathlib import Path
with safe_open("library", "pt") as file:
    save_file(load_file("library"), "stand-in", file.metadata())
content = Path("library").read_bytes()
for spoilt in (content[:5], content[:40], content[:-1], b"", content[:8] + b"[" + content[9:]):
    Path("spoilt").write_bytes(spoilt)
    try:
        load_file("spoilt")
    except SafetensorError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", there + copy], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n" * 5), done.stderr
    with safe_open(tmp_path / "stand-in", "pt") as file:
        assert file.metadata() == {"sattrt": "{}"}
    found = load_file(tmp_path / "stand-in")
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype, name
        assert torch.equal(found[name], expected), name


def test_with_onnxruntime_a_bare_machine_trains_exports_and_benches(tmp_path: Path) -> None:
    hidden = [name for name in NOT_ON_A_BARE_MACHINE if name != "onnxruntime"]
    done, found = run_without(tmp_path, "gpu.py", *hidden, share=48)
    assert done.returncode == 0, done.stderr
    left_out = {"onnxscript": "no graphs in bf16; torch's older exporter makes the others", "matplotlib": "no pictures of the run"}
    assert found["without"] | left_out == found["without"]
    assert found["failed"] == {}, done.stdout + done.stderr
    assert [(name, len(run["epochs"])) for name, run in found["training"].items()] == [("fast", 2), ("quick", 2)]
    assert {"onnxruntime-fp32", "onnxruntime-fp16"} <= found["engines"].keys()
    assert all(verdict["passed"] for verdict in found["engines"].values())
    assert "export_failed" not in found
    assert "tensorrt is not installed" in found["skipped"]["tensorrt-fp32"]
    assert {"onnxruntime-fp32", "onnxruntime-fp16"} <= {row["engine"] for row in found["bench"]["engines"]}
    assert "The run's pictures were left out: matplotlib is not installed" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == found


def test_what_is_exported_is_the_last_run_that_came_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("fp16 fails on a CPU alone")
    monkeypatch.setitem(gpu.RUNS, "quick", {**gpu.RUNS["quick"], "precision": "fp16"})
    options = argparse.Namespace(tiles=write_tiles(tmp_path / "tiles"), weights="none", share=48)
    found: dict[str, Any] = {}
    gpu.train_it(tmp_path, options, time.perf_counter() + 240, lambda **what: found.update(what))
    assert found["training"].keys() == {"fast"}
    assert found["training"]["fast"]["goal"]["within_seconds"] == 15
    assert all(run["run"] == "quick" and "no fp16 arithmetic" in run["failed"] for run in found["training_failed"])
    assert (tmp_path / "run" / "best.safetensors").samefile(tmp_path / "fast" / "best.safetensors")
    monkeypatch.setitem(gpu.RUNS, "fast", gpu.RUNS["quick"])
    with pytest.raises(RuntimeError, match=r"^BackendError: .*no fp16 arithmetic"):
        gpu.train_it(tmp_path, options, time.perf_counter() + 240, lambda **what: found.update(what))


def test_the_export_goes_on_where_fp32_fails(run: Path, premade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FP32_ERROR", "GPU_FP32_ERROR"):
        monkeypatch.setattr(f"sattrt.deploy.gate.{name}", 0.0)  # no engine sums in quite the order of torch
    (tmp_path / "run").symlink_to(run)
    found: dict[str, Any] = {}
    gpu.export_it(tmp_path, argparse.Namespace(), 0.0, lambda **what: found.update(what))
    assert found["export_failed"].keys() == {"fp32"}
    assert "No engine is left" in found["export_failed"]["fp32"]
    assert "onnxruntime-fp16" in found["engines"]
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)  # as where they are not installed
    with pytest.raises(RuntimeError, match=r"No engine can be judged here.* \| No engine can be judged here"):
        gpu.export_it(tmp_path, argparse.Namespace(), 0.0, lambda **what: found.update(what))


def test_a_gpu_that_tensorrt_rtx_has_no_target_for_is_said() -> None:
    assert gpu.without_rtx(("NVIDIA H200", "9.0")) == {
        "TensorRT-RTX": "its plans do not run on NVIDIA H200: it has no target for compute capability 9.0"
    }
    assert gpu.without_rtx(("NVIDIA L4", "8.9")) == gpu.without_rtx(None) == {}


def test_the_fastest_engine_is_one_that_opens_here(bundle: Bundle) -> None:
    found = gpu.fastest(bundle)
    bundle.open(found.name).close()
    assert (found.backend, found.precision) == ("onnxruntime", "int8") or machine.gpu()


def test_without_onnxruntime_the_fastest_engine_is_another(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = gpu.fastest(bundle)
    assert found.backend != "onnxruntime"
    bundle.open(found.name).close()


@pytest.mark.parametrize(
    ("engines", "provider", "fastest"),
    [
        (["tensorrt-fp32", "tensorrt-int8", "tensorrt-fp16", "onnxruntime-fp16"], "cuda", "tensorrt-fp16"),
        (["onnxruntime-fp32", "onnxruntime-int8"], "cuda", "onnxruntime-fp32"),  # int8 runs on the CPU
        (["onnxruntime-fp16", "onnxruntime-int8", "openvino-int8"], "cpu", "onnxruntime-int8"),
        (["openvino-bf16", "openvino-int8"], "cuda", "openvino-int8"),
    ],
)
def test_the_fastest_on_a_gpu_is_fp16_and_on_a_cpu_int8(
    monkeypatch: pytest.MonkeyPatch, engines: list[str], provider: str, fastest: str
) -> None:
    monkeypatch.setattr("sattrt.runtime.ort.this_place", lambda: {"provider": provider})
    records = tuple(EngineRecord(name, *name.rsplit("-", 1), name, {}) for name in engines)
    assert gpu.fastest(SimpleNamespace(engines=records, open=lambda name: io.BytesIO())).name == fastest
