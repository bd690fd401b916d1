"""Optimizers take the steps that their papers and torch say, schedules the rates that torch's schedulers give."""

from typing import Any

import pytest
import torch

from sattrt.rmldnn.config import OPTIONS, OptimizerConfig, SchedulerConfig
from sattrt.rmldnn.optimizer import make_optimizer, rate_at


def config(kind: str, scheduler: SchedulerConfig | None = None, **options: Any) -> OptimizerConfig:
    return OptimizerConfig(kind=kind, learning_rate=0.1, options={**OPTIONS[kind], **options}, scheduler=scheduler)


def stepped(kind: str, **options: Any) -> torch.Tensor:
    """A weight of ones after one step down the gradient (1, 2, 3, 4)."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    make_optimizer([weight], config(kind, **options)).step()
    return weight.detach()


def test_one_step_of_each() -> None:
    pytest.importorskip("timm", reason="LARS and LAMB are timm's")
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ones = torch.ones(2, 2)
    expected = {
        "SGD": ones - 0.1 * gradient,
        "Adagrad": ones - 0.1,  # the gradient over its own size
        "Adam": ones - 0.1,
        "AdamW": ones - 0.1,
        "RMSprop": ones - 0.1 / (1 - 0.99) ** 0.5,
        "LARS": ones - 0.1 * 1e-3 * ones.norm() / gradient.norm() * gradient,
        "LAMB": ones - 0.1 * ones.norm() / ones.norm(),
    }
    for kind, weight in expected.items():
        torch.testing.assert_close(stepped(kind), weight, atol=1e-4, rtol=1e-4, msg=kind)


def test_weight_decay_is_coupled_in_adam_and_not_in_adamw() -> None:
    ones = torch.ones(2, 2)
    torch.testing.assert_close(stepped("AdamW", weight_decay=0.5), ones * (1 - 0.1 * 0.5) - 0.1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stepped("Adam", weight_decay=0.5), ones - 0.1, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "theirs"),
    [
        (SchedulerConfig(kind="Step", gamma=0.5, step_size=2), lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)),
        (
            SchedulerConfig(kind="MultiStep", gamma=0.5, milestones=(2, 3, 7)),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 3, 7], 0.5),
        ),
        (SchedulerConfig(kind="Exponential", gamma=0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (
            SchedulerConfig(kind="Warmup", num_epochs=5, start_factor=0.2),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.2, total_iters=5),
        ),
    ],
    ids=["Step", "MultiStep", "Exponential", "Warmup"],
)
def test_schedules_are_torchs(scheduler: SchedulerConfig, theirs: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    schedule = theirs(optimizer)
    for epoch in range(10):
        assert rate_at(config("SGD", scheduler), epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
