"""Decoded tiles on their way to the device.

images = to_device(np.stack(tiles), torch.device("cuda"))
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def to_device(pixels: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device; on a CPU it shares the memory."""
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":  # out of pinned memory the copy queues up; out of other memory it waits for all the work before it
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
