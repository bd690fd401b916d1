"""What a bundle says for people: MODEL_CARD.md (after Mitchell et al., Model Cards, FAT* 2019), and the tiles that engines judge
otherwise than the trained network, as flips.csv and flips.png."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..accuracy import Score
from ..bands import preview
from ..calibration import softmax
from ..runtime import EngineRecord
from ..spec import ModelSpec, write_bytes
from ..trained import Samples
from .config import ExportConfig

_SHEET_TILES = 40
_CONFUSED_PAIRS = 5


def model_card(spec: ModelSpec, score: Score, engines: list[EngineRecord], config: ExportConfig) -> str:
    """Markdown of the card. score: of the trained network in fp32, on the validation tiles."""
    training = spec.training
    accuracy, tiles = training["valid_accuracy"], training["valid_tiles"]
    lines = [
        f"# {spec.architecture}, {len(spec.classes)} classes",
        "",
        f"Classifies {spec.width}x{spec.height} tiles ({', '.join(spec.bands)}; {spec.dtype}, {spec.layout}) into: {', '.join(spec.classes)}.",
        "Give the tile's own values: scaling and normalisation are inside the graph."
        + f" Subtract an offset of {spec.offset} from them first." * bool(spec.offset),
        "",
        *_data(spec),
        "## Training",
        f"{training['train_tiles']} tiles, epoch {training['epoch']} of {training['epochs']}, trained: {training['tune']}, "
        f"from weights `{training['weights']}`, {training['precision']} on {training['device']}. "
        f"Validation accuracy in that precision: {100 * accuracy:.2f} % of {tiles} tiles. "
        f"Dataset digest `{spec.dataset_digest[:16]}`.",
        *_confidence(spec),
        "",
        *_by_class(spec, score),
        "## Engines",
        "Each, or its graph where this machine can't run it, was run on the validation tiles and compared with the trained network in fp32. Allowed loss: "
        f"{config.gate:g} points. Lost and gained: tiles that fp32 alone, or the engine alone, gets right; p by McNemar's exact test. "
        f"Coverage: the share answered when {config.error_rate:g} % of the answers may be wrong and the least certain tiles are rejected. "
        "Flipped tiles: `flips.csv`.",
        "",
        "| engine | file | judged on | accuracy % (95 %) | flips | lost/gained | p | largest, mean logit error | ECE % | coverage % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for engine in engines:
        found = engine.record["validation"]
        where = f"its graph, by {found['graph_on']}: {found['not_run']}" if "not_run" in found else found["device"]
        figures = [
            f"{100 * found['accuracy']:.2f} ({100 * found['low']:.1f}-{100 * found['high']:.1f}) of {found['tiles']}",
            str(len(found["flips"])),
            f"{found['lost']}/{found['gained']}",
            f"{found['p']:.2g}",
            f"{found['largest_error']:.2g}, {found['mean_error']:.2g}",
            f"{100 * found['ece']:.2f}",
            f"{100 * found['reject']['coverage']:.1f}",
        ]
        lines.append(" | ".join([f"| {engine.name}", f"`{engine.file}`", where, *figures]) + " |")
    lines += [
        *_calibration(engines),
        "",
        "## Intended use",
        "Land-cover classes of tiles like those it was trained on: the same sensor, bands, scaling and tile size. A random split of "
        "neighbouring tiles flatters the accuracy; other regions, seasons or sensors need a test of their own.",
    ]
    return "\n".join(lines) + "\n"


def write_flips(
    samples: Samples, expected: NDArray[np.float32], answers: dict[str, NDArray[np.float32]], spec: ModelSpec, folder: Path
) -> str | None:
    """flips.csv: every validation tile that an engine, or the graph that stands for it, judges otherwise than fp32; flips.png: the tiles, most
    confident first.

    Returns what people should know: that the picture was left out, where matplotlib is missing.
    """
    table, classes = io.StringIO(), spec.classes
    captions: dict[int, tuple[float, str]] = {}  # of each flipped tile: how sure fp32 was, and what is written under it
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("engine", "tile", "class", "fp32", "fp32_probability", "engine_answer", "engine_probability"))
    fp32 = softmax(expected)
    for name, logits in answers.items():
        own = softmax(logits)
        for i in np.flatnonzero(own.argmax(1) != fp32.argmax(1)).tolist():
            tile, truth, before, after = samples.valid_names[i], classes[samples.valid_labels[i]], fp32[i].argmax(), own[i].argmax()
            rows.writerow((name, tile, truth, classes[before], f"{fp32[i].max():.4f}", classes[after], f"{own[i].max():.4f}"))
            certainty, text = captions.get(i, (float(fp32[i].max()), f"{Path(str(tile)).name}\nis {truth}\nfp32: {classes[before]}"))
            captions[i] = (certainty, f"{text}\n{name}: {classes[after]}")
    write_bytes(folder / "flips.csv", table.getvalue().encode())
    shown = sorted(captions, key=lambda i: -captions[i][0])[:_SHEET_TILES]
    if shown:
        try:
            from ..figure import contact_sheet
        except ImportError:
            return "flips.png was left out: matplotlib is not installed (pip install matplotlib)"
        right = (fp32[shown].argmax(1) == samples.valid_labels[shown]).tolist()
        contact_sheet(preview(samples.valid[shown], spec.bands), [captions[i][1] for i in shown], right, folder / "flips.png")
    return None


def _data(spec: ModelSpec) -> list[str]:
    """Where the tiles came from, how they were split, how many there are by class; nothing where the contract doesn't say."""
    found = spec.training.get("data")
    if not found:
        return []
    counts = {split: by_class for split, by_class in found["tiles"].items() if any(by_class.values())}
    rows = [(name, *(str(by_class[name]) for by_class in counts.values())) for name in spec.classes]
    rows.append(("all", *(str(sum(by_class.values())) for by_class in counts.values())))
    return ["## Data", f"`{found['source']}`. Split: {found['split']}.", "", *_table(("tiles", *counts), rows), ""]


