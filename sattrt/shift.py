"""Whether pixels are like those that a network learned from: percentiles of each band, kept in its contract, held against other pixels.

    spec.training["percentiles"] = percentiles(tiles, spec.bands)          # {"B02": [709, 1097, 2246], ...}
    for said in shifts(spec, pixels):
        ...                                                                # a line for each band that lies elsewhere

Another offset, scaling or sensor makes answers wrong, and no error. A median says so, of a few windows or a single tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ContractError
from .spec import ModelSpec

_PERCENT = (1, 50, 99)
# of the distance between the outer two: of 13-band tiles of a calm sea every second has a median that lies beyond them, by next to nothing
_MARGIN = 0.1


def percentiles(pixels: NDArray[np.unsignedinteger], bands: Sequence[str]) -> dict[str, list[int]]:
    """By band the 1st, 50th and 99th percentile of pixels (..., bands): values that occur."""
    return {name: [int(value) for value in np.percentile(pixels[..., i], _PERCENT, method="lower")] for i, name in enumerate(bands)}


def shifts(spec: ModelSpec, pixels: NDArray[np.unsignedinteger]) -> list[str]:
    """A line for each band whose median lies clearly outside of what the network learned from; none where the contract doesn't know it.

    pixels: (..., bands), as the engine takes them. ContractError where the contract's percentiles are none.
    """
    learned = spec.training.get("percentiles")
    if learned is None or not pixels.size:
        return []
    said = []
    for i, name in enumerate(spec.bands):
        if (outer := _range(learned, name)) is None:
            continue
        low, high = outer
        middle = float(np.median(pixels[..., i]))
        if not 0 <= middle - low + _MARGIN * (high - low) <= (1 + 2 * _MARGIN) * (high - low):
            said.append(
                f"the median of {name} is {middle:.0f}, but 98 % of the training pixels lie between {low:.0f} and {high:.0f}: "
                "another offset, scaling or sensor? Results may be wrong"
            )
    return said


def _range(learned: Any, name: str) -> tuple[float, float] | None:
    try:
        if name not in learned:
            return None
        low, _, high = (float(value) for value in learned[name])
    except (LookupError, TypeError, ValueError, OverflowError):
        raise ContractError(f"The contract has invalid percentiles for {name}. Export the bundle or train the run again.") from None
    return low, high
