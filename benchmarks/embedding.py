"""What an embedded engine costs besides its speed: opening it, its first answer, and memory over many predictions.

    python benchmarks/embedding.py engines/eurosat                          # 100,000 predictions an engine: three minutes each at 2 ms a tile
    python benchmarks/embedding.py engines/eurosat --predictions 2000       # a quick look

Each figure is of a fresh process, as a program that embeds the engine is one. The last line on stdout is one JSON document: seconds from before
`import sattrt.runtime` until the engine is open (its digests checked), and until its first answer; megabytes by which single tiles moved the
resident size after a tenth as many that warmed it up. What can't run here is left out, and said. Reads /proc: for Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from sattrt.errors import BackendError
from sattrt.machine import environment
from sattrt.runtime import read_bundle

ROUNDS = 5
OPENING = """
import sys, time
begin = time.perf_counter()
import numpy as np
from sattrt.runtime import open_bundle
with open_bundle(sys.argv[1], sys.argv[2]) as engine:
    opened = time.perf_counter() - begin
    spec = engine.spec
    engine.predict(np.zeros((spec.height, spec.width, len(spec.bands)), spec.dtype))
    print(opened, time.perf_counter() - begin)
"""
GROWING = """
import os, sys
import numpy as np
from sattrt.runtime import open_bundle
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
count = int(sys.argv[3])
with open_bundle(sys.argv[1], sys.argv[2]) as engine:
    spec = engine.spec
    tile = np.zeros((spec.height, spec.width, len(spec.bands)), spec.dtype)
    for _ in range(max(1, count // 10)):
        engine.predict(tile)
    before = resident()
    for _ in range(count):
        engine.predict(tile)
    print(resident() - before, before)
"""


def numbers(script: str, *arguments: object) -> list[float]:
    """What a script prints in a fresh process."""
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", action="append", help="name of an engine, as often as wanted; all if not given")
    parser.add_argument("--predictions", type=int, default=100_000)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    measured = {}
    for name in options.engine or [record.name for record in bundle.engines]:
        try:
            bundle.open(name).close()  # fills the disk's cache, too
            samples = [numbers(OPENING, bundle.path, name) for _ in range(ROUNDS)]
            grown, before = numbers(GROWING, bundle.path, name, options.predictions)
        except (BackendError, subprocess.CalledProcessError) as error:
            print(f"{name}: {error}")
            continue
        opened, answered = (statistics.median(each) for each in zip(*samples, strict=True))
        measured[name] = {"open_s": opened, "first_answer_s": answered, "grown_mb": grown, "resident_mb": before, "samples_s": samples}
        print(
            f"{name}: open after {opened:.2f} s, first answer after {answered:.2f} s; {before:.0f} MB, and {grown:+.2f} MB over "
            f"{options.predictions} predictions",
            flush=True,
        )
    print(json.dumps({"engines": measured, "predictions": options.predictions, "environment": environment()}))


if __name__ == "__main__":
    main()
