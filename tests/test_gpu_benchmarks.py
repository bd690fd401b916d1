"""What the benchmarks for a GPU do where something goes wrong; what they measure needs one."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


SWALLOWED = """
import time
import gpu

class Swallows:
    def __del__(self):
        time.sleep(1.5)

gpu.SECONDS_BETWEEN_ALARMS = 1
try:
    with gpu.at_most(1):
        Swallows()
        time.sleep(60)
except gpu.TooLong:
    time.sleep(2)  # none comes any more
    print("stopped")
"""


def test_a_stage_whose_first_alarm_is_swallowed_is_stopped_by_the_next() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent)))}
    # in a process of its own, as the alarm is the process's
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, env=environment, timeout=50)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
    assert "Exception ignored" in done.stderr  # the first one


def test_the_fastest_engine_is_one_that_opens_here(bundle: Bundle) -> None:
    found = gpu.fastest(bundle)
    bundle.open(found.name).close()
    assert (found.backend, found.precision) == ("onnxruntime", "int8") or machine.gpu()
