"""`sattrt rmldnn`: what a configuration of rmldnn asks for, training or predictions.

    outcome = run_config(RmldnnConfig.read(Path("config_train.json")), Path("run"))

Training writes rmldnn's files where its configuration wants them (logs, checkpoints, predictions) and, into the run folder, what
`sattrt train` would: the best network, its contract, samples, log and pictures, for `sattrt export`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.dataset import Dataset
from ..errors import InputError
from ..spec import KERAS_RESNET50, RESNET50
from ..training.config import TrainConfig
from ..training.hold import held
from ..training.observer import Observer
from ..training.ranks import Rank, ranks
from ..training.resume import refuse_to_overwrite
from .config import RmldnnConfig
from .evaluation import answers, as_last_layer, check_classes, judge, loader_of
from .files import prepare_files, write_predictions
from .network import Network, build
from .tiles import AsGiven, Progress, known_by_folder, labelled, unlabelled
from .training import Training, TrainingResult

Report = list[tuple[str, str]]
_SHOWN = 20  # of the files that are left out, as of `sattrt data`
_KNOWN = {KERAS_RESNET50: "Keras'", RESNET50: "torchvision's"}


@dataclass(frozen=True)
class Outcome:
    """training: None where none was asked for. predictions: the file that was written, or None. tiles: judged or predicted.
    loss, accuracy (0..1): of a test configuration that knows the classes."""

    training: TrainingResult | None = None
    predictions: Path | None = None
    tiles: int = 0
    loss: float | None = None
    accuracy: float | None = None


def run_config(
    config: RmldnnConfig,
    out: Path,
    observer: Observer | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
    on_scan: Progress = lambda done, total: None,
    decoder: str = "auto",
) -> Outcome:
    """Do what the configuration says; several processes are one run, by torchrun.

    on_report: called on the first rank with what is about to be done, as pairs of a name and a value. decoder: as of `TrainConfig`.
    Raises InputError and ContractError for what doesn't fit together, before anything is written; and InputError for a run folder that
    holds a run or other files, or that another process trains into.
    """
    data = config.data
    assert data.test_input_path is not None
    TrainConfig(decoder=decoder)  # refuses any other word
    with ranks() as rank:
        if not data.input_path:
            return _test(config, rank, on_report, decoder)
        with held(out, rank):
            refuse_to_overwrite(out)
            dataset = labelled(data.input_path, data.test_input_path, on_scan, data.transforms.resizes, rank.threads)
            network = build(config, dataset.height, dataset.width)
            check_classes(network, dataset, config)
            training = Training(config, dataset, network, out, rank, observer or Observer(), decoder)
            if rank.is_first:
                on_report(_left_out(dataset, out) + _as_read(dataset) + _report(config, network, rank) + training.report())
            return Outcome(training.run(), None, len(dataset.tiles("valid")))


def _test(config: RmldnnConfig, rank: Rank, on_report: Callable[[Report], None], decoder: str) -> Outcome:
    """Predictions by a test configuration, in fp32; loss and accuracy too, where it has a target_type."""
    data = config.data
    assert data.test_input_path is not None
    if not config.load:
        raise InputError(f"{config.path} lacks checkpoints.load: predictions by random weights are worth nothing. Give the checkpoint.")
    if not data.test_output_path and not data.labels:
        raise InputError(
            f"{config.path} has neither input_path, test_output_path nor target_type: nothing would come of it. Add one of them."
        )
    dataset = unlabelled(data.test_input_path, data.transforms.resizes)
    network = build(config, dataset.height, dataset.width)
    if data.labels:
        dataset = known_by_folder(dataset)
        check_classes(network, dataset, config)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
    network.model.to(rank.device).to(memory_format=torch.channels_last)
    tiles = dataset.tiles("test")
    loader = loader_of(dataset, tiles, data.test_batch_size, rank, decoder=decoder)
    if rank.is_first:
        files = prepare_files(config)
        said = [*_left_out(dataset), *_as_read(dataset), *_report(config, network, rank)]
        batch = max(1, data.test_batch_size // rank.world)
        on_report([*said, ("test tiles", f"{len(tiles):,}, {loader.steps:,} batches of up to {batch} a process")])
    logits = answers(network, loader, len(tiles), rank, "fp32", data.transforms)
    loader.close()
    path = loss = accuracy = None
    if rank.is_first and data.labels:
        loss, accuracy = judge(logits, torch.tensor([tile.label for tile in tiles]), config.loss)
        files.test(1, loss, accuracy)
    if rank.is_first and data.test_output_path:
        names = [tile.name for tile in tiles]
        path = write_predictions(data.test_output_path, 1, names, as_last_layer(logits, network.keras.activation))
    rank.barrier()
    return Outcome(None, path, len(tiles), loss, accuracy)


def _report(config: RmldnnConfig, network: Network, rank: Rank) -> Report:
    """What every run begins with."""
    parameters = list(network.model.parameters())
    found = [
        ("device", f"{rank.device_name}, {rank.world} process{'es' * (rank.world > 1)}, {rank.threads} threads each"),
        ("network", f"{_KNOWN[network.keras.architecture]} ResNet-50, {network.keras.classes} classes, {network.keras.activation}"),
        ("parameters", f"{sum(each.numel() for each in parameters):,}"),
    ]
    if config.data.input_path:
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        found.append(("trainable", f"{trained:,}, in {len(network.keras.trainable)} of {len(network.keras.names)} layers"))
    return found + [("note", note) for note in network.notes]


def _as_read(dataset: AsGiven) -> Report:
    """Whether tiles are resized."""
    return [("note", f"tiles of other sizes are resized to {dataset.width}x{dataset.height} as they are read")] * dataset.resized


def _left_out(dataset: Dataset, out: Path | None = None) -> Report:
    """The first of the files that can't be used, and why; then how many there are. out: the run whose config.json has all."""
    found = [("left out", f"{name}: {reason}") for name, reason in list(dataset.left_out.items())[:_SHOWN]]
    more = f"; the others are in {out / 'config.json'}" if out and len(dataset.left_out) > _SHOWN else ""
    if found:
        found.append(("left out", f"{len(dataset.left_out):,} files in all{more}"))
    return found
