"""The process: `sattrt`, or `python -m sattrt`, the form that torchrun takes. What went wrong becomes one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any, TextIO

from .errors import SattrtError

try:
    import typer

    from .cli import app
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
        raise
    sys.exit(f"sattrt: {missing.name} is not installed here, and the command needs it. In a checkout: pip install '.[cpu]'")

_OF_TRAIN = ("torch", "torchvision", "safetensors", "onnx", "matplotlib", "tensorboard")  # what no command takes for granted
# what goes on after an interruption, by command; sattrt train says it itself
_WAYS_ON = {
    "map": "Add --resume to continue, if it had started.",
    "rmldnn": "To train on, name the last file of checkpoints.save, if there is one, in checkpoints.load.",
}
_UsageError: type[Any] = typer.BadParameter.__bases__[0]  # click's; newer typer has a click of its own, under another name


def main() -> None:
    """The `sattrt` command: a failure that the user can mend is one line and exit code 1."""
    # SIGTERM unwinds like any exit, so that nothing half-written stays behind; so does a terminal that goes away, but for nohup
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115 - whoever called us closed it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no reason to fail
    try:
        try:
            code = app(prog_name="sattrt", standalone_mode=False) or 0
        except SystemExit as ended:  # by a signal
            code = ended.code
        sys.stdout.flush()  # a full disk shows here, at the latest
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) and (way_on := _WAYS_ON.get("".join(sys.argv[1:2]))):
            print(f"sattrt: Interrupted. {way_on}", file=sys.stderr)
        sys.exit(code)
    except SattrtError as error:
        sys.exit(f"sattrt: {error}")
    except _UsageError as error:  # exit code 2 is a regression's alone
        if error.ctx and len(sys.argv) == 1:
            print(error.ctx.get_help())
            sys.exit(1)
        command = [word for word in sys.argv[1:2] if not word.startswith("-")]
        path = error.ctx.command_path if error.ctx else " ".join(["sattrt", *command])
        said = " ".join(error.format_message().split()).rstrip(".")
        sys.exit(f"sattrt: {said}{'' if said.endswith('?') else '.'} See {path} --help")
    except BrokenPipeError:  # the reader of our output went away
        _drop(sys.stdout)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0]) not in _OF_TRAIN:
            raise
        sys.exit(f"sattrt: {package} is not installed here. Install it with: pip install 'sattrt[train]'")
    except OSError as error:  # of a path that the system refuses: too long, no permission, a loop of links
        name, way_out = ascii(error.filename)[1:-1] if error.filename else "the system", "Check the path and its permissions."
        if not error.filename and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of a file of ours it is an InputError
            name, way_out = "stdout", "Free some space where it goes, or send it elsewhere."
            _drop(sys.stdout)
        elif not error.filename and isinstance(error, FileNotFoundError):  # as the system answers whoever asks for it
            name, way_out = "the working directory", "It was deleted; change to another."
        sys.exit(f"sattrt: {name}: {error.strerror or error}. {way_out}")
    except UnicodeEncodeError as error:
        sys.exit(f"sattrt: {ascii(error.object)[1:-1]} is not readable text in UTF-8. Rename it.")


def _drop(stream: TextIO) -> None:
    """Let what is printed go nowhere: on its way out, Python would try to write it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
