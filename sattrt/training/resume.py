"""How a run goes on from its last checkpoint, or says why it can't; and what a new one does not overwrite.

refuse_to_overwrite(Path("run"))
tensors, state = load_last(dataset, Path("run"))
restore(tensors, model, optimizer, average, Path("run/last.safetensors"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..data.dataset import Dataset
from ..errors import BackendError, ContractError, InputError
from ..model import TileClassifier, check_state
from ..spec import read_json
from .config import TrainConfig
from .hardware import choose_precision
from .optimizer import MovingAverage

_OF_A_START = {"config.json", "log.csv", "samples.npz", "tensorboard", "last.safetensors", "last.json", "curves.png", "curves.svg"}


def state_of(run: Path) -> dict[str, Any]:
    """The state that a run was left in. InputError where it has no checkpoint, ContractError where that is damaged."""
    last = run / "last.safetensors"
    if not last.exists() and (run / "best.safetensors").exists():
        raise InputError(f"{last} is missing, from which {run} would go on. Restore it, or start a new run with another --out.")
    return checkpoint.read_state(last, checkpoint.STATE)


def config_of(state: dict[str, Any], run: Path) -> TrainConfig:
    """The settings that a run was begun with."""
    return TrainConfig.from_dict(state["config"], str(run / "last.safetensors"))


def threads_of(state: dict[str, Any]) -> int:
    """The CPU threads that a rank of a run had when it was last at work; 0 where it had a GPU, or there is no run."""
    threads = state.get("ran_on", {}).get("threads", 0)
    return threads if isinstance(threads, int) else 0


def precision_of(state: dict[str, Any], device: torch.device, run: Path) -> str:
    """The precision that a run was begun in, and goes on in. BackendError where this device lacks it."""
    try:
        return choose_precision(state["precision"], device)
    except BackendError:
        raise BackendError(
            f"{run} was trained in {state['precision']}, which this machine lacks. Continue on a machine that has it, or start over with another --out."
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
        raise InputError(f"{out} holds a run of {steps} steps already. Continue with --resume, or choose another --out.")
    if (out / "best.safetensors").exists():  # of `sattrt rmldnn` there is no other checkpoint, and no going on
        way_out = "Continue with --resume, or choose" if last.exists() else "Choose"
        raise InputError(f"{out} holds a run with a trained network already. {way_out} another --out.")
    found = {path.name for path in out.glob("[!.]*")}
    strange = found - _OF_A_START if _begun(out / "config.json") else found
    if strange:
        raise InputError(f"{out} holds {min(strange)!r}, which is not part of a run: nothing there is overwritten. Choose another --out.")


def _begun(config: Path) -> bool:
    """Whether a run wrote this, which is the first that it writes."""
    try:
        return "ran_with" in read_json(config)
    except (ContractError, InputError, TypeError):
        return False


def check_same_data(state: dict[str, Any], dataset: Dataset, out: Path) -> None:
    """ContractError where a run is to go on with other classes, tiles, names of tiles, another split or another normalisation."""
    if tuple(state["classes"]) != dataset.classes:
        raise ContractError(
            f"{out} was trained on the classes {', '.join(state['classes'])}; the dataset has {', '.join(dataset.classes)}. Resume with its own dataset."
        )
    if state["dataset_digest"] != dataset.digest:
        raise ContractError(f"{out} was trained on another dataset or split. Resume with its own, or start over with another --out.")
    if state["dataset_order"] != dataset.order:
        raise ContractError(
            f"The train tiles of {dataset.source} have other names than those that {out} was trained on, and would come in another order. "
            "Resume with the names they had, or start over with another --out."
        )
    if any(state[name] != list(own) for name, own in (("mean", dataset.mean), ("std", dataset.std))):
        raise ContractError(
            f"{out} was trained on tiles normalised by another mean and std than dataset.json has now. "
            "Resume with the dataset.json of its start, or start over with another --out."
        )


def collect(model: TileClassifier, optimizer: torch.optim.Optimizer, average: MovingAverage | None) -> dict[str, torch.Tensor]:
    """Every tensor that a run needs to go on: weights, `optimizer/KIND/PARAMETER`, `average/WEIGHT`."""
    tensors = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer/{kind}/{name}"] = value
    if average:
        tensors |= {f"average/{name}": value for name, value in average.model.state_dict().items()}
    return tensors


def restore(
    tensors: dict[str, torch.Tensor], model: TileClassifier, optimizer: torch.optim.Optimizer, average: MovingAverage | None, path: Path
) -> None:
    """Put back what `collect` took. ContractError for tensors of another network; `path` is named."""
    parts: dict[str, dict[str, torch.Tensor]] = {"": {}, "optimizer": {}, "average": {}}
    for name, value in tensors.items():
        part, slash, rest = name.partition("/")
        parts.setdefault(part if slash else "", {})[rest if slash else name] = value
    for network, weights in [(model, parts[""]), *([(average.model, parts["average"])] if average else [])]:
        check_state(network.state_dict(), weights, path, "Train again, or restore it.")
        network.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    for key, value in parts["optimizer"].items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise ContractError(f"{path} has the unknown key {key!r}. Train again with another --out.")
        parameter = parameters[name]
        # in the parameter's memory format, as if it had grown beside it
        own = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][kind] = own
