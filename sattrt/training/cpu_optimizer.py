"""torch's fused SGD, Adam and AdamW as they are fast on a CPU: for weights that are channels_last, and for a network in bf16.

optimizer = RoundingAdam(layers, model.parameters(), 1e-3)     # layers: ProductConv2d
optimizer.zero_grad()                                          # before every forward pass: the copies in bf16 are made here
loss(model).backward()
norm = optimizer.step()
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as adam_step
from torch.optim.sgd import sgd as sgd_step

from .compiled import compiled
from .cpu import ProductConv2d


class MemoryOrderSGD(torch.optim.SGD):
    """torch's fused SGD for weights on a CPU that are channels_last: it copies a gradient whose memory is in another order than its
    dimensions (a third of its time for ResNet-50), so it is shown all three tensors in the order of their memory."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
        for group in self.param_groups:
            triples = [_in_memory_order(p, p.grad, self.state[p]["momentum_buffer"]) for p in group["params"] if p.grad is not None]
            if triples:
                parameters, gradients, buffers = map(list, zip(*triples, strict=True))
                sgd_step(
                    parameters,
                    gradients,
                    buffers,
                    fused=True,
                    foreach=False,
                    **{name: group[name] for name in ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")},
                )


class MemoryOrderAdam(torch.optim.Adam):
    """torch's fused Adam and AdamW, in the same way."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
        for group in self.param_groups:
            rows: list[tuple[Tensor, ...]] = []
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self._state_of(parameter)
                    rows.append((*_in_memory_order(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]), state["step"]))
            if rows:
                parameters, gradients, averages, squares, steps = map(list, zip(*rows, strict=True))
                adam_step(
                    parameters,
                    gradients,
                    averages,
                    squares,
                    [],
                    steps,
                    fused=True,
                    foreach=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    **{name: group[name] for name in ("weight_decay", "decoupled_weight_decay", "lr", "eps", "amsgrad", "maximize")},
                )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def _in_memory_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors (N, C, H, W) as views (N, H, W, C) where all of them are channels_last; others as they are."""
    if all(each.ndim == 4 and each.is_contiguous(memory_format=torch.channels_last) for each in tensors):
        return tuple(each.permute(0, 2, 3, 1) for each in tensors)
    return tensors


class RoundingAdam(MemoryOrderAdam):
    """Adam and AdamW for a network whose convolutions are computed in bf16: these have a copy of their weight in bf16, whose gradient is in bf16.

    Under autocast every step reads the weights to round them, and writes their gradients out in float. Here one pass over a weight and
    its gradient (`adam.c`) makes the step, rounds, and sums the norm. What has a gradient of its own, BatchNorm and head, is stepped by torch.
    The copies are this optimizer's: a copy of the network takes them along, and is to drop them (`make_optimizer` does).
    """

    def __init__(self, layers: Iterable[ProductConv2d], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._layers = {each.weight: each for each in layers}
        self._versions: dict[Tensor, int] = {}
        library = _library()
        assert library is not None, "ask can_round() first"
        self._adam = library.adam

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Before a forward pass: no gradients, and copies of the weights as they are, which a checkpoint may have changed (by way of `.data`, nobody may)."""
        super().zero_grad(set_to_none)
        for weight, layer in self._layers.items():
            if layer.rounded is None or self._versions.get(weight) != weight._version:
                layer.rounded = weight.detach().to(torch.bfloat16).requires_grad_()
                self._versions[weight] = weight._version
            layer.rounded.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> Tensor:  # type: ignore[override]
        """One step with the gradients that are there; the norm of those in bf16."""
        super().step()
        tensors = [
            self._tensor(weight, rounded, rounded.grad, group)
            for group in self.param_groups
            for weight in group["params"]
            if weight in self._layers and (rounded := self._layers[weight].rounded) is not None and rounded.grad is not None
        ]
        sums = torch.zeros(torch.get_num_threads(), dtype=torch.float64)
        self._adam((_Tensor * len(tensors))(*tensors), len(tensors), sums.data_ptr(), len(sums))
        return sums.sum().sqrt().float()

    def _tensor(self, weight: Tensor, rounded: Tensor, gradient: Tensor, group: dict[str, Any]) -> _Tensor:
        """What a step of this weight takes."""
        state = self._state_of(weight)
        state["step"] += 1
        steps, (beta1, beta2), rate = float(state["step"]), group["betas"], group["lr"]
        decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
        tensors = (weight, state["exp_avg"], state["exp_avg_sq"], gradient, rounded)
        assert all(each.stride() == weight.stride() for each in tensors)  # they are walked through as they lie in memory
        return _Tensor(
            *(each.data_ptr() for each in tensors),
            weight.numel(),
            rate * decay if decoupled else 0,
            0 if decoupled else decay,
            1 - beta1,
            beta2,
            1 - beta2,
            rate / (1 - beta1**steps),
            (1 - beta2**steps) ** -0.5,
            group["eps"],
        )


class _Tensor(ctypes.Structure):
    """As in `adam.c`."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("weight", "average", "square", "gradient", "rounded")],
        ("size", ctypes.c_long),
        *[(name, ctypes.c_float) for name in ("decay", "l2", "new1", "beta2", "new2", "rate", "correction", "epsilon")],
    ]


def can_round() -> bool:
    """Whether `adam.c` can be compiled here."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = compiled("adam.c")
    if library is not None:
        library.adam.argtypes = (ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_int)
        library.adam.restype = None
    return library
