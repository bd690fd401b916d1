import copy
from typing import Any

import pytest
import torch

from sattrt.model import TileClassifier, set_trainable
from sattrt.training import cpu_optimizer
from sattrt.training.config import OPTIMIZERS, TrainConfig
from sattrt.training.cpu import ProductConv2d, use_products
from sattrt.training.cpu_optimizer import MemoryOrderAdam, MemoryOrderSGD, RoundingAdam, can_round
from sattrt.training.optimizer import STEPS_BETWEEN_LOOKS, MovingAverage, make_optimizer, set_learning_rate
from sattrt.training.resume import collect, restore

needs_compiler = pytest.mark.skipif(not can_round(), reason="no C compiler (cc) that makes code for torch's OpenMP")


@pytest.fixture
def model() -> TileClassifier:
    torch.manual_seed(0)
    return TileClassifier(3, (0.3, 0.4, 0.5), (0.2, 0.2, 0.2))


def test_each_stage_takes_its_share_of_the_learning_rate(model: TileClassifier) -> None:
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, 1.0)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    backbone = model.backbone
    rates = [
        backbone.conv1,
        backbone.layer1[0].conv1,
        backbone.layer2[0].conv1,
        backbone.layer3[0].conv1,
        backbone.layer4[0].conv1,
        backbone.fc,
    ]
    assert [found[id(layer.weight)]["lr"] for layer in rates] == [0.5**i for i in (5, 4, 3, 2, 1, 0)]
    assert found[id(backbone.conv1.weight)]["weight_decay"] == 0.1
    assert found[id(backbone.bn1.weight)]["weight_decay"] == found[id(backbone.fc.bias)]["weight_decay"] == 0


def test_frozen_layers_are_not_in_it(model: TileClassifier) -> None:
    set_trainable(model, "head")
    assert sum(len(group["params"]) for group in make_optimizer(model, TrainConfig()).param_groups) == 2


def test_the_average_follows_the_weights(model: TileClassifier) -> None:
    average = MovingAverage(model, 0.5)
    bias = model.backbone.fc.bias
    start = bias.detach().clone()
    with torch.no_grad():
        bias += 1
    average.update(1, of_epoch=1, ends=True)  # at the first step a tenth is kept
    torch.testing.assert_close(average.model.backbone.fc.bias, start + 0.9)
    average.update(1001, of_epoch=1, ends=True)
    torch.testing.assert_close(average.model.backbone.fc.bias, start + 0.95)
    assert not average.model.backbone.fc.bias.requires_grad


def test_the_average_looks_seldom_and_counts_the_steps_between(model: TileClassifier) -> None:
    average = MovingAverage(model, 0.9)
    bias, averaged = model.backbone.fc.bias, average.model.backbone.fc.bias
    start = bias.detach().clone()
    with torch.no_grad():
        bias += 1
    for done in range(1, STEPS_BETWEEN_LOOKS):
        average.update(1000 + done, of_epoch=done, ends=False)
    assert torch.equal(averaged, start)
    average.update(1000 + STEPS_BETWEEN_LOOKS, of_epoch=STEPS_BETWEEN_LOOKS, ends=False)
    torch.testing.assert_close(averaged, start + 1 - 0.9**STEPS_BETWEEN_LOOKS)
    for done in range(STEPS_BETWEEN_LOOKS + 1, STEPS_BETWEEN_LOOKS + 4):  # an epoch that ends between two looks
        average.update(1000 + done, of_epoch=done, ends=done == STEPS_BETWEEN_LOOKS + 3)
    torch.testing.assert_close(averaged, start + 1 - 0.9 ** (STEPS_BETWEEN_LOOKS + 3))


@pytest.mark.parametrize("rounds", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_that_is_put_back_goes_on_the_same(model: TileClassifier, kind: str, rounds: bool) -> None:
    config = TrainConfig(optimizer=kind, learning_rate=1e-6)
    tiles = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)

    def steps(model: TileClassifier, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=rounds):
                model(tiles).float().square().mean().backward()
            optimizer.step()

    model.eval().to(memory_format=torch.channels_last)
    use_products(model)
    other = copy.deepcopy(model)
    optimizer, average = make_optimizer(model, config, rounds), MovingAverage(model, 0.9)
    steps(model, optimizer, 2)
    tensors = {key: value.clone() for key, value in collect(model, optimizer, average).items()}
    second = make_optimizer(other, config, rounds)
    steps(other, second, 1)  # what it then has in bf16 is of weights that are replaced
    restore(tensors, other, second, MovingAverage(other, 0.9), path=None)  # type: ignore[arg-type]
    steps(model, optimizer, 2)
    steps(other, second, 2)
    for (name, expected), found in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, found), name


