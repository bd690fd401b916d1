"""The fused BatchNorm computes what torch's computes: outputs, every gradient, running statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from sattrt.training import batchnorm
from sattrt.training.batchnorm import FusedBottleneck, FusedResNet, fuse_norms, norm

needs_compiler = pytest.mark.skipif(
    batchnorm._library(torch.float32) is None, reason="no C compiler (cc) that makes code for torch's OpenMP"
)


def torchs(layer: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = layer(x)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def results(function, layer: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool) -> list[Tensor | None]:  # type: ignore[no-untyped-def]
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    residual = None if residual is None else residual.clone().requires_grad_()
    y = function(layer, x, residual, relu)
    (y.float() * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    gradients = [x.grad, layer.weight.grad, layer.bias.grad, None if residual is None else residual.grad]
    return [y.detach(), layer.running_mean, layer.running_var, layer.num_batches_tracked, *gradients]


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (8, 64, 1, 1), (16, 33, 8, 8), (1, 3, 40, 40)])
def test_it_is_as_near_to_exact_as_torchs(shape: tuple[int, ...], with_residual: bool, relu: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(shape[1])
    nn.init.uniform_(layer.weight, -1, 2)
    nn.init.normal_(layer.bias)
    x = (30 + 4 * torch.randn(shape)).to(dtype).to(memory_format=torch.channels_last)  # far from zero: squares lose digits
    residual = torch.randn(shape).to(dtype) if with_residual else None
    exact = results(torchs, layer.double(), x.double(), None if residual is None else residual.double(), relu)
    layer.float()
    for truth, own, other in zip(exact, results(norm, layer, x, residual, relu), results(torchs, layer, x, residual, relu), strict=True):
        if truth is None:
            assert own is None
        elif truth.ndim == 0:
            assert own == truth == 1  # batches seen
        else:
            assert own.dtype is other.dtype
            assert off(own, truth) <= 2 * off(other, truth) + 2e-6
            assert off(own, truth) < (1e-4 if dtype is torch.float32 else 0.1)


@needs_compiler
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_a_network_trains_as_before() -> None:
    torch.manual_seed(0)
    own = resnet50(num_classes=3).to(memory_format=torch.channels_last)
    other = copy.deepcopy(own)
    assert fuse_norms(other, torch.float32) == ""
    assert type(other) is FusedResNet
    assert sum(type(module) is FusedBottleneck for module in other.modules()) == 16
    assert list(other.state_dict()) == list(own.state_dict())
    exact = copy.deepcopy(own).double()
    tiles, labels = torch.randn(16, 3, 64, 64).to(memory_format=torch.channels_last), torch.arange(16) % 3
    for model in (own, other, exact):
        torch.nn.functional.cross_entropy(model(tiles.to(model.fc.weight.dtype)), labels).backward()
    for name, truth in exact.named_parameters():
        fused, plain = other.get_parameter(name).grad, own.get_parameter(name).grad
        assert off(fused, truth.grad) < 2 * off(plain, truth.grad) + 1e-5, name
    for name, truth in exact.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name].to(truth.dtype), truth, atol=1e-4, rtol=1e-4, msg=name)
    own.eval(), other.eval()
    torch.testing.assert_close(other(tiles), own(tiles), atol=1e-3, rtol=1e-3)


@needs_compiler
def test_no_number_stays_none() -> None:
    x = torch.randn(2, 4, 3, 3)
    x[0, 1, 0, 0] = float("nan")
    y = norm(nn.BatchNorm2d(4), x)
    assert y[:, 1].isnan().all()
    assert not y[:, [0, 2, 3]].isnan().any()


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    batchnorm._library.cache_clear()
    try:
        model = resnet50(num_classes=3)
        assert "no C compiler" in fuse_norms(model, torch.float32)
        assert not any(isinstance(module, FusedResNet | FusedBottleneck) for module in model.modules())
        layer, x = nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(norm(layer, x), layer(x).relu())
    finally:
        batchnorm._library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_torchs(dtype: torch.dtype) -> None:
    layer, x = nn.BatchNorm2d(4).to(dtype), torch.randn(2, 4, 3, 3).to(dtype)
    torch.testing.assert_close(norm(copy.deepcopy(layer), x), layer(x).relu())
