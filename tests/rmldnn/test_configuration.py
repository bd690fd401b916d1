"""rmldnn's configuration files: names, defaults, and one line for what has no meaning here."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_configuration

from sattrt.errors import SattrtError
from sattrt.rmldnn.config import RmldnnConfig
from sattrt.rmldnn.optimizer import rate_at

TUTORIAL = """
{"neural_network": {"num_epochs": 50, "outfile": "out_classifier.txt", "layers": "./layers.json",
  "checkpoints": {"load": "./model_resnet50_imagenet.h5", "save": "model_checkpoints_save/", "interval": 5},
  "data": {"input_type": "images", "target_type": "labels", "input_path": "./data/train/", "test_input_path": "./data/valid/",
           "batch_size": 64, "test_batch_size": 128, "preload": true, "transforms": [{"resize": [64, 64]}]},
  "optimizer": {"type": "Adam", "learning_rate": 0.05, "lr_scheduler": {"type": "Exponential", "gamma": 0.95}},
  "loss": {"function": "NLL"}}}
"""


def read(tmp_path: Path, **sections: Any) -> RmldnnConfig:
    """The tutorial's configuration with some keys of its sections changed; None takes one out."""
    network = json.loads(TUTORIAL)["neural_network"]
    for name, values in sections.items():
        if isinstance(values, dict):
            section = {**network.get(name, {}), **values}
            network[name] = {key: value for key, value in section.items() if value is not None}
        else:
            network[name] = values
    return RmldnnConfig.read(write_configuration(tmp_path / "c.json", {"neural_network": network}))


def test_the_tutorials_own_file(tmp_path: Path) -> None:
    config = RmldnnConfig.read(write_configuration(tmp_path / "c.json", TUTORIAL))
    assert (config.num_epochs, config.interval, config.outfile) == (50, 5, Path("out_classifier.txt"))
    assert (config.layers, config.load) == (Path("layers.json"), Path("model_resnet50_imagenet.h5"))
    assert config.save == Path("model_checkpoints_save")
    data = config.data
    assert (data.input_path, data.test_input_path, data.test_output_path) == (Path("data/train"), Path("data/valid"), None)
    assert (data.batch_size, data.test_batch_size, data.preload, data.labels, data.grayscale) == (64, 128, True, True, False)
    assert config.optimizer is not None
    assert (config.optimizer.kind, config.optimizer.learning_rate) == ("Adam", 0.05)
    assert [rate_at(config.optimizer, epoch) for epoch in (0, 1, 40)] == pytest.approx([0.05, 0.0475, 0.05 * 0.95**40])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"type": "Step", "step_size": 5, "gamma": 0.5}, "Step, gamma 0.5 every 5 epochs"),
        ({"type": "MultiStep", "milestones": [2, 20]}, "MultiStep, gamma 0.1 after epochs 2, 20"),
        ({"type": "Warmup", "num_epochs": 5}, "Warmup, from 0.2 of the rate, 5 epochs"),
    ],
)
def test_a_schedule_says_all_that_it_is(tmp_path: Path, schedule: dict[str, Any], said: str) -> None:
    optimizer = read(tmp_path, optimizer={"lr_scheduler": schedule}).optimizer
    assert optimizer is not None
    assert str(optimizer.scheduler) == said


def test_the_tutorials_test_file(tmp_path: Path) -> None:
    text = """{"neural_network": {"layers": "./layers.json", "checkpoints": {"load": "./saved/model_checkpoint_50.pt"},
      "data": {"input_type": "images", "test_input_path": "../data/test/", "test_output_path": "./predictions/",
               "transforms": [{"resize": [64, 64]}]}}}"""
    config = RmldnnConfig.read(write_configuration(tmp_path / "c.json", text))
    assert config.optimizer is None
    assert config.data.input_path is None
    assert (config.data.test_input_path, config.data.test_output_path) == (Path("../data/test"), Path("predictions"))
    assert (config.data.test_batch_size, config.data.preload, config.num_epochs, config.interval) == (64, False, 1, 1)


