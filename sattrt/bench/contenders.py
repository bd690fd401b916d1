"""Who is measured: every engine of the bundle that runs here, torch eager as the yardstick, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from ..runtime import Bundle
from ..spec import sha256_file

Infer = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
TORCH = "torch-eager-fp32"


@dataclass
class Contenders:
    """infer: by name, what answers (logits, probabilities). devices: where each really runs. absent: name to the reason."""

    infer: dict[str, Infer] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    _close: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Free every engine."""
        for close in self._close:
            close()


def gather(bundle: Bundle, run: Path | None, threads: int) -> Contenders:
    """Open what can be opened. A changed file is a ContractError, not an absence."""
    found = Contenders()
    try:
        found.infer[TORCH], found.devices[TORCH] = _torch_eager(bundle, run or Path(bundle.source["run"]), threads)
    except (BackendError, InputError) as error:
        found.absent[TORCH] = str(error)
    for record in bundle.engines:
        try:
            engine = bundle.open(record.name, threads)
        except BackendError as error:
            found.absent[record.name] = str(error)
            continue
        found.infer[record.name], found.devices[record.name] = engine.infer, engine.device
        found._close.append(engine.close)
    if set(found.infer) <= {TORCH}:
        reasons = " | ".join(f"{name}: {reason}" for name, reason in found.absent.items())
        raise BackendError(f"No engine of {bundle.path} can run here. {reasons}")
    return found


def _torch_eager(bundle: Bundle, run: Path, threads: int) -> tuple[Infer, str]:
    """The trained network as a PyTorch user would run it: eager, fp32, channels_last."""
    try:
        import torch

        from ..training.run import load_trained
    except ImportError:
        raise BackendError("PyTorch is not installed. Install it with: pip install 'sattrt[train]'") from None
    checkpoint = run / "best.safetensors"
    if not checkpoint.is_file():
        raise InputError(f"The run {run} that the bundle was exported from is not here. Name it with --run.")
    if sha256_file(checkpoint) != bundle.source["checkpoint_sha256"]:
        raise InputError(f"{checkpoint} is not the checkpoint that the bundle was exported from. Name that run with --run.")
    model, _ = load_trained(run)
    model.views = bundle.spec.views
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # fp32 as the name says
    if threads:
        torch.set_num_threads(threads)
    model.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits = model(torch.from_numpy(tiles).to(device)) / bundle.spec.temperature
        return logits.cpu().numpy(), torch.softmax(logits, 1).cpu().numpy()

    return infer, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
