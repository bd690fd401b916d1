"""What a run's numbers depend on beside its settings. Where any of it is other, a run that goes on is not, bit for bit, the one that was begun.

now = surroundings(rank, decoder="DALI", fused=True)
difference(state["ran_on"], now)           # "" or: threads 2, not 8
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..machine import LIBRARIES, cpu_model, version
from .compiled import compiler_version
from .ranks import Rank


def surroundings(rank: Rank, decoder: str, fused: bool) -> dict[str, Any]:
    """Name of each thing to what it is here. fused: whether `batchnorm.c` and `adam.c` compute."""
    on_gpu = rank.device.type == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(rank.device) if on_gpu else cpu_model(),
        "processes": rank.world,
        "decoder": decoder,
        "torch": torch.__version__,
        "numpy": np.__version__,  # the order of the tiles and their augmentation are drawn by it
        decoder: _version_of(decoder),
    }
    if not on_gpu:
        found |= {
            "threads": rank.threads,
            "BatchNorm": "fused" if fused else "torch's",
            "C compiler": compiler_version() if fused else None,
        }
    return {name: value for name, value in found.items() if value}


def _version_of(decoder: str) -> str | None:
    """The version of the library that decodes; None where it is not known. DALI's package is called by the CUDA that it is for."""
    packages = [name for name in LIBRARIES if name.startswith("nvidia-dali")] if decoder == "DALI" else [decoder]
    return next((found for name in packages if (found := version(name))), None)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is other than it was, in words; "" where nothing is. A GPU and a CPU have not all in common."""
    return ", ".join(f"{name} {value}, not {before[name]}" for name, value in now.items() if name in before and before[name] != value)
