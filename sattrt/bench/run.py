"""`sattrt bench`: accuracy on the whole test split, latency, throughput, and file to label, for every engine.

report = bench(read_bundle(Path("engines/eurosat")), Dataset.read(Path("dataset")))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..accuracy import Score, evaluate
from ..data.dataset import Dataset
from ..errors import ContractError
from ..machine import cores, environment
from ..runtime import Bundle
from ..spec import ModelSpec
from .contenders import TORCH, Infer, gather
from .measure import BATCHES, Budget, Speed, measure
from .tiles import TileReader

_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One engine's figures. file_to_label: images a second from encoded file to class. Errors are against the reference."""

    name: str
    device: str
    score: Score
    speed: Speed
    file_to_label: float
    largest_logit_error: float


@dataclass(frozen=True)
class Report:
    """rows: what was measured. absent: engine name to the reason why it could not be. reference: whose answers flips are counted against."""

    rows: list[Row]
    absent: dict[str, str]
    reference: str
    split: str
    same_split: bool
    decoder: str
    bundle: str
    bundle_digest: str
    threads: int
    classes: tuple[str, ...]
    tile_names: list[str]
    environment: dict[str, Any]
    measured_at: str
    sattrt: str = __version__


def bench(
    bundle: Bundle,
    dataset: Dataset,
    run: Path | None = None,
    threads: int = 0,
    batches: tuple[int, ...] = BATCHES,
    budget: Budget = Budget(),
    on_progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Measure every engine of the bundle that runs here, and torch eager, on the dataset's test split.

    run: the run folder that torch eager is taken from, by default the one the bundle was exported from.
    threads: CPU threads, 0 for all cores.
    Raises ContractError where the dataset has other classes or another tile size, InputError for an empty test
    split, BackendError where no engine runs here.
    """
    _check_fit(bundle.spec, dataset)
    tiles = dataset.require("test")
    threads = threads or cores()
    reader = TileReader(dataset, tiles, threads)
    decoded = [(images.copy(), labels) for images, labels in reader]
    images = np.concatenate([part for part, _ in decoded])
    labels = np.concatenate([part for _, part in decoded])
    contenders = gather(bundle, run, threads)
    try:
        reference = TORCH if TORCH in contenders.infer else next(iter(contenders.infer))
        logits = {}
        for name, infer in contenders.infer.items():
            on_progress(f"accuracy of {name}")
            logits[name] = _all_logits(infer, images)
        whole = _file_to_label(contenders.infer, reader, on_progress)
        speeds = measure(contenders.infer, images, batches, budget, on_progress)
    finally:
        contenders.close()
    expected = logits[reference].argmax(1)
    rows = [
        Row(
            name=name,
            device=contenders.devices[name],
            score=evaluate(logits[name].argmax(1), labels, dataset.classes, expected),
            speed=speeds[name],
            file_to_label=whole[name],
            largest_logit_error=float(np.abs(logits[name] - logits[reference]).max()),
        )
        for name in contenders.infer
    ]
    return Report(
        rows=rows,
        absent=contenders.absent,
        reference=reference,
        split=dataset.split,
        same_split=dataset.digest == bundle.spec.dataset_digest,
        decoder=reader.decoder,
        bundle=bundle.path.name,
        bundle_digest=bundle.digest,
        threads=threads,
        classes=dataset.classes,
        tile_names=[tile.name for tile in tiles],
        environment=environment(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_fit(spec: ModelSpec, dataset: Dataset) -> None:
    if spec.classes != dataset.classes:
        raise ContractError(
            f"The bundle knows the classes {', '.join(spec.classes)}; the dataset has {', '.join(dataset.classes)}. "
            "Bench it on a dataset of its own classes."
        )
    if (spec.height, spec.width) != (dataset.height, dataset.width):
        raise ContractError(
            f"The bundle takes {spec.width}x{spec.height} tiles; the dataset has {dataset.width}x{dataset.height}. Cut tiles of that size."
        )


def _all_logits(infer: Infer, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([infer(images[start : start + 64])[0] for start in range(0, len(images), 64)])


def _file_to_label(contenders: dict[str, Infer], reader: TileReader, on_progress: Callable[[str], None]) -> dict[str, float]:
    """Images a second over read, decode, infer, argmax; the median of a few passes, engines in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(_ROUNDS):
        on_progress(f"file to label, pass {turn + 1} of {_ROUNDS}")
        for name, infer in contenders.items():
            begin, count = time.perf_counter(), 0
            for images, _ in reader:
                count += len(infer(images)[0].argmax(1))
            speeds[name].append(count / (time.perf_counter() - begin))
    return {name: float(np.median(taken)) for name, taken in speeds.items()}
