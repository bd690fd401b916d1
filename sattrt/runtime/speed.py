"""How fast each engine is on this machine, for who has a bundle and no tiles: its golden samples, answered by the engines in turns.

for speed in time_engines(read_bundle(Path("engines/eurosat")), ["onnxruntime-fp32", "openvino-int8"]):
    print(speed.engine, speed.milliseconds, speed.images_per_second)

`sattrt bench` measures more, accuracy above all, and by a stricter method.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .engine import Engine, Tiles
from .selftest import golden_samples

BATCH = 64
_SECONDS, _TURN, _PAUSE = 2.0, 0.2, 0.02  # counted, of each engine; of calls in a row; before those


@dataclass(frozen=True)
class Speed:
    """From host array to host array. milliseconds: of one tile, the median call. images_per_second: of batches of 64, all over all the time."""

    engine: str
    device: str
    milliseconds: float
    images_per_second: float


def time_engines(bundle: Bundle, names: Sequence[str], threads: int = 0) -> list[Speed]:
    """Time these engines of a bundle, about three seconds each, in turns: a machine that drifts harms none. Errors as `Bundle.open`."""
    golden = golden_samples(bundle)["tiles"]
    tiles = np.resize(golden, (BATCH, *golden.shape[1:]))
    ones, many = ({name: list[float]() for name in names} for _ in range(2))
    draw = random.Random(0)
    with contextlib.ExitStack() as opened:
        engines = {name: opened.enter_context(bundle.open(name, threads)) for name in names}
        for engine in engines.values():  # the first calls are never typical
            _turn(engine, tiles[:1])
            _turn(engine, tiles)
        while waiting := [name for name in names if sum(ones[name]) + sum(many[name]) < _SECONDS]:
            for name in draw.sample(waiting, len(waiting)):
                ones[name] += _turn(engines[name], tiles[:1])
                many[name] += _turn(engines[name], tiles)
        return [Speed(name, engines[name].device, 1e3 * float(np.median(ones[name])), BATCH / float(np.mean(many[name]))) for name in names]


def _turn(engine: Engine, tiles: Tiles) -> list[float]:
    """Seconds of calls in a row; not of the first, where it is short: idle threads of another library spin for a while after its last call."""
    time.sleep(_PAUSE)
    taken: list[float] = []
    while sum(taken[1:]) < _TURN and not (taken and taken[0] > _TURN):
        begin = time.perf_counter()
        engine.predict(tiles)
        taken.append(time.perf_counter() - begin)
    return taken[1:] or taken
