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

Sides = tuple[int, ...]  # rows, columns
SMALL_MAP = 4 * 4  # output positions of a tile up to which the product was the faster one
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees instead of giving it back and faulting it in again at the next one.

    One arena for all threads: what others than the main one take, OpenMP's and a decoder's, would come from arenas of their own, and any
    that is not the first gives back what is free, whatever the threshold. (The backward pass runs in the thread that calls it.)
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def use_products(model: nn.Module) -> None:
    """Compute the model's convolutions by matrix products where that is faster; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros"):
            module.__class__ = ProductConv2d
            if module.kernel_size == (1, 1):  # the memory is the same; with a matrix's strides its gradient fits it without a copy
                module.weight.data = module.weight.data.flatten(1)[:, :, None, None]


class ProductConv2d(nn.Conv2d):
    """nn.Conv2d for channels_last input: 1x1 kernels as one product, larger ones on small maps as several.

    rounded: the weight in bf16, where the optimizer keeps it (`cpu_optimizer.RoundingAdam`); it is what is trained then.
    """

    rounded: Tensor | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (rows, columns), (down, right) = self.kernel_size, self.stride
        if self.rounded is not None and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            weight = self.rounded
        if rows == columns == 1 and self.padding == (0, 0):
            # contiguous: without a gradient to take, torch has a slow way with strided products
            seen = input.permute(0, 2, 3, 1)[:, ::down, ::right].contiguous()
            return F.linear(seen, weight.flatten(1), bias).permute(0, 3, 1, 2)
        positions = (input.shape[2] // down) * (input.shape[3] // right)
        if positions > SMALL_MAP or bias is not None:
            return super()._conv_forward(input, weight, bias)  # type: ignore[no-any-return]
        if torch.is_autocast_enabled("cpu"):  # a Function is outside autocast's reach
            kind = torch.get_autocast_dtype("cpu")
            input, weight = input.to(kind), weight.to(kind)
        output: Tensor = _SmallMap.apply(input, weight, self.stride, self.padding)
        return output


class _SmallMap(torch.autograd.Function):
    """A convolution whose weight gradient is made tap by tap, each the product of the positions that the tap joins.

    Where the kernel reaches the whole map from every position (3x3 on 2x2), all of it is one dense layer: no product with padding.
    With a stride it is one product of what each position sees, and the gradient of the input one for each phase of the stride.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: Sides, padding: Sides) -> Tensor:
        size, kernel = input.shape[2:], weight.shape[2:]
        dense = None
        if stride == (1, 1) and all(k == 2 * s - 1 and p == s - 1 for k, s, p in zip(kernel, size, padding, strict=True)):
            dense = _dense(weight, *size)
        ctx.save_for_backward(input, weight, dense)
        ctx.stride, ctx.padding = stride, padding
        if dense is not None:
            return _flat(input).mm(dense.T).view(len(input), *size, -1).permute(0, 3, 1, 2)
        if stride == (1, 1):
            return torch.conv2d(input, weight, None, stride, padding)
        return (_seen(input, kernel, stride, padding) @ _flat(weight).T).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        [gradient] = gradients
        input, weight, dense = ctx.saved_tensors
        wants_input, wants_weight, *_ = ctx.needs_input_grad
        of_input = of_weight = None
        if wants_input and dense is not None:
            of_input = _flat(gradient).mm(dense).view(input.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        elif wants_input and ctx.stride != (1, 1):
            of_input = _input_gradient(gradient, weight, ctx.stride, ctx.padding, input.shape[2:])
        elif wants_input:
            mask = [True, False, False]
            of_input, *_ = torch.ops.aten.convolution_backward(
                gradient, input, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, mask
            )
        if wants_weight:
            of_weight = _weight_gradient(gradient, input, weight, ctx.stride, ctx.padding)
        return of_input, of_weight, None, None


def _flat(images: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H * W * C)."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _dense(weight: Tensor, height: int, width: int) -> Tensor:
    """The convolution as a matrix over whole maps: (height * width * outputs, height * width * inputs)."""
    taps = weight.permute(0, 2, 3, 1)
    rows = [taps[:, height - 1 - i : 2 * height - 1 - i, width - 1 - j : 2 * width - 1 - j] for i in range(height) for j in range(width)]
    return torch.stack(rows).flatten(2).flatten(0, 1)


def _seen(input: Tensor, kernel: Sides, stride: Sides, padding: Sides) -> Tensor:
    """What each output position sees (N, rows, columns, kernel * kernel * inputs)."""
    (down, across), (high, wide) = padding, kernel
    framed = F.pad(input.permute(0, 2, 3, 1), (0, 0, across, across, down, down))
    return framed.unfold(1, high, stride[0]).unfold(2, wide, stride[1]).permute(0, 1, 2, 4, 5, 3).flatten(3)


def _input_gradient(gradient: Tensor, weight: Tensor, stride: Sides, padding: Sides, size: Sides) -> Tensor:
    """The pixels of one phase of the stride are reached by the same taps: for each phase one product over these."""
    of_output, taps = gradient.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1)
    reach = max(weight.shape[2:])
    framed = F.pad(of_output, (0, 0, reach, reach, reach, reach))
    of_input = gradient.new_zeros(len(gradient), *size, weight.shape[1])
    for row in range(stride[0]):
        for column in range(stride[1]):
            target = of_input[:, row :: stride[0], column :: stride[1]]
            seen, kernel = [], []
            for tap, first in _reaching(row, stride[0], padding[0], weight.shape[2]):
                for beside, left in _reaching(column, stride[1], padding[1], weight.shape[3]):
                    high, wide = reach + first, reach + left
                    seen.append(framed[:, high : high + target.shape[1], wide : wide + target.shape[2]])
                    kernel.append(taps[tap, beside])
            if kernel:
                target[:] = torch.cat(seen, 3) @ torch.cat(kernel)
    return of_input.permute(0, 3, 1, 2)


def _reaching(phase: int, stride: int, padding: int, taps: int) -> list[tuple[int, int]]:
    """Along one axis: the taps that reach input positions phase, phase + stride, ..., and the output position that does so first."""
    return [(tap, (phase + padding - tap) // stride) for tap in range(taps) if (phase + padding - tap) % stride == 0]


def _weight_gradient(gradient: Tensor, input: Tensor, weight: Tensor, stride: Sides, padding: Sides) -> Tensor:
    outputs, inputs, rows, columns = weight.shape
    of_output, seen = gradient.permute(0, 2, 3, 1), input.permute(0, 2, 3, 1)
    of_weight = weight.new_empty(outputs, rows, columns, inputs)
    for row in range(rows):
        down, high = _joined(row, stride[0], padding[0], seen.shape[1], of_output.shape[1])
        for column in range(columns):
            across, wide = _joined(column, stride[1], padding[1], seen.shape[2], of_output.shape[2])
            left, right = of_output[:, down, across].reshape(-1, outputs), seen[:, high, wide].reshape(-1, inputs)
            of_tap = of_weight[:, row, column]
            if len(left):
                torch.mm(left.T, right, out=of_tap)
            else:
                of_tap.zero_()
    return of_weight.permute(0, 3, 1, 2)


def _joined(tap: int, stride: int, padding: int, size_in: int, size_out: int) -> tuple[slice, slice]:
    """Along one axis: the output positions that a tap of the kernel serves, and the input positions it sees for them."""
    first = max(0, -((tap - padding) // stride))
    last = min(size_out - 1, (size_in - 1 - tap + padding) // stride)
    begin = first * stride + tap - padding
    return slice(first, last + 1), slice(begin, begin + max(0, last - first) * stride + 1, stride)
