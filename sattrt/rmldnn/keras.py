"""Keras' ResNet-50 told by its layers and their connections, whatever their names; any other network is refused by layer.

    graph, network = read_network(Path("layers.json"), "config_train.json")
    network.names["layer1.0.conv1"]                    # "conv2_block1_1_conv", or whatever it is called there

Layers are called by torchvision's names for them. The network: He et al., CVPR 2016, as keras.applications.ResNet50 has it (v1), or as
torchvision has it (v1.5): the stride of a stage in its first 3x3 convolution, padded on all sides, and an epsilon of 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ContractError, InputError
from ..model import KERAS_EPSILON
from ..spec import KERAS_RESNET50, RESNET50
from .layers import Graph, Layer, read_layers
from .pixels import Pixels
from .preprocessing import preprocessing
from .section import is_number

ACTIVATIONS = {"log_softmax": "log_softmax", "log_softmax_v2": "log_softmax", "softmax": "softmax", "linear": "linear"}
_BLOCKS, _WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
_ONLY = {"data_format": "channels_last", "renorm": False}  # of every layer that has such a setting
_EPSILONS = {KERAS_RESNET50: KERAS_EPSILON, RESNET50: 1e-5}


@dataclass(frozen=True)
class KerasNetwork:
    """What a layer file says of a ResNet-50. All layers by torchvision's names.

    architecture: KERAS_RESNET50 or RESNET50, by its epsilon.
    names: what the file calls each layer with weights. trainable: which of them are trained.
    switched_off: (layer, weight) that the file does without: biases of convolutions and head, gamma and beta of BatchNorms.
    classes, activation: of the head.
    height, width, channels: of the input; 0 where the file leaves them open.
    own_pixels: the preprocessing that is part of the network, of values in 0..255; None where it has none.
    restrained: what the file calls the trained layers that it puts under a regularizer or a constraint.
    """

    architecture: str
    names: dict[str, str]
    trainable: frozenset[str]
    switched_off: frozenset[tuple[str, str]]
    classes: int
    activation: str
    height: int
    width: int
    channels: int
    own_pixels: Pixels | None
    restrained: tuple[str, ...]


@dataclass(frozen=True)
class _Slot:
    """A layer that has to be there: its role, what its config has to say by its class in Keras, the roles that feed it."""

    role: str
    wants: dict[str, dict[str, Any]]
    after: tuple[str, ...]

    def fits(self, layer: Layer) -> bool:
        return layer.kind in self.wants and all(_same(layer.setting(key), value) for key, value in self.wants[layer.kind].items())

    def __str__(self) -> str:
        kind, settings = next(iter(self.wants.items()))
        return kind + (f" ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else "")


def trains_nothing(path: object) -> InputError:
    """Of a configuration whose layer file freezes every layer."""
    return InputError(f"{path} trains no layer: all of them have trainable false. Train the BatchNormalization layers, or the head.")


def read_network(layers: Path | dict[str, Any] | list[Any], config: str) -> tuple[Graph, KerasNetwork]:
    """The layers of a file, or of the configuration itself, and the ResNet-50 in them. ContractError for anything else."""
    name = str(layers) if isinstance(layers, Path) else f"{config}: layers"
    try:
        graph = read_layers(layers, name)
        return graph, recognise(graph, name)
    except RecursionError:
        raise ContractError(f"{name} is nested too deeply to be a network. Give what Keras' model.to_json() writes.") from None


def recognise(graph: Graph, name: str) -> KerasNetwork:
    """The ResNet-50 in this graph. ContractError that names the first layer that is none of it: what was expected, what was found."""
    inputs = [layer for layer in graph.values() if layer.kind == "InputLayer"]
    if len(inputs) != 1:
        raise ContractError(
            f"{name} is not Keras' ResNet-50: one InputLayer was expected, {len(inputs)} found. sattrt trains no other network."
        )
    for layer in graph.values():
        for key, only in _ONLY.items():
            if layer.settings.get(key) not in (None, only):
                raise ContractError(f"{name}: {layer.name!r} has {key} {str(layer.settings[key])[:60]!r}; sattrt takes only {only!r}.")
    height, width, channels = _input_size(inputs[0], name)
    start, own_pixels, used = preprocessing(graph, inputs[0])
    found: dict[str, Layer] = {}
    norms = (layer for layer in graph.values() if layer.kind == "BatchNormalization")
    by_torchvision = any(_same(layer.setting("epsilon"), _EPSILONS[RESNET50]) for layer in norms)
    architecture = RESNET50 if by_torchvision else KERAS_RESNET50
    known = "torchvision's ResNet-50 (an epsilon of 1e-05)" if by_torchvision else "Keras' ResNet-50"
    for slot in _slots(architecture):
        sources = {found[role].name if role else start for role in slot.after}
        there = [layer for layer in graph.values() if layer.name not in used and set(layer.inputs) == sources]
        fitting = [layer for layer in there if slot.fits(layer) and len(layer.inputs) == len(slot.after)]
        if not fitting:
            what = str(there[0]) if there else "nothing"
            raise ContractError(
                f"{name} is not {known}: after {' and '.join(sorted(map(repr, sources)))} a {slot} was expected, {what} was found. "
                "sattrt trains no other network."
            )
        found[slot.role] = fitting[0]
        used.add(fitting[0].name)
    activation = _activation(graph, found["fc"], used, name)
    if left := [layer for layer in graph.values() if layer.name not in used]:
        raise ContractError(
            f"{name} is not {known}: {len(left)} of the layers don't belong to it, first {left[0]}. sattrt trains no other network."
        )
    weighted = {role: layer for role, layer in found.items() if layer.kind in ("Conv2D", "BatchNormalization", "Dense")}
    trainable = frozenset(role for role, layer in weighted.items() if layer.trainable)
    _refuse_biases_of_frozen_norms(weighted, trainable, name)
    return KerasNetwork(
        architecture=architecture,
        names={role: layer.name for role, layer in weighted.items()},
        trainable=trainable,
        switched_off=frozenset(_switched_off(weighted)),
        classes=_classes(found["fc"], name),
        activation=activation,
        height=height,
        width=width,
        channels=channels,
        own_pixels=own_pixels,
        restrained=tuple(layer.name for layer in found.values() if layer.trainable and _restrained(layer)),
    )


def _slots(architecture: str) -> Iterator[_Slot]:
    """Every layer, each after those that feed it; the role "" is the network's input."""
    epsilon = _EPSILONS[architecture]
    yield _Slot("pad", {"ZeroPadding2D": {"padding": 3}}, ("",))
    yield from _conv_norm("conv1", "bn1", "pad", epsilon, filters=64, kernel_size=7, strides=2, padding="valid")
    yield _relu("relu", "bn1")
    yield _Slot("pool_pad", {"ZeroPadding2D": {"padding": 1}}, ("relu",))
    yield _Slot("pool", {"MaxPooling2D": {"pool_size": 3, "strides": 2, "padding": "valid"}}, ("pool_pad",))
    before = "pool"
    for stage, (blocks, filters) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True), 1):
        for number in range(blocks):
            block, strides = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            beside = before
            if number == 0:
                beside = f"{block}.downsample.1"
                yield from _conv_norm(
                    f"{block}.downsample.0", beside, before, epsilon, filters=4 * filters, kernel_size=1, strides=strides, padding="valid"
                )
            late = strides == 2 and architecture == RESNET50
            yield from _conv_norm(
                f"{block}.conv1",
                f"{block}.bn1",
                before,
                epsilon,
                filters=filters,
                kernel_size=1,
                strides=1 if late else strides,
                padding="valid",
            )
            yield _relu(f"{block}.relu1", f"{block}.bn1")
            if late:
                yield _Slot(f"{block}.pad", {"ZeroPadding2D": {"padding": 1}}, (f"{block}.relu1",))
            within: dict[str, Any] = {"strides": 2, "padding": "valid"} if late else {"strides": 1, "padding": "same"}
            shown = f"{block}.pad" if late else f"{block}.relu1"
            yield from _conv_norm(f"{block}.conv2", f"{block}.bn2", shown, epsilon, filters=filters, kernel_size=3, **within)
            yield _relu(f"{block}.relu2", f"{block}.bn2")
            yield from _conv_norm(
                f"{block}.conv3", f"{block}.bn3", f"{block}.relu2", epsilon, filters=4 * filters, kernel_size=1, strides=1, padding="valid"
            )
            yield _Slot(f"{block}.add", {"Add": {}}, (beside, f"{block}.bn3"))
            yield _relu(block, f"{block}.add")
            before = block
    yield _Slot("avgpool", {"GlobalAveragePooling2D": {"keepdims": False}}, (before,))
    yield _Slot("fc", {"Dense": {}}, ("avgpool",))


