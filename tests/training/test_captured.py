import gc
import re
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, WEIGHTS

from sattrt.data.dataset import Dataset
from sattrt.machine import cpu_has_bf16
from sattrt.model import TileClassifier, load_weights
from sattrt.training import step
from sattrt.training.captured import captured, fault_of
from sattrt.training.log import read_log
from sattrt.training.loop import train
from sattrt.training.observer import Observer, Plan
from sattrt.training.ranks import Rank

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu_training import RUNS

needs_weights = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="a network of random weights is thrown off by any rounding: ../shared/data has trained ones"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can record")
def test_where_nothing_can_be_recorded_the_passes_stay_and_the_network_too() -> None:
    passes: list[float] = []
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    images, labels = torch.rand(8, 3), torch.zeros(8)

    def gradient(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(float(model[0].running_mean.sum()))
        return model(images).square().sum().detach(), torch.ones(())

    found, why = captured(gradient, model, images, labels, "fp32")
    assert found is gradient
    assert why.startswith("no CUDA graph: ")
    assert passes[1] > 0  # the passes before the recording moved it
    assert model[0].running_mean.eq(0).all()
    assert model[0].num_batches_tracked == 0


def test_the_error_that_ended_a_recording_is_the_one_that_is_said() -> None:
    def gradient(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            raise ValueError("operation not permitted when stream is capturing\nFor debugging pass CUDA_LAUNCH_BLOCKING=1")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")  # as torch does

    _, why = captured(gradient, torch.nn.Linear(1, 1), torch.rand(2, 1), torch.zeros(2), "fp32")
    assert why == "no CUDA graph: operation not permitted when stream is capturing"


def test_a_recording_that_fails_keeps_no_memory() -> None:
    taken: list[weakref.ref[torch.Tensor]] = []

    def gradient(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        activations = images.clone()
        taken.append(weakref.ref(activations))
        raise RuntimeError("CUDA out of memory")

    gc.disable()  # the next step may need the memory before it is collected
    try:
        captured(gradient, torch.nn.Linear(1, 1), torch.rand(2, 1), torch.zeros(2), "fp32")
        assert [each() for each in taken] == [None]
    finally:
        gc.enable()


def step_on_a_gpu(dataset: Dataset, precision: str = "bf16", **changes: Any) -> step.TrainStep:
    """A step that takes the device for a GPU; its network is on the CPU."""
    model = TileClassifier(3, (0.3, 0.4, 0.4), (0.2, 0.2, 0.2))
    return step.TrainStep(model, dataset, replace(SMALL, **changes), Rank(0, 1, torch.device("cuda", 0), 1), precision)


def test_convolutions_are_tuned_where_there_are_many_tiles_not_many_steps(dataset: Dataset) -> None:
    train = tuple(dataset.tiles("train"))
    eurosat = replace(dataset, all_tiles=train * (19_440 // len(train)))
    assert step_on_a_gpu(eurosat, epochs=RUNS["quick"]["epochs"], batch_size=256).tunes
    assert not step_on_a_gpu(eurosat, epochs=RUNS["fast"]["epochs"], batch_size=16).tunes


def test_a_recorded_step_says_how_long_it_took_and_any_other_why_it_is_none(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.TrainStep, "_example", lambda made: (torch.zeros(1), torch.zeros(1, dtype=torch.int64)))
    monkeypatch.setattr(step, "captured", lambda gradient, *_: (gradient, ""))
    said: list[str] = []
    made = step_on_a_gpu(dataset)
    for tunes, expected in (
        (False, r"A step was recorded as a CUDA graph in \d+\.\d s"),
        (True, r"Convolutions were tuned and a step recorded as a CUDA graph in \d+\.\d s"),
    ):
        made.tunes = tunes
        assert made.record(said.append) == ""
        assert re.fullmatch(expected, said.pop())
    made._rank = replace(made._rank, world=2)
    assert made.record(said.append) == "no CUDA graph: several processes"
    assert step_on_a_gpu(dataset, "fp16").record(said.append) == "no CUDA graph: fp16's gradient scaler"
    monkeypatch.setattr(step, "captured", lambda gradient, *_: (gradient, "no CUDA graph: its loss is 9.0% off"))
    assert step_on_a_gpu(dataset).record(said.append) == "no CUDA graph: its loss is 9.0% off"
    assert said == []


@needs_weights
@pytest.mark.skipif(not cpu_has_bf16(), reason="torch computes bf16 otherwise where the CPU does not multiply it")
def test_a_replay_that_rounds_otherwise_is_taken_and_one_that_is_wrong_is_not() -> None:
    torch.manual_seed(0)
    model = TileClassifier(10, (0.3, 0.4, 0.4), (0.2, 0.2, 0.2)).to(memory_format=torch.channels_last).train()
    load_weights(model, str(WEIGHTS))
    images, labels = torch.randint(0, 256, (64, 64, 64, 3)).float(), torch.arange(64) % 10

    def outcome(images: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        return [loss.detach(), torch.nn.utils.get_total_norm(gradients), *gradients]

    expected, other = outcome(images), outcome(images.flip(0))
    twice = [*expected[:1], *(2 * each for each in expected[1:])]  # as where gradients add up
    nothing = [*expected[:2], *(torch.zeros_like(each) for each in expected[2:])]
    for precision in ("fp32", "bf16"):
        assert fault_of(expected, expected, other, precision) == ""
        assert fault_of(twice, expected, other, precision) == "the norm of its gradients is 100.0% off"
        assert fault_of([*expected[:2], *other[2:]], expected, other, precision).startswith(
            "its gradients are 1"
        )  # left from another batch
        assert fault_of(nothing, expected, other, precision) == "its gradients are 100.0% off"
        assert fault_of([1.1 * expected[0], *expected[1:]], expected, other, precision) == "its loss is 10.0% off"
        assert fault_of([each * torch.nan for each in expected], expected, other, precision) == "its loss is nan% off"
    with torch.no_grad():
        for each in model.parameters():
            each *= 1 + 1e-7 * torch.randn(each.shape)  # other roundings all the way
    again = outcome(images)
    assert fault_of(again, expected, other, "bf16") == ""
    assert fault_of(again, expected, other, "fp32").endswith("% off")  # where rounding does not explain it


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixup": 0.2, "cutmix": 1.0},
        {"tune": "bn", "ema": 0.9},
        {"optimizer": "adamw", "learning_rate": 1e-3, "layer_decay": 0.7, "ema": 0.9},
        {"minutes": 60.0},  # a copy is recorded before, to measure its speed
        {"crop": 0.6, "colour": 0.2},
        pytest.param({"precision": "auto", "image_size": 96, "weights": str(WEIGHTS)}, marks=needs_weights),
    ],
)
def test_a_recorded_step_trains_as_one_that_is_not(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    class Watch(Observer):
        def started(self, plan: Plan) -> None:
            self.slower = plan.slower

    watch, config = Watch(), replace(SMALL, epochs=1, **changes)
    train(dataset, tmp_path / "graph", config, watch)
    assert watch.slower == ""
    monkeypatch.setattr(step, "captured", lambda gradient, *_: (gradient, ""))
    train(dataset, tmp_path / "eager", config)
    losses = [[row["train_loss"] for row in read_log(tmp_path / name / "log.csv")] for name in ("graph", "eager")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
