"""Checkpoints: tensors as safetensors with the run's state in the same file, written atomically.

The header holds the JSON, so weights and state can never be of two different moments; a `.json` beside the
file repeats it for people.

    save(run / "last.safetensors", tensors, state)
    tensors, state = load(run / "last.safetensors")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import ContractError, InputError
from ..spec import atomic_path, unwritable, write_json


def save(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write tensors and state. InputError where the disk is full; the old checkpoint is kept then."""
    with atomic_path(path) as temporary:
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, {"sattrt": json.dumps(state)})
        except SafetensorError as error:  # safetensors wraps the operating system's error
            number = 28 if "os error 28" in str(error) or "No space" in str(error) else 5
            raise unwritable(path, OSError(number, str(error))) from None
    write_json(path.with_suffix(".json"), state)


def load(path: Path, needed: tuple[str, ...] = ()) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint; `needed`: keys that the state must have. InputError where there is none, ContractError where it is not ours."""
    if not path.is_file():
        raise InputError(f"{path} does not exist. Train first: sattrt train DATASET --out {path.parent}")
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["sattrt"])
            if not isinstance(state, dict) or not isinstance(state.get("classes", []), list):
                raise ValueError("its state is not one")
            if missing := [key for key in needed if key not in state]:
                raise ValueError(f"its state lacks {missing[0]!r}")
            return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ContractError(f"{path} is not a sattrt checkpoint, or is damaged ({error}). Train again, or restore it.") from None
