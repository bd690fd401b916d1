"""A translation is a TOML file that `sattrt train` reads back, whatever the configuration says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import configuration, write_configuration

from sattrt.errors import InputError
from sattrt.rmldnn.config import RmldnnConfig
from sattrt.rmldnn.translate import translate, write_translation
from sattrt.training.config import TrainConfig
from sattrt.training.schedule import learning_rate_at


def read(path: Path, document: Any) -> RmldnnConfig:
    return RmldnnConfig.read(write_configuration(path, document))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {"layer_decay": 1.0, "ema": 0.0}),
        ({}, {"tune": "bn", "optimizer": "adam", "learning_rate": 0.005, "schedule": "exponential", "gamma": 0.95, "batch_size": 10}),
        (
            {"optimizer": {"type": "SGD", "momentum": 0.8, "lr_scheduler": {"type": "Step", "step_size": 3, "gamma": 0.5}}},
            {"optimizer": "sgd", "momentum": 0.8, "schedule": "step", "step_epochs": 3, "gamma": 0.5},
        ),
        ({"optimizer": {"type": "LAMB", "lr_scheduler": {"type": "Warmup", "num_epochs": 1}}}, {"optimizer": "adamw", "warmup": 0.5}),
        (
            {"optimizer": {"type": "RMSprop", "lr_scheduler": {"type": "MultiStep", "milestones": [2]}}},
            {"schedule": "step", "step_epochs": 2},
        ),
        ({"data": {"transforms": [{"random_horizontal_flip": 0.5}, {"random_zoom": 0.5}]}}, {"symmetries": True, "crop": 0.25}),
        ({"checkpoints": {"load": ""}}, {"weights": "none"}),
    ],
)
def test_a_translation_is_a_configuration_of_ours(tutorial: Path, tmp_path: Path, changes: dict[str, Any], said: dict[str, Any]) -> None:
    text = translate(read(tmp_path / "c.json", configuration(tutorial, **changes)))
    (tmp_path / "run.toml").write_text(text)
    config = TrainConfig.from_toml(tmp_path / "run.toml")
    assert {key: getattr(config, key) for key in said} == said
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(" # " in line for line in settings)
    for word in ("normalisation", "augmentation", "best validation accuracy", "learning rate"):
        assert word in text


def test_what_would_be_better_can_be_taken_line_by_line(tutorial: Path, tmp_path: Path) -> None:
    text = translate(read(tmp_path / "c.json", configuration(tutorial)))
    settings, better = text.split("# What would be done better today")
    taken = dict(re.findall(r"^# (\w+) = (.+)$", better, re.M))
    assert set(taken) == {"symmetries", "optimizer", "learning_rate", "layer_decay", "schedule", "warmup", "tune", "label_smoothing", "ema"}
    for key, value in taken.items():
        settings, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", settings, flags=re.M)
        assert count == 1, key
    (tmp_path / "run.toml").write_text(settings)
    config = TrainConfig.from_toml(tmp_path / "run.toml")
    assert {key: getattr(config, key) for key in taken} == {key: getattr(TrainConfig(), key) for key in taken}


@pytest.mark.parametrize(
    ("trainable", "said"),
    [
        (lambda kind, name: "BatchNorm" in kind or "dense" in name, "54 of 107 layers\n"),
        (lambda kind, name: "BatchNorm" in kind, "53 of 107 layers; here 54"),
        (lambda kind, name: name == "conv1_bn", "1 of 107 layers; here 54"),
        (lambda kind, name: name in ("conv1_conv", "conv1_bn"), "2 of 107 layers; here 107"),
    ],
)
def test_what_is_trained_beyond_theirs_is_said(tutorial: Path, tmp_path: Path, trainable: Callable[[str, str], bool], said: str) -> None:
    layers = json.loads((tutorial / "layers.json").read_text())
    for layer in layers["config"]["layers"]:
        layer["config"]["trainable"] = trainable(layer["class_name"], layer["config"]["name"])
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    text = translate(read(tmp_path / "c.json", configuration(tutorial, layers=str(tmp_path / "layers.json"))))
    assert said in text


def test_a_file_that_trains_nothing_is_not_translated(tutorial: Path, tmp_path: Path) -> None:
    layers = json.loads((tutorial / "layers.json").read_text())
    for layer in layers["config"]["layers"]:
        layer["config"]["trainable"] = False
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    with pytest.raises(InputError, match="trains no layer"):
        translate(read(tmp_path / "c.json", configuration(tutorial, layers=str(tmp_path / "layers.json"))))


ODD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two sizes": ({"data": {"transforms": [{"resize": [96, 96]}, {"resize": [64, 64]}]}}, {"image_size": 64}),
    "two zooms": ({"data": {"transforms": [{"random_zoom": 0.5}, {"random_zoom": 0.1}]}}, {"crop": 0.81}),
    "the largest zoom": ({"data": {"transforms": [{"random_zoom": 0.9}]}}, {"crop": 0.01}),
    "a text of two lines": ({"outfile": "out\nepochs = 5\r\u2028.txt"}, {"epochs": 2}),
    "a folder of two lines": ({"checkpoints": {"save": "saved\n[table]"}}, {"epochs": 2}),
    "a character that is none": ({"outfile": "\ud800 \x01 \x7f.txt"}, {"epochs": 2}),
    "folders of two lines": ({"data": {"input_path": "a\nb = 1", "test_input_path": "c/\nd"}}, {"epochs": 2}),
    "a late milestone": ({"optimizer": {"lr_scheduler": {"type": "MultiStep", "milestones": [10**30]}}}, {"step_epochs": 2}),
    "milestones out of order": ({"optimizer": {"lr_scheduler": {"type": "MultiStep", "milestones": [9, 1]}}}, {"step_epochs": 1}),
    "no milestone": ({"optimizer": {"lr_scheduler": {"type": "MultiStep", "milestones": []}}}, {"step_epochs": 2}),
    "a rate that grows": ({"optimizer": {"lr_scheduler": {"type": "Exponential", "gamma": 3}}}, {"gamma": 1.0}),
    "whole momentum": (
        {"optimizer": {"type": "SGD", "momentum": 1, "weight_decay": 1e6, "lr_scheduler": {"type": "Warmup", "num_epochs": 9}}},
        {"momentum": 0.999, "weight_decay": 1.0, "warmup": 1.0},
    ),
    "no momentum": ({"optimizer": {"type": "Adam", "beta1": 0, "learning_rate": 1e-300}}, {"momentum": 1e-3, "learning_rate": 1e-300}),
    "a tile a batch": ({"data": {"batch_size": 1}}, {"batch_size": 2}),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_read_back_too(tutorial: Path, tmp_path: Path, case: str) -> None:
    changes, said = ODD[case]
    (tmp_path / "run.toml").write_bytes(translate(read(tmp_path / "c.json", configuration(tutorial, **changes))).encode())
    config = TrainConfig.from_toml(tmp_path / "run.toml")
    assert {key: getattr(config, key) for key in said} == said


def test_a_rate_that_falls_at_milestones_falls_as_far(tutorial: Path, tmp_path: Path) -> None:
    """rmldnn's own example: three of four milestones are within the run."""
    scheduler = {"type": "MultiStep", "gamma": 0.1, "milestones": [2, 5, 20, 50]}
    changes = {"num_epochs": 50, "optimizer": {"type": "Adam", "learning_rate": 0.05, "lr_scheduler": scheduler}}
    (tmp_path / "run.toml").write_text(translate(read(tmp_path / "c.json", configuration(tutorial, **changes))))
    config = TrainConfig.from_toml(tmp_path / "run.toml")
    assert learning_rate_at(config, 50 * 7 - 1, 50 * 7, 7) == pytest.approx(0.05 * 0.1**3)


