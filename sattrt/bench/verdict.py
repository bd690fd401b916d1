"""One sentence an engine: what bounds it between a file and a label, and by how much.

verdict(Clocks(engine=Samples(64, [0.19]), host=Samples(64, [0.20]), decode=Samples(270, [0.24]), whole=Samples(270, [1.13])))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .measure import Samples


@dataclass(frozen=True)
class Clocks:
    """Every clock, in batches: the engine alone on data that lies on the device; from host array to host array; reading and decoding
    alone; from file to label."""

    engine: Samples
    host: Samples
    decode: Samples
    whole: Samples

    def shares(self) -> dict[str, float]:
        """Of the time from file to label, 0..1: engine, copy, decode, host (everything else). Where decoding runs beside the engine
        they make more than one together, and host is 0. None is more than one: the clocks are read one after another, and machines drift."""
        engine, host, decode, whole = (1 / each.images_per_second for each in (self.engine, self.host, self.decode, self.whole))
        parts = {"engine": engine, "copy": max(0.0, host - engine), "decode": decode, "host": max(0.0, whole - host - decode)}
        return {name: min(1.0, seconds / whole) for name, seconds in parts.items()}

    def within_noise(self) -> set[str]:
        """The parts that are differences of clocks and lie within the spread of these: copy, host."""
        parts = {"copy": (self.host, self.engine), "host": (self.whole, self.host, self.decode)}
        return {name for name, (longer, *others) in parts.items() if _left(longer, *others) <= _noise(longer, *others)}

    def disagreement(self) -> tuple[str, float] | None:
        """Where a clock that holds another within it reads less, beyond their spread and 5 %: which, and by what share of the other."""
        found = {"host to host": _less(self.host, self.engine), "file to label": _less(self.whole, self.host)}
        worst = max(found, key=lambda name: found[name])
        return (worst, found[worst]) if found[worst] > 0 else None


def _seconds(clock: Samples) -> float:
    """Of one image."""
    return 1 / clock.images_per_second


def _noise(*clocks: Samples) -> float:
    return math.hypot(*(_seconds(each) * each.spread for each in clocks))


def _left(longer: Samples, *others: Samples) -> float:
    return _seconds(longer) - sum(map(_seconds, others))


def _less(outer: Samples, inner: Samples) -> float:
    """By what share of the inner clock the outer one reads less; 0 within the noise."""
    share = -_left(outer, inner) / _seconds(inner)
    return share if share > max(_DRIFT, _noise(outer, inner) / _seconds(inner)) else 0.0


_DRIFT = 0.05  # clocks are read one after another, and machines drift
NAMES = {
    "engine": "the engine",
    "copy": "copies between host and engine",
    "decode": "reading and decoding the files",
    "host": "the host program around the engine",
}


def verdict(clocks: Clocks, of_ceiling: float | None = None) -> str:
    """The sentence; of_ceiling: the share of the machine's matrix rate that the engine reaches, if known: more than 1 is none."""
    if found := clocks.disagreement():
        inner = {"host to host": "the engine alone", "file to label": "host to host"}[found[0]]
        faster = f"{found[0]} was {100 * found[1]:.0f} % faster than {inner}, which is part of it"
        return f"The clocks disagree: {faster}. No limit is named: measure again."
    shares = clocks.shares()
    bound, *others = sorted(shares, key=lambda name: -shares[name])
    overlap = " (in parallel)" if sum(shares.values()) > 1.02 else ""
    told = [name for name in others if name not in clocks.within_noise()]
    text = (
        f"Limited by {NAMES[bound]}: {100 * shares[bound]:.0f} % of {1e3 / clocks.whole.images_per_second:.2f} ms per tile from file to label"
        + "; " * bool(told)
        + ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in told)
        + overlap
    )
    if bound == "engine" and of_ceiling and of_ceiling <= 1:
        text += f". It reaches {100 * of_ceiling:.0f} % of the machine's matrix rate"
    return text + "."
