"""Weights by the names of Keras' layers: `.h5` files of Keras, `.pt` state dicts; and the checkpoints that a run writes.

    weights = read_weights(Path("model_resnet50_imagenet.h5"), graph)      # weights["conv1_conv"]["weight"], as torch has it
    state, notes = to_state(network, weights, Path("model_resnet50_imagenet.h5"), pixels, model.backbone.state_dict(), training=True)

Nothing of a file is executed. rmldnn's own `.pt` files are TorchScript archives, which are programs: the error says how to take the
state dict out of one.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BackendError, ContractError, InputError
from ..model import read_state
from ..spec import RESNET50, atomic_path, unwritable
from .keras import KerasNetwork
from .layers import Graph
from .pixels import Pixels

Weights = dict[str, dict[str, Tensor]]  # by layer, then by torch's name of the weight
_IN_TORCH = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_BY_NUMBER = {"Conv2D": ("kernel", "bias"), "Dense": ("kernel", "bias"), "BatchNormalization": tuple(_IN_TORCH)[2:]}
_LARGEST = 2048 * 65536  # elements of the largest head there may be


def read_weights(path: Path, graph: Graph) -> Weights:
    """Weights of every layer in a file, in torch's layout. InputError where it can't be read, BackendError where h5py is not installed."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {fault}. Give checkpoints.load an .h5 file of Keras, or a .pt state dict.")
    if path.suffix.lower() == ".keras":
        raise InputError(f'checkpoints.load is {path}, an archive of Keras 3. Save the model as an .h5 file: model.save("x.h5")')
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _read_h5(path, graph)
    weights: Weights = {}
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of a TorchScript archive before it refuses it
            state = read_state(path)
    except InputError as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript archive, a program. If you trust it, take the weights out: "
                'python -c "import sys, torch; torch.save(torch.jit.load(sys.argv[1]).state_dict(), sys.argv[2])" OLD NEW'
            ) from None
        raise InputError(f"checkpoints.load: {error}") from None
    for key, value in state.items():
        layer, _, weight = key.removeprefix("module.").rpartition(".")
        weights.setdefault(layer, {})[weight] = value
    return weights


