"""What makes a training step on a CPU faster without changing what it computes.

    keep_freed_memory()
    use_products(model)

oneDNN's convolutions are good at large maps. On the small maps at the end of a network their weight gradient runs at
a third of the rate of a matrix product of the same size, and a 1x1 convolution is a matrix product to begin with.
`docs/design.md` has the figures, `benchmarks/training_step.py` takes them anew.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_MAP = 4 * 4  # output positions of a tile up to which the product was the faster one
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees instead of giving it back and faulting it in again at the next one."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def use_products(model: nn.Module) -> None:
    """Compute the model's convolutions by matrix products where that is faster; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros"):
            module.__class__ = ProductConv2d


class ProductConv2d(nn.Conv2d):
    """nn.Conv2d for channels_last input: 1x1 kernels as one product, and the weight gradient of larger ones on small maps."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (rows, columns), (down, right) = self.kernel_size, self.stride
        if rows == columns == 1 and self.padding == (0, 0):
            return F.linear(input.permute(0, 2, 3, 1)[:, ::down, ::right], weight.flatten(1), bias).permute(0, 3, 1, 2)
        positions = (input.shape[2] // down) * (input.shape[3] // right)
        if positions > SMALL_MAP or bias is not None:
            return super()._conv_forward(input, weight, bias)  # type: ignore[no-any-return]
        if torch.is_autocast_enabled("cpu"):  # a Function is outside autocast's reach
            kind = torch.get_autocast_dtype("cpu")
            input, weight = input.to(kind), weight.to(kind)
        output: Tensor = _SmallMap.apply(input, weight, self.stride, self.padding)
        return output


class _SmallMap(torch.autograd.Function):
    """A convolution whose weight gradient is the product of the output's gradient and the unfolded input."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(input, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        [gradient] = gradients
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, *_ = ctx.needs_input_grad
        of_input = of_weight = None
        if wants_input:
            mask = [True, False, False]
            of_input, *_ = torch.ops.aten.convolution_backward(
                gradient, input, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, mask
            )
        if wants_weight:
            outputs, inputs, *kernel = weight.shape
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
            product = rows.T @ _unfolded(input, kernel, ctx.stride, ctx.padding)
            of_weight = product.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)
        return of_input, of_weight, None, None


def _unfolded(input: Tensor, kernel: list[int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """For every output position what the kernel saw: (N * H * W, kernel height * kernel width * C)."""
    (rows, columns), (down, right) = kernel, stride
    padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = padded.unfold(1, rows, down).unfold(2, columns, right)  # (N, H, W, C, rows, columns)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, rows * columns * input.shape[1])
