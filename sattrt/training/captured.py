"""Forward and backward pass of a step as one CUDA graph.

    gradient, why_not = captured(gradient, model, images, labels, "bf16")
    loss, norm = gradient(images, labels)      # the gradients are in the parameters, as before

A step of ResNet-50 on small tiles is some six hundred short kernels: a GPU waits for the program that launches them one by one. A graph
launches all of them at once. It is held against the passes that it was recorded from, and not used where it differs.
Source: torch's notes on CUDA graphs, "Whole-network capture".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# images (N, H, W, bands) and labels to the loss and the norm of the gradient, which is left in the parameters; no step is made
Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_DIFFERENCE = 0.05  # of all gradients together, relative, in fp32: kernels add up in another order each time
# How far a replay may lie from the passes in bf16. Where one kernel of the forward pass rounds in another way, the bf16 gradients of an ImageNet network are a quarter to
# three quarters of their norm off (the loss 0.3 %, the norm 20 %), on a CPU, batches of 64; those of another batch are 1.4 times it off
_LOSS, _NORM, _NEARER = 0.02, 0.4, 0.6


def captured(gradient: Gradient, model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> tuple[Gradient, str]:
    """`gradient` recorded for batches like these, and ""; or itself, and why it can't be recorded here. `model` is left as it was.

    precision: "fp32" or "bf16", which the passes compute in.
    """
    before = [each.clone() for each in model.buffers()]  # BatchNorm's statistics move with every pass
    try:
        graph = _Graph(gradient, model, images, labels, precision)
        return graph, ""
    except RuntimeError as error:
        model.zero_grad()
        return gradient, f"no CUDA graph: {_reason(error)}"
    finally:
        for each, value in zip(model.buffers(), before, strict=True):
            each.copy_(value)


def _reason(error: BaseException) -> str:
    """What failed first: torch ends a recording that failed by an error of its own, which says no more than that.

    In a function of its own: a variable of `captured` would keep the error, its frames, and by them all memory of the recording.
    """
    while error.__context__:
        error = error.__context__
    return (str(error) or repr(error)).splitlines()[0][:300]


class _Graph:
    """Recorded passes. The gradients stay where the recording put them: each replay writes them anew, so they are never set to None."""

    def __init__(self, gradient: Gradient, model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
        # float holds every tile: those of some augmentations are float, and others copied in are cast as the network would
        self._images, self._labels = images.float(), labels.clone()
        batches = (self._images.clone(), self._images.flip(0))  # labels stay: another batch, another loss
        expected = [_outcome(gradient, model, batch, labels) for batch in batches]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their algorithms and take their memory here, not while it is recorded
            for batch in batches:
                gradient(batch, labels)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: what a decoder does in its own threads meanwhile is not part of it; the outer stream: where a recording fails,
        # torch stays on the inner one
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._loss, self._norm = gradient(self._images, self._labels)
        for batch, own, other in zip(batches, expected, expected[::-1], strict=True):
            if fault := fault_of(_outcome(self, model, batch, labels), own, other, precision):
                raise RuntimeError(fault)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss.clone(), self._norm.clone()


def _outcome(gradient: Gradient, model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Loss, norm, and a copy of every gradient."""
    loss_and_norm = gradient(images, labels)
    return [*loss_and_norm, *(each.grad.clone() for each in model.parameters() if each.grad is not None)]


def fault_of(found: list[Tensor], expected: list[Tensor], other: list[Tensor], precision: str) -> str:
    """What is wrong with loss, norm and gradients of a replay, beside those of the passes, and those of another batch; "" where nothing is."""
    total = torch.nn.utils.get_total_norm

    def apart(a: list[Tensor], b: list[Tensor]) -> float:
        return float(total([x - y for x, y in zip(a, b, strict=True)]) / total(b))

    loss, norm = (apart(found[i : i + 1], expected[i : i + 1]) for i in (0, 1))
    own, others = apart(found[2:], expected[2:]), apart(found[2:], other[2:])
    bounds = (_LOSS, _NORM, max(_DIFFERENCE, _NEARER * others)) if precision != "fp32" else (_DIFFERENCE,) * 3
    if not loss <= bounds[0]:
        return f"its loss is {loss:.1%} off"
    if not norm <= bounds[1]:
        return f"the norm of its gradients is {norm:.1%} off"
    return "" if own <= bounds[2] else f"its gradients are {own:.1%} off"
