"""The run folder as the stages after training meet it: the best network, its contract, decoded sample tiles.

model, spec = load_trained(Path("run"))
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.dataset import Dataset, balanced
from ..data.loader import decoded
from ..errors import BackendError, ContractError, InputError
from ..model import TileClassifier, check_state
from ..spec import ModelSpec, atomic_path, read_bytes, read_json
from . import checkpoint
from .config import TrainConfig
from .hardware import choose_precision

_CALIBRATION_TILES, _MOST_VALID_TILES = 1024, 20_000
_OF_A_START = {"config.json", "log.csv", "samples.npz", "tensorboard", "last.safetensors", "last.json"}


@dataclass(frozen=True)
class Samples:
    """Decoded tiles that a run carries for the stages after it: (N, H, W, bands) in the contract's dtype with labels (N,) and, of valid, names.

    train: a class-balanced share, for calibration. valid: the whole split (of a very large one a balanced share), for judging
    engines; classes take turns in it, so that the first few show all of them.
    """

    train: NDArray[np.unsignedinteger]
    train_labels: NDArray[np.int64]
    valid: NDArray[np.unsignedinteger]
    valid_labels: NDArray[np.int64]
    valid_names: NDArray[np.str_]

    def calibration(self, count: int) -> NDArray[np.unsignedinteger]:
        """`count` train tiles, as even over the classes as they come."""
        return self.train[_in_turns(self.train_labels)[:count]]


def write_samples(dataset: Dataset, run: Path, decoder: str = "auto", threads: int = 2) -> None:
    """samples.npz: see `Samples`. It makes the stages after training independent of the dataset and of DALI."""
    with atomic_path(run / "samples.npz") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for split, count in (("train", _CALIBRATION_TILES), ("valid", _MOST_VALID_TILES)):
            tiles = balanced(dataset.tiles(split), count)
            shape = (len(tiles), dataset.height, dataset.width, len(dataset.bands))
            with archive.open(f"{split}.npy", "w", force_zip64=True) as file:  # batch by batch: the tiles may be more than fit into memory
                kind = {"descr": np.lib.format.dtype_to_descr(np.dtype(dataset.dtype)), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, kind)
                for images in decoded(dataset, tiles, decoder, threads):
                    file.write(images.tobytes())
            with archive.open(f"{split}_labels.npy", "w") as file:
                np.save(file, np.array([tile.label for tile in tiles], np.int64))
        with archive.open("valid_names.npy", "w") as file:
            np.save(file, np.array([tile.name for tile in tiles]))


def read_samples(run: Path, spec: ModelSpec) -> Samples:
    """The tiles that training put aside. ContractError where they are damaged, or not what `spec` promises."""
    path = run / "samples.npz"
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(Samples)}
    except Exception:  # zipfile, zlib, bz2, lzma and numpy each have errors of their own
        raise ContractError(f"{path} is damaged, or of an older sattrt. Train again, or restore it.") from None
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


def spec_of(dataset: Dataset, image_size: int, training: dict[str, Any]) -> ModelSpec:
    """The contract of a network trained on this dataset."""
    return ModelSpec(
        classes=dataset.classes,
        height=dataset.height,
        width=dataset.width,
        mean=dataset.mean,
        std=dataset.std,
        bands=dataset.bands,
        dtype=dataset.dtype,
        resize=image_size,
        dataset_digest=dataset.digest,
        training=training,
    )


def load_trained(run: Path) -> tuple[TileClassifier, ModelSpec]:
    """The best network of a run, in evaluation mode on the CPU, and its contract.

    Raises InputError where the folder or a file of it is missing; ContractError where one is damaged, or where checkpoint and spec.json
    are not of the same classes and dataset.
    """
    if not run.is_dir():
        raise InputError(f"{run} does not exist. Train first: sattrt train DATASET --out {run}")
    tensors, state = checkpoint.load(run / "best.safetensors", ("classes", "dataset_digest"))
    spec = ModelSpec.read(run / "spec.json")
    if tuple(state["classes"]) != spec.classes or state["dataset_digest"] != spec.dataset_digest:
        raise ContractError(
            f"{run}: best.safetensors and spec.json belong to different class lists or datasets. Train again, or restore them."
        )
    model = TileClassifier(len(spec.classes), spec.mean, spec.std, spec.resize, architecture=spec.architecture, dtype=spec.dtype)
    check_state(model.state_dict(), tensors, run / "best.safetensors")
    model.load_state_dict(tensors)
    return model.eval(), spec


def config_of(run: Path) -> TrainConfig:
    """The settings that a run was begun with."""
    path = run / "last.safetensors"
    return TrainConfig.from_dict(checkpoint.read_state(path, checkpoint.STATE)["config"], str(path))


def threads_of(run: Path) -> int:
    """The CPU threads that a rank of a run had when it was last at work; 0 where that is not known, or it had a GPU."""
    ran_on = checkpoint.read_state(run / "last.safetensors").get("ran_on")
    threads = ran_on.get("threads") if isinstance(ran_on, dict) else None
    return threads if isinstance(threads, int) else 0


def precision_of(state: dict[str, Any], device: torch.device, run: Path) -> str:
    """The precision that a run was begun in, and goes on in. BackendError where this device lacks it."""
    try:
        return choose_precision(state["precision"], device)
    except BackendError:
        raise BackendError(
            f"{run} was begun in {state['precision']}, which this machine lacks. Go on where it was begun, or start anew with another --out."
        ) from None


def load_last(dataset: Dataset, run: Path) -> checkpoint.Checkpoint:
    """What a run needs to go on. ContractError where it was trained on something else."""
    tensors, state = checkpoint.load(run / "last.safetensors", checkpoint.STATE)
    check_same_data(state, dataset, run)
    return tensors, state


def refuse_to_overwrite(out: Path) -> None:
    """A new run takes a folder that is absent, empty, or left by a run that did not make a single step. InputError for any other."""
    last = out / "last.safetensors"
    try:
        steps = checkpoint.read_state(last, ["step"])["step"] if last.exists() else 0
    except (ContractError, InputError):
        raise InputError(f"{last} can't be read as a checkpoint: it is not overwritten. Restore it, or choose another --out.") from None
    if steps:
        raise InputError(f"{out} holds a run of {steps} steps already. Go on with --resume, or choose another --out.")
    if (out / "best.safetensors").exists():  # of `sattrt rmldnn` there is no other checkpoint, and no going on
        way_out = "Go on with --resume, or choose" if last.exists() else "Choose"
        raise InputError(f"{out} holds a run with a trained network already. {way_out} another --out.")
    found = {path.name for path in out.glob("[!.]*")}
    strange = found - _OF_A_START if _begun(out / "config.json") else found
    if strange:
        raise InputError(f"{out} holds {min(strange)!r}, which is not of a run: nothing there is overwritten. Choose another --out.")


def _begun(config: Path) -> bool:
    """Whether a run wrote this, which is the first that it writes."""
    try:
        return "ran_with" in read_json(config)
    except (ContractError, InputError, TypeError):
        return False


def check_splits(dataset: Dataset) -> None:
    """InputError where a class has no tile to train on or to validate with."""
    for split in ("train", "valid"):
        dataset.require(split)
        if missing := [name for name, count in dataset.counts()[split].items() if not count]:
            raise InputError(
                f"The {split} split of {dataset.source} has no tile of {', '.join(missing)}. Add tiles or give that split a larger share, "
                "and run `sattrt data` again."
            )


def check_same_data(state: dict[str, Any], dataset: Dataset, out: Path) -> None:
    """ContractError where a run is to go on with other classes, tiles, names of tiles, another split or another normalisation."""
    if tuple(state["classes"]) != dataset.classes:
        raise ContractError(
            f"{out} was trained on the classes {', '.join(state['classes'])}; the dataset has {', '.join(dataset.classes)}. Resume with its own dataset."
        )
    if state["dataset_digest"] != dataset.digest:
        raise ContractError(f"{out} was trained on another dataset or split. Resume with its own, or start anew with another --out.")
    if state["dataset_order"] != dataset.order:
        raise ContractError(
            f"The train tiles of {dataset.source} have other names than those that {out} was trained on, and would come in another order. "
            "Resume with the names they had, or start anew with another --out."
        )
    if any(state.get(name, list(own)) != list(own) for name, own in (("mean", dataset.mean), ("std", dataset.std))):
        raise ContractError(
            f"{out} was trained on tiles normalised by another mean and std than dataset.json has now. "
            "Resume with the dataset.json of its start, or start anew with another --out."
        )
