"""`sattrt train --verify-resume`: a short run is killed at random moments and resumed, and must end as one that never was.

    report = verify_resume(dataset, TrainConfig(), kills=3)

The processes and the SIGKILLs are real; so are the settings, but for the number of tiles, the batch, the epochs, and a checkpoint after
every step, so that a run is resumed within an epoch as well as between two. It runs on the CPU, also where there is a GPU: there cuDNN chooses its algorithms by timing, so that no two processes
need agree in every bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from .. import checkpoint
from ..data.dataset import Dataset, balanced
from ..errors import ContractError, InputError, SattrtError
from .config import TrainConfig
from .loop import train

EPOCHS, STEPS_PER_EPOCH, LARGEST_BATCH, VALID_TILES = 2, 6, 16, 16
# every process is a fork of one that has done no more than import: so the moments of death fall into the work, not into the imports
_PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Verified:
    """kills: how often a run was killed; runs: how many came to their end of those that were killed, on average `kills / runs` times, and resumed;
    tensors: how many of each are the same bit for bit; steps: of a run."""

    kills: int
    runs: int
    tensors: int
    steps: int


def verify_resume(dataset: Dataset, config: TrainConfig, kills: int = 3, seed: int = 0) -> Verified:
    """Compare runs that are killed, `kills` times in all, with one that is not. ContractError where a single bit differs."""
    batch = min(config.batch_size, LARGEST_BATCH)
    share = _share(dataset, batch * STEPS_PER_EPOCH)
    short = replace(config, epochs=EPOCHS, batch_size=batch, minutes=None)
    _PROCESSES.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as started:  # whoever still runs is ended before its folder is gone
        whole, killed = Path(name, "whole"), Path(name, "killed")
        _finish(_start(share, short, killed, started), killed)  # the first one waits for the imports
        shutil.rmtree(killed)
        begin = time.monotonic()
        _finish(_start(share, short, whole, started), whole)
        duration = time.monotonic() - begin
        draw = random.Random(seed)
        done = runs = 0
        while True:
            process = _start(share, short, killed, started)
            if done < kills:
                process.join(draw.uniform(0, duration))
                if process.is_alive():
                    process.kill()
                    process.join()
                if process.exitcode == -signal.SIGKILL:
                    done += 1
                    continue
            _finish(process, killed)
            tensors, steps = _compare(whole, killed)
            runs += 1
            if done == kills:
                return Verified(done, runs, tensors, steps)
            shutil.rmtree(killed)  # it came to its end before its time: begin another


def _share(dataset: Dataset, train_tiles: int) -> Dataset:
    """A few tiles of every class to train on and to validate with; the others stay where they are, as tests."""
    wanted = (("train", train_tiles), ("valid", VALID_TILES))
    chosen = {tile.name for split, count in wanted for tile in balanced(dataset.tiles(split), max(count, len(dataset.classes)))}
    return replace(dataset, all_tiles=tuple(tile if tile.name in chosen else replace(tile, split="test") for tile in dataset.all_tiles))


def _start(dataset: Dataset, config: TrainConfig, out: Path, started: contextlib.ExitStack) -> BaseProcess:
    process = _PROCESSES.Process(target=_train, args=(dataset, config, out))
    process.start()
    started.callback(process.join)
    started.callback(process.kill)  # before the join: callbacks are called in reverse order
    return process


def _train(dataset: Dataset, config: TrainConfig, out: Path) -> None:
    """What `sattrt train` does, in a process of its own and on its CPU; what it refuses goes into a file beside the run."""
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent's to answer
        signal.signal(number, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing has asked for a GPU in this process yet
    try:
        train(dataset, out, None if (out / "last.safetensors").exists() else config, interval=0)
    except SattrtError as error:
        _said(out).write_text(str(error))
        os._exit(1)


def _said(out: Path) -> Path:
    return out.with_suffix(".error")


def _finish(process: BaseProcess, out: Path) -> None:
    process.join()
    if process.exitcode:
        said = _said(out).read_text() if _said(out).exists() else f"exit code {process.exitcode}"
        raise InputError(f"The short run failed: {said}")


def _compare(whole: Path, killed: Path) -> tuple[int, int]:
    """Tensors that are the same bit for bit, and steps. ContractError where one is not."""
    tensors = 0
    for name in ("best.safetensors", "last.safetensors"):
        (expected, state), (found, _) = checkpoint.load(whole / name), checkpoint.load(killed / name)
        other = [key for key in expected if key not in found or not torch.equal(expected[key], found[key])]
        if other or len(found) != len(expected):
            raise ContractError(
                f"A resumed run ends with other weights: {len(other)} of {len(expected)} tensors of {name} differ, "
                f"{(other or ['?'])[0]!r} first. Train without interruption, and report this."
            )
        tensors += len(expected)
    return tensors, int(state["step"])
