"""Lay out a folder as rmldnn's satellite tutorial has it, out of EuroSAT and ImageNet weights: what docs/from-rmldnn.md was measured with.

    python benchmarks/rmldnn_tutorial.py --tiles EuroSAT_RGB.zip --weights resnet50_imagenet.safetensors --out tutorial
    cd tutorial && sattrt rmldnn config_train.json

Keras itself builds the network and writes layers.json and the .h5 (pip install keras; its torch back end is used): the head is random, every
convolution is frozen, every BatchNormalization trained, and the head too, as in the tutorial's layer file, or not, as in its text (`--head frozen`). The split is sattrt's, 94:5:1. The weights are those of torchvision's
ResNet-50, so strides and epsilon are put where torchvision has them; `--strides keras` leaves them where the tutorial's layer file,
made for Keras' own weights, has them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 10
FIRST, SECOND = (re.compile(rf"conv[345]_block1_{place}_conv") for place in (1, 2))  # of the convolutions that a stage begins with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--strides", choices=("torchvision", "keras"), default="torchvision")
    parser.add_argument("--head", choices=("trained", "frozen"), default="trained")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    write_tiles(arguments.tiles, arguments.out / "data")
    write_network(arguments.weights, arguments.out, arguments.strides, arguments.head)
    write_configurations(arguments.out, arguments.epochs)
    print(arguments.out)


def write_tiles(source: Path, out: Path) -> None:
    from sattrt.data.scan import SplitRule, scan
    from sattrt.data.sources import open_source

    dataset = scan(source, SplitRule())
    with open_source(source) as opened:
        for tile in dataset.all_tiles:
            path = out / tile.split / dataset.classes[tile.label] / Path(tile.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(opened.read(tile.name))


def write_network(weights: Path, out: Path, strides: str, head: str) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    from sattrt.rmldnn.keras import recognise
    from sattrt.rmldnn.layers import read_layers

    state = state_of(weights)
    keras.utils.set_random_seed(0)
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg")
    base = as_torchvision(base) if strides == "torchvision" else base
    model = keras.Model(base.input, keras.layers.Dense(CLASSES, activation="log_softmax")(base.output))
    for layer in model.layers:
        layer.trainable = layer.__class__.__name__ in ("BatchNormalization", *["Dense"] * (head == "trained"))
    (out / "layers.json").write_text(json.dumps(json.loads(model.to_json()), indent=4))
    for role, name in recognise(read_layers(out / "layers.json", "layers.json"), "layers.json").names.items():
        if role != "fc":
            set_weights(model.get_layer(name), role, state)
    model.save(out / "model_resnet50_imagenet.h5")


def as_torchvision(model: Any) -> Any:
    """Keras' ResNet-50 with the strides of its stages in the first 3x3 convolution, padded on all sides, and torch's epsilon."""
    import keras

    def other(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["epsilon"] = 1e-5
        if FIRST.fullmatch(layer.name):
            config["strides"] = 1
        if SECOND.fullmatch(layer.name):
            config |= {"strides": 2, "padding": "valid"}
        return type(layer).from_config(config)

    def call(layer: Any, values: Any, **others: Any) -> Any:
        padded = keras.layers.ZeroPadding2D(1, name=f"{layer.name.removesuffix('conv')}pad") if SECOND.fullmatch(layer.name) else None
        return layer(padded(values) if padded else values, **others)

    return keras.models.clone_model(model, clone_function=other, call_function=call)


def set_weights(layer: object, role: str, state: dict[str, np.ndarray]) -> None:
    """A layer's weights out of torchvision's; convolutions have a bias in Keras, zero here."""
    kernel = state[f"{role}.weight"]
    if kernel.ndim == 4:
        layer.set_weights([kernel.transpose(2, 3, 1, 0), np.zeros(len(kernel), np.float32)])  # type: ignore[attr-defined]
    else:
        names = ("weight", "bias", "running_mean", "running_var")
        layer.set_weights([state[f"{role}.{name}"] for name in names])  # type: ignore[attr-defined]


def state_of(weights: Path) -> dict[str, np.ndarray]:
    from sattrt.model import read_state

    return {key: value.float().numpy() for key, value in read_state(weights).items()}


def write_configurations(out: Path, epochs: int) -> None:
    transforms, interval = [{"resize": [64, 64]}], 5 if epochs >= 5 else 1
    train = {
        "num_epochs": epochs,
        "outfile": "out_classifier.txt",
        "layers": "./layers.json",
        "checkpoints": {"load": "./model_resnet50_imagenet.h5", "save": "model_checkpoints_save/", "interval": interval},
        "data": {
            "input_type": "images",
            "target_type": "labels",
            "input_path": "./data/train/",
            "test_input_path": "./data/valid/",
            "batch_size": 64,
            "test_batch_size": 128,
            "preload": True,
            "transforms": transforms,
        },
        "optimizer": {"type": "Adam", "learning_rate": 0.05, "lr_scheduler": {"type": "Exponential", "gamma": 0.95}},
        "loss": {"function": "NLL"},
    }
    test = {
        "layers": "./layers.json",
        "checkpoints": {"load": f"./model_checkpoints_save/model_checkpoint_{epochs // interval * interval}.pt"},
        "data": {"input_type": "images", "test_input_path": "./data/test/", "test_output_path": "./predictions/", "transforms": transforms},
    }
    for name, network in (("train", train), ("test", test)):
        (out / f"config_{name}.json").write_text(json.dumps({"neural_network": network}, indent=4) + "\n")


if __name__ == "__main__":
    main()
