"""The convolutions of training on a CPU compute what torch's own compute: outputs and both gradients.

torch's own run without oneDNN here: its weight gradient of a 1x1 convolution in fp32 (AVX-512, oneDNN in torch 2.15)
can crash the process when it exits.
"""

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from sattrt.training.cpu import ProductConv2d, use_products

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")


@pytest.mark.parametrize("size", [2, 4, 5, 16])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3)])
def test_products_are_the_convolution(kernel: int, stride: int, padding: int, size: int) -> None:
    torch.manual_seed(0)
    own = nn.Conv2d(6, 10, kernel, stride, padding, bias=False)
    other = nn.Conv2d(6, 10, kernel, stride, padding, bias=False)
    other.load_state_dict(own.state_dict())
    use_products(other)
    assert type(other) is ProductConv2d
    tiles = torch.randn(3, 6, size, size).to(memory_format=torch.channels_last)
    results = []
    for layer in (own, other):
        given = tiles.clone().requires_grad_()
        with torch.backends.mkldnn.flags(enabled=layer is other):
            output = layer(given)
            (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        results.append((output.detach(), given.grad, layer.weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_network_keeps_its_parameters_and_its_gradients() -> None:
    torch.manual_seed(0)
    own, other = resnet50(num_classes=3).eval(), resnet50(num_classes=3).eval()
    other.load_state_dict(own.state_dict())
    use_products(other)
    assert list(other.state_dict()) == list(own.state_dict())
    tiles = torch.randn(4, 3, 64, 64)
    for model in (own, other):
        model.to(memory_format=torch.channels_last)
        with torch.backends.mkldnn.flags(enabled=model is other):
            model(tiles).square().mean().backward()
    for (name, expected), found in zip(own.named_parameters(), other.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-4 * float(expected.grad.abs().max()), rtol=1e-3, msg=name)


def test_autocast_reaches_them() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    use_products(layer)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(2, 4, 2, 2))
    output.float().sum().backward()
    assert output.dtype is torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is torch.float32


def test_other_convolutions_are_left_alone() -> None:
    for layer in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding_mode="reflect")):
        use_products(layer)
        assert type(layer) is nn.Conv2d
