"""How a run is exported: one frozen dataclass, recorded in the bundle, overridable from a TOML file or by --set.

config = ExportConfig.from_toml(Path("export.toml"), precision="int8")
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..settings import Settings

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
# what TensorRT-RTX can target, ahead of time and without a GPU; Hopper (9.0) is not among it
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# what a precision that fails the gate is replaced by, under best_effort
FALL_BACK = {"fp8": "fp16", "int8": "fp16", "bf16": "fp32", "fp16": "fp32"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Every choice of an export.

    precision: some of fp32, fp16, bf16, int8, fp8, separated by commas, the preferred one first, or "all"; fp32 is always built, last if not named.
    gate: percentage points of validation accuracy that an engine may lose against fp32. best_effort: replace an engine that fails the gate by the next
    simpler precision (int8, fp16, fp32), without an error.
    error_rate: percent of wrong answers among those that are not rejected; each engine's reject threshold is chosen for it.
    symmetries: average over the symmetries of a tile inside the graph (test-time augmentation: eight times the work).
    rebuild: build plans again even if the bundle that is replaced has them.
    calibration_tiles: train tiles for the calibration of int8 and fp8, balanced over the classes.
    optimised: also keep each graph as ONNX Runtime rewrites it, for machines like this one: it opens faster and in less memory.
    min_batch: the fewest tiles that a plan accepts at once. opt_batch: the batch size that it is tuned for. max_batch: the most tiles that a plan accepts at once.
    compute_capabilities: the targets of TensorRT-RTX plans, separated by commas, such as "8.6,8.9"; empty for all that the precision runs on.
    version_compatible: plans that the lean runtime of the same TensorRT version can load too. hardware_compatible: plans for Ampere and
    later, TensorRT's alone. strip_weights: plans without weights, of 8-bit tiles and TensorRT's alone, refitted from the ONNX file as they are opened.
    """

    precision: str = "fp32,fp16,bf16,int8"  # fp8 costs more accuracy, and is for the newest GPUs alone
    gate: float = 0.2
    best_effort: bool = False
    error_rate: float = 1.0
    symmetries: bool = False
    rebuild: bool = False
    calibration_tiles: int = 512
    optimised: bool = False
    min_batch: int = 1
    opt_batch: int = 64
    max_batch: int = 256
    compute_capabilities: str = ""
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False

    @classmethod
    def option(cls, key: str) -> str:
        """The command's own option for a setting."""
        return "--tta" if key == "symmetries" else super().option(key)

    def __post_init__(self) -> None:
        """InputError for a value that can't be exported with."""
        if unknown := [name for name in self.precisions if name not in PRECISIONS]:
            raise InputError(f"The precision {unknown[0]!r} is unknown; choose all, or some of {', '.join(PRECISIONS)}.")
        if unknown := [name for name in self.capabilities if name not in CAPABILITIES]:
            raise InputError(f"TensorRT-RTX knows no compute capability {unknown[0]!r}; choose some of {', '.join(CAPABILITIES)}.")
        faults = {
            f"gate is {self.gate}; give 0 to 100 percentage points": not 0 <= self.gate <= 100,
            f"error_rate is {self.error_rate}; give 0 to 100 percent": not 0 <= self.error_rate <= 100,
            f"calibration_tiles is {self.calibration_tiles}; give 1 to 1024, what a run carries": not 1 <= self.calibration_tiles <= 1024,
            f"min_batch, opt_batch, max_batch are {self.min_batch}, {self.opt_batch}, {self.max_batch}; give them in order, 1 to 4096": not 1
            <= self.min_batch
            <= self.opt_batch
            <= self.max_batch
            <= 4096,
        }
        self.refuse("export", faults)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What is to be built, the preferred first."""
        names = PRECISIONS if self.precision == "all" else tuple(name.strip() for name in self.precision.split(","))
        return tuple(dict.fromkeys((*names, "fp32")))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What TensorRT-RTX plans are to be built for; empty for all that a precision runs on."""
        return tuple(dict.fromkeys(name.strip() for name in self.compute_capabilities.split(",") if name.strip()))
