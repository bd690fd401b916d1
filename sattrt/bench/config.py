"""How a bench is run: one frozen dataclass, recorded in the report, overridable from a TOML file or by --set.

config = BenchConfig.from_toml(Path("bench.toml"), seconds=10.0)
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..settings import Settings

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """Every choice of a bench.

    engines: names of the engines to measure, separated by commas ("openvino-int8,onnxruntime-fp32"); empty for all. The trained network
    ("torch-eager-fp32") is timed if none or it is named; it always answers, since flips are counted against it.
    scenarios: some of these, separated by commas (after MLPerf inference, Reddi et al., 2020): one tile after another; eight
    tiles per query; all tiles at once, over a sweep of batch sizes; single tiles at random moments.
    seconds: how long each engine is timed, after its warm-up, in each scenario and at each batch size.
    batches: sizes of the offline sweep, separated by commas.
    clock_batch: tiles per batch for the three clocks: the engine alone, host to host, file to label.
    threads: CPU threads of an engine, 0 for all cores; with several, separated by commas, every engine is measured with each.
    streams: how many callers at once ask an engine in the offline scenario, at its best batch size; separated by commas.
    latency_bound: milliseconds within which 99 % of the answers must come in the server scenario.
    seed: of the order of engines, the order of tiles, and the moments of arrival.
    run: the run folder for PyTorch's row; empty for the one that the bundle was exported from.
    peer_seconds: how long a foreign program may take for all tiles before it is stopped.
    """

    engines: str = ""
    scenarios: str = ",".join(SCENARIOS)
    seconds: float = 3.0
    batches: str = "1,4,16,64,128"
    clock_batch: int = 64
    threads: str = "0"
    streams: str = "1,2"
    latency_bound: float = 50.0
    seed: int = 0
    run: str = ""
    peer_seconds: float = 120.0

    def __post_init__(self) -> None:
        """InputError for a value that can't be measured with."""
        if unknown := set(_split(self.scenarios)) - set(SCENARIOS):
            raise InputError(f"The scenario {min(unknown)!r} is unknown; choose some of {', '.join(SCENARIOS)}.")
        faults = {
            f"engines is {self.engines!r}; give names with commas between, or nothing for all": bool(
                self.engines and not self.engine_names
            ),
            f"seconds is {self.seconds}; give 0.1 to 3600": not 0.1 <= self.seconds <= 3600,
            f"latency_bound is {self.latency_bound}; give 0.1 to 60,000 milliseconds": not 0.1 <= self.latency_bound <= 60_000,
            f"peer_seconds is {self.peer_seconds}; give 1 to 86,400": not 1 <= self.peer_seconds <= 86_400,
            f"batches is {self.batches!r}; give numbers of 1 to 4096 with commas between": not _numbers(self.batches, 1, 4096),
            f"threads is {self.threads!r}; give numbers of 0 to 1024 with commas between": not _numbers(self.threads, 0, 1024),
            f"streams is {self.streams!r}; give numbers of 1 to 64 with commas between": not _numbers(self.streams, 1, 64),
            f"clock_batch is {self.clock_batch}; give 1 to 4096": not 1 <= self.clock_batch <= 4096,
            f"seed is {self.seed}; give 0 or more": self.seed < 0,
        }
        self.refuse("bench", faults)

    def wants(self, scenario: str) -> bool:
        """Whether a scenario is to be measured."""
        return scenario in _split(self.scenarios)

    @property
    def engine_names(self) -> tuple[str, ...]:
        """Engines that are measured; none where all are."""
        return tuple(_split(self.engines))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes of the sweep, in order."""
        return tuple(sorted(_numbers(self.batches, 1, 4096)))

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """CPU threads that every engine is measured with."""
        return _numbers(self.threads, 0, 1024)

    @property
    def stream_counts(self) -> tuple[int, ...]:
        """Callers at once in the offline scenario."""
        return _numbers(self.streams, 1, 64)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str, least: int, most: int) -> tuple[int, ...]:
    """The numbers of a list, each once; none where something in it is no number of that range."""
    parts = _split(text)
    if not all(part.isdecimal() and len(part) < 6 and least <= int(part) <= most for part in parts):
        return ()
    return tuple(dict.fromkeys(int(part) for part in parts))
