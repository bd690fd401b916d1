"""The tables of README.md and docs/ from the files under benchmarks/results, so that a figure is never typed; those of settings from the code.

    python benchmarks/tables.py            # rewrites what stands between <!-- table: KIND FILE ... --> and <!-- end -->
    python benchmarks/tables.py --check    # exit code 1 where something would change

Kinds: `bench` (the first table of a bench.json), `training`, `inference`, `inference_step`, `precision`, `onnxruntime`, `loading`, `ablation`, `bands`, `map`; `settings` (of a class, as
TrainConfig).
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sattrt.bench.config import BenchConfig
from sattrt.bench.tables import table
from sattrt.deploy.config import ExportConfig
from sattrt.map.config import MapConfig
from sattrt.training.config import RECIPES, TrainConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("design", "training", "export", "bench", "bands", "map", "settings")))
_MARKED = re.compile(r"(<!-- table: (\w+) ([^>]+?) -->\n).*?(<!-- end -->)", re.S)


def render(text: str) -> str:
    """A page with its tables made anew."""
    return _MARKED.sub(lambda found: found[1] + KINDS[found[2]](*found[3].split()) + "\n" + found[4], text)


def bench(name: str) -> str:
    """The first table of a bench.json, by its name or that of the bench.md beside it, without what was not measured."""
    columns, rows = table(read(Path(name).with_suffix(".json").name))
    return markdown(columns, [row for row in rows if "not here" not in row])


def training(*names: str) -> str:
    """Images a second of `sattrt train`, timm's parts and the plain loop, a row for each machine."""
    rows = []
    for name in names:
        data = read(name)
        timm = data.get("timm_images_per_second")
        rows.append(
            (
                machine(name),
                data["precision"],
                f"{data['images_per_second']:.1f}",
                f"{timm:.1f}" if timm else "",
                f"{data['plain_images_per_second']:.1f}",
                f"**{data['ratio_timm']:.2f}**" if timm else "",
                f"**{data['ratio_plain']:.2f}**",
                f"{100 * data['fraction_of_ceiling']:.0f} %",
            )
        )
    columns = (
        "CPU, 2 cores",
        "precision",
        "sattrt, images/s",
        "timm",
        "plain loop",
        "to timm",
        "to the plain loop",
        "of a large matrix product's rate",
    )
    return markdown(columns, rows)


def inference(name: str) -> str:
    """Engines, fastest first, with PyTorch's variants and without the plain peers."""
    rows = []
    for engine, row in sorted(read(name)["engines"].items(), key=lambda each: -each[1]["images_per_second"]):
        if engine.startswith("plain-"):
            continue
        share = row.get("fraction_of_ceiling")
        peers = [row.get(f"{what}_ratio_best_peer") for what in ("throughput", "latency")]
        rows.append(
            (
                engine,
                f"{row['latency_ms']:.2f}",
                f"{row['images_per_second']:.0f}",
                f"{row['throughput_ratio_eager']:.2f}",
                *(f"{ratio:.2f}" if ratio else "" for ratio in peers),
                f"{100 * share:.0f} %" if share else "",
            )
        )
    columns = (
        "",
        "ms, one tile",
        "images/s",
        "to PyTorch eager fp32",
        "to the best plain peer on its graph",
        "its ms to the peer's",
        "of the matrix rate",
    )
    return markdown(columns, rows)


def inference_step(name: str) -> str:
    """Where an inference of the int8 engine goes, by part of the network."""
    found = read(name)["engines"]["openvino-int8"]
    rows = [
        (
            part,
            f"{row['ms']:.1f}",
            f"{100 * row['share']:.1f} %",
            f"{100 * row['fraction_of_ceiling']:.0f} %" if row["operations"] else "",
        )
        for part, row in found["parts"].items()
    ]
    return markdown(("part, kernel", "ms a batch of 64", "of all", "of the matrix rate"), rows)


def precision(name: str) -> str:
    """What each precision costs, on validation by the gate and on the test split by the bench."""
    rows = []
    for engine, row in read(name)["engines"].items():
        test = row.get("test")
        rows.append(
            (
                engine + (", its graph" if row["its_graph"] else ""),
                f"{100 * row['accuracy']:.2f}",
                f"{100 * (row['accuracy'] - row['fp32_accuracy']):+.2f}",
                f"{row['flips']} ({100 * row['flips'] / row['tiles']:.2f} %)",
                f"{row['p']:.2f}",
                f"{row['mean_error']:.2g}",
                f"{100 * test['accuracy']:.2f}" if test else "",
                str(test["flips"]) if test else "",
            )
        )
    return markdown(("", "validation %", "to fp32", "flips", "McNemar's p", "mean logit error", "test %", "flips"), rows)


def onnxruntime(name: str) -> str:
    """ONNX Runtime's settings, by graph."""
    rows = [
        (graph, variant, f"{row['latency_ms']:.2f}", f"{row['images_per_second']:.0f}", f"{row['seconds']:.2f}", f"{row['batch_mb']:.0f}")
        for graph, variants in read(name)["variants"].items()
        for variant, row in variants.items()
    ]
    return markdown(("graph", "setting", "ms, one tile", "images/s", "s to open and answer", "MB after a batch of 64"), rows)


