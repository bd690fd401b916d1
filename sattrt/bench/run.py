"""`sattrt bench`: every engine of some bundles, its accuracy on the whole test split and its speed by a written method.

report = bench([read_bundle(Path("engines/eurosat"))], Dataset.read(Path("dataset")), BenchConfig(seconds=3))
report.document["engines"][0]["accuracy"]["accuracy"]
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..bands import preview
from ..cores import cores
from ..data.dataset import Dataset, Tile
from ..errors import BackendError, ContractError, InputError
from ..machine import environment
from ..runtime import Bundle
from . import rows
from .ceiling import Ceilings, ceilings, work_per_tile
from .compare import SCHEMA
from .config import BenchConfig
from .contenders import TORCH, Contenders, gather, misfit, names, require_known
from .passes import Measured, Passes
from .peer import run_peer
from .power import gpu_state, joules, throttles
from .report import Report
from .scenarios import QUERY
from .tiles import TileReader, for_a_pass

_WORST_TILES = 24


def bench(
    bundles: list[Bundle],
    dataset: Dataset,
    config: BenchConfig = BenchConfig(),
    peers: tuple[str, ...] = (),
    on_progress: Callable[[str], None] = lambda what: None,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """Measure every engine of the bundles that runs here, torch eager, and foreign programs, on the dataset's test split.

    Raises ContractError where no bundle fits the dataset, InputError for an empty test split or an engine that no bundle has, BackendError
    where none runs here.
    refused: bundles that could not be opened, by path, and why: they are among what was not measured.
    What can't be opened, or gives no answers, becomes a line of document["absent"]; the others are measured. Of one that fails later only
    that figure is empty, and a warning says why.
    """
    called = names(bundles)
    reasons = [misfit(bundle.spec, dataset) for bundle in bundles]
    if all(reasons):
        raise ContractError(str(reasons[0]))
    require_known(config.engine_names, bundles)
    tiles = dataset.require("test")
    on_progress("reading the tiles")
    with TileReader(dataset, tiles, cores()) as reader:
        decoded = [(images.copy(), labels) for images, labels in reader]
    images, labels = (np.concatenate(parts) for parts in zip(*decoded, strict=True))
    del decoded  # a second copy of all tiles
    counts = tuple(dict.fromkeys(count or cores() for count in config.thread_counts))
    contenders = gather(bundles, dataset, Path(config.run) if config.run else None, counts, config.engine_names)
    contenders.absent.update(refused)
    measured = _measured(contenders, images, tiles, dataset, config, on_progress)
    on_progress("the machine's own ceilings")
    best = _ceilings(contenders)
    references = _references(contenders, measured.answers)
    engines = _rows(contenders, measured, references, best, labels, dataset)
    if not engines:
        raise BackendError(f"Every engine failed on the way: {' | '.join(f'{name}: {why}' for name, why in contenders.absent.items())}")
    peer_rows = _peers(peers, images, labels, dataset, config, contenders, on_progress)
    reference = next(iter(references.values()))
    probabilities = measured.answers[reference][1]
    worst = _worst(probabilities, labels)
    document = {
        "schema": SCHEMA,
        "sattrt": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": {**config.to_dict(), "engine_threads": list(counts)},
        "environment": {
            **environment(),
            "gpu_state": measured.gpu_state,
            "gpu_throttled_by": sorted(measured.throttled),
            "energy": "; ".join(dict.fromkeys(joules(device)[1] for device in best)),
        },
        "ceilings": {
            device: {"operations_per_second": found.matrix, "memory_bytes_per_second": found.memory or None}
            for device, found in best.items()
        },
        "dataset": {
            "split": dataset.split,
            "split_description": dataset.split_description,
            "seed": dataset.seed,
            "digest": dataset.digest,
            "tiles": len(tiles),
            "names": hashlib.sha256("\n".join(tile.name for tile in tiles).encode()).hexdigest(),
            "classes": list(dataset.classes),
            "decoder": f"{reader.decoder} on the CPU",
        },
        "bundles": [
            {"name": name, "digest": bundle.digest, "same_split": dataset.digest == bundle.spec.dataset_digest}
            for bundle, name in zip(bundles, called, strict=True)
        ],
        "engines": engines,
        "peers": peer_rows,
        "absent": contenders.absent,
        "worst_tiles": [
            {
                "tile": tiles[i].name,
                "class": dataset.classes[labels[i]],
                "answer": dataset.classes[probabilities[i].argmax()],
                "probability": float(probabilities[i, labels[i]]),
                "engine": reference,
            }
            for i in worst
        ],
    }
    return Report({**document, "warnings": rows.warnings(document)}, preview(images[worst], dataset.bands))


def _measured(
    contenders: Contenders,
    images: NDArray[np.unsignedinteger],
    tiles: list[Tile],
    dataset: Dataset,
    config: BenchConfig,
    on_progress: Callable[[str], None],
) -> Measured:
    """Every pass, one after the other; the contenders are closed then."""
    throttled: set[str] = set()

    def between(what: str) -> None:  # two measurements: the GPU is still as the first one left it
        throttled.update(throttles())
        on_progress(what)

    # a full collection over all that PyTorch and six engines made holds every thread up for 0.15 s, thrice the server scenario's 50 ms
    gc.collect()
    gc.freeze()
    try:
        passes = Passes(contenders, images, config, between)
        answers = passes.answers()
        contenders.set_aside(torch=bool(config.engine_names) and TORCH not in config.engine_names)
        with TileReader(dataset, for_a_pass(tiles, config.clock_batch), cores(), config.clock_batch) as some:
            clocks = passes.clocks(some)
        timings = {scenario: passes.stream(scenario) for scenario in QUERY if config.wants(scenario)}
        offline, callers = passes.offline() if config.wants("offline") else ({}, {})
        served = passes.server(offline) if config.wants("server") else {}
        energy = passes.energy()
        state = gpu_state()  # while it is warm
        throttled.update(throttles())
    finally:
        gc.unfreeze()
        contenders.close()
    return Measured(answers, clocks, timings, offline, callers, served, energy, passes.failed, state, throttled)


def _rows(
    contenders: Contenders,
    measured: Measured,
    references: dict[str, str],
    best: dict[str, Ceilings],
    labels: NDArray[np.integer],
    dataset: Dataset,
) -> list[rows.Row]:
    """A row of the document for each that was measured."""
    work = {digest: work_per_tile(contenders.present[name].bundle.spec) for digest, name in references.items()}
    found = []
    for name, (logits, probabilities) in measured.answers.items():
        if name in contenders.absent:  # it was the reference alone
            continue
        contender = contenders.present[name]
        reference = references[contender.bundle.digest]
        # torch's row is what the trained network says
        against = None if contender.engine and name == reference else measured.answers[reference][0]
        score = rows.accuracy(logits, probabilities, labels, dataset.classes, against, dataset.tiles("test"))
        found.append(rows.engine_row(contender, measured, score, reference, best[contender.device], work[contender.bundle.digest]))
    return found


def _ceilings(contenders: Contenders) -> dict[str, Ceilings]:
    devices = {each.device for each in contenders.present.values()}
    return {device: ceilings("cpu" if device == "cpu" else "cuda") for device in devices}


def _references(contenders: Contenders, answers: dict[str, Any]) -> dict[str, str]:
    """By bundle digest: whose answers flips are counted against: torch's where it is there, else an fp32 engine's, else the first one's."""
    found: dict[str, str] = {}
    for name in sorted(
        answers, key=lambda name: (contenders.present[name].engine is not None, contenders.present[name].precision != "fp32")
    ):
        found.setdefault(contenders.present[name].bundle.digest, name)
    return found


def _worst(probabilities: NDArray[np.float32], labels: NDArray[np.integer]) -> NDArray[np.intp]:
    """Positions of the tiles whose own class was given the least probability."""
    own: NDArray[np.float32] = probabilities[np.arange(len(labels)), labels]
    return own.argsort()[:_WORST_TILES]


def _peers(
    commands: tuple[str, ...],
    images: NDArray[np.unsignedinteger],
    labels: NDArray[np.integer],
    dataset: Dataset,
    config: BenchConfig,
    contenders: Contenders,
    on_progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    found = []
    for command in commands:
        on_progress(f"peer: {command}")
        try:
            peer = run_peer(command, images, dataset.classes, config.peer_seconds)
        except InputError as error:
            contenders.absent[f"peer: {command}"] = str(error)
            continue
        found.append(rows.peer_row(peer, labels, dataset.classes))
    return found
