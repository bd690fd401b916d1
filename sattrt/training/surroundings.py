"""What a run's numbers depend on beside its settings. Where any of it is other, a run that goes on is not, bit for bit, the one that was begun.

now = surroundings(rank, decoder="dali", fused=True)
difference(state["ran_on"], now)           # "" or: 2 threads, not 8
"""

from __future__ import annotations

from typing import Any

import torch

from ..machine import cpu_model
from .hardware import Rank


def surroundings(rank: Rank, decoder: str, fused: bool) -> dict[str, Any]:
    """Name of each thing to what it is here. fused: whether `batchnorm.c` computes."""
    on_gpu = rank.device.type == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(rank.device) if on_gpu else cpu_model(),
        "processes": rank.world,
        "decoder": decoder,
        "torch": torch.__version__,
    }
    return found if on_gpu else {**found, "threads": rank.threads, "BatchNorm": "fused" if fused else "torch's"}


def difference(before: Any, now: dict[str, Any]) -> str:
    """What is other than it was, in words; "" where nothing is, or where what was is not known."""
    if not isinstance(before, dict):
        return ""
    return ", ".join(f"{name} {value}, not {before[name]}" for name, value in now.items() if name in before and before[name] != value)
