"""The contract that travels with every artefact.

`ModelSpec` is written once, by training, and read by every later stage. Normalisation numbers,
class order and input layout live here and nowhere else.

    spec = ModelSpec.read(Path("run/spec.json"))
    spec.classes[3]
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ContractError
from .files import check_schema, read_json, write_json

SCHEMA = 1
DTYPES = {"uint8": 255, "uint16": 65535}  # of tiles, with their largest value
MOST_OFFSET = 10_000  # digital numbers: what reflects all light has as many
RESNET50, KERAS_RESNET50 = "resnet50", "keras-resnet50"  # torchvision's (v1.5), and Keras' (v1)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What goes into the network, what comes out, and where it came from.

    classes: names in index order.
    height, width: of the tile that the graph takes, in pixels.
    bands: names of the channels, in order.
    dtype: of a tile: "uint8" (red, green, blue), or "uint16" (digital numbers of Sentinel-2's bands).
    mean, std: per band, of values scaled to 0..1 by the largest of their dtype; applied inside the graph.
    resize: side in pixels that the graph resizes a tile to (bilinear) before the network; 0 leaves it as it is.
    views: how many symmetries of a tile the graph averages the logits over (test-time augmentation); 1 is the tile alone.
    architecture: "resnet50" or "keras-resnet50"; a bundle's graphs hold the network itself, only a run is read by it.
    temperature: the logits are divided by it before the softmax.
    gsd: ground sampling distance of the tiles, the metres of ground that a pixel shows along a side; None where it isn't known.
    offset: digital numbers that were taken off tiles whose tags don't say it; None where the user didn't either, and in older contracts.
    file_bands: those that a file of the dataset holds, in its order, of which `bands` are taken; none of RGB, and in older contracts.
    dataset_digest: sha256 of the split that the network was trained on.
    training: a summary for people (epochs, best accuracy, precision, device, the data); what `export` and `shift` read of it.
    """

    classes: tuple[str, ...]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset_digest: str
    bands: tuple[str, ...] = ("red", "green", "blue")
    layout: str = "NHWC"
    dtype: str = "uint8"
    resize: int = 0
    views: int = 1
    output: str = "probabilities"
    output_meaning: str = "softmax over the classes, in index order"
    architecture: str = RESNET50
    temperature: float = 1.0
    gsd: float | None = None
    offset: int | None = None
    file_bands: tuple[str, ...] = ()
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the spec as JSON, atomically."""
        write_json(path, {"schema": SCHEMA, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> ModelSpec:
        """Read a spec; ContractError for an unknown schema, a missing or unknown field, a wrong type."""
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, data: Any, path: Path) -> ModelSpec:
        """Build a spec from parsed JSON; `path` is named in the errors."""
        check_schema(data, path, SCHEMA)
        fields = [field.name for field in dataclasses.fields(cls)]
        values = {"offset": None, "file_bands": []} | {key: value for key, value in data.items() if key != "schema"}
        if missing := sorted(set(fields) - set(values)):
            raise ContractError(f"{path} lacks the field {missing[0]!r}. Export the bundle or train the run again.")
        if unknown := sorted(set(values) - set(fields)):
            raise ContractError(f"{path} has the unknown field {unknown[0]!r}. It comes from another sattrt version.")
        for name in ("classes", "bands", "file_bands", "mean", "std"):
            values[name] = _tuple_of(values[name], float if name in ("mean", "std") else str, name, path)
        spec = cls(**values)
        spec._check(path)
        return spec

    def _check(self, path: Path) -> None:
        texts = (self.dataset_digest, self.layout, self.dtype, self.output, self.output_meaning, self.architecture)
        fault = None
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.training, dict):
            fault = "has a field of the wrong type"
        elif not all(isinstance(side, int) and 0 < side <= 65536 for side in (self.height, self.width)):
            fault = f"has the input size {self.width}x{self.height}"
        elif len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            fault = "needs at least two different class names"
        elif not _is_text("".join((*self.classes, *self.bands, *self.file_bands))):
            fault = "has a class or band whose name is not text"
        elif not len(self.bands) == len(self.mean) == len(self.std) or not all(self.std):
            fault = "has bands, mean and std that don't match"
        elif self.file_bands and not set(self.bands) <= set(self.file_bands):
            fault = f"takes {', '.join(self.bands)} of files that hold {', '.join(self.file_bands)}"
        elif not (type(self.temperature) in (int, float) and 0 < self.temperature <= 1e6):
            fault = f"has the temperature {self.temperature!r}"
        elif self.gsd is not None and not (type(self.gsd) in (int, float) and 0 < self.gsd <= 1e6):
            fault = f"has the ground sampling distance {self.gsd!r}"
        elif self.offset is not None and not (type(self.offset) is int and 0 <= self.offset <= MOST_OFFSET and self.dtype == "uint16"):
            fault = f"has the offset {self.offset!r} of {self.dtype} tiles"
        elif self.layout != "NHWC" or self.dtype not in DTYPES:
            fault = f"asks for {self.dtype} {self.layout} input, which this sattrt does not know"
        elif not isinstance(self.resize, int) or not 0 <= self.resize <= 65536 or self.views not in (1, 4, 8):
            fault = f"asks for a resize to {self.resize!r} and {self.views!r} views, which this sattrt does not know"
        elif self.architecture not in (RESNET50, KERAS_RESNET50) or self.output != "probabilities":
            fault = f"describes a {self.architecture} that gives {self.output}, which this sattrt does not know"
        if fault:
            raise ContractError(f"{path} {fault}. Export the bundle or train the run again.")


def _is_text(name: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold halves of a character."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def same_gsd(gsd: float, other: float) -> bool:
    """Whether two ground sampling distances are the same but for a fifth."""
    return 1 / 1.2 <= gsd / other <= 1.2


def _tuple_of(value: Any, kind: type, name: str, path: Path) -> tuple[Any, ...]:
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    sound = isinstance(value, list) and all(isinstance(item, accepted) for item in value)
    if not sound or (kind is float and not all(abs(item) < 1e6 for item in value)):
        raise ContractError(f"{path}: {name!r} is not a list of {kind.__name__}. The file was changed or is damaged.")
    return tuple(kind(item) for item in value)
