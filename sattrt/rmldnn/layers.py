"""The JSON of a Keras functional model as a graph of layers; both spellings, Keras 2's and Keras 3's, and rmldnn's bare list.

graph = read_layers(Path("layers.json"), "layers.json")
graph["conv1_conv"].inputs, graph["conv1_conv"].settings["filters"]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ContractError
from ..spec import read_json

_LONGEST = 200  # characters of a name, which messages quote
_MODELS = ("Functional", "Model", "Sequential")
# what Keras builds where a layer's config does not say
DEFAULTS: dict[str, dict[str, Any]] = {
    "ZeroPadding2D": {"padding": 1},
    "Conv2D": {
        "strides": 1,
        "padding": "valid",
        "dilation_rate": 1,
        "groups": 1,
        "activation": "linear",
    },
    "BatchNormalization": {"epsilon": 1e-3, "axis": -1},
    "ReLU": {"max_value": None, "negative_slope": 0, "threshold": 0},
    "MaxPooling2D": {"pool_size": 2, "strides": None, "padding": "valid"},  # strides None: the pool's size
    "GlobalAveragePooling2D": {"keepdims": False},
    "Dense": {"activation": "linear"},
}


@dataclass(frozen=True)
class Layer:
    """One layer: its class in Keras, its config, the names of the layers that feed it, and the call's other arguments."""

    name: str
    kind: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    arguments: Any = None
    trainable: bool = True

    def __str__(self) -> str:
        shown = ("filters", "units", "kernel_size", "strides", "padding", "activation", "epsilon", "pool_size", "use_bias")
        known = DEFAULTS.get(self.kind, {})
        parts = [
            f"{key} {self.setting(key)}" + ("" if key in self.settings else " by default")
            for key in shown
            if key in self.settings or key in known
        ]
        return f"{self.name!r}, {self.kind}" + (f" ({', '.join(parts)[:150]})" if parts else "")

    def setting(self, key: str) -> Any:
        """What its config says, or Keras' default; None where Keras has none."""
        return self.settings.get(key, DEFAULTS.get(self.kind, {}).get(key))


Graph = dict[str, Layer]  # in the order of the file


def read_layers(layers: Path | dict[str, Any] | list[Any], name: str) -> Graph:
    """Layers by name. ContractError where it is no functional model; `name` is said in errors."""
    document = read_json(layers) if isinstance(layers, Path) else layers
    trainable = True
    if isinstance(document, dict):
        if document.get("class_name") not in _MODELS or not isinstance(document.get("config"), dict):
            raise ContractError(
                f"{name} is not a Keras model: 'class_name' {_MODELS[0]!r} with a 'config' was expected, {_keys(document)} found."
            )
        trainable = _flag(document["config"], name)
        document = document["config"].get("layers")
    if not isinstance(document, list) or not document:
        raise ContractError(f"{name} holds no list of layers. Give what Keras' model.to_json() writes.")
    graph: Graph = {}
    for place, entry in enumerate(document):
        layer = _layer(entry, f"{name}: layer {place}", list(graph)[-1:], trainable)
        if layer.name in graph:
            raise ContractError(f"{name} has two layers {layer.name!r}. Give what Keras' model.to_json() writes.")
        graph[layer.name] = layer
    return graph


def _layer(entry: Any, where: str, before: list[str], trainable: bool) -> Layer:
    settings = entry.get("config") if isinstance(entry, dict) else None
    if not isinstance(settings, dict) or not isinstance(entry.get("class_name"), str):
        raise ContractError(f"{where} has no 'class_name' and 'config'. Give what Keras' model.to_json() writes.")
    name = settings.get("name", entry.get("name"))
    if not isinstance(name, str):
        raise ContractError(f"{where}, a {entry['class_name'][:_LONGEST]}, has no name. Give what Keras' model.to_json() writes.")
    if (longest := max(len(name), len(entry["class_name"]))) > _LONGEST:
        raise ContractError(f"{where} has a name or a class of {longest:,} characters; at most {_LONGEST} are taken. Rename it.")
    nodes = entry.get("inbound_nodes")
    if nodes is None:  # rmldnn: the layer before
        inputs = tuple(before) if entry["class_name"] != "InputLayer" else ()
    elif not isinstance(nodes, list) or len(nodes) > 1:
        raise ContractError(f"{where}, {name!r}, is used {len(nodes) if isinstance(nodes, list) else 'in an unknown way'} times, not once.")
    else:
        inputs = tuple(_sources(nodes))
    own = _flag(settings, f"{where}, {name!r}")
    return Layer(name, entry["class_name"], settings, inputs, nodes, own and trainable)


def _flag(settings: dict[str, Any], where: str) -> bool:
    trainable = settings.get("trainable", True)
    if not isinstance(trainable, bool):
        raise ContractError(f"{where} has trainable {str(trainable)[:60]!r}. Write true or false.")
    return trainable


def _sources(nodes: Any) -> Iterator[str]:
    """Names of the layers that a call takes its tensors from: [name, 0, 0, {}] in Keras 2, a keras_history in Keras 3."""
    if isinstance(nodes, dict):
        history = nodes["config"].get("keras_history") if isinstance(nodes.get("config"), dict) else None
        if isinstance(history, list) and history and isinstance(history[0], str):
            yield history[0]
        else:
            for value in nodes.values():
                yield from _sources(value)
    elif isinstance(nodes, list):
        if len(nodes) in (3, 4) and isinstance(nodes[0], str) and nodes[1:3] == [0, 0]:
            yield nodes[0]
        else:
            for value in nodes:
                yield from _sources(value)


def _keys(document: dict[str, Any]) -> str:
    return f"an object with {', '.join(repr(key[:60]) for key in list(document)[:5]) or 'nothing'}"
