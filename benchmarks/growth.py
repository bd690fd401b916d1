"""Cost as work grows: scan and one epoch over a tenth of the tiles and over all of them; the last line on stdout is one JSON document.

    python benchmarks/growth.py --tiles EuroSAT_RGB.zip

Ten times the tiles should take ten times the time, and no more memory than the decoded tiles; with `cache_gb = 0`, where tiles stream
from disk, no more memory at all. Only the head is trained, so that what grows with the tiles is not hidden behind the network. Each run
is a fresh process, which reports what it has resident at the last step, its peak, the seconds of its steps, and those of all it did: to put
samples aside, decode, train, validate, examine and draw.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from sattrt.cores import cores
from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.data.sources import open_source
from sattrt.machine import environment

FEWER = 10


def one_epoch(dataset: Dataset, cache_gb: float) -> dict[str, float]:
    """Seconds of the epoch's steps and of the whole run; MB that are resident at the last step, and at most."""
    from sattrt.training.config import TrainConfig
    from sattrt.training.log import Row, read_log
    from sattrt.training.loop import train
    from sattrt.training.observer import Observer, Plan

    class Watch(Observer):
        resident = 0.0

        def stepped(self, row: Row, plan: Plan) -> None:
            self.resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    watch, begin = Watch(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(dataset, Path(folder), TrainConfig(weights="none", tune="head", epochs=1, ema=0.0, cache_gb=cache_gb), watch)
        whole = time.perf_counter() - begin
        rows = read_log(Path(folder) / "log.csv")
    first, last = rows[0], rows[-2]  # the last row's time holds the validation as well
    seconds = (last["seconds"] - first["seconds"]) * len(rows) / (len(rows) - 2)  # type: ignore[operator]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"seconds": seconds, "whole_seconds": whole, "resident_mb": watch.resident, "peak_mb": peak}


def scans(source: Path, dataset: Dataset, counts: tuple[int, int]) -> dict[str, float]:
    """Seconds of `sattrt data` over an archive of so many tiles."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, open_source(source) as opened:
        for count in counts:
            archive = Path(folder, f"{count}.zip")
            with zipfile.ZipFile(archive, "w") as file:
                for tile in balanced(list(dataset.all_tiles), count):
                    file.writestr(f"tiles/{dataset.classes[tile.label]}/{Path(tile.name).name}", opened.read(tile.name))
            begin = time.perf_counter()
            scan(archive, SplitRule(), cores())
            found[str(count)] = time.perf_counter() - begin
            print(f"scan, {count} tiles: {found[str(count)]:.1f} s", flush=True)
    return found


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
            print(
                f"{name}, {count} tiles: {found['seconds']:.1f} s, in all {found['whole_seconds']:.1f}; {found['resident_mb']:.0f} MB at the last step, "
                f"peak {found['peak_mb']:.0f}",
                flush=True,
            )
    decoded = whole.height * whole.width * 3 * (len(every) - len(every) // FEWER) / 1e6
    growth = {}
    for name, (few, many) in ((name, runs.values()) for name, runs in measured.items()):
        growth[name] = {
            "time": many["seconds"] / few["seconds"],
            "whole_time": many["whole_seconds"] / few["whole_seconds"],
            "memory_mb": many["resident_mb"] - few["resident_mb"],
            "peak_mb": many["peak_mb"] - few["peak_mb"],
        }
    scanned = scans(options.tiles, whole, (len(whole.all_tiles) // FEWER, len(whole.all_tiles)))
    document = {"growth": growth, "decoded_tiles_mb": decoded, "runs": measured, "scan_seconds": scanned, "environment": environment()}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
