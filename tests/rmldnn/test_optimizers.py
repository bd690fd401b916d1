"""Optimizers take the steps that their papers and torch say, schedules the rates that torch's schedulers give."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sattrt.rmldnn.config import OPTIONS, OptimizerConfig, SchedulerConfig
from sattrt.rmldnn.optimizer import make_optimizer, rate_at

Array = NDArray[np.float64]
Options = dict[str, Any]
TOLERANCE = 1e-10


def config(kind: str, scheduler: SchedulerConfig | None = None, **options: Any) -> OptimizerConfig:
    return OptimizerConfig(kind=kind, learning_rate=0.1, options={**OPTIONS[kind], **options}, scheduler=scheduler)


WEIGHT = np.array([1.0, -2.0, 0.5, 3.0])
GRADIENTS = np.array([[1.0, 2.0, -3.0, 4.0], [-0.3, 0.1, 0.2, 0.4], [5.0, -1.0, 0.0, 0.2]])
RATE = 0.1


def stepped(kind: str, options: dict[str, Any]) -> Array:
    """`WEIGHT` in float64 after a step down each of `GRADIENTS`."""
    weight = torch.nn.Parameter(torch.from_numpy(WEIGHT.copy()))
    optimizer = make_optimizer([weight], config(kind, **options))
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return weight.detach().numpy()


# the steps as papers and torch's documentation write them; w: weight, g: gradient, n: of the step, from 1


def momentum(g: Array, before: Array | None, o: Options) -> tuple[Array, Array]:
    """What is stepped down, and the velocity: the first one is the gradient itself."""
    velocity = g if before is None else o["momentum"] * before + (1 - o["dampening"]) * g
    return (g + o["momentum"] * velocity if o["nesterov"] else velocity), velocity


def sgd(w: Array, o: Options) -> Array:
    velocity = None
    for g in GRADIENTS:
        down, velocity = momentum(g + o["weight_decay"] * w, velocity, o)
        w = w - RATE * down
    return w


def lars(w: Array, o: Options) -> Array:
    """You et al., 2017: the rate of a layer is the size of its weights over that of its gradient."""
    velocity = None
    for g in GRADIENTS:
        size = np.linalg.norm(w)
        trust = o["eta"] * size / (np.linalg.norm(g) + o["weight_decay"] * size)
        down, velocity = momentum(trust * (g + o["weight_decay"] * w), velocity, o)
        w = w - RATE * down
    return w


def adagrad(w: Array, o: Options) -> Array:
    squares = np.zeros(4)
    for n, g in enumerate(GRADIENTS, 1):
        g = g + o["weight_decay"] * w
        squares = squares + g**2
        w = w - RATE / (1 + (n - 1) * o["lr_decay"]) * g / (np.sqrt(squares) + 1e-10)
    return w


def rmsprop(w: Array, o: Options) -> Array:
    squares, mean, velocity = np.zeros(4), np.zeros(4), np.zeros(4)
    for g in GRADIENTS:
        g = g + o["weight_decay"] * w
        squares = o["alpha"] * squares + (1 - o["alpha"]) * g**2
        mean = o["alpha"] * mean + (1 - o["alpha"]) * g
        spread = np.sqrt(squares - mean**2 if o["centered"] else squares) + o["eps"]
        velocity = o["momentum"] * velocity + g / spread
        w = w - RATE * velocity
    return w


def adaptive(w: Array, o: Options, kind: str) -> Array:
    """Adam (Kingma and Ba, 2015), AdamW (Loshchilov and Hutter, 2017), LAMB (You et al., 2020)."""
    first, second, largest = np.zeros(4), np.zeros(4), np.zeros(4)
    for n, g in enumerate(GRADIENTS, 1):
        g = g + (o["weight_decay"] * w if kind == "Adam" else 0)
        first = o["beta1"] * first + (1 - o["beta1"]) * g
        second = o["beta2"] * second + (1 - o["beta2"]) * g**2
        largest = np.maximum(largest, second)
        spread = np.sqrt((largest if o["amsgrad"] else second) / (1 - o["beta2"] ** n)) + o["eps"]
        down = first / (1 - o["beta1"] ** n) / spread + (o["weight_decay"] * w if kind != "Adam" else 0)
        trust = np.linalg.norm(w) / np.linalg.norm(down) if kind == "LAMB" else 1.0
        w = w - RATE * trust * down
    return w


REFERENCES = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "Adam": partial(adaptive, kind="Adam"),
    "AdamW": partial(adaptive, kind="AdamW"),
    "RMSprop": rmsprop,
    "LARS": lars,
    "LAMB": partial(adaptive, kind="LAMB"),
}
# each option of each, away from its default
OTHERS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2}, {"momentum": 0.8, "nesterov": True}],
    "Adagrad": [{"lr_decay": 0.5, "weight_decay": 0.2}],
    "Adam": [{"beta1": 0.7, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.2}, {"beta2": 0.5, "amsgrad": True}],
    "AdamW": [{"beta1": 0.7, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.2}, {"beta2": 0.5, "amsgrad": True}],
    "RMSprop": [{"momentum": 0.8, "alpha": 0.9, "eps": 0.1, "weight_decay": 0.2}, {"centered": True}],
    "LARS": [{"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2, "eta": 0.02}, {"momentum": 0.8, "nesterov": True}],
    "LAMB": [{"beta1": 0.7, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.2}],
}
CASES = [(kind, options) for kind in REFERENCES for options in ({}, *OTHERS[kind])]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{kind}-{'-'.join(options) or 'defaults'}" for kind, options in CASES])
def test_three_steps_of_each(kind: str, options: dict[str, Any]) -> None:
    if kind in ("LARS", "LAMB"):
        pytest.importorskip("timm", reason="LARS and LAMB are timm's")
    known = {**OPTIONS[kind], **options}
    np.testing.assert_allclose(stepped(kind, options), REFERENCES[kind](WEIGHT, known), rtol=TOLERANCE)


def test_every_option_is_tried() -> None:
    for kind, tried in OTHERS.items():
        assert {key for options in tried for key in options} == set(OPTIONS[kind]) - ({"amsgrad"} if kind == "LAMB" else set())
        for options in tried:
            for key in options:
                default = {**OPTIONS[kind], **options, key: OPTIONS[kind][key]}
                assert not np.allclose(REFERENCES[kind](WEIGHT, default), REFERENCES[kind](WEIGHT, {**OPTIONS[kind], **options}), rtol=1e-4)


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
