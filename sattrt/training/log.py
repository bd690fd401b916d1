"""`log.csv`: a row for every step, the last of each epoch with the validation; the last row of each report as TensorBoard events too.

log = TrainLog(run, resume_at=0)
log.add(Row(epoch=1, step=20, ...))
"""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ContractError
from ..spec import read_bytes, unwritable, write_bytes


@dataclass(frozen=True, kw_only=True)
class Row:
    """State after `step` optimizer steps since the start of the run; the valid_* fields at the end of an epoch only."""

    epoch: int
    step: int
    seconds: float
    learning_rate: float
    train_loss: float
    gradient_norm: float
    images_per_second: float
    valid_loss: float | None = None
    valid_accuracy: float | None = None


STEPS_BETWEEN_REPORTS = 20  # on a GPU, where every look at the loss waits for it
FIELDS = [field.name for field in dataclasses.fields(Row)]


class TrainLog:
    """Appends rows; after a resume at step n the rows past it are dropped, since those steps are made again.

    ContractError where the log to go on with is not one.
    """

    def __init__(self, run: Path, resume_at: int) -> None:
        self._path = path = run / "log.csv"
        kept = (
            [line for line in _lines(path) if line["step"].isdecimal() and int(line["step"]) <= resume_at]
            if resume_at and path.exists()
            else []
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_bytes(path, text.getvalue().encode())

        self._events = _events(run / "tensorboard", resume_at)

    def add(self, *rows: Row) -> None:
        """Append rows. InputError where the disk is full."""
        lines = [
            ["" if value is None else f"{value:.7g}" if isinstance(value, float) else value for value in dataclasses.astuple(row)]
            for row in rows
        ]
        try:
            with open(self._path, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(lines)
        except OSError as error:
            raise unwritable(self._path, error) from None
        for row in rows[-1:] if self._events else ():  # of each report: events cost 0.1 ms each, while a GPU waits
            try:
                for name, value in vars(row).items():
                    if name not in ("epoch", "step", "seconds") and value is not None:
                        self._events.add_scalar(name, value, row.step)
                if row.valid_loss is not None:
                    self._events.flush()
            except OSError as error:
                raise unwritable(self._path.with_name("tensorboard"), error) from None


class Window:
    """Losses, gradient norms and speed since the last report; they are fetched from a GPU only when one is due. Its clock runs from the start."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._rates: list[float] = []
        self._values: list[torch.Tensor] = []
        self._images = 0
        self._begin = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave out of the speed what came since the last report, which was no step."""
        self._begin = time.perf_counter()

    def add(self, rate: float, loss: torch.Tensor, norm: torch.Tensor, images: int) -> None:
        """Take in a step: its learning rate, its loss and gradient norm (scalars, on the device), its tiles."""
        self._rates.append(rate)
        self._values.append(torch.stack([loss, norm]))
        self._images += images

    def close(self) -> tuple[list[float], list[float], list[float], float]:
        """Learning rates, losses and gradient norms by step, and images a second; the window begins anew."""
        losses, norms = torch.stack(self._values).T.tolist()
        found = self._rates, losses, norms, self._images / (time.perf_counter() - self._begin)
        self._reset()
        return found


def rows_of(epoch: int, last: int, seconds: float, rates: list[float], losses: list[float], norms: list[float], speed: float) -> list[Row]:
    """Rows of the steps of a window that ends with step `last`."""
    steps = zip(range(last - len(losses) + 1, last + 1), rates, losses, norms, strict=True)
    return [
        Row(epoch=epoch, step=step, seconds=seconds, learning_rate=rate, train_loss=loss, gradient_norm=norm, images_per_second=speed)
        for step, rate, loss, norm in steps
    ]


def read_log(path: Path) -> list[dict[str, float | None]]:
    """Rows of a log, numbers as numbers, absent ones None. InputError where there is none, ContractError where it is not one."""
    try:
        return [
            {key: None if not value and key.startswith("valid_") else float(value) for key, value in line.items()} for line in _lines(path)
        ]
    except ValueError as error:
        raise _no_log(path, error) from None


def _lines(path: Path) -> list[dict[str, str]]:
    """Lines of a log as texts by field; the last one may be half, of a run that was killed, and is left out then."""
    try:
        lines = list(csv.reader(io.StringIO(read_bytes(path).decode())))
    except (ValueError, csv.Error) as error:
        raise _no_log(path, error) from None
    if not lines or lines[0] != FIELDS:
        raise _no_log(path, f"its first line is not {','.join(FIELDS)}")
    whole = [line for number, line in enumerate(lines[1:], 2) if len(line) == len(FIELDS) or number < len(lines)]
    if odd := [line for line in whole if len(line) != len(FIELDS)]:
        raise _no_log(path, f"a line has {len(odd[0])} fields, not {len(FIELDS)}")
    return [dict(zip(FIELDS, line, strict=True)) for line in whole]


def _no_log(path: Path, why: object) -> ContractError:
    return ContractError(
        f"{path} is not the log of a run, or is damaged ({why}). Restore it, or move it away: --resume continues without it."
    )


def _events(folder: Path, resume_at: int) -> Any:
    """A TensorBoard writer, or None where TensorBoard is not installed or can't be imported: with libraries it was not made for it raises
    what it likes. In a folder that is there already, of a run that goes on or made no step that was kept, events past the resumed step are
    hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception:
        return None
    return SummaryWriter(str(folder), purge_step=resume_at + 1 if folder.exists() else None)
