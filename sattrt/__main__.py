"""The process: `sattrt`, or `python -m sattrt`, the form that torchrun takes. What went wrong becomes one line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import typer

from .cli import app
from .errors import SattrtError

_OF_TRAIN = ("torch", "torchvision", "safetensors", "onnx", "matplotlib", "tensorboard")  # what no command takes for granted
_UsageError: type[Any] = typer.BadParameter.__bases__[0]  # click's; newer typer has a click of its own, under another name


def main() -> None:
    """The `sattrt` command: a failure that the user can mend is one line and exit code 1."""
    # SIGTERM unwinds like any exit, so that nothing half-written stays behind
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no reason to fail
    try:
        code = app(prog_name="sattrt", standalone_mode=False) or 0
        if code == 128 + signal.SIGINT and sys.argv[1:2] == ["map"]:
            print("sattrt: Interrupted. Add --resume to continue, if it had started.", file=sys.stderr)
        sys.exit(code)
    except SattrtError as error:
        sys.exit(f"sattrt: {error}")
    except _UsageError as error:  # exit code 2 is a regression's alone
        if error.ctx and len(sys.argv) == 1:
            print(error.ctx.get_help())
            sys.exit(1)
        path = error.ctx.command_path if error.ctx else "sattrt"
        sys.exit(f"sattrt: {' '.join(error.format_message().split()).rstrip('.')}. See {path} --help")
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0]) not in _OF_TRAIN:
            raise
        sys.exit(f"sattrt: {package} is not installed here. Install it with: pip install 'sattrt[train]'")
    except OSError as error:  # of a path that the system refuses: too long, no permission, a loop of links
        name = ascii(error.filename)[1:-1] if error.filename else "the system"
        sys.exit(f"sattrt: {name}: {error.strerror or error}. Check the path and its permissions.")
    except UnicodeEncodeError as error:
        sys.exit(f"sattrt: {ascii(error.object)[1:-1]} is not readable text in UTF-8. Rename it.")


if __name__ == "__main__":
    main()
