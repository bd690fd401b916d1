"""Two runs of the bench side by side: what became faster, slower, more or less accurate, beyond the noise of both.

found = against(read_report(Path("old/bench.json")), document)
found.failure(max_regression=5)        # what a check has to say, or None
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..accuracy import mcnemar
from ..errors import ContractError
from ..spec import check_schema, read_json
from .measure import tells, turns

SCHEMA = 5
Row = dict[str, Any]
_RESAMPLES = 400
_ACCURACY = "accuracy, %"
_JUDGED = {"single-stream": 90, "multi-stream": 99}  # scenario to the percentile that it is judged by
_STUDENT = (math.inf, 63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25, 3.17)  # Student's t, 99 % two-sided, by degrees of freedom
_METHOD = ("seconds", "clock_batch", "latency_bound", "streams")
_DRIFT = 0.05  # how far two runs of the same engine lie apart, which no look at one of them tells: docs/bench.md


@dataclass(frozen=True)
class Change:
    """One figure in both runs.

    percent: how much more speed (positive) or less, as a rate, or points of accuracy; noise: what it may differ by alone, in percent.
    """

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

    def __str__(self) -> str:
        unit = "points" if self.figure == _ACCURACY else "%"
        return f"{self.engine}: {self.figure} {self.old:.4g} -> {self.new:.4g}, {self.percent:+.1f} {unit} (noise {self.noise:.1f} {unit})"


@dataclass(frozen=True)
class Comparison:
    """changes: of every figure that both runs have. missing: engines of the old run that the new one does not have, and those that lack
    figures, with these. other_tiles: engines whose accuracies are of different tiles. fault: why the old run can't be compared with, if so."""

    changes: tuple[Change, ...] = ()
    missing: tuple[str, ...] = ()
    other_tiles: tuple[str, ...] = ()
    fault: ContractError | None = None

    @property
    def regression(self) -> Change | None:
        """The figure that became worse by most, beyond the noise."""
        worse = [change for change in self.changes if change.real and change.percent < 0]
        return min(worse, key=lambda change: change.percent, default=None)

    def failure(self, max_regression: float) -> str | None:
        """One line where a figure became worse by more percent than that, an engine or a figure is gone, or nothing could be compared."""
        faults = []
        if (worst := self.regression) and -worst.percent > max_regression:
            faults.append(f"worse than the baseline by more than {max_regression:g} %: {worst}")
        if self.missing:
            faults.append(f"in the baseline, but not measured now: {', '.join(self.missing)}. Measure them, or make a new baseline")
        elif not any(math.isfinite(change.noise) for change in self.changes):
            faults.append("nothing of the baseline could be compared. Give both runs the same settings and tiles, and more than one turn")
        elif self.other_tiles:
            faults.append(f"accuracy of {', '.join(self.other_tiles)} is of other tiles than the baseline's. Make a new baseline")
        return "; ".join(faults) or None


def against(old: object, document: Row) -> Comparison:
    """Hold a report against an older one, and note in its document what differs: changes, what is gone, how they were measured, or why not."""
    try:
        checked = _checked(old)
        with _damaged_if_it_fails():
            found = Comparison(tuple(compare(checked, document)), tuple(missing(checked, document)), tuple(other_tiles(checked, document)))
            differing = unlike(checked, document)
    except ContractError as error:
        document["warnings"].append(str(error))
        return Comparison(fault=error)
    if differing:
        document["warnings"].append(f"The baseline was measured differently: {'; '.join(differing)}.")
    if found.other_tiles:
        document["warnings"].append(
            f"Accuracy of {', '.join(found.other_tiles)} was not compared: the baseline was measured on other tiles, or on these under other names."
        )
    document["changes"] = [_to_json(change) for change in found.changes]
    if found.missing:
        document["warnings"].append(f"In the baseline, but not measured now: {', '.join(found.missing)}.")
    return found


def read_report(path: Path) -> Row:
    """What stands in a bench.json, or in the one of a folder. InputError where it can't be read, ContractError where it is no JSON, of
    another schema, or has no engines: before anything is measured."""
    path = path / "bench.json" if path.is_dir() else path
    return _checked(read_json(path), path)


def _checked(data: Any, path: Path = Path("The baseline")) -> Row:
    """ContractError where a report is of another schema, or damaged."""
    check_schema(data, path, SCHEMA)
    try:
        json.dumps(data, allow_nan=False)
    except ValueError:
        raise ContractError(f"{path} is damaged: it contains NaN or infinity. Make it again with `sattrt bench`.") from None
    rows = data.get("engines")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and isinstance(row.get("engine"), str) for row in rows):
        raise ContractError(f"{path} has no list of engines. Make it again with `sattrt bench`.")
    return data  # type: ignore[no-any-return]


