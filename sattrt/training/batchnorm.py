"""BatchNorm, the sum with the residual and ReLU in one: on a CPU, what a training step spends beside its convolutions.

    fuse_norms(model, torch.bfloat16)

torch makes three operations of them, each of which reads and writes whole maps; that is a sixth of a step in bf16. `batchnorm.c` reads a
map twice and writes it once. Where it can't be compiled (`compiled.py`), torch computes the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from .compiled import compiled, why_not

_MACROS = {torch.bfloat16: ["-DBF16"], torch.float32: []}


def fuse_norms(model: nn.Module, dtype: torch.dtype) -> str:
    """Compute the BatchNorms of a ResNet-50 with what follows them, in training. Why not, where that can't be; nothing is changed then.

    dtype: of the maps, bf16 under autocast. Parameters and their names stay. Only a plain nn.BatchNorm2d on a CPU is computed so, in bf16 and fp32.
    """
    if _library(dtype) is None:
        return f"no compiled passes, so it is slower: {why_not()}"
    for module in model.modules():
        if type(module) is ResNet:
            module.__class__ = FusedResNet
        elif type(module) is Bottleneck:
            module.__class__ = FusedBottleneck
    return ""


class FusedResNet(ResNet):
    """torchvision's ResNet whose first BatchNorm and ReLU are one."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(norm(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


class FusedBottleneck(Bottleneck):
    """torchvision's Bottleneck whose BatchNorms are one with what follows them."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        if self.downsample is not None:
            assert isinstance(self.downsample, nn.Sequential)
            residual = norm(self.downsample[1], self.downsample[0](x), relu=False)
        out = norm(self.bn1, self.conv1(x))
        out = norm(self.bn2, self.conv2(out))
        return norm(self.bn3, self.conv3(out), residual)


def norm(layer: nn.Module, x: Tensor, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(layer(x) + residual), x (N, C, H, W); by `batchnorm.c` where that is possible, else by torch."""
    if _can_fuse(layer, x, residual):
        assert isinstance(layer, nn.BatchNorm2d)
        output: Tensor = _Norm.apply(x, layer.weight, layer.bias, residual, layer, relu)
        return output
    output = layer(x)
    if residual is not None:
        output = output + residual
    return F.relu(output, inplace=True) if relu else output


def _can_fuse(layer: nn.Module, x: Tensor, residual: Tensor | None) -> bool:
    return (
        type(layer) is nn.BatchNorm2d
        and layer.training
        and layer.affine
        and layer.track_running_stats
        and layer.momentum is not None
        and layer.weight.dtype is torch.float32
        and x.device.type == "cpu"
        and x.dtype in _MACROS
        and x.numel() > x.shape[1]  # of one value a channel there is no variance: torch says so
        and (residual is None or residual.dtype is x.dtype)
        and _library(x.dtype) is not None
    )


class _Norm(torch.autograd.Function):
    """relu(BatchNorm(x) + residual) and its gradients: Ioffe and Szegedy, Batch Normalization, ICML 2015."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, layer: nn.BatchNorm2d, relu: bool) -> Tensor:
        assert layer.num_batches_tracked is not None
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        y, of_channels = torch.empty_like(x), torch.empty(4, x.shape[1])
        _call(
            x.dtype,
            "norm_forward",
            *_addresses(x, residual, gamma, beta, layer.running_mean, layer.running_var),
            layer.momentum,
            layer.eps,
            *_rows(of_channels),
            y.data_ptr(),
            relu,
            *_sizes(x),
        )
        layer.num_batches_tracked.add_(1)
        ctx.save_for_backward(x, of_channels, y if residual is not None else None)
        ctx.relu = relu
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, of_channels, y = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        behind = torch.empty_like(x) if y is not None else None
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dgamma, dbeta = of_parameters = torch.empty(2, x.shape[1])
        _call(
            x.dtype,
            "norm_backward",
            *_addresses(dy, x, y),
            *_rows(of_channels),
            *_addresses(behind, dx),
            *_rows(of_parameters),
            ctx.relu,
            *_sizes(x),
        )
        return dx, dgamma, dbeta, behind, None, None


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _rows(table: Tensor) -> list[int]:
    """The addresses of its rows; to unbind them as tensors takes longer than the call."""
    return [table.data_ptr() + row * table.stride(0) * table.itemsize for row in range(len(table))]


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _call(dtype: torch.dtype, name: str, *arguments: Any) -> None:
    library = _library(dtype)
    assert library is not None
    if getattr(library, name)(*arguments):
        raise MemoryError(name)


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """batchnorm.c for values of this dtype; None where it can't be compiled or loaded here."""
    library = compiled("batchnorm.c", *_MACROS[dtype])
    if library is not None:
        pointer, number, flag, size = ctypes.c_void_p, ctypes.c_float, ctypes.c_int, ctypes.c_long
        library.norm_forward.argtypes = (*[pointer] * 6, number, number, *[pointer] * 5, flag, size, size)
        library.norm_backward.argtypes = (*[pointer] * 11, flag, size, size)
    return library
