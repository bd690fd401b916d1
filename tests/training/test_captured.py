from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from sattrt.data.dataset import Dataset
from sattrt.training import loop
from sattrt.training.captured import captured
from sattrt.training.log import read_log
from sattrt.training.loop import Observer, Plan, train

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


def test_where_nothing_can_be_recorded_the_passes_stay_and_the_network_too() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    images, labels = torch.rand(8, 3), torch.zeros(8)

    def gradient(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model(images)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    assert captured(gradient, model, images, labels)[0] is gradient
    assert captured(gradient, model, images, labels)[1].startswith("no CUDA graph: ")
    assert model[0].running_mean.eq(0).all()
    assert model[0].num_batches_tracked == 0


@needs_gpu
@pytest.mark.parametrize(
    "changes", [{}, {"mixup": 0.2, "cutmix": 1.0}, {"tune": "bn", "ema": 0.9}, {"precision": "auto", "image_size": 96}]
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