@contextlib.contextmanager
def _damaged_if_it_fails() -> Iterator[None]:
    """ContractError where the old report lacks what its schema promises."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ContractError(f"The baseline is damaged ({type(error).__name__}: {error}). Make it again with `sattrt bench`.") from None


def compare(old: Row, new: Row) -> list[Change]:
    """Changes of every figure that both runs have, at the highest percentile that both have samples for.

    Noise: of times, 99 % of what chance does; of accuracy, nothing where McNemar's test is sure at 5 %, else all; of the server's rate, the steps
    of its search.
    """
    return [
        change
        for row in new["engines"]
        for before in old["engines"]
        if before["engine"] == row["engine"]
        for change in _changes(before, row, _same_tiles(old, new, before, row))
    ]


def other_tiles(old: Row, new: Row) -> list[str]:
    """Names of the engines whose accuracies in both runs are of different tiles."""
    return [
        row["engine"]
        for row in new["engines"]
        for before in old["engines"]
        if before["engine"] == row["engine"] and not _same_tiles(old, new, before, row)
    ]


def _same_tiles(old: Row, new: Row, before: Row, after: Row) -> bool:
    alike = all(old["dataset"][key] == new["dataset"][key] for key in ("digest", "names"))  # what is wrong is listed by name
    return bool(alike and before["accuracy"]["tiles"] == after["accuracy"]["tiles"])


def missing(old: Row, new: Row) -> list[str]:
    """Names of the engines of the old run that the new one does not have, and figures that those of both lack in the new one."""
    there = {row["engine"]: row for row in new["engines"]}
    gone = [row["engine"] for row in old["engines"] if row["engine"] not in there]
    lacking = {row["engine"]: _lacking(row, there[row["engine"]]) for row in old["engines"] if row["engine"] in there}
    return gone + [f"{name} ({', '.join(figures)})" for name, figures in lacking.items() if figures]


def unlike(old: Row, new: Row) -> list[str]:
    """What two runs were not alike in, as far as it bears on speed: machine, libraries, method, and each engine's device and threads."""
    pairs: dict[str, tuple[object, object]] = {}
    for key in ("cpu", "cores", "gpu", "python"):
        pairs[key] = (old["environment"][key], new["environment"][key])
    libraries = [run["environment"]["libraries"] for run in (old, new)]
    pairs |= {name: (libraries[0].get(name), libraries[1].get(name)) for name in {**libraries[0], **libraries[1]}}
    pairs |= {name: (old["method"].get(name), new["method"].get(name)) for name in _METHOD}
    there = {row["engine"]: row for row in new["engines"]}
    for row in old["engines"]:
        if now := there.get(row["engine"]):
            pairs |= {f"{row['engine']}'s {key}": (row[key], now[key]) for key in ("device", "threads")}
    said = [(name, *("none" if value is None else value for value in pair)) for name, pair in pairs.items() if pair[0] != pair[1]]
    return [f"{name} {before} -> {after}" for name, before, after in said]


def _to_json(change: Change) -> Row:
    """As plain values; an endless noise is null."""
    noise = change.noise if math.isfinite(change.noise) else None
    return {**asdict(change), "noise": noise, "exceeds_noise": change.real}


def _changes(old: Row, new: Row, same_tiles: bool) -> list[Change]:
    name, there = new["engine"], _timings(new)
    found = []
    for figure, (images, seconds) in _timings(old).items():
        if figure not in there or there[figure][0] != images:
            continue
        now = there[figure][1]
        if percentile := _JUDGED.get(figure):
            percentile, mark = _told(percentile, min(len(seconds), len(now)))
            found.append(_timing(name, f"{figure} p{percentile}{mark}, ms", seconds, now, percentile))
        else:
            found.append(_timing(name, f"{figure}, ms", seconds, now))
    for count, rates in old["callers_rounds"].items():
        if count in new["callers_rounds"]:
            found.append(_callers(name, f"{_callers_of(count)}, tiles/s", rates, new["callers_rounds"][count]))
    if old["server"] and new["server"] and old["server"]["bound_ms"] == new["server"]["bound_ms"]:
        found += _rate(name, old["server"], new["server"])
    before, after = old["accuracy"], new["accuracy"]
    if not 0 <= before["accuracy"] <= 1:
        raise ValueError(f"accuracy of {before['accuracy']}")
    if same_tiles:
        wrong_before, wrong_after = set(before["wrong"]), set(after["wrong"])
        lost, gained = len(wrong_after - wrong_before), len(wrong_before - wrong_after)
        points = 100 * (after["accuracy"] - before["accuracy"])
        sure = lost + gained > 0 and mcnemar(lost, gained) < 0.05
        shares = (100 * before["accuracy"], 100 * after["accuracy"])
        found.append(Change(name, _ACCURACY, *shares, points, 0.0 if sure else math.inf))
    return found


