"""What was measured, as the plain values of `bench.json` (docs/bench.md describes them): the parts that `run` puts together."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..accuracy import evaluate, mcnemar, selective_curve
from ..calibration import expected_calibration_error, reliability_curve
from ..data.dataset import Tile
from .ceiling import Ceilings, Work
from .contenders import Contender
from .measure import STEADY, VARIATION, Samples
from .passes import Measured
from .peer import Peer
from .scenarios import ServerRate
from .verdict import Clocks, verdict

Row = dict[str, Any]
PERCENTILES = (50, 90, 99)
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}  # of a weight
_DIGIT = 0.0005  # an interval wider than that either way makes the first digit behind the point of a percentage idle


def accuracy(
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.integer],
    classes: tuple[str, ...],
    reference: NDArray[np.float32] | None,
    tiles: list[Tile],
) -> Row:
    """Everything that is counted on the test split; reference: the logits that flips and errors are held against, None where there
    are none but its own: then both are None."""
    answers = logits.argmax(1)
    references = None if reference is None else reference.argmax(1)
    score = evaluate(answers, labels, classes, references)
    confidence, right = probabilities.max(1), answers == labels
    return {
        "tiles": score.tiles,
        "correct": score.correct,
        "accuracy": score.accuracy,
        "interval": [score.low, score.high],
        "per_class": {
            name: {
                "tiles": found.tiles,
                "answered": found.answered,
                "correct": found.correct,
                "precision": found.precision,
                "recall": found.recall,
                "f1": found.f1,
            }
            for name, found in score.per_class.items()
        },
        "confusion": score.confusion,
        "ece": expected_calibration_error(probabilities, labels),
        "reliability": reliability_curve(probabilities, labels),
        "selective": selective_curve(confidence, right),
        "flips": None if references is None else [tiles[i].name for i in score.flips or []],
        "flip_answers": []
        if references is None
        else [[classes[labels[i]], classes[answers[i]], classes[references[i]]] for i in score.flips or []],
        "wrong": [tiles[i].name for i in np.flatnonzero(~right)],
        "largest_logit_error": None if reference is None else float(np.abs(logits - reference).max()),
    }


def timing(samples: Samples | None) -> Row | None:
    """Percentiles in ms (p50: the median call), images a second of all calls together, and the raw seconds of every call."""
    if samples is None:
        return None
    return {
        "images_a_call": samples.images,
        "calls": len(samples.seconds),
        "latency_ms": {f"p{percentile}": samples.milliseconds(percentile) for percentile in PERCENTILES},
        "indicative": [f"p{percentile}" for percentile in PERCENTILES if not samples.tells(percentile)],
        "images_per_second": samples.images_per_second,
        "variation": samples.variation,
        "steady": samples.steady,
        "seconds": _raw(samples),
    }


def engine_row(contender: Contender, measured: Measured, accuracy: Row, reference: str, ceilings: Ceilings, work: Work | None) -> Row:
    """One engine's part of the document."""
    name = contender.name
    clocks, callers = measured.clocks.get(name), measured.callers.get(name, {})
    offline = {batch: found[name] for batch, found in measured.offline.items() if name in found}
    streams = {scenario: found.get(name) for scenario, found in measured.timings.items()}
    best = max(offline, key=lambda size: offline[size].images_per_second) if offline else None
    single = streams.get("single-stream")
    # a CPU computes fp16 graphs in fp32
    precision = "fp32" if (contender.device, contender.precision) == ("cpu", "fp16") else contender.precision
    rate = ceilings.matrix.get(precision)
    images = offline[best].images_per_second if best else clocks.engine.images_per_second if clocks else None
    of_matrix = images * work.operations / rate if images and work and rate else None
    # at batch 1 every weight is read once a tile
    read = work.weights * _BYTES[precision] / float(np.median(single.seconds)) if single and work else None
    return {
        "engine": name,
        "bundle": contender.bundle_name,
        "backend": contender.backend,
        "precision": contender.precision,
        "device": contender.device,
        "threads": contender.threads,
        "reference": reference,
        "accuracy": accuracy,
        "single_stream": timing(single),
        "multi_stream": timing(streams.get("multi-stream")),
        "offline": {str(size): timing(samples) for size, samples in offline.items()},
        "best_batch": best,
        "callers": {str(count): float(np.mean(rates)) for count, rates in callers.items()},
        "callers_rounds": {str(count): rates for count, rates in callers.items()},
        "server": _server(measured.served.get(name)),
        "clocks": _clocks(clocks),
        "joules_per_1000_images": measured.energy.get(name),
        "fraction_of_matrix_rate": of_matrix,
        "fraction_of_memory_rate": read / ceilings.memory if read and ceilings.memory else None,
        "verdict": verdict(clocks, of_matrix) if clocks else None,
        "failed": measured.failed.get(name, {}),
    }


def peer_row(peer: Peer, labels: NDArray[np.integer], classes: tuple[str, ...]) -> Row:
    """A foreign program's part of the document."""
    score = evaluate(peer.labels, labels, classes)
    return {
        "command": peer.command,
        "accuracy": score.accuracy,
        "interval": [score.low, score.high],
        "tiles": score.tiles,
        "images_per_second": peer.images_per_second,
        "start_seconds": peer.start_seconds,
        "indicative": peer.indicative,
        "images_a_run": peer.images,
        "seconds": peer.seconds,
        "starts": peer.starts,
    }


