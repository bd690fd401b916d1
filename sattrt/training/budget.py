"""How fast tiles come to training, and how many fit into a given time."""

from __future__ import annotations

import math
import time

from ..data.loader import Loader

_TIMED = 2.0  # seconds of decoding that are enough to know its speed by


def loading_speed(loader: Loader) -> float:
    """Tiles a second that a loader which keeps none decodes; without a bound where an epoch is a single batch."""
    batches, count, seconds = loader.epoch(0), 0, 0.0
    next(batches)  # with it the decoder is set up
    begin = time.perf_counter()
    for images, labels in batches:
        images[-1, -1, -1, -1].item()  # waits for a GPU that decodes
        count, seconds = count + len(labels), time.perf_counter() - begin
        if seconds > _TIMED:
            break
    return count / seconds if count else math.inf


def fit_in_time(epochs: int, tiles: int, validation: float, rate: float, seconds: float, decoding: float = math.inf) -> tuple[float, int]:
    """Epochs and tiles per epoch that fit in `seconds` at `rate` training tiles a second; of the last epoch it may be a part.

    A validated tile counts as a third of a trained one (one pass of three). decoding: tiles a second, where each is decoded once before
    all that. Where not one whole epoch fits it is one of fewer tiles, at least one.
    """
    room, judged, decoded = rate * seconds, validation / 3, rate / decoding  # in trained tiles, `decoded` for each that is
    room -= validation * decoded
    whole = int((room - tiles * decoded) / (tiles + judged))
    if whole >= epochs:
        return epochs, tiles
    if whole >= 1:
        left = room - tiles * decoded - whole * (tiles + judged) - judged  # a part of an epoch ends with a validation, too
        return whole + max(0.0, left / tiles), tiles
    return 1, max(1, min(tiles, int((room - judged) / (1 + decoded))))
