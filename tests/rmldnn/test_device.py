"""A step puts nothing on the device that the step before has put there, and waits for no copy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sattrt.rmldnn.config import LossConfig, _transforms
from sattrt.rmldnn.evaluation import weighed_loss
from sattrt.rmldnn.network import GreyConv2d

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="copies are waited for on an NVIDIA GPU")


class Made(TorchFunctionMode):
    """Names of the functions that make tensors out of Python's numbers, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tensor", "as_tensor", "new_tensor"):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def parts(device: torch.device) -> list[Callable[[], Any]]:
    """What of a step has numbers of the configuration in it."""
    rim = [{"normalize": {"mean": [0.1, 0.2, 0.3], "std": 0.2}}, {"rotate": 20}, {"random_rotate": 10}]
    tiles = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device=device)
    views = _transforms(rim, "transforms").views(32, 32, 4, np.random.default_rng(0))
    grey, pixels = GreyConv2d(1, 64, 7, 2, 3, bias=False).to(device), torch.rand(4, 3, 32, 32, device=device)
    logits, labels = torch.rand(4, 3, device=device, requires_grad=True), torch.tensor([0, 1, 2, 1], device=device)
    return [lambda: views.show(tiles), lambda: grey(pixels), lambda: weighed_loss(logits, labels, LossConfig(weight=(1.0, 2.0, 0.5)))]


def test_numbers_of_the_configuration_become_tensors_once() -> None:
    steps = parts(torch.device("cpu"))
    for each in steps:
        each()
    with Made() as made:
        for each in steps:
            each()
    assert made.names == []


def test_what_an_evaluation_has_put_there_a_gradient_can_use() -> None:
    weight, labels = (0.25, 4.0, 1.0), torch.tensor([0, 1, 2])  # weights that no other test has
    with torch.inference_mode():
        weighed_loss(torch.rand(3, 3), labels, LossConfig(weight=weight))
    logits = torch.rand(3, 3, requires_grad=True)
    total, _ = weighed_loss(logits, labels, LossConfig(weight=weight))
    total.backward()
    assert isinstance(logits.grad, Tensor)


def test_what_makes_grey_is_no_weight() -> None:
    assert list(GreyConv2d(1, 64, 7, 2, 3, bias=False).state_dict()) == ["weight"]


@needs_gpu
def test_no_copy_to_a_gpu_is_waited_for() -> None:
    steps = parts(torch.device("cuda"))
    for each in steps:
        each()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in steps:
            each()
    finally:
        torch.cuda.set_sync_debug_mode("default")