def _conv_norm(conv: str, norm: str, after: str, epsilon: float, **wants: Any) -> Iterator[_Slot]:
    plain = {"dilation_rate": 1, "groups": 1, "activation": "linear"}
    yield _Slot(conv, {"Conv2D": wants | plain}, (after,))
    yield _Slot(norm, {"BatchNormalization": {"epsilon": epsilon, "axis": 3}}, (conv,))


def _relu(role: str, after: str) -> _Slot:
    return _Slot(role, {"Activation": {"activation": "relu"}, "ReLU": {"max_value": None, "negative_slope": 0, "threshold": 0}}, (after,))


def _same(found: Any, wanted: Any) -> bool:
    """Whether a setting is the wanted one; 3, [3, 3] and [[3, 3], [3, 3]] are the same, and so are the axes 3 and -1 of four."""
    while isinstance(found, list) and found and all(each == found[0] for each in found):
        found = found[0]
    if isinstance(wanted, float):
        return is_number(found) and abs(found - wanted) <= 1e-9
    return bool(found == wanted) or (wanted == 3 and found == -1)


def _input_size(layer: Layer, name: str) -> tuple[int, int, int]:
    shape = layer.settings.get("batch_shape", layer.settings.get("batch_input_shape"))
    if not (
        isinstance(shape, list)
        and len(shape) == 4
        and all(each is None or (type(each) is int and each > 0) for each in shape[1:])
        and shape[3] in (None, 1, 3)
    ):
        raise ContractError(f"{name}: {layer.name!r} takes {str(shape)[:80]}; tiles are [null, height, width, 3], or 1 for grey ones.")
    return shape[1] or 0, shape[2] or 0, shape[3] or 0