def to_state(
    network: KerasNetwork, weights: Weights, path: Path, pixels: Pixels, own: dict[str, Tensor], training: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict by torchvision's names, and what is to be said of it.

    A convolution's bias moves into the mean of the BatchNorm after it, which is exact in training too: there a bias is subtracted with the
    mean of the batch. The first convolution is turned to RGB. own: the network's own state, for the shapes and for a head that the file
    does without (another head is another name in rmldnn, too), which it may in training. ContractError for a layer or a
    weight that is missing, unless the layer file switches it off, or of another shape.
    """
    weights = _by_layer(network, weights, own)
    state: dict[str, Tensor] = {}
    notes: list[str] = []
    missing = [layer for role, layer in network.names.items() if layer not in weights and role != "fc"]
    if missing:
        raise ContractError(
            f"{path} lacks {len(missing)} of the {len(network.names)} layers with weights, {missing[0]!r} first. Give the weights of this layer file."
        )
    biases: dict[str, Tensor] = {}
    for role, layer in network.names.items():
        found = weights.get(layer, {})
        if role == "fc" and not found:
            if not training:
                raise ContractError(f"{path} lacks the head {layer!r}, and nothing is trained here. Give the weights of this layer file.")
            frozen = "" if role in network.trainable else " and stays so, since the layer file freezes it"
            notes.append(f"the head {layer!r} is not in {path}: it begins at random{frozen}")
            continue
        for weight in ("weight", "bias", "running_mean", "running_var"):
            key = f"{role}.{weight}"
            if weight not in found:
                if key in own and (role, weight) not in network.switched_off:
                    raise ContractError(f"{path} lacks {weight!r} of the layer {layer!r}. Give the weights of this layer file.")
                continue
            value = found[weight]
            shape = own[key].shape if key in own else own[f"{role}.weight"].shape[:1]
            if not value.is_floating_point():
                kind = str(value.dtype).removeprefix("torch.")
                raise ContractError(f"{path}: {weight!r} of the layer {layer!r} is of {kind}. Give weights in floating point.")
            if value.shape != shape:
                raise ContractError(
                    f"{path}: {weight!r} of the layer {layer!r} has the shape {tuple(value.shape)}, not {tuple(shape)}. "
                    "Give the weights of this layer file."
                )
            if not value.isfinite().all():
                raise ContractError(f"{path}: {weight!r} of the layer {layer!r} holds values that are not finite. Use another checkpoint.")
            (state if key in own else biases)[key] = value.to(own.get(key, value).dtype)
    for key, bias in biases.items():
        norm = key.replace("downsample.0", "downsample.1").replace("conv", "bn").replace(".bias", ".running_mean")
        state[norm] = state[norm] - bias
    state["conv1.weight"] = _turned(state["conv1.weight"], pixels)
    if extra := [layer for layer in weights if layer not in network.names.values() and weights[layer]]:
        notes.append(f"{len(extra)} layers of {path} are not in the network and are ignored, {extra[0]!r} first")
    return state, notes


def _by_layer(network: KerasNetwork, weights: Weights, own: dict[str, Tensor]) -> Weights:
    """Weights by the layer file's names, where they come by torchvision's, which are the roles: torchvision's own state dict, for its
    strides alone. Its head is left aside where it is of other classes, as a head of another name is."""
    if network.architecture != RESNET50 or "conv1" not in weights or network.names["conv1"] in weights:
        return weights
    head = weights.get("fc", {}).get("weight")
    other = head is not None and head.shape != own["fc.weight"].shape
    return {network.names.get(role, role): found for role, found in weights.items() if not (role == "fc" and other)}


def save_checkpoint(path: Path, network: KerasNetwork, backbone: nn.Module, pixels: Pixels) -> None:
    """Write a backbone's state as .pt by the names of Keras' layers: what `read_weights` reads. InputError where it can't be written.

    What the layer file switches off and no weights held is left out: whoever goes on from the file would train it.
    """
    state, kept = backbone.state_dict(), dict[str, Tensor]()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    for role, layer in network.names.items():
        for weight in ("weight", "bias", "running_mean", "running_var"):
            name = f"{role}.{weight}"
            if role in network.trainable and (role, weight) in network.switched_off and name not in trained:
                continue
            if (value := state.get(name)) is not None:
                value = _turned(value, pixels) if role == "conv1" else value
                kept[f"{layer}.{weight}"] = value.detach().cpu().contiguous().clone()
    with atomic_path(path, "checkpoints.save") as temporary:
        try:
            torch.save(kept, temporary)
        except RuntimeError as error:  # torch wraps the operating system's error
            raise unwritable(
                path, OSError(28, "No space left") if _is_full(error) else OSError(5, str(error)), "checkpoints.save"
            ) from None


def _is_full(error: Exception) -> bool:
    """Whether torch failed at a full disk: it says that fewer bytes were written than it gave."""
    return "No space" in str(error) or "unexpected pos" in str(error)


def _turned(kernel: Tensor, pixels: Pixels) -> Tensor:
    """The first convolution for channels in the other order; its own inverse."""
    return kernel.flip(1) if pixels.order == (2, 1, 0) and kernel.shape[1] == 3 else kernel


def _read_h5(path: Path, graph: Graph) -> Weights:
    try:
        import h5py
    except ImportError:
        raise BackendError(f"{path} needs h5py, which is not installed. Install it with: pip install 'sattrt[rmldnn]'") from None
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            by_number = "layers" in root and "layer_names" not in root.attrs
            found = _numbered(root["layers"], graph, h5py) if by_number else _named(root, h5py)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(
            f"checkpoints.load: {path} can't be read as weights of Keras ({' '.join(str(error).split())[:120]}). Save the model again."
        ) from None
    return {layer: {_IN_TORCH[name]: _in_torch(value) for name, value in arrays.items()} for layer, arrays in found.items()}


def _named(root: Any, h5py: Any) -> dict[str, dict[str, Any]]:
    """model.save("x.h5") and Keras 2's save_weights: each layer lists its weights, as in conv1_conv/kernel:0."""
    found: dict[str, dict[str, Any]] = {}
    for layer in _texts(root.attrs["layer_names"]):
        for name in _texts(root[layer].attrs["weight_names"]):
            kind = name.rpartition("/")[2].partition(":")[0]
            if kind in _IN_TORCH:
                found.setdefault(layer, {})[kind] = _array(root[layer][name], h5py)
    return found


def _numbered(root: Any, graph: Graph, h5py: Any) -> dict[str, dict[str, Any]]:
    """Keras 3's save_weights("x.weights.h5"): layers are numbered within their class, and their weights too."""
    found: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for layer in graph.values():
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", layer.kind).lower()
        folder = f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
        if layer.kind not in _BY_NUMBER:
            continue
        off = {
            name for key, name in (("use_bias", "bias"), ("center", "beta"), ("scale", "gamma")) if layer.settings.get(key, True) is False
        }
        names = [name for name in _BY_NUMBER[layer.kind] if name not in off]
        stored = root[folder]["vars"]
        if len(stored) == len(_BY_NUMBER[layer.kind]):  # the file of a network that does with all of them
            names = list(_BY_NUMBER[layer.kind])
        found[layer.name] = {name: _array(stored[str(number)], h5py) for number, name in enumerate(names)}
    return found


def _array(stored: Any, h5py: Any) -> Any:
    if not isinstance(stored, h5py.Dataset) or stored.dtype.kind != "f" or stored.size > _LARGEST or stored.ndim not in (1, 2, 4):
        raise ValueError(f"{getattr(stored, 'name', 'a weight')} is not an array of weights")
    return stored[()]


def _in_torch(array: Any) -> Tensor:
    """Kernels from Keras' (height, width, in, out) and (in, out) to torch's (out, in, ...)."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(axes), np.float32))


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