def _by_class(spec: ModelSpec, score: Score) -> list[str]:
    """How the trained network does by class, and what it confuses."""
    views = "" if spec.views == 1 else f", averaged over {spec.views} symmetries of a tile"
    rows = [
        (name, *(f"{100 * share:.1f}" for share in (each.precision, each.recall, each.f1)), str(each.tiles))
        for name, each in score.per_class.items()
    ]
    confused = [(true, answer, str(tiles)) for true, answer, tiles in score.most_confused(_CONFUSED_PAIRS)]
    return [
        "## By class",
        f"The trained network in fp32{views}, on {score.tiles} validation tiles: {100 * score.accuracy:.2f} % right "
        f"(95 %: {100 * score.low:.1f}-{100 * score.high:.1f}). Support: tiles of the class among them.",
        "",
        *_table(("class", "precision %", "recall %", "F1 %", "support"), rows),
        "",
        *(["Confused most often:", "", *_table(("is", "taken for", "tiles"), confused)] if confused else ["No tile is confused."]),
        "",
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [
        " | ".join(cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|") for cell in row)
        for row in (columns, ("---",) * len(columns), *rows)
    ]
    return [f"| {line} |" for line in lines]


def _calibration(engines: list[EngineRecord]) -> list[str]:
    notes = {engine.record["onnx"]: engine.record["calibration"] for engine in engines if "calibration" in engine.record}
    if not notes:
        return []
    lines = [
        "",
        "## Calibration",
        "Ranges of activations by several methods, from train tiles, and with the best of them several scales of weights; what came nearest to the network on train tiles (on others, where the run has enough) was kept.",
    ]
    for file, found in notes.items():
        levels = {f"weights of up to {count}": each for count, each in found["tried_levels"].items()}
        tried = "; ".join(
            f"{name} {each['mean_error']:.3f} ({100 * each['agreement']:.2f} %)" for name, each in (found["tried"] | levels).items()
        )
        lines += [
            "",
            f"`{file}`, {found['tiles']} tiles, for sums in {found['sum_bits']} bits: **{found['method']}**, weights of up to **{found['levels']}**. Tried, with mean logit error and answers that agree, "
            f"over {found['others']} tiles: {tried}.",
        ]
    return lines


def _confidence(spec: ModelSpec) -> list[str]:
    found = spec.training.get("calibration")
    if not found:
        return []
    views = "" if spec.views == 1 else f", the logits averaged over {spec.views} symmetries of a tile"
    return [
        "",
        "## Confidence",
        f"Temperature {spec.temperature:.3f}, fitted on the validation split and applied in the graph{views}: expected calibration error "
        f"{100 * found['ece']:.2f} % without it, {100 * found['ece_calibrated']:.2f} % with it, accuracy {100 * found['valid_accuracy']:.2f} %.",
    ]