def test_the_file_may_have_any_name(tutorial: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(translate(read(tmp_path / "c\n[d].json", configuration(tutorial))))
    assert TrainConfig.from_toml(tmp_path / "run.toml").epochs == 2


def test_no_file_but_an_older_translation_is_overwritten(tutorial: Path, tmp_path: Path) -> None:
    config = read(tmp_path / "c.json", configuration(tutorial))
    before = (tmp_path / "c.json").read_bytes()
    for name, said in (("c.json", "is not a translation: it is not overwritten"), ("", "is not a file")):
        with pytest.raises(InputError, match=said):
            write_translation(config, tmp_path / name)
    assert (tmp_path / "c.json").read_bytes() == before
    for _ in range(2):
        write_translation(config, tmp_path / "run.toml")


def test_what_is_changed_is_said(tutorial: Path, tmp_path: Path) -> None:
    grows = {"type": "Step", "step_size": 1, "gamma": 2}
    text = translate(
        read(
            tmp_path / "c.json",
            configuration(
                tutorial,
                data={"batch_size": 1, "transforms": [{"random_horizontal_flip": 0}]},
                optimizer={"type": "SGD", "momentum": 1, "weight_decay": 5, "lr_scheduler": grows},
            ),
        )
    )
    for key, value, said in [
        ("batch_size", "2", "data.batch_size 1; over all processes together; sattrt train takes no fewer than 2"),
        ("momentum", "0.999", "optimizer.momentum 1; sattrt train takes no more than 0.999"),
        ("weight_decay", "1.0", "5; sattrt train leaves biases and BatchNorms out of it, and takes no more than 1"),
        ("gamma", "1.0", "lr_scheduler.gamma 2; sattrt train takes no more than 1"),
        ("symmetries", "false", "no flips"),
    ]:
        [line] = re.findall(rf"^{key} = .*$", text, re.M)
        assert line.startswith(f"{key} = {value} ")
        assert said in line
    text = translate(read(tmp_path / "c.json", configuration(tutorial, optimizer={"beta1": 0})))
    assert "optimizer.beta1 0; sattrt train takes no less than 0.001" in text


def test_the_commands_can_be_run(tutorial: Path, tmp_path: Path) -> None:
    for (train, valid), said in {
        ("my tiles/train", "my tiles/Validation"): "#   sattrt data 'my tiles' --out dataset",
        ("train", "val"): "#   sattrt data . --out dataset",
        ("a/good", "a/new"): "#   sattrt data FOLDER --out dataset    # one that holds a/good as train/ and a/new as valid/",
        ("a/train", "b/valid"): "#   sattrt data FOLDER --out dataset    # one that holds a/train as train/ and b/valid as valid/",
        ("a/valid", "a/train"): "#   sattrt data FOLDER --out dataset    # one that holds a/valid as train/ and a/train as valid/",
    }.items():
        folders = {"input_path": train, "test_input_path": valid}
        text = translate(read(tmp_path / "c.json", configuration(tutorial, data=folders)))
        assert text.splitlines()[1] == said


def test_what_gives_way_is_said(tutorial: Path, tmp_path: Path) -> None:
    steps = [{"resize": [96, 96]}, {"random_zoom": 0.5}, {"resize": [64, 64]}, {"random_zoom": 0.1}]
    text = translate(read(tmp_path / "c.json", configuration(tutorial, data={"transforms": steps})))
    for kind in ("resize 96, 96", "random_zoom 0.5"):
        assert f"#   transforms: {kind}: a later one takes its place" in text
