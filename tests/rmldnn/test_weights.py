"""Weights by the names of a layer file: what is missing, of another shape or no file of weights is one line."""

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import by_name, network

from sattrt.errors import ContractError, InputError, SattrtError
from sattrt.rmldnn.keras import KerasNetwork
from sattrt.rmldnn.network import Network
from sattrt.rmldnn.weights import read_weights, save_checkpoint, to_state


def test_another_head_begins_at_random(tutorial: Path, layer_file: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(layer_file)
    by_name(other, "dense")["name"] = "dense_5"
    by_name(other, "dense_5")["units"] = 7
    (tmp_path / "layers.json").write_text(json.dumps(other))
    built = network(tutorial, tmp_path, "train", layers=str(tmp_path / "layers.json"))
    assert built.keras.classes == 7
    assert [note.split()[2] for note in built.notes] == ["'dense_5'", "of"]
    with pytest.raises(ContractError, match=r"model.h5 lacks the head 'dense_5', and nothing is trained here"):
        network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"))


def test_what_the_file_switches_off_is_trained_where_the_weights_hold_it(
    tutorial: Path, layer_file: dict[str, Any], tmp_path: Path
) -> None:
    """The tutorial's own layer file says center, scale and use_bias false, of weights that have them all."""
    bare = copy.deepcopy(layer_file)
    for layer in bare["config"]["layers"]:
        for key in ("center", "scale", "use_bias"):
            if key in layer["config"]:
                layer["config"][key] = False
    (tmp_path / "layers.json").write_text(json.dumps(bare))
    held = network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"))
    names = {name for name, each in held.model.backbone.named_parameters() if each.requires_grad}
    assert {"bn1.weight", "bn1.bias", "fc.weight", "fc.bias"} < names
    fresh = network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"), checkpoints={"load": ""})
    assert {name for name, each in fresh.model.backbone.named_parameters() if each.requires_grad} == {"fc.weight"}


def test_weights_that_do_not_fit_are_one_line(tutorial: Path, layer_file: dict[str, Any], tmp_path: Path) -> None:
    whole = network(tutorial, tmp_path)
    state = {f"{whole.keras.names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in _weights(whole).items()}
    cases = {
        "has the shape (64, 3, 5, 5), not (64, 3, 7, 7)": {**state, "conv1_conv.weight": torch.zeros(64, 3, 5, 5)},
        "has the shape (4, 2048), not (3, 2048)": {**state, "dense.weight": torch.zeros(4, 2048)},
        "'weight' of the layer 'conv1_conv' is of int64. Give weights in floating point.": {
            **state,
            "conv1_conv.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int64),
        },
        "holds values that are not finite": {**state, "conv1_bn.bias": torch.full((64,), torch.nan)},
        "lacks 1 of the 107 layers with weights, 'conv1_conv' first": {k: v for k, v in state.items() if not k.startswith("conv1_conv")},
        "lacks 'running_var' of the layer 'conv1_bn'": {k: v for k, v in state.items() if k != "conv1_bn.running_var"},
        "holds no state dict": {"epoch": 5},
    }
    for said, spoilt in cases.items():
        torch.save(spoilt, tmp_path / "w.pt")
        with pytest.raises(SattrtError) as caught:
            network(tutorial, tmp_path, checkpoints={"load": str(tmp_path / "w.pt")})
        assert said in str(caught.value)
        assert "w.pt" in str(caught.value)


def _weights(built: Network) -> dict[str, torch.Tensor]:
    return {key: value for key, value in built.model.backbone.state_dict().items() if "num_batches" not in key}


def test_what_is_switched_off_is_not_trained_by_whoever_goes_on(tutorial: Path, layer_file: dict[str, Any], tmp_path: Path) -> None:
    """Gamma and beta that the layer file does without, and that no weights hold, begin at one and zero and stay there; of a .pt as well."""
    layers = copy.deepcopy(layer_file)
    for layer in layers["config"]["layers"]:
        if layer["class_name"] == "BatchNormalization":
            layer["config"] |= {"center": False, "scale": False}
    (tmp_path / "layers.json").write_text(json.dumps(layers))

    def trained(load: Path | None) -> tuple[Network, set[str]]:
        checkpoints = {"load": str(load) if load else ""}
        built = network(tutorial, tmp_path, "train", layers=str(tmp_path / "layers.json"), checkpoints=checkpoints)
        return built, {name for name, parameter in built.model.backbone.named_parameters() if parameter.requires_grad}

    first, names = trained(None)
    assert "bn1.weight" not in names
    save_checkpoint(tmp_path / "w.pt", first.keras, first.model.backbone, first.pixels)
    assert trained(tmp_path / "w.pt")[1] == names
    assert "bn1.weight" in trained(tutorial / "model.h5")[1]  # weights that hold them after all


def test_every_weight_has_to_be_there(tutorial: Path, tmp_path: Path) -> None:
    """But for a head that is trained anew, and for what the layer file switches off."""
    built = network(tutorial, tmp_path)
    keras, own, head = built.keras, built.model.backbone.state_dict(), built.keras.names["fc"]
    save_checkpoint(tmp_path / "w.pt", keras, built.model.backbone, built.pixels)
    whole = read_weights(tmp_path / "w.pt", {})

    def notes(layer: str, weight: str, described: KerasNetwork, training: bool = False) -> list[str]:
        fewer = {**whole, layer: {name: value for name, value in whole[layer].items() if name != weight}}
        return to_state(described, fewer, Path("w.pt"), built.pixels, own, training)[1]

    for layer, weight in [
        ("conv1_conv", "weight"),
        ("conv1_bn", "weight"),
        ("conv5_block3_3_bn", "bias"),
        ("conv2_block1_0_bn", "running_mean"),
        (head, "weight"),
        (head, "bias"),
    ]:
        for training in (False, True):
            with pytest.raises(ContractError, match=rf"w.pt lacks '{weight}' of the layer '{layer}'"):
                notes(layer, weight, keras, training)
    assert notes("conv1_bn", "weight", replace(keras, switched_off=frozenset({("bn1", "weight")}))) == []
    assert notes(head, "bias", replace(keras, switched_off=frozenset({("fc", "bias")}))) == []
    del whole[head]
    with pytest.raises(ContractError, match=rf"w.pt lacks the head '{head}', and nothing is trained here"):
        to_state(keras, whole, Path("w.pt"), built.pixels, own, training=False)
    frozen = replace(keras, trainable=keras.trainable - {"fc"})
    for described, said in ((keras, "it begins at random"), (frozen, "stays so, since the layer file freezes it")):
        [note] = to_state(described, whole, Path("w.pt"), built.pixels, own, training=True)[1]
        assert note.endswith(said)


def test_files_that_are_no_weights_are_one_line(tutorial: Path, tmp_path: Path) -> None:
    with open(tutorial / "model.h5", "rb") as file:
        (tmp_path / "cut.h5").write_bytes(file.read(10**6))
    (tmp_path / "text.h5").write_text("weights")
    (tmp_path / "text.pt").write_text("weights")
    with warnings.catch_warnings(action="ignore"):  # torch.jit is on its way out; libtorch's files are not
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    said = {
        "cut.h5": "can't be read as weights of Keras",
        "text.h5": "can't be read",
        "text.pt": "can't be read",
        "text.H5": "can't be read as weights of Keras",
        "model.keras": 'an archive of Keras 3. Save the model as an .h5 file: model.save("x.h5")',
        "whole.pt": "checkpoints.load: ",
        "none.h5": "does not exist",
    }
    for name in ("text.H5", "model.keras"):
        (tmp_path / name).write_text("weights")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    for folder in ("folder", "folder.h5"):
        (tmp_path / folder).mkdir()
        said[folder] = "is a folder. Give checkpoints.load an .h5 file of Keras, or a .pt state dict"
    for name, text in {**said, "script.pt": "is a TorchScript archive, a program"}.items():
        with pytest.raises(InputError) as caught:
            network(tutorial, tmp_path, checkpoints={"load": str(tmp_path / name)})
        assert text in str(caught.value)