def warnings(document: Row) -> list[str]:
    """What a reader of the figures has to know before quoting them."""
    found, engines = [], document["engines"]
    latencies = {
        f"{row['engine']}, {scenario}": timed
        for row in engines
        for scenario in ("single-stream", "multi-stream")
        if (timed := row[scenario.replace("-", "_")])
    }
    timings = latencies | {f"{row['engine']}, batch {size}": timed for row in engines for size, timed in row["offline"].items()}
    for row in engines:
        for clock, timed in (row["clocks"] or {}).items():
            if clock == "decoding":  # the same for all
                timings[clock] = timed
            elif clock != "shares":
                timings[f"{row['engine']}, {clock.replace('_', ' ')}"] = timed
    if noisy := [name for name, timed in timings.items() if timed["variation"] > VARIATION]:
        worst = max(noisy, key=lambda name: timings[name]["variation"])
        found.append(
            f"{len(noisy)} of {len(timings)} timings vary by more than {100 * VARIATION:.0f} % (worst: {worst}, "
            f"{100 * timings[worst]['variation']:.0f} %): medians and percentiles are shown, the raw samples are in the JSON."
        )
    if restless := [name for name, timed in timings.items() if not timed["steady"]]:
        found.append(f"{len(restless)} of {len(timings)} warm-ups did not settle within {100 * STEADY:.0f} %: {_listed(restless, 4)}")
    if unsure := sorted(f"{name} {percentile}" for name, timed in latencies.items() for percentile in timed["indicative"]):
        found.append(f"{len(unsure)} percentiles of latency are indicative, fewer than ten samples lie beyond: {_listed(unsure, 3)}")
    found += [f"{row['engine']}, {what}: {reason}" for row in engines for what, reason in row["failed"].items()]
    scores = [row["accuracy"] for row in engines]
    half = max((high - low) / 2 for low, high in (score["interval"] for score in scores))
    if half > _DIGIT:
        found.append(f"With {scores[0]['tiles']:,} test tiles accuracy is known to ±{100 * half:.1f} points (95 %): quote no more digits.")
    if close := [(a, b) for a, b in combinations(engines, 2) if _apart(a, b) and not _told_apart(a, b)]:
        first, second = max(close, key=lambda pair: _apart(*pair))
        found.append(
            f"{len(close)} pairs of engines differ in accuracy by no more than chance (McNemar's exact "
            f"test at 5 %; most: {first['engine']} and {second['engine']}, {100 * _apart(first, second):.2f} points): this split can't tell "
            "them apart. Look at the flips."
        )
    if limited := [row["engine"] for row in engines if row["server"] and row["server"]["generator_limited"]]:
        found.append(
            f"{', '.join(limited)}: tiles could not be handed over as fast as the server scenario wanted; the rate is what this program can "
            "generate, not what the engine can answer."
        )
    if slowed := document["environment"]["gpu_throttled_by"]:
        found.append(f"The GPU was throttled while it was measured ({', '.join(slowed)}): cool it, or raise its power limit.")
    if beyond := [row["engine"] for row in engines if (row["fraction_of_matrix_rate"] or 0) > 1]:
        found.append(f"{', '.join(beyond)}: faster than the matrix products meant as the ceiling; no share of it is given.")
    if other := [bundle["name"] for bundle in document["bundles"] if not bundle["same_split"]]:
        found.append(
            f"The dataset's split is not the one that {', '.join(other)} was trained on: test tiles may have been seen in training."
        )
    return found


def _listed(names: list[str], most: int) -> str:
    """The first of them, to the end of the sentence; names have commas of their own."""
    return "; ".join(names[:most]) + ("; ..." if len(names) > most else ".")


def _told_apart(first: Row, second: Row) -> bool:
    """Whether the tiles that one of two engines alone has wrong are divided too unevenly for chance."""
    wrong, others = (set(row["accuracy"]["wrong"]) for row in (first, second))
    return mcnemar(len(wrong - others), len(others - wrong)) < 0.05


def _apart(first: Row, second: Row) -> float:
    return abs(float(first["accuracy"]["accuracy"]) - float(second["accuracy"]["accuracy"]))


def _server(found: ServerRate | None) -> Row | None:
    if found is None:
        return None
    latency = found.latency
    return {
        "rate": found.rate,
        "lowest_tried": found.lowest_tried,
        "at_least": found.at_least,
        "bound_ms": 1e3 * found.bound,
        "p99_ms": latency.milliseconds(99) if latency else None,
        "indicative": bool(latency and not latency.tells(99)),
        "seconds": _raw(latency) if latency else [],
        "generator_limited": found.generator_limited,
        "trials": [
            {"rate": trial.rate, "within": trial.within, "queries": len(trial.seconds), "generator_late": trial.late}
            for trial in found.trials
        ],
    }


def _clocks(clocks: Clocks | None) -> Row | None:
    if clocks is None:
        return None
    parts = {"engine": clocks.engine, "host_to_host": clocks.host, "file_to_label": clocks.whole, "decoding": clocks.decode}
    return {**{name: timing(each) for name, each in parts.items()}, "shares": clocks.shares()}


def _raw(samples: Samples) -> list[float]:
    return [round(seconds, 7) for seconds in samples.seconds]
