"""Two runs of the bench side by side: what became faster, slower, more or less accurate, beyond the noise of both.

changes = compare(read_report(Path("old/bench.json")), document)
worst_regression(changes)        # percent
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..accuracy import mcnemar
from ..errors import ContractError
from ..spec import check_schema, read_json

SCHEMA = 2
_RESAMPLES = 400


@dataclass(frozen=True)
class Change:
    """One figure in both runs. percent: how much better (positive) or worse it became; noise: what it may differ by alone, in percent."""

    engine: str
    figure: str
    old: float
    new: float
    percent: float
    noise: float

    @property
    def real(self) -> bool:
        """Whether the difference exceeds the noise."""
        return abs(self.percent) > self.noise


def read_report(path: Path) -> dict[str, Any]:
    """A bench.json, or the one in a folder. ContractError where it is of another schema, or damaged."""
    path = path / "bench.json" if path.is_dir() else path
    data = read_json(path)
    check_schema(data, path, SCHEMA)
    if not isinstance(data.get("engines"), list) or not all(isinstance(row, dict) and "engine" in row for row in data["engines"]):
        raise ContractError(f"{path} has no list of engines. Make it again with `sattrt bench`.")
    return data  # type: ignore[no-any-return]


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Changes of every figure that both runs have; noise by bootstrapping the medians of the raw samples, 99 % of it.

    ContractError where the old report lacks what its schema promises.
    """
    try:
        return [
            change
            for row in new["engines"]
            for before in old["engines"]
            if before["engine"] == row["engine"]
            for change in _changes(before, row, old["dataset"]["digest"] == new["dataset"]["digest"])
        ]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ContractError(f"The baseline is damaged ({type(error).__name__}: {error}). Make it again with `sattrt bench`.") from None


def worst_regression(changes: list[Change]) -> float:
    """Percent by which the worst figure became worse, beyond the noise; 0 where none did."""
    return max((-change.percent for change in changes if change.real and change.percent < 0), default=0.0)


def to_json(change: Change) -> dict[str, Any]:
    """As plain values; an endless noise is null."""
    noise = change.noise if math.isfinite(change.noise) else None
    return {**asdict(change), "noise": noise, "exceeds_noise": change.real}


def _changes(old: dict[str, Any], new: dict[str, Any], same_tiles: bool) -> list[Change]:
    name, found = new["engine"], []
    for scenario, percentile in (("single_stream", 90), ("multi_stream", 99)):
        if old.get(scenario) and new.get(scenario):
            found.append(_timing(name, f"{scenario} p{percentile}, ms", old[scenario]["seconds"], new[scenario]["seconds"], percentile))
    for batch, row in (new.get("offline") or {}).items():
        if before := (old.get("offline") or {}).get(batch):
            found.append(_timing(name, f"offline at {batch}, ms", before["seconds"], row["seconds"], 50))
    before, after = old["accuracy"], new["accuracy"]
    if same_tiles and before["tiles"] == after["tiles"]:
        wrong_before, wrong_after = set(before["wrong"]), set(after["wrong"])
        lost, gained = len(wrong_after - wrong_before), len(wrong_before - wrong_after)
        points = 100 * (after["accuracy"] - before["accuracy"])
        sure = lost + gained > 0 and mcnemar(lost, gained) < 0.05
        found.append(Change(name, "accuracy, points", before["accuracy"], after["accuracy"], points, 0.0 if sure else math.inf))
    return found


def _timing(engine: str, figure: str, old: list[float], new: list[float], percentile: float) -> Change:
    before, after = (float(np.percentile(taken, percentile)) for taken in (old, new))
    # standard errors of both, relative, added in quadrature: 2.6 of them hold 99 % of what chance does
    noise = 2.6 * math.hypot(_error(old, percentile) / before, _error(new, percentile) / after)
    return Change(engine, figure, 1e3 * before, 1e3 * after, 100 * (before / after - 1), 100 * noise)


def _error(seconds: list[float], percentile: float) -> float:
    """Standard error of a percentile, by bootstrap."""
    rng = np.random.default_rng(0)
    taken = np.asarray(seconds)
    drawn = rng.choice(taken, (_RESAMPLES, len(taken)))
    return float(np.percentile(drawn, percentile, axis=1).std())
