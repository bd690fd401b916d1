"""`sattrt train`: mixed precision, one process or many, best and last checkpoint.

    result = train(Dataset.read(Path("dataset")), Path("run"), TrainConfig(epochs=1))

The run folder holds `best.safetensors` (the network of the last epoch that validation can't tell from the best one), `last.safetensors`
(everything needed to go on), `spec.json`, `config.json`, `log.csv`, `samples.npz` (decoded tiles for the stages
after this one), and what `finish` draws at the end.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..accuracy import standard_error
from ..checkpoint import Checkpoint
from ..data.augment import Augmentation
from ..data.dataset import Dataset, Tile, balanced
from ..data.loader import Loader, open_tiles
from ..errors import ContractError, InputError
from ..model import TileClassifier, load_weights, set_trainable, set_training_mode
from ..spec import ModelSpec, write_json
from .budget import fit_in_time, loading_speed
from .config import TrainConfig
from .divergence import Divergence
from .finish import draw_curves, finish
from .handover import samples_size, spec_of, write_samples
from .hardware import DTYPES, choose_precision, place
from .hold import held
from .keeper import PATIENCE, SECONDS_BETWEEN_CHECKPOINTS, Keeper
from .log import STEPS_BETWEEN_REPORTS, Row, TrainLog, Window, rows_of
from .observer import Observer, Plan
from .optimizer import MovingAverage
from .ranks import Rank, ranks
from .resume import collect, config_of, load_last, precision_of, refuse_to_overwrite, restore, state_of, threads_of
from .schedule import learning_rate_at
from .step import TrainStep
from .stop import StopRequest
from .surroundings import difference, surroundings

_BATCHES_TIMED = 20  # of the loader, at most


@dataclass(frozen=True)
class Result:
    """Validation accuracy (0..1) of the network that was kept, its epoch (from 1), steps made in all; stopped: by a signal, before the end."""

    accuracy: float
    epoch: int
    steps: int
    stopped: bool = False


def train(
    dataset: Dataset,
    out: Path,
    config: TrainConfig | None,
    observer: Observer | None = None,
    patience: float = PATIENCE,
    interval: float = SECONDS_BETWEEN_CHECKPOINTS,
    machine: Mapping[str, Any] = {},
) -> Result:
    """Train into the folder `out`; config None goes on from `out/last.safetensors` with the settings it was begun with.

    patience: how long the end of an epoch waits with a checkpoint (`keeper.PATIENCE`); interval: seconds between checkpoints; with 0
    every epoch ends with one, and every step. machine: settings of `config.OF_THE_MACHINE` that a run which goes on has from here on.
    SIGTERM, SIGHUP and the first Ctrl-C end the run after the step in hand, with a checkpoint (in the main thread only).
    Raises InputError for an empty split, a folder that holds another run or that one is at work in, a loss that is not finite or diverges;
    ContractError for a resume with another dataset or weights that don't fit.
    """
    started = time.perf_counter()
    saved, before = None, {} if config else state_of(out)
    config = config or replace(config_of(before, out), **machine)
    for split in ("train", "valid"):
        dataset.require_classes(split)
    observer = observer or Observer()
    with (
        ranks(config.threads, 0 if "threads" in machine else threads_of(before)) as rank,
        StopRequest((observer if rank.is_first else Observer()).noted) as stop,
        held(out, rank) as hold,
    ):
        if before or (hold.begun_here and (out / "last.safetensors").exists()):  # the launcher repeats the command it was given
            saved = load_last(dataset, out)  # again: another process may have gone on with it until now
            config = replace(config_of(saved[1], out), **machine)
        else:
            refuse_to_overwrite(out)
        hold.begin()
        run = _Run(dataset, out, config, rank, started, saved, observer, stop, Keeper(out, patience, interval))
        del saved  # or it would be kept in memory beside what was made of it
        return run.run()


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        config: TrainConfig,
        rank: Rank,
        started: float,
        saved: Checkpoint | None,
        observer: Observer,
        stop: StopRequest,
        keeper: Keeper,
    ) -> None:
        if config.batch_size % rank.world:
            raise InputError(f"batch_size {config.batch_size} can't be divided by {rank.world} processes. Choose a multiple.")
        if rank.world > 1 and (config.mixup or config.cutmix) and config.batch_size // rank.world % 2:
            raise InputError(
                f"batch_size {config.batch_size} gives each of {rank.world} processes an odd number of tiles, and mixup and CutMix take pairs. "
                f"Choose a multiple of {2 * rank.world}."
            )
        self.dataset, self.out, self.config, self.rank, self.started = dataset, out, config, rank, started
        self.observer, self.stop, self.keeper = observer if rank.is_first else Observer(), stop, keeper
        self.precision = precision_of(saved[1], rank.device, out) if saved else choose_precision(config.precision, rank.device)
        torch.manual_seed(config.seed)
        self.model = TileClassifier(len(dataset.classes), dataset.mean, dataset.std, config.image_size, dtype=dataset.dtype)
        if saved is None:
            load_weights(self.model, config.weights, dataset.bands)
        set_trainable(self.model, config.tune)
        self.slower = place(self.model, rank, self.precision)
        self.observer.reached("network")
        # of a copy of the network, and before the step itself is recorded: on a GPU a recording keeps the memory that it takes
        speed = self._recorded(self._step_of(copy.deepcopy(self.model))).speed() if config.minutes is not None and not saved else 0.0
        self.make_step = self._step_of(self.model)
        self.optimizer, self.scaler = self.make_step.optimizer, self.make_step.scaler
        self.average = MovingAverage(self.model, config.ema) if config.ema else None
        self.step, self.best, self.best_epoch, self.highest = 0, -1.0, 0, -1.0
        self.divergence = Divergence(len(dataset.classes), config.tune, self.precision, out)
        if saved:
            self._restore(*saved)
        self._recorded(self.make_step)
        self.observer.reached("recorded")
        self.source = open_tiles(dataset)  # once for all loaders: the directory of an archive takes a while
        self.valid = self._loader(dataset.tiles("valid"), config.cache_gb)
        self.plan, tiles = self._plan(saved[1] if saved else None, speed)
        self.train = self._loader(tiles, config.cache_gb - self.valid.kept_gb, config.augmentation)

    def run(self) -> Result:
        if self.rank.is_first:
            samples = samples_size(self.dataset) if self.step == 0 else 0
            self.keeper.require_space(self.model, 1 if self.config.optimizer == "sgd" else 2, bool(self.average), samples)
            write_json(self.out / "config.json", {**self.config.to_dict(), "ran_with": vars(self.plan)})
            if self.step == 0 or not (self.out / "samples.npz").exists():
                write_samples(self.dataset, self.out, self.config.decoder, self.rank.threads, source=self.source)
                self.observer.reached("samples")
            self.observer.started(self.plan)
            self.log = TrainLog(self.out, self.step)
            if self.step == 0:
                self._save_last()  # from here on every moment is one to resume from
        stopped = self.rank.sum(float(self.stop.asked))[0] > 0  # while it was made ready
        try:
            while self.step < self.plan.steps and not stopped:
                stopped = self._epoch(self.step // self.plan.steps_per_epoch)
        except Exception:  # it has gone astray, or another process has; the best network of before is worth having
            with contextlib.suppress(Exception):  # nothing may hide the reason
                self.keeper.write_best()
            if self.rank.is_first:
                draw_curves(self.out)
            raise
        self.train.close()
        self.valid.close()
        if self.source:
            self.source.close()
        self.rank.barrier()  # the others needn't wait for what the first does alone
        if self.rank.is_first and stopped:
            draw_curves(self.out)
        elif self.rank.is_first:
            self.stop.close()  # nothing is lost by an end in the middle of it: a resume makes it anew
            self.observer.finishing()
            if left_out := finish(
                self.dataset, self.out, self.rank, self.precision, self.config.batch_size, self.config.decoder, self.config.cache_gb
            ):
                self.observer.noted(left_out)
        return Result(self.best, self.best_epoch, self.step, stopped)

    def _epoch(self, epoch: int) -> bool:
        """Train to the end of an epoch and validate; True where it was told to stop on the way."""
        set_training_mode(self.model, self.config.tune)
        window: Window | None = None
        for images, labels in self.train.epoch(epoch, self.step - epoch * self.plan.steps_per_epoch):
            if self.step == self.plan.first_step:
                self.observer.reached("first tiles")
            window = window or Window()  # its clock begins when the first tiles are there: the run's first epoch decodes all of them
            rate = learning_rate_at(self.config, self.step, self.plan.steps, self.plan.steps_per_epoch)
            window.add(rate, *self.make_step(images, labels, rate, self.step), len(labels) * self.rank.world)
            self.step += 1
            ends = self.step % self.plan.steps_per_epoch == 0 or self.step == self.plan.steps
            if self.average:
                self.average.update(self.step, self.step - epoch * self.plan.steps_per_epoch, ends)
            told = self.rank.world == 1 and self.stop.asked  # several ranks look together
            if ends or told or self.step % STEPS_BETWEEN_REPORTS == 0 or self.rank.device.type == "cpu":
                rows, stop = self._report(epoch, window)
                if self.rank.is_first:
                    self.observer.stepped(rows[-1], self.plan)
                    if not ends:
                        self.log.add(*rows)
                        if stop or self.keeper.is_due(epoch_ends=False):
                            self._save_last()
                            window.restart_clock()
                if stop and not ends:
                    return True
            if ends:
                break
        loss, accuracy, stop = self._validate()
        last = replace(rows[-1], valid_loss=loss, valid_accuracy=accuracy, seconds=self._seconds())
        if self.rank.is_first:
            self.log.add(*rows[:-1], last)
        self.divergence.validation(last)
        self.highest = max(self.highest, accuracy)
        # within one standard error of the highest (Breiman et al., 1984): of epochs that the tiles can't tell apart the last, whose rate is the lowest
        improved = accuracy >= self.highest - standard_error(self.highest, len(self.dataset.tiles("valid")))
        if improved:
            self.best, self.best_epoch = accuracy, epoch + 1
        if self.rank.is_first:
            if improved:
                self.keeper.keep_best(self.judged.state_dict(), self._state(), self._spec(loss))
            self.observer.epoch_ended(last, improved)
            if stop or self.step == self.plan.steps or self.keeper.is_due(epoch_ends=True):
                self._save_last()
        return stop

    def _step_of(self, model: TileClassifier) -> TrainStep:
        return TrainStep(model, self.dataset, self.config, self.rank, self.precision)

    def _recorded(self, step: TrainStep) -> TrainStep:
        if not self.slower:  # where it failed once it is not tried again: torch may have lost count of its memory
            self.slower = step.record(self.observer.noted)
        return step

    @property
    def judged(self) -> TileClassifier:
        """The network that is validated and kept: the moving average where there is one."""
        return self.average.model if self.average else self.model

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float, bool]:
        """Loss and accuracy (0..1) on the validation split, and whether any rank was told to stop, before or meanwhile."""
        model = self.judged
        model.eval()
        total, count = torch.zeros(2, dtype=torch.float64, device=self.rank.device), 0
        for images, labels in self.valid.epoch(0):
            with torch.autocast(self.rank.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            total += torch.stack([loss, (logits.argmax(1) == labels).sum()])
            count += len(labels)
        loss_sum, correct, tiles, stops = self.rank.sum(*total.tolist(), count, float(self.stop.asked))
        return loss_sum / tiles, correct / tiles, stops > 0

    def _report(self, epoch: int, window: Window) -> tuple[list[Row], bool]:
        """A row for each step since the last report, and whether any rank was told to stop. InputError where the loss has gone astray."""
        rates, losses, norms, speed = window.close()
        *losses, stops = self.rank.sum(*losses, float(self.stop.asked))
        losses = [loss / self.rank.world for loss in losses]
        rows = rows_of(epoch + 1, self.step, self._seconds(), rates, losses, norms, speed)
        try:
            for row in rows:
                self.divergence.step(row)
        except InputError:
            if self.rank.is_first:
                self.log.add(*rows)
            raise
        return rows, stops > 0

    def _loader(self, tiles: list[Tile], cache_gb: float, augmentation: Augmentation | None = None) -> Loader:
        return Loader(
            self.dataset,
            tiles,
            batch_size=self.config.batch_size // self.rank.world,
            device=self.rank.device,
            augmentation=augmentation,
            seed=self.config.seed,
            rank=self.rank.number,
            world=self.rank.world,
            threads=self.rank.threads,
            decoder=self.config.decoder,
            cache_gb=cache_gb,
            source=self.source,
        )

    def _plan(self, state: dict[str, Any] | None, speed: float) -> tuple[Plan, list[Tile]]:
        tiles, config, rank = self.dataset.require("train"), self.config, self.rank
        passes: float = config.epochs
        if state:
            share = state["tiles"]
        elif config.minutes is None:
            share = len(tiles)
        else:
            passes, share = self._fitting(tiles, config.minutes, speed)
        chosen = balanced(tiles, share)
        each = max(1, len(chosen) // config.batch_size)
        steps = state["steps"] if state else max(1, int(passes * each))
        decoder, on_cpu = self.valid.decoder, rank.device.type == "cpu"
        self.ran_on = surroundings(rank, decoder, fused=on_cpu and rank.world == 1 and not self.slower)
        differs = difference(state["ran_on"], self.ran_on) if state else ""
        return Plan(
            epochs=-(-steps // each),
            tiles=len(chosen),
            of_tiles=len(tiles),
            steps_per_epoch=each,
            steps=steps,
            precision=self.precision,
            device=rank.device_name,
            world=rank.world,
            first_step=self.step,
            decoder=decoder,
            slower=self.slower,
            differs=differs,
        ), chosen

    def _fitting(self, tiles: list[Tile], minutes: float, speed: float) -> tuple[float, int]:
        """Passes, and tiles of each, that fit into what is left of the minutes. speed: of the steps alone, tiles a second on this rank."""
        config, rank, cache_gb = self.config, self.rank, self.config.cache_gb - self.valid.kept_gb
        few = self._loader(balanced(tiles, _BATCHES_TIMED * config.batch_size), 0.0, config.augmentation)
        speed, decoding, spent = rank.sum(speed, loading_speed(few), self._seconds())
        few.close()
        validation = float(len(self.dataset.tiles("valid")))
        if len(tiles) * self.dataset.tile_bytes > 1e9 * cache_gb:  # in every epoch anew; on a CPU by the cores that the steps are made on
            alone = speed
            speed = min(speed, decoding) if rank.device.type == "cuda" else 1 / (1 / speed + 1 / decoding)
            # in tiles that are trained on, of which each is taken for three that are validated
            validation *= speed * (1 / alone + (0.0 if self.valid.keeps else 3 / decoding))
            decoding = math.inf
        rate = 0.9 * speed  # a machine that others use is not always as fast
        left = minutes * 60 - spent / rank.world
        passes, share = fit_in_time(config.epochs, len(tiles), validation, rate, left, 0.9 * decoding)
        return passes, max(share, config.batch_size)

    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "classes": self.dataset.classes,
            "dataset_digest": self.dataset.digest,
            "dataset_order": self.dataset.order,
            "steps": self.plan.steps,
            "tiles": self.plan.tiles,
            "step": self.step,
            "best_accuracy": self.best,
            "best_epoch": self.best_epoch,
            "highest_accuracy": self.highest,
            "precision": self.precision,
            "seconds": self._seconds(),
            "scaler": self.scaler.state_dict(),
            "loss": self.divergence.loss,
            "mean": self.dataset.mean,
            "std": self.dataset.std,
            "ran_on": self.ran_on,
        }

    def _save_last(self) -> None:
        self.keeper.write(collect(self.model, self.optimizer, self.average), self._state())

    def _spec(self, loss: float) -> ModelSpec:
        summary = {
            "valid_accuracy": self.best,
            "valid_loss": loss,
            "valid_tiles": len(self.dataset.tiles("valid")),
            "epoch": self.best_epoch,
            "epochs": self.plan.epochs,
            "train_tiles": self.plan.tiles,
            "recipe": self.config.recipe,
            "tune": self.config.tune,
            "weights": Path(self.config.weights).name,
            "precision": self.precision,
            "device": self.plan.device,
        }
        return spec_of(self.dataset, self.config.image_size, summary)

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        restore(tensors, self.model, self.optimizer, self.average, self.out / "last.safetensors")
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.started -= state["seconds"]
        self.divergence.loss = state["loss"]
        steps = self.rank.sum(state["step"])[0] / self.rank.world
        if steps != state["step"]:
            raise ContractError(f"The processes found different checkpoints in {self.out}. Put the run on a disk that all machines share.")
        self.step, self.best, self.best_epoch = state["step"], state["best_accuracy"], state["best_epoch"]
        self.highest = state["highest_accuracy"]
