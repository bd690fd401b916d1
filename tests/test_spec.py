import json
from pathlib import Path

import pytest

from sattrt.errors import ContractError
from sattrt.spec import ModelSpec

SPEC = ModelSpec(classes=("a", "b"), height=64, width=64, mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3), dataset_digest="d")


def test_spec_survives_its_file(tmp_path: Path) -> None:
    SPEC.write(tmp_path / "spec.json")
    assert ModelSpec.read(tmp_path / "spec.json") == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"classes": None}, "'classes' is not a list"),
        ({"classes": ["a", "a"]}, "two different class names"),
        ({"classes": ["a", "\ud800"]}, "name is not text"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"height": -4}, "input size"),
        ({"mean": [0.5]}, "don't match"),
        ({"std": [0, 1, 1]}, "don't match"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 10**400}, "temperature 1000"),
        ({"temperature": True}, "temperature True"),
        ({"layout": "NCHW"}, "NCHW"),
        ({"training": []}, "wrong type"),
        ({"gsd": 0}, "ground sampling distance"),
        ({"gsd": True}, "ground sampling distance"),
        ({"dtype": "uint16", "offset": -1}, "offset -1"),
        ({"dtype": "uint16", "offset": 1e3}, "offset 1000.0"),
        ({"offset": 1000}, "offset 1000 of uint8 tiles"),
    ],
)
def test_reader_refuses_what_breaks_the_contract(tmp_path: Path, change: dict[str, object], message: str) -> None:
    SPEC.write(tmp_path / "spec.json")
    data = json.loads((tmp_path / "spec.json").read_text()) | change
    (tmp_path / "spec.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match=message):
        ModelSpec.read(tmp_path / "spec.json")


def test_a_contract_from_before_offsets_is_one_without(tmp_path: Path) -> None:
    SPEC.write(tmp_path / "spec.json")
    data = json.loads((tmp_path / "spec.json").read_text())
    del data["offset"], data["file_bands"]
    (tmp_path / "spec.json").write_text(json.dumps(data))
    assert ModelSpec.read(tmp_path / "spec.json") == SPEC


def test_reader_names_a_missing_field(tmp_path: Path) -> None:
    SPEC.write(tmp_path / "spec.json")
    data = json.loads((tmp_path / "spec.json").read_text())
    del data["mean"]
    (tmp_path / "spec.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match="lacks the field 'mean'"):
        ModelSpec.read(tmp_path / "spec.json")
