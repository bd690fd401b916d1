"""Layer files and weights against Keras itself: the same logits, by any spelling; anything else is refused by layer."""

import copy
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EUROSAT, by_name, keras_by_torch, network
from torchvision.models import resnet50

from sattrt.data.decode import decode_rgb as decode
from sattrt.data.sources import open_source
from sattrt.errors import ContractError
from sattrt.model import TileClassifier
from sattrt.rmldnn.keras import _same, read_network
from sattrt.rmldnn.layers import DEFAULTS
from sattrt.rmldnn.network import Network
from sattrt.rmldnn.weights import save_checkpoint
from sattrt.spec import KERAS_RESNET50, RESNET50

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from rmldnn_tutorial import as_torchvision

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiles(tutorial: Path) -> np.ndarray:
    """Real JPEG tiles, decoded; some of EuroSAT's where they are at hand."""
    contents = [path.read_bytes() for path in sorted(tutorial.glob("data/test/*/*.jpg"))]
    if EUROSAT.exists():
        with open_source(EUROSAT) as source:
            contents += [source.read(name) for name in source.names() if name.endswith("_7.jpg")]
    return np.stack([decode(content) for content in contents])


@pytest.fixture(scope="module")
def expected(tutorial: Path, tiles: np.ndarray) -> np.ndarray:
    """Keras' own answers."""
    model = keras_by_torch().models.load_model(tutorial / "model.h5")
    return model.predict(tiles / np.float32(255), verbose=0)  # type: ignore[no-any-return]


@torch.inference_mode()
def answers(built: Network, tiles: np.ndarray) -> np.ndarray:
    return built.model.eval()(torch.from_numpy(tiles)).log_softmax(1).numpy()  # type: ignore[no-any-return]


