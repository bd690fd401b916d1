"""The run folder as the stages after training meet it: the best network, its contract, decoded sample tiles.

model, spec = load_trained(Path("run"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, balanced
from ..errors import ContractError, InputError
from ..model import TileClassifier, check_state
from ..spec import ModelSpec, atomic_path
from . import checkpoint

CALIBRATION_TILES, PARITY_TILES = 512, 256


def write_samples(dataset: Dataset, run: Path) -> None:
    """samples.npz: decoded tiles and labels, balanced over the classes, of train (for calibration) and valid (for parity).

    They make the stages after training independent of the dataset and of DALI.
    """
    from ..data.loader import decode_tiles  # here, so that what reads a run needs no DALI

    arrays: dict[str, NDArray[Any]] = {}
    for split, count in (("train", CALIBRATION_TILES), ("valid", PARITY_TILES)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = decode_tiles(dataset, balanced(dataset.tiles(split), count))
    with atomic_path(run / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def spec_of(dataset: Dataset, training: dict[str, Any]) -> ModelSpec:
    """The contract of a network trained on this dataset."""
    return ModelSpec(
        classes=dataset.classes,
        height=dataset.height,
        width=dataset.width,
        mean=dataset.mean,
        std=dataset.std,
        dataset_digest=dataset.digest,
        training=training,
    )


def load_trained(run: Path) -> tuple[TileClassifier, ModelSpec]:
    """The best network of a run, in evaluation mode on the CPU, and its contract.

    Raises ContractError where checkpoint and spec.json are not of the same classes and dataset.
    """
    if not run.is_dir():
        raise InputError(f"{run} does not exist. Train first: sattrt train DATASET --out {run}")
    tensors, state = checkpoint.load(run / "best.safetensors", ("classes", "dataset_digest"))
    spec = ModelSpec.read(run / "spec.json")
    if tuple(state["classes"]) != spec.classes or state["dataset_digest"] != spec.dataset_digest:
        raise ContractError(
            f"{run}: best.safetensors and spec.json belong to different class lists or datasets. Train again, or restore them."
        )
    model = TileClassifier(len(spec.classes), spec.mean, spec.std)
    check_state(model.state_dict(), tensors, run / "best.safetensors")
    model.load_state_dict(tensors)
    return model.eval(), spec
