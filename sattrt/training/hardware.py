"""What this rank's hardware can do, and a network made ready for it.

precision = choose_precision("auto", rank.device)
slower = place(model, rank, precision)
net = across_ranks(model, rank)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import BackendError
from ..machine import cpu_has_bf16
from ..model import TileClassifier
from .batchnorm import fuse_norms
from .cpu import use_products
from .ranks import Rank
from .syncnorm import synchronise_batchnorm

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "bf16", "fp16" or "fp32" for this device; BackendError where the wanted one would run in software only."""
    if device.type == "cuda":
        native = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        if wanted == "bf16" and native != "bf16":
            raise BackendError(f"{torch.cuda.get_device_name(device)} has no bf16. Set precision to fp16, or auto.")
        return native if wanted == "auto" else wanted
    native = "bf16" if cpu_has_bf16() else "fp32"
    if wanted not in ("auto", "fp32", native):
        raise BackendError(
            f"This CPU has no {wanted} arithmetic, emulating it is far slower than fp32. Set precision to {native}, or auto."
        )
    return native if wanted == "auto" else wanted


@contextlib.contextmanager
def tuned_convolutions(wanted: bool = True) -> Iterator[None]:
    """cuDNN times its algorithms and takes the fastest, where wanted: for training, whose shapes repeat; a smaller last batch would set it off again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def place(model: TileClassifier, rank: Rank, precision: str) -> str:
    """Put a network on the rank's device in the way that is fast there, its BatchNorms over the batch of all ranks; why a step of it will be slower
    than it could be, or ""."""
    model.to(rank.device).to(memory_format=torch.channels_last)
    slower = ""
    torch.backends.cudnn.allow_tf32 = precision != "fp32"  # fp32 is fp32
    if rank.device.type == "cpu":
        use_products(model)
        slower = "" if rank.world > 1 else fuse_norms(model, DTYPES[precision])
    if rank.world > 1:
        synchronise_batchnorm(model, rank.device)
    return slower


def across_ranks(model: nn.Module, rank: Rank) -> nn.Module:
    """The network whose gradients are the mean of the ranks'."""
    if rank.world == 1:
        return model
    net = DistributedDataParallel(model, [rank.device.index] if rank.device.type == "cuda" else None)
    net.broadcast_buffers = False  # BatchNorm's statistics are of all ranks already, and equal; as an argument torch 2.13 warns of it
    return net
