"""Whole files of tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

from . import TYPES, safe_open

_NAMES = {dtype: name for name, dtype in TYPES.items()}


def load_file(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file; raises as `safe_open`."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def save_file(tensors: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors, and metadata into the header."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    # as the library does it: the largest type first, so that each tensor's place is a multiple of its size
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    place = 0
    for name in order:
        size = tensors[name].numel() * tensors[name].dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
