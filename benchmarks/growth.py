"""Cost as work grows: one epoch over a tenth of the tiles and over all of them; the last line on stdout is one JSON document.

    python benchmarks/growth.py --tiles EuroSAT_RGB.zip

Ten times the tiles should take ten times the time, and no more memory than the decoded tiles; with `cache_gb = 0`, where tiles stream
from disk, no more memory at all. Only the head is trained, so that what grows with the tiles is not hidden behind the network. Each run
is a fresh process, which reports its own peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from sattrt.cores import cores
from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.machine import environment

FEWER = 10


def one_epoch(dataset: Dataset, cache_gb: float) -> dict[str, float]:
    """Seconds of the epoch's steps, and the process's peak of resident memory in MB."""
    from sattrt.training.config import TrainConfig
    from sattrt.training.log import read_log
    from sattrt.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        train(dataset, Path(folder), TrainConfig(weights="none", tune="head", epochs=1, ema=0.0, cache_gb=cache_gb))
        rows = read_log(Path(folder) / "log.csv")
    first, last = rows[0], rows[-2]  # the last row's time holds the validation as well
    seconds = (last["seconds"] - first["seconds"]) * len(rows) / (len(rows) - 2)  # type: ignore[operator]
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    options = parser.parse_args()
    whole = scan(options.tiles, SplitRule(), cores())
    valid = balanced(whole.tiles("valid"), 64)
    every = whole.tiles("train")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name, cache_gb in (("kept", 4.0), ("streamed", 0.0)):
        measured[name] = {}
        for count in (len(every) // FEWER, len(every)):
            share = replace(whole, all_tiles=(*balanced(every, count), *valid))
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(one_epoch, share, cache_gb).result()
            measured[name][str(count)] = found
            print(f"{name}, {count} tiles: {found['seconds']:.1f} s, peak {found['peak_mb']:.0f} MB", flush=True)
    decoded = whole.height * whole.width * 3 * (len(every) - len(every) // FEWER) / 2**20
    growth = {}
    for name, (few, many) in ((name, runs.values()) for name, runs in measured.items()):
        growth[name] = {"time": many["seconds"] / few["seconds"], "memory_mb": many["peak_mb"] - few["peak_mb"]}
    print(json.dumps({"growth": growth, "decoded_tiles_mb": decoded, "runs": measured, "environment": environment()}))


if __name__ == "__main__":
    main()
