"""The C files beside this one, compiled for this CPU when a run begins, by the machine's C compiler ($CC, or cc).

    library = compiled("batchnorm.c", "-DBF16")        # a quarter of a second

They run on torch's own OpenMP threads.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

_SECONDS = 60


def compiled(source: str, *options: str) -> ctypes.CDLL | None:
    """The library that a C file makes with these options of the compiler; None where it can't be compiled or loaded here."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiler, made, linked = _compiler(), f"{folder}/made.o", f"{folder}/made.so"
            # errno is not asked for: a loop with square roots can then be made of vector instructions
            options = ("-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp", *options)
            for command in ([*options, "-c", str(Path(__file__).with_name(source)), "-o", made], ["-shared", made, "-o", linked]):
                subprocess.run([*compiler, *command], check=True, capture_output=True, timeout=_SECONDS)
            # not linked with -fopenmp: it is to find the OpenMP that torch has loaded, not to bring threads of its own
            ctypes.CDLL(_openmp_of_torch(), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(linked)
    except (OSError, ValueError, StopIteration, subprocess.SubprocessError):
        return None


def why_not() -> str:
    """What there is to say where nothing could be compiled."""
    try:
        folder = tempfile.gettempdir()
    except OSError:
        return "no folder for temporary files (set TMPDIR)"
    return f"no C compiler (cc) that knows torch's OpenMP, or none of its programs may run from {folder}"


def compiler_version() -> str:
    """The first line of what the C compiler says of its version; "" where it says nothing, or there is none."""
    try:
        said = subprocess.run([*_compiler(), "--version"], check=True, capture_output=True, timeout=_SECONDS).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return said.decode(errors="replace").partition("\n")[0].strip()


def _compiler() -> list[str]:
    """The words that call it. ValueError where $CC has a quotation without an end."""
    return shlex.split(os.environ.get("CC") or "cc")


def _openmp_of_torch() -> str:
    """Path of the GNU OpenMP library that this process has loaded."""
    with open("/proc/self/maps") as maps:
        return next(path for path in (line.split(maxsplit=5)[-1].rstrip("\n") for line in maps) if "libgomp" in path)
