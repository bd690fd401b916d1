"""Training as an rmldnn configuration describes it: its optimizer, schedule, loss, transforms, logs and checkpoints.

    result = Training(config, dataset, network, Path("run"), rank, Observer()).run()

The loop is made of the parts that `sattrt train` is made of: loader, mixed precision, ranks, log, checkpoints, pictures.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from .. import checkpoint
from ..data.augment import Augmentation
from ..data.dataset import Dataset
from ..data.loader import CACHE_GB
from ..errors import InputError
from ..spec import ModelSpec, require_space, write_json
from ..training.finish import NO_PICTURES, finish
from ..training.handover import account, write_samples
from ..training.hardware import DTYPES, across_ranks, choose_precision, place, tuned_convolutions
from ..training.log import STEPS_BETWEEN_REPORTS, Row, TrainLog, Window, read_log, rows_of
from ..training.observer import Observer, Plan
from ..training.ranks import Rank
from ..training.step import gradient_norm
from .config import RmldnnConfig
from .evaluation import answers, as_judged, as_last_layer, judge, loader_of, weighed_loss
from .files import prepare_files, write_predictions
from .network import SEED, Network, require_trainable
from .optimizer import make_optimizer, rate_at
from .tiles import on_both_sides
from .weights import save_checkpoint

# that BatchNorm's statistics are taken anew over, the last of an epoch: in the tutorial a tenth of it; fewer of large tiles, which are kept so long
_BATCHES_OF_STATISTICS, _BYTES_OF_STATISTICS = 40, 2**28
# a loss of this many times that of a guess has run away; the tutorial's own rate is so high that it begins with 20 times
_DIVERGED = 1e4


@dataclass(frozen=True)
class TrainingResult:
    """Best validation accuracy (0..1) and its epoch (from 1); accuracy of the last epoch; the checkpoints that were written."""

    accuracy: float
    epoch: int
    last_accuracy: float
    checkpoints: tuple[Path, ...]


class Training:
    """One run, into a folder that is held for it. decoder: as of `TrainConfig`. Raises InputError for what can't be trained."""

    def __init__(
        self, config: RmldnnConfig, dataset: Dataset, network: Network, out: Path, rank: Rank, observer: Observer, decoder: str = "auto"
    ) -> None:
        assert config.optimizer is not None
        if config.data.batch_size % rank.world:
            raise InputError(f"batch_size {config.data.batch_size} can't be divided by {rank.world} processes. Choose a multiple.")
        require_trainable(network, config.layers if isinstance(config.layers, Path) else config.path)
        self.config, self.dataset, self.network, self.out, self.rank, self.observer = config, dataset, network, out, rank, observer
        self.optimizer_config, self.decoder = config.optimizer, decoder
        self.started = time.perf_counter()
        self.precision = choose_precision("auto", rank.device)
        slower = place(network.model, rank, self.precision)
        self.net = across_ranks(network.model, rank)
        trained = [each for each in network.model.parameters() if each.requires_grad]
        self.optimizer = make_optimizer(trained, config.optimizer)
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=self.precision == "fp16")
        self.tiles, self.valid_tiles = dataset.require("train"), dataset.require("valid")
        self.batch_size = min(config.data.batch_size, len(self.tiles) // rank.world * rank.world)
        if not self.batch_size:
            raise InputError(f"{config.data.input_path} has fewer tiles, {len(self.tiles)}, than there are processes. Start fewer.")
        self._refuse_lone_values()
        shuffled = Augmentation(symmetries=False)  # how tiles vary is the transforms' affair
        memory = CACHE_GB if config.data.preload else 0.0  # for both splits together
        self.valid = loader_of(dataset, self.valid_tiles, config.data.test_batch_size, rank, cache_gb=memory, decoder=decoder)
        more = {"augmentation": shuffled, "seed": SEED, "cache_gb": memory - self.valid.kept_gb, "decoder": decoder}
        self.loader = loader_of(dataset, self.tiles, self.batch_size, rank, **more)
        count, steps = len(self.tiles), self.loader.steps
        self.plan = Plan(
            epochs=config.num_epochs,
            tiles=count,
            of_tiles=count,
            steps_per_epoch=steps,
            steps=config.num_epochs * steps,
            precision=self.precision,
            device=rank.device_name,
            world=rank.world,
            first_step=0,
            decoder=self.loader.decoder,
            slower=slower,
        )
        self.step, self.best, self.best_epoch, self.last = 0, -1.0, 0, 0.0
        self.checkpoints: list[Path] = []

    def _refuse_lone_values(self) -> None:
        """InputError where the last stage, which sees a 32nd of each side, has a single value a channel: BatchNorm can't take its variance."""
        height, width = self.network.size
        norms = [role for role in self.network.keras.trainable if role.startswith("layer4") and ("bn" in role or "downsample.1" in role)]
        if self.batch_size == 1 and max(height, width) <= 32 and norms:
            raise InputError(
                f"A batch of one sample of {width}x{height} pixels has nothing that BatchNorm could learn from. Set batch_size to 2 or "
                "more, or resize to more than 32."
            )

    def report(self) -> list[tuple[str, str]]:
        """Optimizer, schedule, loss and sizes, as pairs of a name and a value."""
        optimizer, loss, data, world = self.optimizer_config, self.config.loss, self.config.data, self.rank.world
        options = ", ".join(f"{key} {value}" for key, value in optimizer.options.items())
        schedule = str(optimizer.scheduler or "constant")
        if optimizer.scheduler and optimizer.scheduler.verbose:
            schedule += " (verbose: the rate of each step is in log.csv)"
        weighed = f", classes weighed by {', '.join(f'{each:g}' for each in loss.weight)}" if loss.weight else ""
        ignored = f", without class {loss.ignore_index}" if loss.ignore_index is not None else ""
        copies = on_both_sides(self.dataset)
        seen = f"; {copies:,} of them are train tiles too, which flatters the accuracy" if copies else ""
        late = self.config.save and self.config.interval > self.config.num_epochs
        never = f"no checkpoint is written: the interval is {self.config.interval} epochs, num_epochs is {self.config.num_epochs}"
        return [
            ("optimizer", f"{optimizer.kind}, learning rate {optimizer.learning_rate:g}, {options}"),
            ("schedule", schedule),
            ("loss", f"NLL{weighed}{ignored}"),
            ("train tiles", f"{len(self.tiles):,}, {self.loader.steps:,} batches of {self.batch_size // world} a process"),
            (
                "valid tiles",
                f"{len(self.valid_tiles):,}, {self.valid.steps:,} batches of up to {max(1, data.test_batch_size // world)} a process{seen}",
            ),
            *([("note", never)] if late else []),
        ]

    def run(self) -> TrainingResult:
        """Train, validate and write, epoch by epoch."""
        if self.rank.is_first:
            weights = 4 * sum(value.numel() for value in self.network.model.state_dict().values())
            require_space(self.out, 2 * weights)
            self.files = prepare_files(self.config)
            run = {"rmldnn": str(self.config.path), "ran_with": vars(self.plan), "left_out": self.dataset.left_out}
            write_json(self.out / "config.json", run)
            show = self._prepared if self.network.side is None else None
            write_samples(self.dataset, self.out, self.decoder, self.rank.threads, show)
            self.log = TrainLog(self.out, 0)
            self.observer.started(self.plan)
        for epoch in range(1, self.config.num_epochs + 1):
            self._epoch(epoch)
        self.loader.close()
        self.valid.close()
        self.rank.barrier()
        if self.rank.is_first:
            self.observer.finishing()
            if self.network.side is not None:
                memory = CACHE_GB if self.config.data.preload else 0.0
                finish(self.dataset, self.out, self.rank, self.precision, self.batch_size, self.decoder, memory)
            try:
                from ..training import figures
            except ImportError:
                self.observer.noted(NO_PICTURES)
            else:
                figures.loss_and_accuracy(read_log(self.out / "log.csv"), self.out)
        return TrainingResult(self.best, self.best_epoch, self.last, tuple(self.checkpoints))

    def _epoch(self, epoch: int) -> None:
        self.network.set_training_mode()
        rate = rate_at(self.optimizer_config, epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        window: Window | None = None
        recent: deque[Tensor] = deque(maxlen=self._batches_of_statistics())
        for tiles, labels in self.loader.epoch(epoch - 1):
            window = window or Window()  # its clock begins when the first tiles are there: the run's first epoch decodes all of them
            window.add(rate, *self._step(tiles, labels), len(labels) * self.rank.world)
            recent.append(tiles)
            self.step += 1
            ends = self.step % self.plan.steps_per_epoch == 0
            if ends or self.step % STEPS_BETWEEN_REPORTS == 0 or self.rank.device.type == "cpu":
                rows = self._rows(epoch, window)
                if self.rank.is_first:
                    self.observer.stepped(rows[-1], self.plan)
                    if not ends:
                        self.log.add(*rows)
        transforms = self.config.data.transforms
        self.network.take_statistics((as_judged(tiles, self.network, transforms) for tiles in recent), self._precise())
        logits = answers(self.network, self.valid, len(self.valid_tiles), self.rank, self.precision, transforms)
        if not logits.isfinite().all():  # before anything is written
            raise InputError(f"The network returned NaN or infinity after epoch {epoch} (learning rate {rate:.2g}). Lower learning_rate.")
        loss, self.last = judge(logits, torch.tensor([tile.label for tile in self.valid_tiles]), self.config.loss)
        improved = self.last > self.best
        if improved:
            self.best, self.best_epoch = self.last, epoch
        if self.rank.is_first:
            last = replace(rows[-1], valid_loss=loss, valid_accuracy=self.last, seconds=self._seconds())
            self.log.add(*rows[:-1], last)
            self.files.test(epoch, loss, self.last)
            self._save(epoch, loss, improved, logits)
            self.observer.epoch_ended(last, improved)

    def _batches_of_statistics(self) -> int:
        fit = _BYTES_OF_STATISTICS // (self.dataset.tile_bytes * self.batch_size // self.rank.world)
        return max(1, min(_BATCHES_OF_STATISTICS, fit)) if self.network.trains_norms else 0

    def _precise(self) -> torch.autocast:
        """The precision that the run computes in."""
        return torch.autocast(self.rank.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")

    @tuned_convolutions()
    def _step(self, tiles: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step; this rank's part of the loss, and the norm of the gradient."""
        transforms = self.config.data.transforms
        if transforms.vary or self.network.side is None:
            rng = np.random.default_rng([SEED, self.step, self.rank.number])
            tiles = transforms.views(tiles.shape[1], tiles.shape[2], len(tiles), rng).show(tiles)
        with self._precise():
            logits = self.net(tiles)
        total, weight = weighed_loss(logits, labels, self.config.loss)
        if self.rank.world > 1:  # the mean is over the batch of all ranks; DDP divides by their number
            dist.all_reduce(weight)
        loss = total * self.rank.world / weight.clamp(min=1e-12)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.network.model)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), norm

    def _rows(self, epoch: int, window: Window) -> list[Row]:
        """A row for each step since the last report, which rmldnn's log gets too. InputError where loss or gradient is no number, or the loss diverges."""
        rates, losses, norms, speed = window.close()
        losses = [each / self.rank.world for each in self.rank.sum(*losses)]
        seconds = self._seconds()
        rows = rows_of(epoch, self.step, seconds, rates, losses, norms, speed)
        if self.rank.is_first:
            before = (epoch - 1) * self.plan.steps_per_epoch
            self.files.train((seconds, epoch, row.step - before, row.train_loss, row.gradient_norm) for row in rows)
        for row in rows:
            if fault := self._fault(row):
                raise InputError(f"The {fault} (step {row.step}, learning rate {row.learning_rate:.2g}). Lower learning_rate.")
        return rows

    def _fault(self, row: Row) -> str:
        """What is wrong with a step, if anything."""
        if not math.isfinite(row.train_loss):
            return "loss is not finite"
        if not math.isfinite(row.gradient_norm) and self.precision != "fp16":  # there the scaler leaves such a step out
            return "gradient is not finite"
        return f"loss diverges to {row.train_loss:.3g}" if row.train_loss > _DIVERGED * math.log(len(self.dataset.classes)) else ""

    def _save(self, epoch: int, loss: float, improved: bool, logits: Tensor) -> None:
        """The best network for the stages after, first, so that nothing that befalls the rest can lose it; then rmldnn's files where due."""
        config = self.config
        if improved:
            spec = self._spec(loss)
            state = {"classes": spec.classes, "dataset_digest": spec.dataset_digest, "epoch": epoch, "valid_accuracy": self.best}
            checkpoint.save(self.out / "best.safetensors", self.network.state(), state)
            spec.write(self.out / "spec.json")
        if config.save and epoch % config.interval == 0:
            path = config.save / f"model_checkpoint_{epoch}.pt"
            save_checkpoint(path, self.network.keras, self.network.model.backbone, self.network.pixels)
            self.checkpoints.append(path)
        if config.data.test_output_path:
            names = ["/".join(PurePosixPath(tile.name).parts[-2:]) for tile in self.valid_tiles]
            write_predictions(config.data.test_output_path, epoch, names, as_last_layer(logits, self.network.keras.activation))

    def _spec(self, loss: float) -> ModelSpec:
        """The contract; where transforms come before the network, it is for tiles that were put through them."""
        data, network, config = self.dataset, self.network, self.config
        prepared = network.side is None
        height, width = network.size if prepared else (data.height, data.width)
        training: dict[str, Any] = {
            "valid_accuracy": self.best,
            "valid_loss": loss,
            "valid_tiles": len(self.valid_tiles),
            "epoch": self.best_epoch,
            "epochs": config.num_epochs,
            "train_tiles": len(self.tiles),
            "recipe": f"rmldnn, {config.path.name}",
            "tune": f"{len(network.keras.trainable)} of {len(network.keras.names)} layers",
            "weights": config.load.name if config.load else "none",
            "precision": self.precision,
            "device": self.plan.device,
            "data": account(data),
        }
        fixed = [f"{step.kind} {', '.join(f'{value:g}' for value in step.values)}" for step in config.data.transforms.steps if step.fixed]
        if prepared:
            training["tiles_after"] = fixed
        return ModelSpec(
            classes=data.classes,
            height=height,
            width=width,
            mean=network.pixels.rgb_mean,
            std=network.pixels.rgb_std,
            resize=network.side or 0,
            architecture=self.network.keras.architecture,
            dataset_digest=data.digest if not prepared else f"{data.digest} after {', '.join(fixed)}",
            training=training,
        )

    def _prepared(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """Tiles (N, H, W, 3) as the network takes them, where transforms come before it: uint8."""
        views = self.config.data.transforms.views(tiles.shape[1], tiles.shape[2], len(tiles), None)
        prepared: NDArray[Any] = views.show(torch.from_numpy(tiles)).round().clamp(0, 255).byte().numpy()
        return prepared

    def _seconds(self) -> float:
        return time.perf_counter() - self.started
