"""BatchNorm over the batch of all ranks together, so that several ranks train what one rank alone would.

torch's own SyncBatchNorm is for GPUs only; on a CPU the same is made of two sums over the ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm2d inside the model see the batch of all ranks; names of parameters and buffers stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance in training are those of all ranks, which hold batches of one size."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        values = input.to(self.running_mean.dtype)
        size = values.numel() // values.shape[1] * dist.get_world_size()
        mean = _Sum.apply(values.sum((0, 2, 3))) / size
        centred = values - mean.view(-1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / size
        with torch.no_grad():
            assert self.momentum is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * size / (size - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        output: Tensor = centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return output.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all ranks, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
