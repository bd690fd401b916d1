"""How long the runtime's import and the command line's help take beyond the interpreter's own start.

    python benchmarks/startup.py

The three are started in turns in fresh processes; the last line on stdout is one JSON document, in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from sattrt.machine import environment

ROUNDS = 21
COMMANDS = {
    "interpreter": ("-c", "pass"),
    "import_runtime": ("-c", "import sattrt.runtime"),
    "help": ("-m", "sattrt", "--help"),
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            if turn:  # the first turn fills the disk's cache
                times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in times.items()}
    beyond = {name: medians[name] - medians["interpreter"] for name in COMMANDS if name != "interpreter"}
    for name, seconds in beyond.items():
        print(f"{name}: {seconds:.3f} s beyond the interpreter's {medians['interpreter']:.3f} s")
    print(json.dumps({"seconds_beyond_interpreter": beyond, "medians": medians, "samples": times, "environment": environment()}))


if __name__ == "__main__":
    main()
