"""Several processes with gloo on this machine's CPU, started as a user would start them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import running, steps_done

from sattrt import checkpoint
from sattrt.data.dataset import Dataset
from sattrt.errors import BackendError
from sattrt.model import TileClassifier
from sattrt.training.config import TrainConfig
from sattrt.training.cpu import use_products
from sattrt.training.hardware import across_ranks
from sattrt.training.log import read_log
from sattrt.training.loop import train
from sattrt.training.ranks import Rank, ranks
from sattrt.training.syncnorm import synchronise_batchnorm

ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
CPU = torch.device("cpu")


def launch(dataset_folder: Path, tmp_path: Path, epochs: int, *options: str) -> list[str]:
    settings = (
        f'weights = "none"\nbatch_size = 16\nepochs = {epochs}\nlearning_rate = 0.005\nprecision = "fp32"\nmixup = 1.0\ncutmix = 1.0\n'
    )
    (tmp_path / "c.toml").write_text(settings)
    run = [str(dataset_folder), "--out", str(tmp_path / "run"), "--config", str(tmp_path / "c.toml")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return [*torchrun, "-m", "sattrt", "train", *run]


def kill_rank(number: int, run: Path) -> None:
    """SIGKILL to the process of a rank, once the run has a checkpoint with steps in it."""
    end = time.monotonic() + 180
    while not steps_done(run / "last.safetensors"):
        assert time.monotonic() < end, "the run did not begin"
        time.sleep(0.1)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes().split(b"\0"), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RANK={number}".encode() in environment and str(run).encode() in command:
            os.kill(int(entry.name), signal.SIGKILL)
            return
    pytest.fail("the rank's process was not found")


def test_two_processes_make_the_steps_of_one(dataset_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(launch(dataset_folder, tmp_path, 1), capture_output=True, text=True, timeout=300, env=ON_CPU)
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    dataset = Dataset.read(dataset_folder)
    first, *_, last = read_log(tmp_path / "run" / "log.csv")
    assert last["step"] == len(dataset.tiles("train")) // 16
    train(dataset, tmp_path / "alone", TrainConfig.from_toml(tmp_path / "c.toml"))
    assert first["train_loss"] == pytest.approx(read_log(tmp_path / "alone" / "log.csv")[0]["train_loss"], rel=1e-4)  # mixed alike


def count_and_be_lost(number: int, port: int, folder: str) -> None:
    """Rank 0 counts together with rank 1, which then ends without a word, and writes down what it is told of that."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with ranks(1) as rank:
            counted = rank.sum(number + 1, 1)
            if number == 1:
                os._exit(0)
            rank.sum(1)
    except BackendError as error:
        Path(folder, "said").write_text(f"{counted}: {error}")


def test_a_process_that_is_lost_is_one_line_to_those_that_are_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(count_and_be_lost, (port, str(tmp_path)), nprocs=2)
    said = (tmp_path / "said").read_text()
    assert said.startswith("[3.0, 2.0]: Rank 0 lost another of the 2 processes (")
    assert "sattrt train continues with --resume" in said
    assert len(said.splitlines()) == 1


def test_a_rank_that_dies_ends_the_run_and_is_named(dataset_folder: Path, tmp_path: Path) -> None:
    with running(launch(dataset_folder, tmp_path, 1000), stderr=subprocess.PIPE, env=ON_CPU) as process:
        kill_rank(1, tmp_path / "run")
        _, said = process.communicate(timeout=60)
    assert process.returncode > 0
    assert "rank      : 1 (local_rank: 1)" in said
    assert "Signal 9 (SIGKILL)" in said
    assert checkpoint.read_state(tmp_path / "run" / "last.safetensors")["step"] > 0


def test_a_restart_goes_on_from_the_last_checkpoint(dataset_folder: Path, tmp_path: Path) -> None:
    command = launch(dataset_folder, tmp_path, 6, "--max-restarts", "1")
    with open(tmp_path / "said", "w+") as said, running(command, stderr=said, env=ON_CPU) as process:
        kill_rank(1, tmp_path / "run")
        assert process.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    assert ", from step " in (tmp_path / "said").read_text()
    steps = 6 * (len(Dataset.read(dataset_folder).tiles("train")) // 16)
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == list(range(1, steps + 1))


def test_a_restart_does_not_go_on_with_the_run_of_another_launch(dataset_folder: Path, run: Path, tmp_path: Path) -> None:
    before = (run / "last.safetensors").stat().st_mtime_ns
    command = launch(dataset_folder, tmp_path, 4, "--max-restarts", "1")
    command[command.index("--nproc-per-node") + 1] = "1"
    command[command.index("--out") + 1] = str(run)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ON_CPU)
    assert done.returncode != 0
    assert done.stderr.count("Continue with --resume") == 2, done.stderr  # the first start and the second
    assert "validation accuracy" not in done.stdout
    assert (run / "last.safetensors").stat().st_mtime_ns == before


def gradients(rank: int, world: int, folder: str) -> None:
    """One backward pass over this rank's share of 16 tiles; the first rank saves gradients and statistics."""
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = TileClassifier(3, (0.3, 0.4, 0.5), (0.2, 0.2, 0.2)).double().to(memory_format=torch.channels_last).train()
    use_products(model)
    tiles, labels = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8), torch.arange(16) % 3
    share = slice(rank * 16 // world, (rank + 1) * 16 // world)
    net: torch.nn.Module = model
    if world > 1:
        synchronise_batchnorm(model, CPU)
        net = across_ranks(model, Rank(rank, world, CPU, 1))
    torch.nn.functional.cross_entropy(net(tiles[share]), labels[share]).backward()
    if rank == 0:
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save({**found, **{name: value for name, value in model.state_dict().items() if "running" in name}}, f"{folder}/{world}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_halves_of_a_batch_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    for world in (1, 2):
        torch.multiprocessing.spawn(gradients, (world, str(tmp_path)), nprocs=world)
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        difference = float((two[name] - expected).norm() / expected.norm())
        assert difference < 1e-9, (name, difference)  # in float64: BatchNorm blows rounding up


def test_processes_that_can_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(BackendError, match=f"can't meet at 127.0.0.1:{port} "), ranks():
            pass
