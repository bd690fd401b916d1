"""Whether a run goes astray: a loss or a gradient that is no number, or a loss that runs away. Such a run ends, and is no result.

watch = Divergence(classes=10, tune="all", precision="bf16", out=Path("run"))
watch.step(row)                # every step's row; InputError
watch.validation(row)          # the row that ends an epoch; InputError
"""

from __future__ import annotations

import math
from pathlib import Path

from ..errors import InputError
from .log import Row

DIVERGED = 20  # of a guess's loss, which is the logarithm of the number of classes
_MEMORY = 10  # steps that the running mean looks back on: a single step of a healthy run may be as bad


class Divergence:
    """loss: running mean of the training loss, which begins at that of a guess; a run that goes on begins with what it was.

    Two losses are held to being numbers alone. That of the validation: BatchNorm's running statistics lag behind, so that it was seen to be
    1e7 and falling in the first dozen steps of a run that came out well. That of a head on frozen layers (tune "head"): it is as large as
    their features and the learning rate make it, and was seen to be 60 times a guess's, by label smoothing, where every answer is right.
    """

    def __init__(self, classes: int, tune: str, precision: str, out: Path) -> None:
        self._precision, self._out = precision, out
        self.loss = math.log(classes)
        self._limit = math.inf if tune == "head" else DIVERGED * self.loss

    def step(self, row: Row) -> None:
        """Take in a training step. InputError where loss or gradient is no number, or the running mean of the loss is past the limit."""
        self.loss += (row.train_loss - self.loss) / _MEMORY
        if not math.isfinite(row.train_loss):
            raise self._astray("loss is not finite", row.train_loss, row)
        if not math.isfinite(row.gradient_norm) and self._precision != "fp16":  # there the scaler leaves such a step out
            raise self._astray("gradient is not finite", row.gradient_norm, row)
        if self.loss > self._limit:
            raise self._astray("loss diverges", row.train_loss, row)

    def validation(self, row: Row) -> None:
        """InputError where the loss of the validation is no number."""
        if row.valid_loss is not None and not math.isfinite(row.valid_loss):
            raise self._astray("validation loss is not finite", row.valid_loss, row)

    def _astray(self, what: str, value: float, row: Row) -> InputError:
        return InputError(
            f"The {what} ({value:.3g} at step {row.step}, learning rate {row.learning_rate:.2g}). Lower learning_rate"
            f"{'' if self._precision == 'fp32' else ', or set precision to fp32'}; the checkpoints in {self._out} are from before that."
        )
