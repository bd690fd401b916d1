"""`sattrt train`: mixed precision, one process or many, best and last checkpoint.

    result = train(Dataset.read(Path("dataset")), Path("run"), TrainConfig(epochs=1))

The run folder holds `best.safetensors` (the network of the best validation accuracy), `last.safetensors`
(everything needed to go on), `spec.json`, `config.json`, `log.csv` and `samples.npz` (decoded tiles for the
stages after this one).
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.dataset import Dataset, Tile, balanced
from ..data.loader import Loader
from ..errors import ContractError, InputError
from ..model import TileClassifier, check_state, load_weights, set_trainable, set_training_mode
from ..spec import require_space, write_json
from . import checkpoint
from .config import TrainConfig, fit_in_time, learning_rate_at
from .cpu import use_products
from .hardware import Rank, choose_precision, ranks
from .log import Row, TrainLog
from .run import spec_of, write_samples

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STATE = ("config", "classes", "dataset_digest", "epochs", "tiles", "step", "best_accuracy", "best_epoch", "precision", "seconds", "scaler")
STEPS_BETWEEN_REPORTS = 20
SECONDS_BETWEEN_CHECKPOINTS = 60


class Observer:
    """What a run tells while it goes on; the command line draws it. Called on the first rank only."""

    def started(self, plan: Plan) -> None:
        """The plan is made; training begins."""

    def stepped(self, row: Row, plan: Plan) -> None:
        """An optimizer step was made."""

    def epoch_ended(self, row: Row, best: bool) -> None:
        """An epoch was validated."""


@dataclass(frozen=True)
class Plan:
    """What will be run: epochs, train tiles in an epoch of how many there are, precision, device, and where it starts."""

    epochs: int
    tiles: int
    of_tiles: int
    steps_per_epoch: int
    precision: str
    device: str
    world: int
    first_step: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Result:
    """Best validation accuracy (0..1), the epoch it was reached in (from 1), steps made in all."""

    accuracy: float
    epoch: int
    steps: int


def train(dataset: Dataset, out: Path, config: TrainConfig | None, observer: Observer | None = None) -> Result:
    """Train into the folder `out`; config None goes on from `out/last.safetensors` with the settings it was begun with.

    Raises InputError for an empty split, a folder that holds another run, a loss that is not finite;
    ContractError for a resume with another dataset or weights that don't fit.
    """
    started = time.perf_counter()
    saved: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
    if config is None:
        saved = checkpoint.load(out / "last.safetensors", STATE)
        _check_same_data(saved[1], dataset, out)
        config = TrainConfig.from_dict(saved[1]["config"], str(out / "last.safetensors"))
    else:
        _refuse_to_overwrite(out)
    dataset.require("valid")
    with ranks(config.threads) as rank:
        return _Run(dataset, out, config, rank, started, saved, observer or Observer()).run()


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        config: TrainConfig,
        rank: Rank,
        started: float,
        saved: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
        observer: Observer,
    ) -> None:
        if config.batch_size % rank.world:
            raise InputError(f"batch_size {config.batch_size} can't be divided by {rank.world} processes. Choose a multiple.")
        self.dataset, self.out, self.config, self.rank, self.started, self.observer = dataset, out, config, rank, started, observer
        # a run goes on in the precision it was begun with
        self.precision = choose_precision(saved[1]["precision"] if saved else config.precision, rank.device)
        torch.manual_seed(config.seed)
        self.model = TileClassifier(len(dataset.classes), dataset.mean, dataset.std)
        if saved is None:
            load_weights(self.model, config.weights)
        set_trainable(self.model, config.tune)
        self.model.to(rank.device).to(memory_format=torch.channels_last)
        if rank.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"  # fp32 is fp32
        else:
            use_products(self.model)
        self.optimizer = self._optimizer()
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=self.precision == "fp16")
        self.step, self.best, self.best_epoch, self.saved_at = 0, -1.0, 0, 0.0
        if saved:
            self._restore(*saved)
        self.plan, self.tiles = self._plan(saved[1] if saved else None)
        self.net: nn.Module = self.model
        if rank.world > 1:
            self.net = DistributedDataParallel(self.model, device_ids=[rank.device.index] if rank.device.type == "cuda" else None)

    def run(self) -> Result:
        if self.rank.is_first:
            require_space(self.out, self._size_on_disk())
            write_json(self.out / "config.json", {**self.config.to_dict(), "ran_with": vars(self.plan)})
            write_samples(self.dataset, self.out)
            self.observer.started(self.plan)
            self.log = TrainLog(self.out / "log.csv", self.step)
        train, valid = self._loader(self.tiles, augment=True), self._loader(self.dataset.tiles("valid"), augment=False)
        while self.step < self.plan.steps:
            self._epoch(train, valid, self.step // self.plan.steps_per_epoch)
        train.close()
        valid.close()
        self.rank.barrier()
        return Result(self.best, self.best_epoch, self.step)

    def _epoch(self, train: Loader, valid: Loader, epoch: int) -> None:
        set_training_mode(self.model, self.config.tune)
        window = _Window()
        for images, labels in train.epoch(epoch, self.step - epoch * self.plan.steps_per_epoch):
            rate = learning_rate_at(self.config, self.step, self.plan.steps)
            window.add(self._step(images, labels, rate), len(labels) * self.rank.world)
            self.step += 1
            ends = self.step % self.plan.steps_per_epoch == 0
            logged = self.step % STEPS_BETWEEN_REPORTS == 0
            if logged or ends or self.rank.device.type == "cpu":  # on a GPU every look at the loss waits for it
                row = self._row(epoch, rate, window)
                if self.rank.is_first:
                    self.observer.stepped(row, self.plan)
                    if logged and not ends:
                        self.log.add(row)
                        if self._seconds() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                            self._save_last()
        loss, accuracy = self._validate(valid)
        row = Row(**{**vars(row), "valid_loss": loss, "valid_accuracy": accuracy, "seconds": self._seconds()})
        improved = accuracy > self.best
        if improved:
            self.best, self.best_epoch = accuracy, epoch + 1
        if self.rank.is_first:
            self.log.add(row)
            if improved:
                self._save_best(loss)
            self.observer.epoch_ended(row, improved)
            self._save_last()

    def _step(self, images: torch.Tensor, labels: torch.Tensor, rate: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.rank.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            loss = F.cross_entropy(self.net(images), labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    @torch.inference_mode()
    def _validate(self, valid: Loader) -> tuple[float, float]:
        if self.rank.world > 1:  # every rank judges the same network: BatchNorm statistics are the first rank's
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.model.eval()
        total = torch.zeros(3, dtype=torch.float64, device=self.rank.device)
        for images, labels in valid.epoch(0):
            with torch.autocast(self.rank.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            total += torch.stack([loss, (logits.argmax(1) == labels).sum(), torch.tensor(len(labels), device=loss.device)])
        loss_sum, correct, count = self.rank.sum(*total.tolist())
        return loss_sum / count, correct / count

    def _row(self, epoch: int, rate: float, window: _Window) -> Row:
        loss, speed = window.close()
        loss = self.rank.sum(loss)[0] / self.rank.world
        if not math.isfinite(loss):
            raise InputError(
                f"The loss is {loss} at step {self.step} (learning rate {rate:.2g}). Lower learning_rate or use --precision fp32; "
                f"what is in {self.out} is as it was."
            )
        return Row(epoch=epoch + 1, step=self.step, seconds=self._seconds(), learning_rate=rate, train_loss=loss, images_per_second=speed)

    def _optimizer(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=self.config.learning_rate, momentum=self.config.momentum, nesterov=True, fused=True)

    def _loader(self, tiles: list[Tile], augment: bool) -> Loader:
        return Loader(
            self.dataset,
            tiles,
            batch_size=self.config.batch_size // self.rank.world,
            device=self.rank.device,
            augment=augment,
            seed=self.config.seed,
            rank=self.rank.number,
            world=self.rank.world,
            threads=self.rank.threads,
        )

    def _plan(self, state: dict[str, Any] | None) -> tuple[Plan, list[Tile]]:
        tiles, config, rank = self.dataset.require("train"), self.config, self.rank
        if state:
            epochs, share = state["epochs"], state["tiles"]
        elif config.minutes is None:
            epochs, share = config.epochs, len(tiles)
        else:
            [speed] = rank.sum(self._speed())
            [spent] = rank.sum(self._seconds())
            left = config.minutes * 60 - spent / rank.world
            epochs, share = fit_in_time(config.epochs, len(tiles), len(self.dataset.tiles("valid")), 0.95 * speed, left)
            share = max(share, config.batch_size)
        chosen = balanced(tiles, share)
        steps = max(1, len(chosen) // config.batch_size)
        name = torch.cuda.get_device_name(rank.device) if rank.device.type == "cuda" else "cpu"
        return Plan(epochs, len(chosen), len(tiles), steps, self.precision, name, rank.world, self.step), chosen

    def _speed(self) -> float:
        """Training tiles a second on this rank, measured on a copy of the network."""
        own = self.model, self.optimizer
        self.model = self.net = copy.deepcopy(self.model)
        self.optimizer = self._optimizer()
        set_training_mode(self.model, self.config.tune)
        size, on_gpu = self.config.batch_size // self.rank.world, self.rank.device.type == "cuda"
        images = torch.randint(0, 256, (size, self.dataset.height, self.dataset.width, 3), dtype=torch.uint8, device=self.rank.device)
        labels = torch.arange(size, device=self.rank.device) % len(self.dataset.classes)
        warm_up, timed = (10, 20) if on_gpu else (2, 4)
        for step in range(warm_up + timed):
            if step == warm_up:
                begin = time.perf_counter()
            self._step(images, labels, 1e-3).item()  # .item() waits for the device
        self.model, self.optimizer = own
        return timed * size / (time.perf_counter() - begin)

    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "classes": self.dataset.classes,
            "dataset_digest": self.dataset.digest,
            "epochs": self.plan.epochs,
            "tiles": self.plan.tiles,
            "step": self.step,
            "best_accuracy": self.best,
            "best_epoch": self.best_epoch,
            "precision": self.precision,
            "seconds": self._seconds(),
            "scaler": self.scaler.state_dict(),
        }

    def _save_last(self) -> None:
        tensors = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            if "momentum_buffer" in self.optimizer.state.get(parameter, {}):
                tensors[f"momentum/{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        checkpoint.save(self.out / "last.safetensors", tensors, self._state())
        self.saved_at = self._seconds()

    def _size_on_disk(self) -> int:
        """Bytes that the run will still need: best, last, and a new last beside the old one while it is written."""
        weights = 4 * sum(tensor.numel() for tensor in self.model.state_dict().values())
        momentum = 4 * sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        there = sum(path.stat().st_size for path in self.out.glob("*.safetensors"))
        return max(0, int(weights + 2 * (weights + momentum) - there))

    def _save_best(self, loss: float) -> None:
        checkpoint.save(self.out / "best.safetensors", self.model.state_dict(), self._state())
        summary = {
            "valid_accuracy": self.best,
            "valid_loss": loss,
            "valid_tiles": len(self.dataset.tiles("valid")),
            "epoch": self.best_epoch,
            "epochs": self.plan.epochs,
            "train_tiles": self.plan.tiles,
            "tune": self.config.tune,
            "weights": Path(self.config.weights).name,
            "precision": self.precision,
            "device": self.plan.device,
        }
        spec_of(self.dataset, summary).write(self.out / "spec.json")

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        own = self.model.state_dict()
        weights = {key: value for key, value in tensors.items() if not key.startswith("momentum/")}
        check_state(own, weights, self.out / "last.safetensors")
        self.model.load_state_dict(weights)
        for name, parameter in self.model.named_parameters():
            if (momentum := tensors.get(f"momentum/{name}")) is not None:
                # cloned into the parameter's memory format, as if it had grown beside it
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.started -= state["seconds"]
        steps = self.rank.sum(state["step"])[0] / self.rank.world
        if steps != state["step"]:
            raise ContractError(f"The processes found different checkpoints in {self.out}. Put the run on a disk that all machines share.")
        self.step, self.best, self.best_epoch = state["step"], state["best_accuracy"], state["best_epoch"]


class _Window:
    """Loss and speed since the last report; the loss is fetched from a GPU only when one is due."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._images = 0
        self._begin = time.perf_counter()

    def add(self, loss: torch.Tensor, images: int) -> None:
        self._losses.append(loss)
        self._images += images

    def close(self) -> tuple[float, float]:
        loss = torch.stack(self._losses).mean().item()
        speed = self._images / (time.perf_counter() - self._begin)
        self._reset()
        return loss, speed


def _refuse_to_overwrite(out: Path) -> None:
    """A new run takes a folder that is absent, empty, or left by a run that was stopped before its first checkpoint."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder. Choose another --out.")
    if (out / "last.safetensors").exists():
        raise InputError(f"{out} holds a run already. Go on with --resume, or choose another --out.")
    found = {path.name for path in out.glob("[!.]*")} - {"config.json", "log.csv", "samples.npz"}
    if found:
        raise InputError(f"{out} holds {min(found)!r}, which is not of a run: nothing there is overwritten. Choose another --out.")


def _check_same_data(state: dict[str, Any], dataset: Dataset, out: Path) -> None:
    if tuple(state["classes"]) != dataset.classes:
        raise ContractError(
            f"{out} was trained on the classes {', '.join(state['classes'])}; the dataset has {', '.join(dataset.classes)}. Resume with its own dataset."
        )
    if state["dataset_digest"] != dataset.digest:
        raise ContractError(f"{out} was trained on another dataset or split. Resume with its own, or start anew with another --out.")
