"""What rmldnn writes beside its checkpoints: two logs named after `outfile`, and predictions as HDF5.

    out_classifier_train.txt     a line a batch: seconds, epoch, batch, loss, norm of the gradient
    out_classifier_test.txt      a line an epoch: epoch, loss, accuracy (0..1)

Both count from 1, have columns parted by spaces and no heading, so that np.loadtxt and line-by-line scripts read them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from ..spec import atomic_path, unwritable, write_bytes
from .config import RmldnnConfig


class OutFiles:
    """The two logs of a run; nothing is written where `outfile` is None. What was there before is replaced."""

    def __init__(self, outfile: Path | None) -> None:
        self._paths: dict[str, Path] = {}
        if outfile:
            self._paths = {kind: outfile.with_name(f"{outfile.stem}_{kind}{outfile.suffix}") for kind in ("train", "test")}

    def begin(self, *kinds: str) -> None:
        """Empty the logs of these kinds. InputError where they can't be written."""
        for kind in kinds:
            if kind in self._paths:
                write_bytes(self._paths[kind], b"")

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
                with open(path, "a") as file:
                    file.write(lines)
            except OSError as error:
                raise unwritable(path, error) from None


def prepare_folders(config: RmldnnConfig) -> None:
    """Make the folders that a configuration writes to, and a file in each for a moment: better to fail now than after hours of work.

    InputError that names the key where one can't be written to, BackendError where predictions are asked for and h5py is not installed.
    """
    save = config.save if config.data.input_path else None  # a test saves none
    for key, folder in (("checkpoints.save", save), ("data.test_output_path", config.data.test_output_path)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{key} is {folder}, which can't be written to ({error.strerror}). Give another folder.") from None
    if config.data.test_output_path:
        _h5py()


def write_predictions(folder: Path, number: int, names: list[str], outputs: NDArray[np.float32]) -> Path:
    """`output_NUMBER.h5`: for each sample a dataset (classes,) float32, in a group for its folder. BackendError where h5py is not installed.

    names: of the samples, with `/` between folder and file. outputs: (N, classes), what the network's last layer gives.
    """
    h5py = _h5py()
    path = folder / f"output_{number}.h5"
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name, output in zip(names, outputs, strict=True):
            file.create_dataset(name, data=output)
    return path


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise BackendError("Predictions need h5py, which is not installed. Install it with: pip install 'sattrt[rmldnn]'") from None
    return h5py
