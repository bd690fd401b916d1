"""What rmldnn writes beside its checkpoints: two logs named after `outfile`, and predictions as HDF5.

    out_classifier_train.txt     a line a batch: seconds, epoch, batch, loss, norm of the gradient
    out_classifier_test.txt      a line an epoch: epoch, loss, accuracy (0..1)

Both count from 1, have columns parted by spaces and no heading, so that np.loadtxt and line-by-line scripts read them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from ..lock import lock
from ..spec import atomic_path, unwritable
from .config import RmldnnConfig


class OutFiles:
    """The two logs of a run; nothing is written where `outfile` is None."""

    def __init__(self, outfile: Path | None) -> None:
        self._paths: dict[str, Path] = {}
        self._locked: list[FileIO] = []
        if outfile:
            self._paths = {kind: outfile.with_name(f"{outfile.stem}_{kind}{outfile.suffix}") for kind in ("train", "test")}

    def begin(self) -> None:
        """Empty both logs, for a training, and hold them until it is over. InputError where they can't be written, or another training writes them."""
        for path in self._paths.values():
            try:
                file = lock(path)
                if not file:
                    raise InputError(f"outfile: another run writes {path} now. Give another outfile, or wait for its end.")
                self._locked.append(file)
                file.truncate(0)
            except OSError as error:
                raise unwritable(path, error, "outfile") from None

    def go_on(self) -> None:
        """Begin the test log where there is none, for a test: the course of a training in it is kept. InputError where it can't be written."""
        self._append("test", "")

    def train(self, rows: Iterable[tuple[float, int, int, float, float]]) -> None:
        """Append batches: seconds, epoch, batch, loss, norm of the gradient."""
        self._append(
            "train", "".join(f"{seconds:.3f} {epoch} {batch} {loss:.6f} {norm:.6f}\n" for seconds, epoch, batch, loss, norm in rows)
        )

    def test(self, epoch: int, loss: float, accuracy: float) -> None:
        """Append an evaluation; accuracy in 0..1."""
        self._append("test", f"{epoch} {loss:.6f} {accuracy:.6f}\n")

    def _append(self, kind: str, lines: str) -> None:
        if path := self._paths.get(kind):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a") as file:
                    file.write(lines)
            except OSError as error:
                raise unwritable(path, error, "outfile") from None


def prepare_files(config: RmldnnConfig) -> OutFiles:
    """The logs, begun; the folders that a configuration writes to, made, and a file in each for a moment: better to fail now than after hours.

    InputError that names the key where one can't be written to, BackendError where predictions are asked for and h5py is not installed.
    """
    trains = config.data.input_path is not None
    save = config.save if trains else None  # a test saves none
    for key, folder in (("checkpoints.save", save), ("data.test_output_path", config.data.test_output_path)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{key} is {folder}, which can't be written to ({error.strerror}). Give another folder.") from None
    if config.data.test_output_path:
        _h5py()
    files = OutFiles(config.outfile)
    if trains:
        files.begin()
    elif config.data.labels:
        files.go_on()
    return files


def write_predictions(folder: Path, number: int, names: list[str], outputs: NDArray[np.float32]) -> Path:
    """`output_NUMBER.h5`: for each sample a dataset (classes,) float32, in a group for its folder. BackendError where h5py is not installed.

    names: of the samples, with `/` between folder and file. outputs: (N, classes), what the network's last layer gives.
    """
    h5py = _h5py()
    path = folder / f"output_{number}.h5"
    with atomic_path(path, "data.test_output_path") as temporary, h5py.File(temporary, "w") as file:
        for name, output in zip(names, outputs, strict=True):
            file.create_dataset(name, data=output)
    return path


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise BackendError("Predictions need h5py, which is not installed. Install it with: pip install 'sattrt[rmldnn]'") from None
    return h5py
