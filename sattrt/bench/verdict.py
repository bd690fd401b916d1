"""One sentence an engine: what bounds it between a file and a label, and by how much.

verdict(Clocks(engine=0.0030, host=0.0031, decode=0.0009, whole=0.0042))
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clocks:
    """Seconds a tile by each clock, in batches: the engine alone on data that lies on the device; from host array to host array; reading and
    decoding alone; from file to label."""

    engine: float
    host: float
    decode: float
    whole: float

    def shares(self) -> dict[str, float]:
        """Of the time from file to label, 0..1: engine, copy, decode, host (everything else). Where decoding runs beside the engine
        they make more than one together, and host is 0. None is more than one: the clocks are read one after another, and machines drift."""
        copy = max(0.0, self.host - self.engine)
        rest = max(0.0, self.whole - self.host - self.decode)
        return {
            name: min(1.0, seconds / self.whole)
            for name, seconds in zip(("engine", "copy", "decode", "host"), (self.engine, copy, self.decode, rest), strict=True)
        }


_NAMES = {
    "engine": "the engine itself",
    "copy": "copies between host and engine",
    "decode": "reading and decoding the files",
    "host": "the host program around it",
}


def verdict(clocks: Clocks, of_ceiling: float | None = None) -> str:
    """The sentence; of_ceiling: the share of the machine's matrix rate that the engine reaches, if known."""
    shares = clocks.shares()
    bound, *others = sorted(shares, key=lambda name: -shares[name])
    overlap = " (they overlap)" if sum(shares.values()) > 1.02 else ""
    text = (
        f"Bound by {_NAMES[bound]}: {100 * shares[bound]:.0f} % of the {1e3 * clocks.whole:.2f} ms from file to label; "
        + ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in others)
        + overlap
    )
    if bound == "engine" and of_ceiling:
        text += f". It runs at {100 * of_ceiling:.0f} % of the machine's matrix rate"
    return text + "."
