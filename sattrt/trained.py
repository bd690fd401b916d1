"""The run folder as the stages after training meet it: the best network, its contract, decoded sample tiles.

model, spec = load_trained(Path("run"))
samples = read_samples(Path("run"), spec)
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import checkpoint
from .errors import ContractError, InputError
from .model import TileClassifier, check_state
from .spec import ModelSpec, read_bytes

_ENOUGH = 100  # tiles, to tell which of two calibrations is the better


@dataclass(frozen=True)
class Samples:
    """Decoded tiles that a run carries for the stages after it: (N, H, W, bands) in the contract's dtype with labels (N,) and, of valid, names.

    train: a class-balanced share, for calibration and for the choice of its method. valid: the whole split (of a very large one a balanced share), for judging
    engines; classes take turns in it, so that the first few show all of them.
    """

    train: NDArray[np.unsignedinteger]
    train_labels: NDArray[np.int64]
    valid: NDArray[np.unsignedinteger]
    valid_labels: NDArray[np.int64]
    valid_names: NDArray[np.str_]

    def calibration(self, count: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
        """`count` train tiles, as even over the classes as they come, and the others: all, where hardly any are left. Always the same ones."""
        order = _in_turns(self.train_labels)
        others = order[count:] if len(order) - count >= _ENOUGH else order
        return self.train[order[:count]], self.train[others]


def load_trained(run: Path) -> tuple[TileClassifier, ModelSpec]:
    """The best network of a run, in evaluation mode on the CPU, and its contract.

    Raises InputError where the folder or a file of it is missing; ContractError where one is damaged, or where checkpoint and spec.json
    are not of the same classes and dataset.
    """
    if run.is_file():
        raise InputError(f"{run} is a file. Give the folder of the run: {run.parent}")
    if not run.is_dir():
        raise InputError(f"{run} does not exist. Train first: sattrt train DATASET --out {run}")
    tensors, state = checkpoint.load(run / "best.safetensors", ("classes", "dataset_digest"))
    spec = ModelSpec.read(run / "spec.json")
    if tuple(state["classes"]) != spec.classes or state["dataset_digest"] != spec.dataset_digest:
        raise ContractError(
            f"{run}: best.safetensors and spec.json belong to different class lists or datasets. Train again, or restore them."
        )
    model = TileClassifier(len(spec.classes), spec.mean, spec.std, spec.resize, spec.architecture, spec.dtype, empty=True)
    own = model.state_dict()
    check_state(own, tensors, run / "best.safetensors", "Train again, or restore it.")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()}, assign=True)
    return model.eval(), spec


def read_samples(run: Path, spec: ModelSpec) -> Samples:
    """The tiles that training put aside. ContractError where they are damaged, or not what `spec` promises."""
    path = run / "samples.npz"
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(Samples)}
    except Exception:  # zipfile, zlib, bz2, lzma and numpy each have errors of their own
        raise ContractError(f"{path} is damaged, or of another sattrt version. Train again, or restore it.") from None
    for split in ("train", "valid"):
        tiles, labels = arrays[split], arrays[f"{split}_labels"]
        if tiles.shape[1:] != (spec.height, spec.width, len(spec.bands)) or tiles.dtype != spec.dtype or not len(tiles):
            raise ContractError(
                f"{path} holds tiles of {tiles.shape[1:]}, not what {run / 'spec.json'} promises. Train again, or restore it."
            )
        if labels.shape != (len(tiles),) or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(spec.classes):
            raise ContractError(f"{path} holds labels that don't match its tiles. Train again, or restore it.")
    names = arrays["valid_names"]
    if names.shape != arrays["valid_labels"].shape or names.dtype.kind != "U":
        raise ContractError(f"{path} holds names that don't match its tiles. Train again, or restore it.")
    order = _in_turns(arrays["valid_labels"])
    return Samples(**{name: array[order] if name.startswith("valid") else array for name, array in arrays.items()})


def _in_turns(labels: NDArray[np.integer]) -> NDArray[np.intp]:
    """An order in which the classes take turns."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    place = np.empty(len(labels), np.intp)
    place[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.lexsort((labels, place))
