"""MODEL_CARD.md: the contract and the proof, for people (after Mitchell et al., Model Cards, FAT* 2019)."""

from __future__ import annotations

from ..runtime import EngineRecord
from ..spec import ModelSpec


def model_card(spec: ModelSpec, engines: list[EngineRecord]) -> str:
    """Markdown of the card."""
    training = spec.training
    accuracy, tiles = training["valid_accuracy"], training["valid_tiles"]
    lines = [
        f"# {spec.architecture}, {len(spec.classes)} classes",
        "",
        f"Classifies {spec.width}x{spec.height} tiles ({', '.join(spec.bands)}; {spec.dtype}, {spec.layout}) into: {', '.join(spec.classes)}.",
        "Give the tile's own values: scaling and normalisation are inside the graph.",
        "",
        "## Training",
        f"{training['train_tiles']} tiles, epoch {training['epoch']} of {training['epochs']}, `--tune {training['tune']}`, "
        f"from weights `{training['weights']}`, {training['precision']} on {training['device']}. "
        f"Validation accuracy of the trained network: {100 * accuracy:.2f} % of {tiles} tiles. "
        f"Dataset digest `{spec.dataset_digest[:16]}`.",
        *_confidence(spec),
        "",
        "## Engines",
        "Compared with the trained network on validation tiles, at several batch sizes:",
        "",
        "| engine | file | compared on | tiles | top-1 flips | largest logit error |",
        "|---|---|---|---|---|---|",
    ]
    for engine in engines:
        parity = engine.record["parity"]
        if "not_run" in parity:
            lines.append(f"| {engine.name} | `{engine.file}` | not compared: {parity['not_run']} | | | |")
        else:
            lines.append(
                f"| {engine.name} | `{engine.file}` | {parity['device']} | {parity['tiles']} | {parity['flips']} | {parity['largest_error']:.2g} |"
            )
    lines += [
        "",
        "## Intended use",
        "Land-cover classes of tiles like those it was trained on: the same sensor, bands, scaling and tile size. A random split of "
        "neighbouring tiles flatters the accuracy; other regions, seasons or sensors need a test of their own.",
    ]
    return "\n".join(lines) + "\n"


def _confidence(spec: ModelSpec) -> list[str]:
    found = spec.training.get("calibration" if spec.views == 1 else "calibration_symmetries")
    if not found:
        return []
    views = "" if spec.views == 1 else f", the logits averaged over {spec.views} symmetries of a tile"
    return [
        "",
        "## Confidence",
        f"Temperature {spec.temperature:.3f}, fitted on the validation split and applied in the graph{views}: expected calibration error "
        f"{100 * found['ece']:.2f} % without it, {100 * found['ece_calibrated']:.2f} % with it, accuracy {100 * found['valid_accuracy']:.2f} %.",
    ]
