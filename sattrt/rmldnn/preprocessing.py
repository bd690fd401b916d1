"""Preprocessing that a Keras model carries in itself: Rescaling, Normalization, and what keras.applications' preprocess_input leaves.

    start, pixels, used = preprocessing(graph, graph["input_layer"])      # the layer that feeds the network proper

`preprocess_input` of ResNet-50 is a chain of Keras' operations: three GetItem and a Stack turn RGB to BGR, an Add takes the means off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .layers import Graph, Layer
from .pixels import Pixels
from .section import is_number

_RAW = Pixels(std=(1 / 255,) * 3)  # values in 0..255


def preprocessing(graph: Graph, first: Layer) -> tuple[str, Pixels | None, set[str]]:
    """Name of the layer that the network proper begins after, what has been done to pixels in 0..255 by then (None: nothing), layers used."""
    known: dict[str, Pixels | int] = {first.name: _RAW}  # an int is a single channel
    start = first.name
    for layer in graph.values():  # Keras writes each after those that feed it
        if layer.name in known or not layer.inputs or not all(name in known for name in layer.inputs):
            continue
        done = _step(layer, [known[name] for name in layer.inputs])
        if done is None:
            continue
        known[layer.name] = done
        if isinstance(done, Pixels):
            start = layer.name
    pixels = known[start]
    assert isinstance(pixels, Pixels)
    return start, pixels if start != first.name else None, set(known)


def _step(layer: Layer, values: list[Pixels | int]) -> Pixels | int | None:
    """What a layer gives; None for one that is no preprocessing."""
    pixels = values[0]
    if layer.kind == "Stack" and layer.settings.get("axis") == -1 and all(isinstance(value, int) for value in values):
        return _RAW if values == [0, 1, 2] else _RAW.swapped() if values == [2, 1, 0] else None
    if not isinstance(pixels, Pixels) or len(values) != 1:
        return None
    if layer.kind == "GetItem" and pixels == _RAW:
        chosen = [number for number in _numbers(layer.arguments) if number in (0, 1, 2)]
        return int(chosen[-1]) if chosen else None
    if layer.kind == "Rescaling":
        scale, offset = _three(layer.settings.get("scale")), _three(layer.settings.get("offset", 0.0))
        if scale and offset and all(scale):
            return pixels.normalised([-o / s for o, s in zip(offset, scale, strict=True)], [1 / s for s in scale])
    if layer.kind == "Normalization" and not layer.settings.get("invert"):
        mean, variance = _three(layer.settings.get("mean")), _three(layer.settings.get("variance"))
        if mean and variance and min(variance) > 0:
            return pixels.normalised(mean, [each**0.5 for each in variance])
    operands = list(_operands(layer.arguments)) if layer.kind in ("Add", "Subtract") else []
    if len(operands) == 2 and (operands[0] is None or layer.kind == "Add"):  # a constant less the pixels is no shift of them
        sign = 1.0 if layer.kind == "Subtract" else -1.0
        if shift := _three(operands[1] if operands[0] is None else operands[0]):
            return pixels.normalised([sign * each for each in shift], (1.0,) * 3)
    return None


def _three(value: Any) -> list[float] | None:
    """A number for each channel, out of one for all or nested lists of three."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    values = value if isinstance(value, list) else [value] * 3
    return [float(each) for each in values] if len(values) == 3 and all(is_number(each) for each in values) else None


def _operands(arguments: Any) -> Iterator[Any]:
    """The tensors of a call in their order: the value of a constant, None for what another layer gives."""
    if isinstance(arguments, dict) and isinstance(arguments.get("config"), dict):
        yield arguments["config"].get("value") if arguments.get("class_name") == "__tensor__" else None
    elif isinstance(arguments, dict | list):
        for each in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from _operands(each)


def _numbers(arguments: Any) -> Iterator[int]:
    """The whole numbers of a call's arguments that are not part of a tensor's description."""
    if type(arguments) is int:
        yield arguments
    elif isinstance(arguments, list):
        for each in arguments:
            yield from _numbers(each)
    elif isinstance(arguments, dict) and "class_name" not in arguments:
        for each in arguments.values():
            yield from _numbers(each)
