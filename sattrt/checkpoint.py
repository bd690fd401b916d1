"""Checkpoints: tensors as safetensors with the run's state in the same file, written atomically.

The header holds the JSON, so weights and state can never be of two different moments; a `.json` beside the
file repeats it for people.

    save(run / "last.safetensors", tensors, state)
    tensors, state = load(run / "last.safetensors")
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import ContractError, InputError
from .spec import atomic_path, unwritable, write_json

Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors, and the run's state
# what the state of a run that can go on has to hold
STATE: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "classes": list,
    "dataset_digest": str,
    "dataset_order": str,
    "steps": int,
    "tiles": int,
    "step": int,
    "best_accuracy": (int, float),
    "best_epoch": int,
    "highest_accuracy": (int, float),
    "precision": str,
    "seconds": (int, float),
    "scaler": dict,
    "loss": (int, float),
    "mean": list,
    "std": list,
    "ran_on": dict,
}


def save(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write tensors and state. InputError where the disk is full; the old checkpoint is kept then."""
    with atomic_path(path) as temporary:
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, {"sattrt": json.dumps(state)})
        except SafetensorError as error:  # safetensors wraps the operating system's error
            number = 28 if "os error 28" in str(error) or "No space" in str(error) else 5
            raise unwritable(path, OSError(number, str(error))) from None
        mask = os.umask(0)
        os.umask(mask)
        with contextlib.suppress(OSError):  # a disk without such rights, as of exFAT
            os.chmod(temporary, 0o666 & ~mask)  # as any other file of the run: safetensors lets its owner alone read it
    write_json(path.with_suffix(".json"), state)


def load(path: Path, needed: Iterable[str] = ()) -> Checkpoint:
    """Tensors and state of a checkpoint; `needed`: keys that the state must have. InputError where there is none, ContractError where it is not ours."""
    with _opened(path) as file:
        state = _state(file, needed)
        # copies: what safetensors gives is the file mapped into memory, whose place on the disk is taken until the last of it is gone
        return {key: file.get_tensor(key).clone() for key in file.keys()}, state  # noqa: SIM118 - not a dict


def read_state(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """The state alone; raises as `load` does."""
    with _opened(path) as file:
        return _state(file, needed)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist. Train first: sattrt train DATASET --out {path.parent}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} can't be read by this user. Check its permissions.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise ContractError(f"{path} is not a sattrt checkpoint, or is damaged ({error}). Train again, or restore it.") from None


def _state(file: Any, needed: Iterable[str]) -> dict[str, Any]:
    state = json.loads((file.metadata() or {})["sattrt"])
    if not isinstance(state, dict):
        raise ValueError("its state is not an object")
    for key in needed:
        if key not in state:
            raise ValueError(f"its state lacks {key!r}")
        value = state[key]
        sound = isinstance(value, STATE[key]) and not isinstance(value, bool) and not (isinstance(value, int) and value < 0)
        if not sound or (key == "classes" and not all(isinstance(name, str) for name in value)):
            raise ValueError(f"its state has {str(value)[:50]!r} as {key!r}")
    return state
