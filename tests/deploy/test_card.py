"""MODEL_CARD.md, of figures that are made up: what it says of the data, of each class and of each engine."""

import json
from typing import Any

import numpy as np
import pytest

from sattrt.accuracy import Score, evaluate
from sattrt.data.dataset import Dataset
from sattrt.deploy.card import model_card
from sattrt.deploy.config import ExportConfig
from sattrt.runtime import EngineRecord
from sattrt.spec import ModelSpec
from sattrt.training.handover import spec_of

CLASSES = ("Field", "Forest|old", "Water")
TRAINED = {"valid_accuracy": 0.7, "valid_tiles": 10, "train_tiles": 60, "epoch": 2, "epochs": 3, "tune": "all"}
TRAINED |= {"weights": "imagenet", "precision": "bf16", "device": "cpu"}
VERDICT: dict[str, Any] = {"device": "cpu", "accuracy": 0.7, "low": 0.4, "high": 0.9, "tiles": 10, "flips": [3], "lost": 1, "gained": 0}
VERDICT |= {"p": 1.0, "largest_error": 0.5, "mean_error": 0.1, "ece": 0.02, "reject": {"coverage": 0.8}}
ENGINE = EngineRecord("onnxruntime-int8", "onnxruntime", "int8", "model.int8.onnx", {"onnx": "model.int8.onnx", "validation": VERDICT})


@pytest.fixture
def score() -> Score:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    return evaluate(np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 2]), labels, CLASSES)


def card(score: Score, views: int = 1, **training: Any) -> str:
    spec = ModelSpec(
        classes=CLASSES, height=64, width=64, mean=(0.5,) * 3, std=(0.2,) * 3, dataset_digest="0" * 64, views=views, training={**TRAINED, **training}
    )  # fmt: skip
    return model_card(spec, score, [ENGINE], ExportConfig())


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_each_class_has_its_figures_and_what_is_confused_is_named(score: Score) -> None:
    found = section(card(score), "By class")
    assert "in fp32, on 10 validation tiles: 70.00 % right (95 %: 39.7-89.2)" in found
    assert "| Field | 66.7 | 50.0 | 57.1 | 4 |" in found
    assert "| Forest\\|old | 66.7 | 80.0 | 72.7 | 5 |" in found
    assert "| Water | 100.0 | 100.0 | 100.0 | 1 |" in found
    assert found.rstrip().endswith(
        "| is | taken for | tiles |\n| --- | --- | --- |\n| Field | Forest\\|old | 2 |\n| Forest\\|old | Field | 1 |"
    )
    assert "in fp32, averaged over 8 symmetries of a tile, on 10" in card(score, views=8)


def test_the_five_pairs_that_are_confused_most_are_shown() -> None:
    names = tuple("abcdefg")
    labels = np.repeat(np.arange(6), np.arange(1, 7))
    confused = evaluate(labels + 1, labels, names).most_confused(5)
    assert confused == [("f", "g", 6), ("e", "f", 5), ("d", "e", 4), ("c", "d", 3), ("b", "c", 2)]
    perfect = evaluate(labels, labels, names)
    assert perfect.most_confused(5) == []


def test_where_nothing_is_confused_the_card_says_so() -> None:
    labels = np.array([0, 1, 2])
    assert "No tile is confused." in section(card(evaluate(labels, labels, CLASSES)), "By class")


def test_training_tells_the_card_of_the_data(dataset: Dataset) -> None:
    data = spec_of(dataset, 0, {}).training["data"]
    assert data == {"source": "tiles", "split": dataset.split_description, "tiles": dataset.counts()}
    assert json.loads(json.dumps(data)) == data
    spec = spec_of(dataset, 0, TRAINED)
    found = section(model_card(spec, evaluate(np.arange(3), np.arange(3), dataset.classes), [ENGINE], ExportConfig()), "Data")
    assert found.startswith("`tiles`. Split: random, tile by tile (60:20:20, seed 0); across splits: ")
    counts = dataset.counts()
    for name in dataset.classes:
        assert f"| {name} | {counts['train'][name]} | {counts['valid'][name]} | {counts['test'][name]} |" in found
    assert f"| all | {len(dataset.tiles('train'))} | {len(dataset.tiles('valid'))} | {len(dataset.tiles('test'))} |" in found
    assert str(dataset.source) not in found


def test_a_split_without_tiles_is_no_column(score: Score) -> None:
    tiles = {"train": dict.fromkeys(CLASSES, 5), "valid": dict.fromkeys(CLASSES, 2), "test": dict.fromkeys(CLASSES, 0)}
    found = section(card(score, data={"source": "t.zip", "split": "as given", "tiles": tiles}), "Data")
    assert "| tiles | train | valid |\n" in found
    assert "| all | 15 | 6 |" in found


def test_a_run_that_does_not_tell_has_a_card_without_it(score: Score) -> None:
    text = card(score)
    assert "## Data" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Training", "## By class", "## Engines", "## Intended use"]
    assert "60 tiles, epoch 2 of 3, trained: all, from weights `imagenet`, bf16 on cpu" in text
    assert "| onnxruntime-int8 | `model.int8.onnx` | cpu | 70.00 (40.0-90.0) of 10 | 1 | 1/0 |" in text