def test_a_first_step_that_the_scaler_skips_leaves_nothing_behind(model: TileClassifier) -> None:
    optimizer = make_optimizer(model, TrainConfig(optimizer="sgd", weight_decay=0.0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu")
    for fill in (float("inf"), 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, fill)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("name", "kind", "plain_kind", "options"),
    [
        ("sgd", MemoryOrderSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", MemoryOrderAdam, torch.optim.Adam, {}),
        ("adamw", MemoryOrderAdam, torch.optim.AdamW, {}),
    ],
)
def test_a_fused_step_in_the_order_of_memory_is_torchs(
    model: TileClassifier, name: str, kind: type, plain_kind: Any, options: dict[str, Any]
) -> None:
    own, other = model.to(memory_format=torch.channels_last), copy.deepcopy(model)
    fused = make_optimizer(own, TrainConfig(optimizer=name, weight_decay=0.1, layer_decay=1.0))
    assert type(fused) is kind
    groups = [
        {"params": [p for p in other.parameters() if (p.ndim > 1) is decays], "weight_decay": 0.1 * decays} for decays in (True, False)
    ]
    plain = plain_kind(groups, lr=0.1, foreach=False, **options)
    set_learning_rate(fused, 0.1)
    for group in plain.param_groups:
        group["lr"] = 0.1
    for seed in range(3):
        torch.manual_seed(seed)
        for left, right in zip(own.parameters(), other.parameters(), strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone(memory_format=torch.contiguous_format)  # in another order than the weights
        fused.step()
        plain.step()
    for (name, left), right in zip(own.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, msg=name)


@needs_compiler
@pytest.mark.parametrize(("name", "plain_kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_a_step_on_gradients_in_bf16_is_torchs_on_the_same_in_float(model: TileClassifier, name: str, plain_kind: Any) -> None:
    own, other = model.to(memory_format=torch.channels_last), copy.deepcopy(model)
    use_products(own)
    optimizer = make_optimizer(own, TrainConfig(optimizer=name, weight_decay=0.1, layer_decay=1.0), rounds=True)
    assert isinstance(optimizer, RoundingAdam)
    set_learning_rate(optimizer, 0.01)
    layers = {each.weight: each for each in own.modules() if isinstance(each, ProductConv2d)}
    assert len(layers) == 53
    groups = [
        {"params": [p for p in other.parameters() if (p.ndim > 1) is decays], "weight_decay": 0.1 * decays} for decays in (True, False)
    ]
    plain = plain_kind(groups, lr=0.01, foreach=False)
    for seed in range(3):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        squares = torch.zeros((), dtype=torch.float64)
        for left, right in zip(own.parameters(), other.parameters(), strict=True):
            trained = layers[left].rounded if left in layers else left
            assert trained is not None
            trained.grad = torch.randn_like(trained)
            right.grad = trained.grad.float().contiguous()
            if left in layers:
                squares += right.grad.double().square().sum()
        norm: Any = optimizer.step()
        plain.step()
        torch.testing.assert_close(norm.double(), squares.sqrt(), rtol=1e-6, atol=0)
    for (name, left), right in zip(own.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, msg=name)
    for weight, layer in layers.items():
        assert weight.grad is None
        assert torch.equal(layer.rounded, weight.bfloat16())


@needs_compiler
def test_a_network_is_trained_in_bf16_as_by_torchs_casts(model: TileClassifier) -> None:
    model.to(memory_format=torch.channels_last)
    use_products(model)
    other = copy.deepcopy(model)
    tiles = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    for each, optimizer in ((model, make_optimizer(model, TrainConfig(), rounds=True)), (other, make_optimizer(other, TrainConfig()))):
        set_learning_rate(optimizer, 0.01)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.functional.cross_entropy(each(tiles), torch.arange(4) % 3).backward()
        optimizer.step()
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, msg=name)
    first, ones = model.backbone.conv1, torch.ones(1, 3, 64, 64)
    first.weight.data.zero_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # without gradients it is the weight itself that counts
        assert not first(ones).any()
    assert not first(ones).any()  # and in float
    make_optimizer(model, TrainConfig(optimizer="sgd"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not first(ones).any()  # and for any other optimizer


@needs_compiler
def test_weight_decay_is_not_lost_in_rounding(model: TileClassifier) -> None:
    model.to(memory_format=torch.channels_last)
    use_products(model)
    layer, config = model.backbone.conv1, TrainConfig(weight_decay=5e-5, layer_decay=1.0)
    with torch.no_grad():
        layer.weight.fill_(0.3)
    optimizer = make_optimizer(model, config, rounds=True)
    exact = layer.weight.detach().double().requires_grad_()
    plain = torch.optim.AdamW([exact], lr=5e-4, weight_decay=5e-5)
    set_learning_rate(optimizer, 5e-4)  # 1 - 5e-5 * 5e-4 is 1 in float
    for _ in range(200):
        optimizer.zero_grad()
        layer.rounded.grad = torch.randn_like(layer.rounded)
        exact.grad = layer.rounded.grad.double()
        optimizer.step()
        plain.step()
    decayed = 200 * 5e-4 * 5e-5 * 0.3
    assert abs(float((layer.weight.detach() - exact.detach()).mean())) < 0.1 * decayed


def test_without_a_compiler_the_gradients_are_float(model: TileClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    cpu_optimizer._library.cache_clear()
    try:
        assert type(make_optimizer(model, TrainConfig(), rounds=True)) is MemoryOrderAdam
    finally:
        cpu_optimizer._library.cache_clear()