def _activation(graph: Graph, head: Layer, used: set[str], name: str) -> str:
    """What follows the head's product; it may be a layer of its own."""
    said = head.setting("activation")
    after = [layer for layer in graph.values() if layer.inputs == (head.name,)]
    if said == "linear" and len(after) == 1 and after[0].kind in ("Activation", "Softmax"):
        used.add(after[0].name)
        said = "softmax" if after[0].kind == "Softmax" else after[0].settings.get("activation")
    if not isinstance(said, str) or said not in ACTIVATIONS:
        raise ContractError(
            f"{name}: the head {head.name!r} has the activation {str(said)[:60]!r}; log_softmax, softmax or linear was expected."
        )
    return ACTIVATIONS[said]


def _classes(head: Layer, name: str) -> int:
    units = head.settings.get("units")
    if type(units) is not int or not 2 <= units <= 65536:
        raise ContractError(f"{name}: the head {head.name!r} has {str(units)[:60]} units; 2 to 65,536 were expected.")
    return units


def _switched_off(weighted: dict[str, Layer]) -> Iterator[tuple[str, str]]:
    for role, layer in weighted.items():
        for key, weight in (("use_bias", "bias"), ("center", "bias"), ("scale", "weight")):
            if layer.settings.get(key, True) is False:
                yield role, weight


def _restrained(layer: Layer) -> bool:
    return any(value and key.endswith(("_regularizer", "_constraint")) for key, value in layer.settings.items())


def _refuse_biases_of_frozen_norms(weighted: dict[str, Layer], trainable: frozenset[str], name: str) -> None:
    """A convolution's bias is part of the BatchNorm's mean here, which is exact unless it is trained on its own."""
    for role in trainable:
        norm = role.replace("conv", "bn").replace("downsample.0", "downsample.1")
        if weighted[role].kind == "Conv2D" and norm not in trainable and weighted[role].settings.get("use_bias", True):
            raise ContractError(
                f"{name} trains the bias of {weighted[role].name!r} beside the frozen {weighted[norm].name!r}, which sattrt does not. "
                "Train or freeze both, or set use_bias to false."
            )