def _timings(row: Row) -> dict[str, tuple[int, list[float]]]:
    """Every timing of an engine by the name of its figure: images a call, raw seconds."""
    found = {scenario: row[scenario.replace("-", "_")] for scenario in _JUDGED}
    found |= {f"batch of {batch}": timed for batch, timed in row["offline"].items()}
    found |= {clock.replace("_", " "): row["clocks"][clock] for clock in ("engine", "host_to_host", "file_to_label") if row["clocks"]}
    return {figure: (timed["images_a_call"], timed["seconds"]) for figure, timed in found.items() if timed}


def _lacking(old: Row, new: Row) -> list[str]:
    """Names of the figures of an engine's old row that its new one does not have, or of other batches."""
    there = _timings(new)
    found = [figure for figure, (images, _) in _timings(old).items() if figure not in there or there[figure][0] != images]
    found += [_callers_of(count) for count in old["callers_rounds"] if count not in new["callers_rounds"]]
    if old["server"] and not (new["server"] and new["server"]["bound_ms"] == old["server"]["bound_ms"]):
        found.append("server")
    return found


def _told(percentile: int, calls: int) -> tuple[int, str]:
    """The highest percentile up to this one that so many calls tell; where none does, the median, and that it is indicative."""
    told = [each for each in (99, 90, 50) if each <= percentile and tells(calls, each)]
    return (told[0], "") if told else (50, " (indicative)")


def _timing(engine: str, figure: str, old: list[float], new: list[float], percentile: float | None = None) -> Change:
    """Of a percentile; without one, of the mean, which images a second follow from."""
    before, after = (_statistic(np.asarray(taken, float), percentile) for taken in (old, new))
    if not 0 < before < math.inf:
        raise ValueError(f"{figure} of {before}")
    errors, freedom = zip(*(_error(taken, percentile) for taken in (old, new)), strict=True)
    several = _STUDENT[min(*freedom, len(_STUDENT) - 1)] * math.hypot(errors[0] / before, errors[1] / after)
    chance = several if min(freedom) else math.inf
    return Change(engine, figure, 1e3 * before, 1e3 * after, 100 * (before / after - 1), 100 * math.hypot(chance, _DRIFT))


def _statistic(seconds: NDArray[np.float64], percentile: float | None) -> float:
    return float(np.mean(seconds) if percentile is None else np.percentile(seconds, percentile))


def _error(seconds: list[float], percentile: float | None = None) -> tuple[float, int]:
    """Standard error of a percentile (or the mean), its degrees of freedom, by a bootstrap of whole turns: calls within one are not independent."""
    rng = np.random.default_rng(0)
    taken = [np.asarray(turn) for turn in turns(seconds)]
    drawn = [_statistic(np.concatenate([taken[i] for i in rng.integers(0, len(taken), len(taken))]), percentile) for _ in range(_RESAMPLES)]
    return float(np.std(drawn)) * math.sqrt(len(taken) / max(1, len(taken) - 1)), len(taken) - 1


def _callers(engine: str, figure: str, old: list[float], new: list[float]) -> Change:
    """Images a second of several callers; the noise is that of their rounds."""
    before, after = (float(np.mean(rates)) for rates in (old, new))
    if not 0 < before < math.inf:
        raise ValueError(f"{figure} of {before}")
    errors = [np.std(rates, ddof=1) / math.sqrt(len(rates)) / np.mean(rates) if len(rates) > 1 else math.inf for rates in (old, new)]
    chance = _STUDENT[min(len(old) - 1, len(new) - 1, len(_STUDENT) - 1)] * math.hypot(*errors)
    return Change(engine, figure, before, after, 100 * (after / before - 1), 100 * math.hypot(chance, _DRIFT))


def _callers_of(count: str) -> str:
    return f"{count} caller{'s' * (count != '1')}"


def _rate(engine: str, old: Row, new: Row) -> list[Change]:
    """The rates that the server scenario found; each is known up to the next higher one that failed.

    Where none failed it is a lower bound: a fall from one is no smaller than it looks, nor a rise to one.
    """
    if old["rate"] < 0:
        raise ValueError(f"a server rate of {old['rate']}")
    if not old["rate"]:
        return []
    percent = 100 * (new["rate"] / old["rate"] - 1)
    steps = [_step(each) for each in (old, new)]
    bound = 0 if percent < 0 else 1
    if steps[bound] == math.inf:
        steps[bound] = 0.0
    return [Change(engine, "server, tiles/s", old["rate"], new["rate"], percent, 100 * (sum(steps) + _DRIFT))]


def _step(server: Row) -> float:
    """How far the next rate that failed lies above the one that was found, as a share of it; 0 above no rate at all: all of them failed."""
    rate = server["rate"]
    return min((trial["rate"] for trial in server["trials"] if trial["rate"] > rate), default=math.inf) / rate - 1 if rate else 0.0
