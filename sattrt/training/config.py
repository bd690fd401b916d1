"""How a run is trained: one frozen dataclass, saved with the run, overridable from a TOML file.

config = TrainConfig.from_toml(Path("my.toml"), epochs=5)
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import InputError
from ..model import TUNES
from ..spec import read_bytes

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every choice of a training run.

    weights: "imagenet", "none" or a path. tune: "all", "head" or "bn".
    epochs: passes over the train split. minutes: a bound on the training time; as many epochs are run as fit
    in it, and a class-balanced share of the train split where not even one does.
    batch_size: tiles per optimizer step, over all ranks together.
    learning_rate: the peak of a one-cycle schedule: linear warm-up over the share `warmup` of all steps, then
    half a cosine to zero (Smith and Topin, 2018; Loshchilov and Hutter, 2017).
    momentum: of SGD, in Nesterov's form. weight_decay: on weights of two or more dimensions only.
    label_smoothing: Szegedy et al., 2016.
    precision: "auto" is bf16 where the hardware has it, fp16 with a gradient scaler on older GPUs, else fp32.
    seed: of the new head, the order of tiles and their augmentation.
    threads: CPU threads per rank for DALI and torch; 0 divides the machine's cores among its ranks.
    """

    weights: str = "imagenet"
    tune: str = "all"
    epochs: int = 20
    minutes: float | None = None
    batch_size: int = 64
    learning_rate: float = 0.02
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-5
    label_smoothing: float = 0.1
    precision: str = "auto"
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        """InputError for a value that can't be trained with."""
        faults = {
            f"tune is {self.tune!r}; choose one of {', '.join(TUNES)}": self.tune not in TUNES,
            f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}": self.precision not in PRECISIONS,
            f"epochs is {self.epochs}; give 1 to 1,000,000": not 1 <= self.epochs <= 10**6,
            f"minutes is {self.minutes}; give more than 0, at most 1,000,000": self.minutes is not None and not 0 < self.minutes <= 10**6,
            f"batch_size is {self.batch_size}; give 2 to 65,536": not 2 <= self.batch_size <= 65536,
            f"learning_rate is {self.learning_rate}; give more than 0, at most 1e6": not 0 < self.learning_rate <= 1e6,
            f"warmup is {self.warmup}; give 0 to 1": not 0 <= self.warmup <= 1,
            f"momentum is {self.momentum}; give more than 0 and less than 1": not 0 < self.momentum < 1,
            f"weight_decay is {self.weight_decay}; give 0 to 1": not 0 <= self.weight_decay <= 1,
            f"label_smoothing is {self.label_smoothing}; give 0 to 1": not 0 <= self.label_smoothing < 1,
            f"seed is {self.seed}; give 0 to 2**63 - 1": not 0 <= self.seed < 2**63,
            f"threads is {self.threads}; give 0 to 1024": not 0 <= self.threads <= 1024,
        }
        for fault, found in faults.items():
            if found:
                raise InputError(f"The training setting {fault}.")

    @classmethod
    def from_toml(cls, path: Path | None, **options: Any) -> Self:
        """Settings of a TOML file, then `options` that are not None over them. InputError names an unknown key."""
        try:
            values = tomllib.loads(read_bytes(path).decode()) if path else {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML ({error}). Write lines such as: epochs = 20") from None
        return cls.from_dict(values | {key: value for key, value in options.items() if value is not None}, str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], name: str) -> Self:
        """Settings from a mapping; InputError for an unknown key or a value of the wrong type."""
        kinds = typing.get_type_hints(cls)
        for key, value in values.items():
            if key not in kinds:
                near = difflib.get_close_matches(key, kinds, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(kinds)}."
                raise InputError(f"{name} has the unknown setting {key!r}. {hint}")
            kind = kinds[key]
            allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
            if isinstance(value, bool) or not isinstance(value, (*allowed, int) if float in allowed else allowed):
                raise InputError(f"{name}: {key} is {value!r}; give a {getattr(kind, '__name__', kind)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for JSON."""
        return dataclasses.asdict(self)


def learning_rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (0-based) of `steps`."""
    warm = config.warmup * steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def fit_in_time(epochs: int, tiles: int, validation: int, rate: float, seconds: float) -> tuple[int, int]:
    """Epochs and tiles per epoch that fit in `seconds` at `rate` training tiles a second.

    A validated tile counts as a third of a trained one (one pass of three). At least one epoch of one tile.
    """
    room = rate * seconds
    whole = int(room / (tiles + validation / 3))
    if whole >= 1:
        return min(epochs, whole), tiles
    return 1, max(1, min(tiles, int(room - validation / 3)))
