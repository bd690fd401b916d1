"""Forward and backward pass of a step as one CUDA graph.

    gradient, why_not = captured(gradient, model, images, labels)
    loss, norm = gradient(images, labels)      # the gradients are in the parameters, as before

A step of ResNet-50 on small tiles is some six hundred short kernels: a GPU waits for the program that launches them one by one. A graph
launches all of them at once. It is held against the passes that it was recorded from, and not used where it differs.
Source: torch's notes on CUDA graphs, "Whole-network capture".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.dataset import Dataset

# images (N, H, W, bands) and labels to the loss and the norm of the gradient, which is left in the parameters; no step is made
Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_DIFFERENCE = 0.05  # of all gradients together, relative: bf16 kernels add up in another order each time


def captured(gradient: Gradient, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Gradient, str]:
    """`gradient` recorded for batches like these, and ""; or itself, and why it can't be recorded here. `model` is left as it was."""
    before = [each.clone() for each in model.buffers()]  # BatchNorm's statistics move with every pass
    try:
        graph = _Graph(gradient, model, images, labels)
        return graph, ""
    except RuntimeError as error:
        model.zero_grad()
        return gradient, f"no CUDA graph: {' '.join(str(error).split())[:120]}"
    finally:
        for each, value in zip(model.buffers(), before, strict=True):
            each.copy_(value)


def example(dataset: Dataset, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of `size` random tiles with labels, on the device."""
    numbers = torch.Generator(device).manual_seed(0)
    shape = (size, dataset.height, dataset.width, len(dataset.bands))
    images = torch.randint(0, 256, shape, device=device, generator=numbers).to(getattr(torch, dataset.dtype))
    return images, torch.arange(size, device=device) % len(dataset.classes)


class _Graph:
    """Recorded passes. The gradients stay where the recording put them: each replay writes them anew, so they are never set to None."""

    def __init__(self, gradient: Gradient, model: nn.Module, images: Tensor, labels: Tensor) -> None:
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
        for batch, as_before in zip(batches, expected, strict=True):
            if not (apart := _difference(_outcome(self, model, batch, labels), as_before)) <= _DIFFERENCE:
                raise RuntimeError(f"its gradients are {apart:.1%} off")

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss.clone(), self._norm.clone()


def _outcome(gradient: Gradient, model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Loss, norm, and a copy of every gradient."""
    loss_and_norm = gradient(images, labels)
    return [*loss_and_norm, *(each.grad.clone() for each in model.parameters() if each.grad is not None)]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference of loss, norm, and all gradients together."""
    total = torch.nn.utils.get_total_norm
    pairs = [(a - b, b) for a, b in zip(found, expected, strict=True)]
    parts = (pairs[:1], pairs[1:2], pairs[2:])
    return max(float(total([d for d, _ in part]) / total([b for _, b in part])) for part in parts)
