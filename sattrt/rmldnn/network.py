"""The network of a layer file as a `TileClassifier`: its weights, what of it is trained, and what it looks like for the stages after.

built = build(config, height=64, width=64)
built.model(tiles)                                   # uint8 (N, H, W, 3) -> logits (N, classes)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..model import TileClassifier
from .config import RmldnnConfig
from .keras import KerasNetwork, read_network, trains_nothing
from .pixels import GREY, Pixels
from .weights import read_weights, to_state

SEED = 0


@dataclass(frozen=True)
class Network:
    """model: takes tiles, or samples as the transforms show them. side: that it resizes them to by itself; None: the transforms do that
    before it. size: height and width of a sample. notes: what is to be said of its weights."""

    model: TileClassifier
    keras: KerasNetwork
    pixels: Pixels
    side: int | None
    size: tuple[int, int]
    notes: tuple[str, ...]

    def set_training_mode(self) -> None:
        """Training mode; a frozen BatchNorm keeps its statistics, as in Keras."""
        self.model.train()
        for name, norm in self._norms():
            if name not in self.keras.trainable:
                norm.eval()

    @property
    def trains_norms(self) -> bool:
        """Whether any BatchNorm is trained, and so has statistics that move."""
        return any(name in self.keras.trainable for name, _ in self._norms())

    @torch.no_grad()
    def take_statistics(self, batches: Iterable[Tensor], precision: torch.autocast) -> None:
        """In training mode: replace BatchNorm's running statistics by their mean over these batches, with the weights as they are now.

        Those that training leaves are of weights of before, and lag behind where these move fast. precision: that the network computes in.
        Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021.
        """
        norms = [norm for _, norm in self._norms()]
        momenta = [norm.momentum for norm in norms]
        for number, tiles in enumerate(batches, 1):
            for norm in norms:
                norm.momentum = 1 / number
            with precision:
                self.model(tiles)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _norms(self) -> list[tuple[str, nn.BatchNorm2d | nn.SyncBatchNorm]]:
        modules = self.model.backbone.named_modules()
        return [(name, module) for name, module in modules if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]

    def state(self) -> dict[str, Tensor]:
        """The model's state as a `TileClassifier` of RGB tiles has it."""
        state = dict(self.model.state_dict())
        if self.pixels.grey:
            kernel = state["backbone.conv1.weight"]
            state["backbone.conv1.weight"] = kernel * _grey(kernel.device, kernel.dtype)
        return state


def build(config: RmldnnConfig, height: int, width: int) -> Network:
    """Read layers and weights for tiles of this size. ContractError where layers, weights and transforms don't fit together.

    The running statistics take in a tenth of each batch, as is torch's way, on which rmldnn is built, whatever momentum a layer file has;
    before the network is validated they are taken anew: see `Network.take_statistics`, and docs/from-rmldnn.md for what that brings.
    """
    transforms, name = (
        config.data.transforms,
        str(config.layers) if not isinstance(config.layers, dict | list) else f"{config.path}: layers",
    )
    graph, keras = read_network(config.layers, str(config.path))
    pixels = transforms.pixels(config.data.grayscale)
    if keras.own_pixels:
        if pixels not in (Pixels(), Pixels().swapped()):
            raise ContractError(f"{name} preprocesses its input itself: leave normalize and grayscale out of {config.path}.")
        own = keras.own_pixels
        pixels = own.swapped() if pixels.order == (2, 1, 0) else own
    if keras.channels not in (0, pixels.channels):
        raise ContractError(
            f"{name} takes {keras.channels} channels, the samples of {config.path} have {pixels.channels}. Set grayscale to {str(keras.channels == 1).lower()}."
        )
    size = transforms.size(height, width)
    if (keras.height or size[0], keras.width or size[1]) != size:
        raise ContractError(
            f"{name} takes {keras.width}x{keras.height} pixels, the samples of {config.path} have {size[1]}x{size[0]}. "
            f'Add {{"resize": [{keras.width}, {keras.height}]}} to the transforms, or take the size out of the layer file.'
        )
    torch.manual_seed(SEED)
    side = transforms.in_network(height, width)
    model = TileClassifier(keras.classes, pixels.rgb_mean, pixels.rgb_std, side or 0, architecture=keras.architecture)
    if pixels.grey:
        model.backbone.conv1 = GreyConv2d(1, 64, 7, 2, 3, bias=False)
    _as_keras_begins(model.backbone)
    state: dict[str, Tensor] = {}
    notes: list[str] = []
    if config.load:
        weights = read_weights(config.load, graph)
        state, notes = to_state(keras, weights, config.load, pixels, model.backbone.state_dict(), bool(config.data.input_path))
        model.backbone.load_state_dict(state, strict=False)
    if config.data.input_path and keras.restrained:
        notes.append(
            f"{len(keras.restrained)} of the trained layers have a regularizer or a constraint in {name}, {keras.restrained[0]!r} first: "
            "these are not applied, optimizer.weight_decay is"
        )
    _set_trainable(model.backbone, keras, state)
    return Network(model, keras, pixels, side, size, tuple(notes))


class GreyConv2d(nn.Conv2d):
    """A convolution of one channel on the grey of three; grey is a weighted sum, so it may come after their normalisation."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        grey = (input * _grey(input.device, input.dtype)).sum(1, keepdim=True)
        return super()._conv_forward(grey, weight, bias)  # type: ignore[no-any-return]


@cache
@torch.inference_mode(False)  # it outlives whoever asks first, and a gradient may need it
def _grey(device: torch.device, dtype: torch.dtype) -> Tensor:
    """How much of grey is of each colour (3, 1, 1): put on the device once, since each step would wait for the copy."""
    return torch.tensor(GREY, device=device, dtype=dtype).view(3, 1, 1)


def _as_keras_begins(backbone: nn.Module) -> None:
    """Keras' initial weights: Glorot and Bengio's uniform for kernels (2010), zeros for the head's bias."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _set_trainable(backbone: nn.Module, keras: KerasNetwork, loaded: dict[str, Tensor]) -> None:
    """What the file trains; what it switches off is not trained, unless the weights hold it after all.

    The tutorial's own layer file switches gamma and beta off in every BatchNorm and yet trains BatchNorms of weights that hold them: to
    drop them would be to lose the pretrained network.
    """
    for name, parameter in backbone.named_parameters():
        role, _, weight = name.rpartition(".")
        parameter.requires_grad_(role in keras.trainable and ((role, weight) not in keras.switched_off or name in loaded))


def require_trainable(network: Network, path: object) -> None:
    """InputError where nothing is trained."""
    if not any(parameter.requires_grad for parameter in network.model.parameters()):
        raise trains_nothing(path)
