"""What may be said of a setting, where, and which of two sayings counts."""

from pathlib import Path

import pytest

from sattrt.bench.config import BenchConfig
from sattrt.deploy.config import ExportConfig
from sattrt.errors import InputError
from sattrt.map.config import MapConfig
from sattrt.training.config import RECIPES, TrainConfig


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (TrainConfig, "seed=1", 1),
        (TrainConfig, " batch_size = 1_024 ", 1024),
        (TrainConfig, "learning_rate=5e-4", 5e-4),
        (TrainConfig, "learning_rate=1", 1),
        (TrainConfig, "minutes=1.5", 1.5),
        (TrainConfig, "symmetries=false", False),
        (TrainConfig, "optimizer=sgd", "sgd"),
        (TrainConfig, "optimizer='sgd'", "sgd"),
        (TrainConfig, "weights=runs/a=b.pth", "runs/a=b.pth"),
        (TrainConfig, "weights=2026-11-29", "2026-11-29"),
        (BenchConfig, "batches=1,4", "1,4"),
        (BenchConfig, "batches=64", "64"),
        (BenchConfig, 'batches="64"', "64"),
        (BenchConfig, "run=", ""),
        (ExportConfig, "compute_capabilities=8.6", "8.6"),
        (MapConfig, "offset=1000", 1000),
        (MapConfig, "cluster=tcp://node0:8786", "tcp://node0:8786"),
    ],
)
def test_a_value_is_one_of_toml_and_text_needs_no_quotes(
    kind: type[TrainConfig | BenchConfig | ExportConfig | MapConfig], text: str, value: object
) -> None:
    found = getattr(kind.from_toml(None, [text]), text.partition("=")[0].strip())
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "--set seed is not KEY=VALUE. Write it as: --set seed=VALUE"),
        (["=1"], "--set =1 is not KEY=VALUE"),
        (["sed=1"], "--set has the unknown setting 'sed'. Did you mean 'seed'?"),
        (["batch-size=8"], "Did you mean 'batch_size'?"),
        (["seed=one"], "--set: seed is 'one'; give a whole number."),
        (["seed=1.0"], "--set: seed is 1.0; give a whole number."),
        (["seed="], "--set: seed is ''; give a whole number."),
        (["seed=1\nepochs = 2"], "--set: seed is '1\\nepochs = 2'; give a whole number."),
        (["seed=true"], "--set: seed is True; give a whole number."),
        (["minutes=long"], "--set: minutes is 'long'; give a number."),
        (["symmetries=False"], "--set: symmetries is 'False'; give true or false."),
        (["colour=[0.1]"], "--set: colour is [0.1]; give a number."),
        (["seed=1", "seed=2"], "--set seed is given twice"),
        (["batch_size=0"], "The training setting batch_size is 0"),
        (["epochs=3"], "--epochs and --set epochs are one setting. Give one of them."),
    ],
)
def test_a_wrong_assignment_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig.from_toml(None, texts, epochs=3, minutes=None)
    assert message in str(caught.value)


def test_brackets_in_brackets_are_text() -> None:
    assert MapConfig.from_toml(None, [f"bands={'[' * 5000}"]).bands == "[" * 5000


def test_a_recipe_gives_way_to_a_file_a_file_to_an_assignment_and_both_to_an_option(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("recipe = 'full'\nbatch_size = 32\nema = 0.5\nsymmetries = true\n")
    config = TrainConfig.from_toml(tmp_path / "c.toml", ["ema=0.6", "symmetries=false"], epochs=3)
    assert (config.recipe, config.image_size) == ("full", RECIPES["full"]["image_size"])
    assert (config.batch_size, config.ema, config.symmetries, config.epochs) == (32, 0.6, False, 3)
    short = TrainConfig.from_toml(tmp_path / "c.toml", ["recipe=short"])
    assert (short.recipe, short.epochs, short.image_size, short.ema) == ("short", RECIPES["short"]["epochs"], 0, 0.5)


def test_a_file_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("sed = 1\n")
    with pytest.raises(InputError, match=r"c\.toml has the unknown setting 'sed'"):
        TrainConfig.from_toml(tmp_path / "c.toml", ["seed=1"])
    (tmp_path / "c.toml").write_text("[train]\nseed = 1\n")
    with pytest.raises(InputError, match=r"c\.toml has the section \[train\]; settings are not in sections"):
        TrainConfig.from_toml(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("seed = 1\n", encoding="utf-8-sig")  # as some editors write it
    assert TrainConfig.from_toml(tmp_path / "c.toml").seed == 1


def test_an_option_of_another_name_is_named_as_it_is() -> None:
    with pytest.raises(InputError, match="--tta and --set symmetries are one setting"):
        ExportConfig.from_toml(None, ["symmetries=false"], symmetries=True)