def as_keras_2(layer_file: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """The same network as Keras 2 wrote it, its layers called otherwise."""
    layers = []
    for layer in layer_file["config"]["layers"]:
        nodes = [
            [[rename(tensor["config"]["keras_history"][0]), 0, 0, {}] for tensor in flat(node["args"])] for node in layer["inbound_nodes"]
        ]
        config = {**layer["config"], "name": rename(layer["config"]["name"]), "dtype": "float32"}
        if "batch_shape" in config:
            config["batch_input_shape"] = config.pop("batch_shape")
        if config.get("axis") == 3:
            config["axis"] = [3]
        if config.get("activation") == "log_softmax":
            config["activation"] = "log_softmax_v2"
        layers.append({"class_name": layer["class_name"], "config": config, "name": config["name"], "inbound_nodes": nodes})
    return {"class_name": "Functional", "config": {"name": "model_1", "layers": layers}, "keras_version": "2.9.0"}


def flat(values: list[Any]) -> list[Any]:
    return [each for value in values for each in (flat(value) if isinstance(value, list) else [value])]


def test_the_logits_are_keras_own(tutorial: Path, tmp_path: Path, tiles: np.ndarray, expected: np.ndarray) -> None:
    built = network(tutorial, tmp_path)
    assert np.abs(expected).max() > 0.5  # they say something
    np.testing.assert_allclose(answers(built, tiles), expected, atol=TOLERANCE)
    assert built.notes == ()
    trained = {name.rpartition(".")[0] for name, each in built.model.backbone.named_parameters() if each.requires_grad}
    assert trained == {role for role in built.keras.names if "bn" in role or "downsample.1" in role} | {"fc"}


def test_any_spelling_and_numbering_is_the_same_network(layer_file: dict[str, Any]) -> None:
    old = as_keras_2(layer_file, lambda name: f"{name[::-1]}_7")
    for layers in (layer_file, old, old["config"]["layers"]):
        _, found = read_network(layers, "c.json")
        assert (found.classes, found.activation, found.height, len(found.names)) == (3, "log_softmax", 64, 107)
    assert found.names["layer1.0.downsample.0"] == "vnoc_0_1kcolb_2vnoc_7"


def test_a_bare_list_needs_no_connections_where_layers_follow_each_other(layer_file: dict[str, Any]) -> None:
    layers = copy.deepcopy(layer_file["config"]["layers"])
    for layer in layers[1:7]:
        del layer["inbound_nodes"]
    assert read_network(layers, "c.json")[1].classes == 3


OTHER: dict[str, tuple[str, dict[str, Any], str]] = {
    "a stride that stands elsewhere": ("conv3_block1_1_conv", {"strides": [1, 1]}, "strides 2, padding valid"),
    "more filters": ("conv4_block6_3_conv", {"filters": 2048}, "'conv4_block6_3_conv', Conv2D (filters 2048"),
    "another epsilon": ("conv2_block1_2_bn", {"epsilon": 0.001}, "a BatchNormalization (epsilon 1.001e-05"),
    "an epsilon of 400 digits": ("conv1_bn", {"epsilon": 10**400}, "epsilon 1.001e-05"),
    "a name without an end": ("conv1_conv", {"name": "x" * 1900}, "has a name or a class of 1,900 characters"),
    "trainable as a number": ("conv1_conv", {"trainable": 0}, "has trainable '0'. Write true or false"),
    "trainable as a text": ("conv1_conv", {"trainable": "false"}, "has trainable 'false'"),
    "channels first in a rim": ("conv1_pad", {"data_format": "channels_first"}, "'conv1_pad' has data_format 'channels_first'"),
    "channels first at the end": ("avg_pool", {"data_format": "channels_first"}, "'avg_pool' has data_format 'channels_first'"),
    "batch renormalisation": ("conv1_bn", {"renorm": True}, "'conv1_bn' has renorm 'True'; sattrt takes only False"),
    "another activation": ("conv5_block3_out", {"activation": "gelu"}, "'conv5_block3_out', Activation (activation gelu)"),
    "another pool": ("pool1_pool", {"pool_size": [2, 2]}, "a MaxPooling2D (pool_size 3"),
    "an input of 13 bands": ("input", {"batch_shape": [None, 64, 64, 13]}, "tiles are [null, height, width, 3]"),
    "no units": ("dense", {"units": "ten"}, "has ten units"),
    "another end": ("dense", {"activation": "sigmoid"}, "has the activation 'sigmoid'"),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_network_is_refused_by_layer(layer_file: dict[str, Any], case: str) -> None:
    name, change, said = OTHER[case]
    spoilt = copy.deepcopy(layer_file)
    for layer in spoilt["config"]["layers"]:
        if layer["config"]["name"].startswith(name):
            layer["config"] |= change
    with pytest.raises(ContractError) as caught:
        read_network(spoilt, "c.json")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500


LEFT_OUT: dict[str, tuple[str, str, str]] = {
    "a stride of 2": ("conv1_conv", "strides", "strides 2, padding valid"),
    "a padding of the same size": ("conv2_block1_2_conv", "padding", "padding same"),
    "the epsilon": ("conv1_bn", "epsilon", "epsilon 1.001e-05"),
    "the rim of the first layer": ("conv1_pad", "padding", "ZeroPadding2D (padding 3)"),
    "the pool": ("pool1_pool", "pool_size", "pool_size 3"),
    "the pool's stride": ("pool1_pool", "strides", "strides 2"),
    "filters": ("conv4_block6_3_conv", "filters", "filters 1024"),
    "an activation": ("conv5_block3_out", "activation", "Activation (activation relu)"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_key_that_is_left_out_is_keras_default(layer_file: dict[str, Any], case: str) -> None:
    name, key, expected = LEFT_OUT[case]
    spoilt = copy.deepcopy(layer_file)
    del by_name(spoilt, name)[key]
    with pytest.raises(ContractError, match=rf"{re.escape(expected)}.* was expected, '{name}', .* was found"):
        read_network(spoilt, "c.json")


def test_defaults_are_keras_own(layer_file: dict[str, Any]) -> None:
    keras = keras_by_torch()
    needed = {"Conv2D": (1, 1), "Dense": (1,)}
    for kind, defaults in DEFAULTS.items():
        theirs = json.loads(json.dumps(getattr(keras.layers, kind)(*needed.get(kind, ())).get_config(), default=str))
        for key, value in defaults.items():
            assert _same(theirs[key], value) or (kind, key) == ("MaxPooling2D", "strides"), (kind, key)  # that of the pool, whatever it is
    short = copy.deepcopy(layer_file)
    for layer in short["config"]["layers"]:
        for key, value in DEFAULTS.get(layer["class_name"], {}).items():
            if _same(layer["config"].get(key), value):
                del layer["config"][key]
    assert short != layer_file
    assert read_network(short, "c.json")[1] == read_network(layer_file, "c.json")[1]


def test_what_is_no_network_is_one_line(layer_file: dict[str, Any], tmp_path: Path) -> None:
    more = copy.deepcopy(layer_file)
    more["config"]["layers"].append({"class_name": "Dense", "config": {"name": "other"}, "inbound_nodes": []})
    less = copy.deepcopy(layer_file)
    less["config"]["layers"] = less["config"]["layers"][:20]
    frozen = copy.deepcopy(layer_file)
    by_name(frozen, "conv1_conv")["trainable"], by_name(frozen, "conv1_bn")["trainable"] = True, False
    twice = copy.deepcopy(layer_file)
    twice["config"]["layers"].append(twice["config"]["layers"][-1])
    shared = copy.deepcopy(layer_file)
    shared["config"]["layers"][5]["inbound_nodes"] *= 2
    nested: Any = {}
    for _ in range(900):
        nested = [nested]
    deep = copy.deepcopy(layer_file)
    deep["config"]["layers"][5]["inbound_nodes"] = [nested]
    cases = {
        "1 of the layers don't belong to it, first 'other', Dense": more,
        "was expected, nothing was found": less,
        "trains the bias of 'conv1_conv' beside the frozen 'conv1_bn'": frozen,
        "has two layers 'dense": twice,
        "is used 2 times, not once": shared,
        "ZeroPadding2D": deep,
        "is not a Keras model": {"model": 5},
        "holds no list of layers": {"class_name": "Functional", "config": {}},
        "has no 'class_name' and 'config'": [5],
    }
    for said, layers in cases.items():
        with pytest.raises(ContractError) as caught:
            read_network(layers, "c.json")
        assert said in str(caught.value) or (layers is deep and "nested too deeply" in str(caught.value)), said
    for text in (json.dumps(layer_file)[:5000], "[" * 10**6, "# layers\n[]"):
        (tmp_path / "layers.json").write_text(text)
        with pytest.raises(ContractError, match=r"layers.json is not readable JSON"):
            read_network(tmp_path / "layers.json", "c.json")


def test_keras_2_names_its_weights_with_a_number(tutorial: Path, tmp_path: Path, tiles: np.ndarray, expected: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tutorial / "model.h5") as new, h5py.File(tmp_path / "old.h5", "w") as old:
        old.attrs["layer_names"] = [name.encode() for name in new["model_weights"].attrs["layer_names"]]
        for layer, group in new["model_weights"].items():
            made = old.create_group(layer)
            made.attrs["weight_names"] = [f"{name}:0".encode() for name in group.attrs["weight_names"]]
            for name in group.attrs["weight_names"]:
                made[f"{name}:0"] = group[name][()]
    built = network(tutorial, tmp_path, checkpoints={"load": str(tmp_path / "old.h5")})
    np.testing.assert_allclose(answers(built, tiles), expected, atol=TOLERANCE)


def test_keras_preprocessing_is_taken_in(tutorial: Path, tmp_path: Path, tiles: np.ndarray) -> None:
    keras = keras_by_torch()
    trained = keras.models.load_model(tutorial / "model.h5")
    pixels = keras.Input((64, 64, 3))
    own = keras.applications.resnet.preprocess_input(pixels)  # BGR less Caffe's means
    model = keras.Model(pixels, _through(trained, own))
    (tmp_path / "layers.json").write_text(model.to_json())
    model.save_weights(tmp_path / "own.weights.h5")  # Keras 3's numbered layout
    built = network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"), checkpoints={"load": str(tmp_path / "own.weights.h5")})
    assert built.pixels.order == (2, 1, 0)
    assert built.pixels.rgb_mean == pytest.approx(np.array([123.68, 116.779, 103.939]) / 255)
    theirs = model.predict(tiles.astype(np.float32), verbose=0)
    np.testing.assert_allclose(answers(built, tiles), theirs, atol=TOLERANCE * max(1, np.abs(theirs).max()))
    by_transforms = network(
        tutorial,
        tmp_path,
        data={
            "transforms": [
                {"convert_color": "RGB2BGR"},
                {"normalize": {"mean": [103.939 / 255, 116.779 / 255, 123.68 / 255], "std": 1 / 255}},
            ]
        },
    )
    np.testing.assert_allclose(answers(by_transforms, tiles), theirs, atol=TOLERANCE * max(1, np.abs(theirs).max()))


def test_torchvisions_strides_are_known_too(tutorial: Path, tmp_path: Path, tiles: np.ndarray, expected: np.ndarray) -> None:
    keras = keras_by_torch()
    trained = keras.models.load_model(tutorial / "model.h5")
    model = as_torchvision(trained)
    model.set_weights(trained.get_weights())
    (tmp_path / "layers.json").write_text(model.to_json())
    model.save(tmp_path / "torchvision.h5")
    changes = {"layers": str(tmp_path / "layers.json"), "checkpoints": {"load": str(tmp_path / "torchvision.h5")}}
    built = network(tutorial, tmp_path, **changes)
    assert built.keras.architecture == RESNET50
    theirs = model.predict(tiles / np.float32(255), verbose=0)
    np.testing.assert_allclose(answers(built, tiles), theirs, atol=TOLERANCE)
    assert np.abs(theirs - expected).max() > 0.01  # it is another network
    plain = TileClassifier(3, built.pixels.rgb_mean, built.pixels.rgb_std)
    plain.load_state_dict(built.state())
    np.testing.assert_allclose(answers(replace(built, model=plain), tiles), theirs, atol=TOLERANCE)
    halfway = json.loads((tmp_path / "layers.json").read_text())
    by_name(halfway, "conv4_block1_2_conv")["strides"] = [1, 1]
    with pytest.raises(ContractError, match=r"after 'conv4_block1_2_pad' a Conv2D \(filters 256, kernel_size 3, strides 2"):
        read_network(halfway, "c.json")


def _through(model: Any, values: Any) -> Any:
    """The layers of a model put upon other values, as users do who build it from `input_tensor`."""
    made = {model.layers[0].name: values}
    for layer in model.layers[1:]:
        sources = [made[tensor._keras_history.operation.name] for tensor in layer._inbound_nodes[0].input_tensors]
        made[layer.name] = layer(sources if len(sources) > 1 else sources[0])
    return made[model.layers[-1].name]


def test_grey_tiles(tutorial: Path, tmp_path: Path, tiles: np.ndarray) -> None:
    keras = keras_by_torch()
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 1), pooling="avg")
    model = keras.Model(base.input, keras.layers.Dense(3, activation="log_softmax", name="dense")(base.output))
    (tmp_path / "layers.json").write_text(model.to_json())
    model.save(tmp_path / "grey.h5")
    built = network(
        tutorial,
        tmp_path,
        layers=str(tmp_path / "layers.json"),
        checkpoints={"load": str(tmp_path / "grey.h5")},
        data={"grayscale": True},
    )
    values = (tiles / 255) @ np.array([0.299, 0.587, 0.114])
    theirs = model.predict(values[..., None].astype(np.float32), verbose=0)
    np.testing.assert_allclose(answers(built, tiles), theirs, atol=TOLERANCE)
    plain = TileClassifier(3, built.pixels.rgb_mean, built.pixels.rgb_std, architecture=KERAS_RESNET50)
    plain.load_state_dict(built.state())  # what a run keeps takes RGB
    np.testing.assert_allclose(answers(replace(built, model=plain), tiles), theirs, atol=TOLERANCE)
    with pytest.raises(ContractError, match=r"takes 1 channels, the samples of .* have 3. Set grayscale to true"):
        network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"))


def test_a_checkpoint_is_read_back(tutorial: Path, tmp_path: Path, tiles: np.ndarray, expected: np.ndarray) -> None:
    first = network(tutorial, tmp_path, data={"transforms": [{"convert_color": "BGR2RGB"}]})
    save_checkpoint(tmp_path / "model_checkpoint_1.pt", first.keras, first.model.backbone, first.pixels)
    state = torch.load(tmp_path / "model_checkpoint_1.pt", weights_only=True)
    assert {"conv1_conv.weight", "conv1_bn.running_mean", "conv2_block1_0_bn.weight"} < set(state)
    again = network(tutorial, tmp_path, checkpoints={"load": str(tmp_path / "model_checkpoint_1.pt")})
    np.testing.assert_allclose(answers(again, tiles), expected, atol=TOLERANCE)


def test_sizes_have_to_agree(tutorial: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"takes 64x64 pixels, the samples of .* have 96x96"):
        network(tutorial, tmp_path, data={"transforms": [{"resize": [96, 96]}]})


def test_a_frozen_batchnorm_keeps_its_statistics(tutorial: Path, layer_file: dict[str, Any], tmp_path: Path) -> None:
    frozen = copy.deepcopy(layer_file)
    by_name(frozen, "conv1_bn")["trainable"] = False
    (tmp_path / "layers.json").write_text(json.dumps(frozen))
    built = network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"))
    before = {name: value.clone() for name, value in built.model.backbone.named_buffers()}
    built.set_training_mode()
    built.model(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    after = dict(built.model.backbone.named_buffers())
    assert torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    moved = before["layer1.0.bn1.running_mean"], after["layer1.0.bn1.running_mean"]
    assert not torch.equal(*moved)


def test_statistics_are_taken_with_the_weights_as_they_are(tutorial: Path, layer_file: dict[str, Any], tmp_path: Path) -> None:
    frozen = copy.deepcopy(layer_file)
    by_name(frozen, "conv1_bn")["trainable"] = False
    (tmp_path / "layers.json").write_text(json.dumps(frozen))
    built = network(tutorial, tmp_path, layers=str(tmp_path / "layers.json"))
    norms = built.model.backbone
    kept, seen = norms.bn1.running_mean.clone(), []
    norms.layer1[0].bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batches = torch.randint(256, (3, 4, 64, 64, 3), dtype=torch.uint8)
    built.set_training_mode()
    built.take_statistics(batches, torch.autocast("cpu", enabled=False))
    taken = norms.layer1[0].bn1
    torch.testing.assert_close(taken.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(taken.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert torch.equal(kept, norms.bn1.running_mean)
    assert {norm.momentum for _, norm in built._norms()} == {0.1}


def test_torchvisions_own_state_dict_is_known_by_its_names(tutorial: Path, tmp_path: Path) -> None:
    """With torchvision's strides; a head of its thousand classes gives way to a new one."""
    layers = json.loads(as_torchvision(keras_by_torch().models.load_model(tutorial / "model.h5")).to_json())
    theirs = resnet50(num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    changes = {"layers": layers, "checkpoints": {"load": str(tmp_path / "w.pt")}}
    built = network(tutorial, tmp_path, **changes)
    assert built.notes == ()
    for key, value in theirs.state_dict().items():
        assert torch.equal(built.model.backbone.state_dict()[key], value), key
    torch.save(resnet50().state_dict(), tmp_path / "w.pt")
    [note] = network(tutorial, tmp_path, "train", **changes).notes
    assert "it begins at random" in note
    with pytest.raises(ContractError, match="lacks 106 of the 107 layers"):
        network(tutorial, tmp_path, checkpoints=changes["checkpoints"])