def loading(name: str) -> str:
    """Loaders, cold and warm."""
    rows = [(loader, f"{row['cold']:,.0f}", f"{row['warm']:,.0f}") for loader, row in read(name)["tiles_per_second"].items()]
    return markdown(("loader", "tiles/s, cold", "warm"), rows)


def bands(name: str) -> str:
    """First layers for other bands, the best first."""
    scores = {start: [run["accuracy"] for run in runs.values()] for start, runs in read(name)["runs"].items()}
    rows = [
        (start, f"{statistics.mean(found):.1f}", f"{statistics.stdev(found):.1f}", str(len(found)))
        for start, found in sorted(scores.items(), key=lambda each: -statistics.mean(each[1]))
    ]
    return markdown(("filters of the bands that ImageNet does not have", "accuracy %, mean", "standard deviation", "seeds"), rows)


def ablation(name: str) -> str:
    """What one setting changed brings."""
    return ablation_of(read(name)["runs"])


def ablation_of(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """By change and seed, the best first: mean and spread over seeds, the difference from the base paired by seed."""
    base = {seed: run["accuracy"] for seed, run in runs["base"].items()}
    rows = []
    for change, found in sorted(runs.items(), key=lambda each: -statistics.mean(run["accuracy"] for run in each[1].values())):
        column = {key: [run[key] for run in found.values()] for key in ("accuracy", "accuracy_eight_views")}
        differences = [run["accuracy"] - base[seed] for seed, run in found.items() if seed in base]
        rows.append(
            (
                f"**{change}**" if change == "base" else change,
                str(len(found)),
                spread(column["accuracy"]),
                "" if change == "base" else spread(differences, "+"),
                spread(column["accuracy_eight_views"]),
            )
        )
    return markdown(("change", "seeds", "accuracy %", "to the base", "over eight views %"), rows)


def spread(values: list[float], sign: str = "") -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def map_speed(*names: str) -> str:
    """Maps of a scene of real tiles, by engine."""
    rows = []
    for name in names:
        data = read(name)
        alone = statistics.mean(data["engine_tiles_per_second"].values())
        rows.append(
            (
                data["engine"],
                machine(name),
                f"{data['side']:,} x {data['side']:,}" + (", 13 bands" if "13bands" in name else ""),
                f"{data['map_tiles_per_second']:.0f}",
                f"{alone:.0f}",
                f"{100 * data['share_of_engine']:.1f} %",
                f"{data['map_seconds']:.0f} s",
                f"{data['map_peak_mb']:.0f} MB",
                f"{100 * data['map_accuracy']:.2f} % ({100 * data['engine_accuracy']:.2f} %)",
            )
        )
    columns = (
        "engine",
        "CPU, 2 cores",
        "scene",
        "map, tiles/s",
        "engine alone",
        "share of that",
        "time",
        "peak memory",
        "accuracy (engine's own)",
    )
    return markdown(columns, rows)


def settings(name: str) -> str:
    """The fields of a configuration, with their defaults (of recipes, too) and what its docstring says of each."""
    kind = {each.__name__: each for each in (TrainConfig, ExportConfig, BenchConfig, MapConfig)}[name]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    words = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    one = "(?:" + "|".join(sorted(defaults, key=len, reverse=True)) + ")"
    # "name, name: what it is." follow one another
    _, *parts = re.split(rf"(?:(?<=\. )|(?<=; ))({one}(?:, {one})*): ", words)
    meanings = {each: meaning for names, meaning in zip(parts[::2], parts[1::2], strict=True) for each in names.split(", ")}
    rows = []
    for each, default in defaults.items():
        others = [f"{recipe} {toml(values[each])}" for recipe, values in RECIPES.items() if kind is TrainConfig and each in values]
        rows.append(
            (f"`{each}`", "; ".join(filter(None, [toml(default), *others])), meanings[each].strip().rstrip(";.").replace("|", "\\|"))
        )
    return markdown(("setting", "default", "what it is"), rows)


def toml(value: Any) -> str:
    """A value as a TOML file has it; empty for none."""
    return "" if value is None else f"`{json.dumps(value)}`"


KINDS: dict[str, Callable[..., str]] = {
    "bench": bench,
    "training": training,
    "inference": inference,
    "inference_step": inference_step,
    "precision": precision,
    "onnxruntime": onnxruntime,
    "loading": loading,
    "ablation": ablation,
    "bands": bands,
    "map": map_speed,
    "settings": settings,
}


def read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return data


def machine(name: str) -> str:
    """The machine that a result's file name tells."""
    generation = re.search(r"epyc-zen(\d)", name)
    return f"AMD EPYC (Zen {generation[1]})" if generation else str(read(name)["environment"]["cpu"])


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *["| " + " | ".join(row) + " |" for row in rows]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = {page: new for page in PAGES if (new := render(text := (ROOT / page).read_text())) != text}
    if options.check:
        sys.exit(f"Out of date: {', '.join(stale)}. Run python benchmarks/tables.py" if stale else 0)
    for page, text in stale.items():
        (ROOT / page).write_text(text)
        print(page)


if __name__ == "__main__":
    main()
