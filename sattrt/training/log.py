"""`log.csv`: one row every few steps, and one with the validation at the end of each epoch.

log = TrainLog(run / "log.csv", resume_at=0)
log.add(Row(epoch=1, step=20, ...))
"""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

from ..spec import read_bytes, unwritable, write_bytes


@dataclass(frozen=True, kw_only=True)
class Row:
    """State after `step` optimizer steps since the start of the run; the valid_* fields at the end of an epoch only."""

    epoch: int
    step: int
    seconds: float
    learning_rate: float
    train_loss: float
    images_per_second: float
    valid_loss: float | None = None
    valid_accuracy: float | None = None


FIELDS = [field.name for field in dataclasses.fields(Row)]


class TrainLog:
    """Appends rows; after a resume at step n the rows past it are dropped, since those steps are made again."""

    def __init__(self, path: Path, resume_at: int) -> None:
        self._path = path
        kept = []
        if resume_at and path.exists():
            for line in csv.DictReader(io.StringIO(read_bytes(path).decode())):
                if (line["step"] or "").isdigit() and int(line["step"]) <= resume_at:
                    kept.append(line)
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_bytes(path, text.getvalue().encode())

    def add(self, row: Row) -> None:
        """Append a row. InputError where the disk is full."""
        cells = ["" if value is None else round(value, 6) if isinstance(value, float) else value for value in dataclasses.astuple(row)]
        try:
            with open(self._path, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(cells)
        except OSError as error:
            raise unwritable(self._path, error) from None
