"""What every picture drawn by matplotlib shares, and the one that several stages draw: tiles with captions.

contact_sheet(images, captions, right, Path("worst.png"))
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .spec import atomic_path

GREY, _RED = "#8a8f98", "#b3362b"
as_it_is = mpl.rc_context({"text.parse_math": False})  # a $ in a name is a $


def short(name: str, most: int = 24) -> str:
    """A name as a picture has room for it."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"


@as_it_is
def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str], right: Sequence[bool], path: Path) -> None:
    """Tiles (N, H, W, 3) with their captions, eight in a row; wrong answers have a red frame."""
    across = min(8, len(images))
    down = -(-len(images) // across)
    lines = max(caption.count("\n") + 1 for caption in captions)
    figure = Figure((1.65 * across, (1.7 + 0.14 * lines) * down), layout="constrained")
    for place, axes in enumerate(np.ravel(figure.subplots(down, across))):
        axes.set_xticks([])
        axes.set_yticks([])
        if place >= len(images):
            axes.set_visible(False)
            continue
        axes.imshow(images[place])
        axes.set_xlabel("\n".join(short(line, 34) for line in captions[place].split("\n")), fontsize=5.5)
        for spine in axes.spines.values():
            spine.set(color=GREY if right[place] else _RED, linewidth=1 if right[place] else 2.5)
    save(figure, path)


@contextlib.contextmanager
def without_glyphs() -> Iterator[None]:
    """A figure is drawn without a word of names in letters that the font lacks: boxes are seen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def save(figure: Figure, path: Path) -> None:
    """The figure in a file, of the kind that its name ends in. InputError where it can't be written."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary, without_glyphs():
        figure.savefig(temporary, format=path.suffix[1:], dpi=130)