def test_defaults_are_rmldnns(tmp_path: Path) -> None:
    defaults = {
        "SGD": {"momentum": 0, "weight_decay": 0, "dampening": 0, "nesterov": False},
        "Adagrad": {"lr_decay": 0, "weight_decay": 0},
        "Adam": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0, "eps": 1e-8, "amsgrad": False},
        "AdamW": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0, "eps": 1e-8, "amsgrad": False},
        "RMSprop": {"momentum": 0, "alpha": 0.99, "eps": 1e-8, "centered": False, "weight_decay": 0},
        "LARS": {"momentum": 0, "weight_decay": 0, "dampening": 0, "nesterov": False, "eta": 1e-3},
        "LAMB": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0, "eps": 1e-8, "amsgrad": False},
    }
    for kind, options in defaults.items():
        config = read(tmp_path, optimizer={"type": kind.lower(), "learning_rate": None, "lr_scheduler": None}).optimizer
        assert config is not None
        assert (config.kind, config.learning_rate, config.options, config.scheduler) == (kind, 0.01, options, None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"num_epoch": 5}, "unknown key 'num_epoch'. Did you mean 'num_epochs'?"),
    "a key without an end": ({"x" * 1900: 5}, "unknown key 'xxx"),
    "unknown key of data": ({"data": {"batchsize": 5}}, "Did you mean 'batch_size'?"),
    "key of another optimizer": ({"optimizer": {"alpha": 0.9}}, "unknown key 'alpha'"),
    "slicers": ({"data": {"slicers": []}}, "cut tiles, then `sattrt data`"),
    "masks": ({"data": {"target_path": "x"}}, "masks are not learnt here"),
    "Hessian": ({"optimizer": {"type": "Hessian"}}, "type is 'Hessian'; no second-order optimizer"),
    "GAN": ({"loss": {"function": "Wasserstein"}}, "no GAN is trained here"),
    "YOLO": ({"loss": {"function": "YOLOv3"}}, "sattrt gives one class a tile"),
    "PDE loss": ({"loss": {"function": "Burgers_PDE", "diffusion_coeff": 0.01}}, "function is 'Burgers_PDE'; no differential equation"),
    "PDE data": ({"data": {"input_type": "pde"}}, "no differential equation"),
    "numpy": ({"data": {"input_type": "numpy"}}, "save the tiles as PNG"),
    "masks as targets": ({"data": {"target_type": "images"}}, "target_type is 'images'; give \"labels\": sattrt tells class folders apart"),
    "arrays as targets": ({"data": {"target_type": "numpy"}}, "it learns no masks, pictures, boxes or arrays"),
    "boxes as targets": ({"data": {"target_type": "boxes"}}, "target_type is 'boxes'; give \"labels\""),
    "targets in capitals": ({"data": {"target_type": "Images"}}, "target_type is 'Images'; give \"labels\""),
    "masks by one word": ({"data": {"type": "images", "input_type": None, "target_type": None}}, "lacks target_type"),
    "labels as inputs": ({"data": {"input_type": "labels"}}, "input_type is 'labels'; labels are targets, not inputs"),
    "boxes as inputs": ({"data": {"input_type": "boxes"}}, "input_type is 'boxes'; give one of images"),
    "a GAN's images": (
        {"data": {"type": "images", "input_type": None, "target_type": None}, "loss": {"function": "Wasserstein"}},
        "no GAN is trained here",
    ),
    "YOLO's images": (
        {"data": {"target_type": "images"}, "loss": {"function": "YOLOv3", "anchors": []}},
        "no objects are detected here (YOLO), sattrt gives one class a tile",
    ),
    "a generator": ({"generator": {}}, "has 'generator'; no GAN is trained here"),
    "a GAN's weights": ({"loss": {"discriminator": 1}}, "has 'discriminator'; no GAN is trained here"),
    "anchors": ({"loss": {"anchors": []}}, "has 'anchors'; no objects are detected here"),
    "masks of a test": ({"data": {"test_target_path": "x"}}, "masks are not learnt here"),
    "MSE": ({"loss": {"function": "MSE"}}, "choose NLL"),
    "debug": ({"debug": True}, "`sattrt export` writes the network as ONNX"),
    "inpainting": ({"data": {"transforms": [{"random_patches": {"number": 1}}]}}, "no inpainting"),
    "two in one": ({"data": {"transforms": [{"rotate": 5, "resize": [64, 64]}]}}, "an entry of 2 transforms"),
    "a resize of one side": ({"data": {"transforms": [{"resize": 64}]}}, "resize is 64; give two sides"),
    "other colours": ({"data": {"transforms": [{"convert_color": "BGR2HSV"}]}}, "convert_color is 'BGR2HSV'"),
    "a deviation of 0": ({"data": {"transforms": [{"normalize": {"mean": 0, "std": 0}}]}}, "std is 0; give a number, or three, above 0"),
    "a rate of 0": ({"optimizer": {"learning_rate": 0}}, "learning_rate is 0; give a number above 0"),
    "a rate that is no number": ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate is nan"),
    "a flag as a number": ({"data": {"preload": 1}}, "preload is 1; give true or false"),
    "half an epoch": ({"num_epochs": 0.5}, "num_epochs is 0.5; give a whole number"),
    "an unknown optimizer": ({"optimizer": {"type": "Lion"}}, "give one of SGD, Adagrad"),
    "no optimizer": ({"optimizer": []}, "optimizer is missing"),
    "a scheduler without steps": ({"optimizer": {"lr_scheduler": {"type": "Step"}}}, "lacks step_size"),
    "nothing to judge by": ({"data": {"test_input_path": None}}, "lacks test_input_path"),
    "no labels": ({"data": {"target_type": None}}, "lacks target_type"),
    "LAMB's amsgrad": ({"optimizer": {"type": "LAMB", "amsgrad": True}}, "LAMB has no such variant"),
    "nesterov alone": ({"optimizer": {"type": "SGD", "nesterov": True}}, "needs a momentum"),
    "no class that counts": ({"loss": {"weight": [0, 0.0]}}, "weight is [0, 0.0]; give at least one number above 0"),
    "no network": ({"layers": 5}, "layers is 5"),
    "logs without a name": ({"outfile": "."}, "outfile is '.'; give the name of a file"),
    "logs in no file": ({"outfile": "a/.."}, "outfile is 'a/..'; give the name of a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_one_line(tmp_path: Path, case: str) -> None:
    changes, said = REFUSED[case]
    with pytest.raises(SattrtError) as caught:
        read(tmp_path, **changes)
    assert said in str(caught.value)
    assert "c.json" in str(caught.value)
    assert len(str(caught.value)) < 400


NO_JSON = {
    "cut short": TUTORIAL[: len(TUTORIAL) // 2],
    "comments": TUTORIAL.replace('"num_epochs"', '// for the demo\n"num_epochs"'),
    "deep": "[" * 10**6,
    "deep and closed": '{"neural_network":' + "[" * 10**6 + "]" * 10**6 + "}",
    "empty": "",
    "a key twice": TUTORIAL.replace('"num_epochs"', '"num_epochs": 1, "num_epochs"', 1),
    "a list": "[]",
    "a list inside": '{"neural_network": []}',
    "another program's": '{"network": {}}',
}


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(SattrtError, match="the key 'num_epochs' comes twice in one object"):
        RmldnnConfig.read(write_configuration(tmp_path / "c.json", NO_JSON["a key twice"]))


@pytest.mark.parametrize("case", NO_JSON)
def test_what_is_no_configuration_is_one_line(tmp_path: Path, case: str) -> None:
    with pytest.raises(SattrtError, match=r"c\.json"):
        RmldnnConfig.read(write_configuration(tmp_path / "c.json", NO_JSON[case]))


def test_what_rmldnn_accepts_is_accepted(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        debug=False,
        optimizer={
            "type": "SGD",
            "momentum": 0.9,
            "nesterov": True,
            "lr_scheduler": {"type": "Warmup", "num_epochs": 5, "start_factor": 0.2},
        },
        loss={"function": "nll", "weight": [1, 2], "ignore_index": 3},
        data={"target_grayscale": True, "input_transforms": [{"normalize": {"mean": 0.5, "std": 0.5}}], "transforms": None},
    )
    assert (config.loss.weight, config.loss.ignore_index) == ((1.0, 2.0), 3)
    assert config.data.transforms.pixels(False).mean == (0.5, 0.5, 0.5)
    assert config.optimizer is not None
