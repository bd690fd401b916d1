"""`sattrt train --verify-resume`: a short run is killed at random moments and resumed, and must end as one that never was.

    report = verify_resume(dataset, TrainConfig(), kills=3)

The processes and the SIGKILLs are real; so are the settings, but for the number of tiles, the batch and the epochs.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..data.dataset import Dataset, balanced
from ..errors import ContractError, InputError
from . import checkpoint
from .config import TrainConfig

EPOCHS, STEPS_PER_EPOCH, LARGEST_BATCH, VALID_TILES = 3, 6, 16, 32


@dataclass(frozen=True)
class Verified:
    """kills: how often the run was killed; tensors: how many are the same bit for bit; steps: of the run."""

    kills: int
    tensors: int
    steps: int


def verify_resume(dataset: Dataset, config: TrainConfig, kills: int = 3, seed: int = 0) -> Verified:
    """Compare a run that is killed `kills` times with one that is not. ContractError where a single bit differs."""
    batch = min(config.batch_size, LARGEST_BATCH)
    train = balanced(dataset.tiles("train"), batch * STEPS_PER_EPOCH)
    share = replace(dataset, all_tiles=(*train, *balanced(dataset.tiles("valid"), VALID_TILES)))
    short = replace(config, epochs=EPOCHS, batch_size=batch, minutes=None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        share.write(folder)
        settings = {key: value for key, value in short.to_dict().items() if value is not None}
        (folder / "settings.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        begin = time.monotonic()
        whole, killed = folder / "whole", folder / "killed"
        _finish(_start(folder, whole), whole)
        duration = time.monotonic() - begin
        draw = random.Random(seed)
        done = 0
        while done < kills:
            process = _start(folder, killed)
            moment = time.monotonic() + draw.uniform(0, duration)
            while time.monotonic() < moment and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                done += 1
            elif process.returncode:
                _finish(process, killed)
            else:  # it came to its end before its time: begin again
                process.communicate()
                shutil.rmtree(killed)
            process.wait()
        _finish(_start(folder, killed), killed)
        return _compare(whole, killed, done)


def _start(folder: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sattrt", "train", str(folder), "--out", str(out)]
    command += ["--resume"] if (out / "last.safetensors").exists() else ["--config", str(folder / "settings.toml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str], out: Path) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise InputError(f"The short run in {out} failed: {said.strip().splitlines()[-1]}")


def _compare(whole: Path, killed: Path, kills: int) -> Verified:
    tensors = 0
    for name in ("last.safetensors", "best.safetensors"):
        (expected, state), (found, _) = checkpoint.load(whole / name), checkpoint.load(killed / name)
        other = [key for key in expected if key not in found or not torch.equal(expected[key], found[key])]
        if other or len(found) != len(expected):
            raise ContractError(
                f"A resumed run ends with other weights: {len(other)} of {len(expected)} tensors of {name} differ, "
                f"{(other or ['?'])[0]!r} first. Train without interruption, and report this."
            )
        tensors += len(expected)
    return Verified(kills, tensors, int(state["step"]))
