"""Pictures of a run, with matplotlib: `curves.png` and `.svg`, `confusion.png`, `worst.png`; `training_loss.png`, `test_accuracy.png`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..errors import ContractError, InputError
from ..figure import GREY, as_it_is, save, short
from ..spec import read_json

_BLUE, _ORANGE = "#1f6f8b", "#d9822b"
_LEGIBLE = 50  # classes: a cell of each is numbered; a picture of hundreds would take gigabytes


def curves(rows: list[dict[str, float | None]], folder: Path) -> list[Path]:
    """Loss, accuracy, learning rate and gradient norm over the steps, from the rows of log.csv."""
    steps = [row["step"] for row in rows]
    ends = [row for row in rows if row["valid_accuracy"] is not None]
    figure = Figure((10, 6.5), layout="constrained")
    (loss, accuracy), (rate, norm) = figure.subplots(2, 2)
    train = np.array([row["train_loss"] for row in rows], float)
    loss.plot(steps, train, color=_BLUE, alpha=0.25, linewidth=0.8)
    loss.plot(steps, _smooth(train), color=_BLUE, label="train (with label smoothing, augmentation)")
    loss.plot([row["step"] for row in ends], [row["valid_loss"] for row in ends], "o-", color=_ORANGE, label="validation")
    loss.set(title="Loss", ylim=(0, None))
    loss.legend(frameon=False)
    shares = [100 * (row["valid_accuracy"] or 0) for row in ends]
    accuracy.plot([row["step"] for row in ends], shares, "o-", color=_ORANGE)
    accuracy.set(title=f"Validation accuracy, %{f': at best {max(shares):.2f}' if shares else ''}")
    accuracy.set_ylim(top=min(100, accuracy.get_ylim()[1]))  # around a single epoch the axis would go on
    rate.plot(steps, [row["learning_rate"] for row in rows], color=GREY)
    rate.set(title="Learning rate of the head", xlabel="step", ylim=(0, None))
    norms = np.array([row["gradient_norm"] for row in rows], float)
    norm.semilogy(steps, norms, color=GREY, alpha=0.4, linewidth=0.8)
    norm.semilogy(steps, _smooth(norms), color=GREY)
    norm.set(title="Norm of the gradient", xlabel="step")
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    paths = [folder / "curves.png", folder / "curves.svg"]
    for path in paths:
        save(figure, path)
    return paths


def loss_and_accuracy(rows: list[dict[str, float | None]], folder: Path) -> list[Path]:
    """The two plots of rmldnn's tutorials, from the rows of log.csv: training loss by batch, accuracy on the unseen tiles by epoch."""
    if not rows:
        raise InputError(f"The run {folder} has no step yet. Draw it when it has.")
    paths = [folder / "training_loss.png", folder / "test_accuracy.png"]
    per_epoch = _steps_per_epoch(rows, folder)
    losses = np.array([row["train_loss"] for row in rows], float)
    epochs = np.array([row["step"] for row in rows], float) / per_epoch
    ends = [row for row in rows if row["valid_accuracy"] is not None]
    for path, label in zip(paths, ("training loss", "accuracy on unseen tiles, %"), strict=True):
        figure = Figure((6, 4), layout="constrained")
        axes = figure.subplots()
        if path is paths[0]:
            axes.semilogy(epochs, losses, color=_BLUE, alpha=0.25, linewidth=0.8)
            axes.semilogy(epochs, _smooth(losses), color=_BLUE)
        else:
            shares = [100 * (row["valid_accuracy"] or 0) for row in ends]
            axes.plot(np.array([row["epoch"] for row in ends], float), shares, "o-", color=_ORANGE)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        save(figure, path)
    return paths


@as_it_is
def confusion(predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: Sequence[str], folder: Path) -> None:
    """Counts of true class (rows) by answer (columns) on the validation split; the darker, the larger the share of the row."""
    count = len(classes)
    matrix = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    shades = (matrix / matrix.sum(1, keepdims=True).clip(1)) ** 0.5  # of the share itself, one error in a hundred would not be seen
    side = 3.5 + 0.55 * min(count, _LEGIBLE)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix) if count <= _LEGIBLE else ():
        dark = shades[row, column] > 0.6
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    named = range(0, count, -(-count // _LEGIBLE))
    names = [short(classes[i]) for i in named]
    axes.set_xticks(named, names, rotation=45, ha="right")
    axes.set_yticks(named, names)
    right = int(np.trace(matrix))
    axes.set(
        xlabel="answer", ylabel="true class", title=f"{right} of {len(labels)} validation tiles right ({100 * right / len(labels):.2f} %)"
    )
    save(figure, folder / "confusion.png")


def _steps_per_epoch(rows: list[dict[str, float | None]], run: Path) -> float:
    """By the run's config.json; where that is missing or says nothing, by the log: exact once an epoch has ended, else the fewest it can be."""
    with contextlib.suppress(ContractError, InputError, KeyError, TypeError):
        said = read_json(run / "config.json")["ran_with"]["steps_per_epoch"]
        if type(said) is int and said > 0:
            return said
    return max((row["step"] or 0) / max(row["epoch"] or 0, 1) for row in rows) or 1


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over a fiftieth of the values, shorter at the ends."""
    if not len(values):
        return values
    width = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values, posinf=0, neginf=0))])
    last = np.minimum(np.arange(len(values)) + (width + 1) // 2, len(values))
    first = np.maximum(np.arange(len(values)) + (width + 1) // 2 - width, 0)
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means
