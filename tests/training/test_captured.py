from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from sattrt.data.dataset import Dataset
from sattrt.training import loop
from sattrt.training.captured import captured
from sattrt.training.log import read_log
from sattrt.training.loop import train
from sattrt.training.observer import Observer, Plan

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can record")
def test_where_nothing_can_be_recorded_the_passes_stay_and_the_network_too() -> None:
    passes: list[float] = []
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    images, labels = torch.rand(8, 3), torch.zeros(8)

    def gradient(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(float(model[0].running_mean.sum()))
        return model(images).square().sum().detach(), torch.ones(())

    found, why = captured(gradient, model, images, labels)
    assert found is gradient
    assert why.startswith("no CUDA graph: ")
    assert passes[1] > 0  # the passes before the recording moved it
    assert model[0].running_mean.eq(0).all()
    assert model[0].num_batches_tracked == 0


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"mixup": 0.2, "cutmix": 1.0}, {"tune": "bn", "ema": 0.9}, {"crop": 0.6, "colour": 0.2}, {"precision": "auto", "image_size": 96}],
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
    monkeypatch.setattr(loop, "captured", lambda gradient, *_: (gradient, ""))
    train(dataset, tmp_path / "eager", config)
    losses = [[row["train_loss"] for row in read_log(tmp_path / name / "log.csv")] for name in ("graph", "eager")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
