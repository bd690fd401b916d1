"""The contract that travels with every artefact, and the only way sattrt writes files.

`ModelSpec` is written once, by training, and read by every later stage. Normalisation numbers,
class order and input layout live here and nowhere else.

    spec = ModelSpec.read(Path("run/spec.json"))
    spec.classes[3]
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ContractError, InputError

SCHEMA = 1
DTYPES = {"uint8": 255, "uint16": 65535}  # of tiles, with their largest value
_TOKEN_BYTES = 4  # of the random part of a temporary name
MOST_OFFSET = 10_000  # digital numbers: what reflects all light has as many
A_DAY = 86_400.0  # seconds; whoever has not touched a temporary folder for that long is dead
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
    offset: digital numbers that were taken off tiles whose tags don't say it; None where the user didn't either.
    file_bands: those that a file of the dataset holds, in its order, of which `bands` are taken; none of RGB.
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
        values = {key: value for key, value in data.items() if key != "schema"}
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


def check_schema(data: Any, path: Path, schema: int) -> None:
    """ContractError unless `data` is a JSON object of this schema version."""
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise ContractError(
            f"{path} has schema {found!r}; this sattrt reads schema {schema}. "
            "Make the file again with this version, or install the version that wrote it."
        )


def read_json(path: Path) -> Any:
    """Parse a JSON file; InputError where it is missing, ContractError where it is no JSON."""
    return parse_json(read_bytes(path), path)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a key that comes twice, of which another reader might take the other value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)[:60]!r} comes twice in one object")
    return found


def parse_json(content: bytes, path: Path) -> Any:
    """Parse the content of a JSON file; ContractError where it is no JSON."""
    try:
        return json.loads(content, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        commented = isinstance(error, json.JSONDecodeError) and error.doc.startswith(("//", "/*", "#"), error.pos)
        reason = f"{error}; JSON has no comments" if commented else str(error)
        raise ContractError(f"{path} is not readable JSON ({reason}). Correct it, make it again, or restore it.") from None


def read_bytes(path: Path) -> bytes:
    """The content of a file; InputError where it can't be read."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file. Check the path.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Can't read {path}: {error.strerror}. Check the path and its permissions.") from None


def is_file(path: Path) -> bool:
    """Whether there is a file; InputError where the system doesn't tell, as of a name that is too long or a folder without permission."""
    try:
        return path.is_file()
    except OSError as error:
        raise InputError(f"Can't read {path}: {error.strerror}. Check the path and its permissions.") from None


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file; InputError where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Can't read {path}: {error.strerror}. Check the path and its permissions.") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, two spaces of indentation, a newline at the end."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes, setting: str = "--out") -> None:
    """Write a file atomically. setting: as `atomic_path` has it."""
    with atomic_path(path, setting) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_path(path: Path, setting: str = "--out") -> Iterator[Path]:
    """A temporary name in the folder of `path`; it becomes `path` when the block ends without an error.

    A killed process leaves the old file or the new one, never half. InputError where the folder can't be
    written or the disk is full; the old file is still there then. setting: where `path` came from, for that error; "" where it can't be chosen.
    What a link leads to is replaced, not the link. A device or a pipe, as /dev/stdout, is not replaced but written to.
    """
    if _is_written_to(path):
        try:
            yield path
        except BrokenPipeError:  # whoever read it has what it wanted
            raise
        except OSError as error:
            raise unwritable(path, error, setting) from None
        return
    if path.parent in (Path("/dev"), Path("/dev/fd")):
        raise InputError(f"{path} leads to the file {os.path.realpath(path)}, which would be replaced. Give that path itself.")
    path = _target(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error, setting) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The path that is written where `path` is: what a link leads to, any other as it is, absolute."""
    return Path(os.path.realpath(path) if path.is_symlink() else os.path.abspath(path))


def _is_written_to(path: Path) -> bool:
    """Whether it is a device or a pipe, which no file takes the place of."""
    return path.exists() and not path.is_file() and not path.is_dir()


def remove_temporaries(*paths: Path, seconds: float = 0) -> None:
    """Delete what processes that were killed within `atomic_path(path)` or `atomic_folder(path)` left.

    seconds: how long ago it was touched last, at least; with 0 nothing else may be writing these now.
    """
    for path in map(_target, paths):
        for left in path.parent.glob(f".{glob.escape(path.name)}.{2 * _TOKEN_BYTES * '[0-9a-f]'}.*"):
            with contextlib.suppress(OSError):
                touched = max(each.lstat().st_mtime for each in (left, *left.glob("*")))
                if time.time() - touched < seconds:
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path, setting: str = "--out") -> Iterator[Path]:
    """Like `atomic_path`, for a folder: the old folder is replaced as a whole, or kept as a whole. InputError where a file is in its place."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, not a folder: it is not replaced. Choose another {setting}.")
    path, token = Path(os.path.realpath(path)), secrets.token_hex(_TOKEN_BYTES)  # what a link leads to is replaced, not the link
    require_replaceable(path, setting)
    temporary, old = (path.with_name(f".{path.name}.{token}.{end}") for end in ("tmp", "old"))
    if path.exists():  # else what a killed process put aside may be all that there is of it
        remove_temporaries(path, seconds=A_DAY)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not path.exists():
            os.replace(temporary, path)
        elif not _exchange(path, temporary):
            os.replace(path, old)
            os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error, setting) from None
    finally:
        if old.exists() and not path.exists():  # stopped between the two, by a signal too
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def require_replaceable(path: Path, setting: str = "--out") -> None:
    """InputError for a folder that can't be replaced as a whole: better now than after the work."""
    if os.path.ismount(path):
        raise InputError(f"{path} is a mount point, which can't be replaced as a whole. Choose a folder in it: {setting} {path / 'NAME'}")


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's names in one step, so that a kill finds the one or the other in place; whether that can be done here.

    Source: renameat2(2), which Linux and most of its file systems know.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0)


def require_space(path: Path, size: int) -> None:
    """InputError unless the disk that `path` will lie on has `size` bytes left: better now than after an hour of work."""
    place = _nearest(_target(path))
    if (free := shutil.disk_usage(place).free) < size:
        raise InputError(
            f"The disk is full: {path} needs {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free. Free some space, or choose another --out."
        )


def require_writable(path: Path, setting: str = "--out") -> None:
    """InputError where `path` can't be made, for what lies in the way of its folder or for want of a right: better now than after the work."""
    if _is_written_to(path):
        return
    place = _nearest(_target(path).parent)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"Can't write {path}: {place} is {'read-only' if place.is_dir() else 'not a folder'}. {f'Choose another {setting}' if setting else 'Check its permissions'}."
        )


def _nearest(path: Path) -> Path:
    """The path, or the first of the folders above it that is there, be it a link to nothing."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))


def unwritable(path: Path, error: OSError, setting: str = "--out") -> InputError:
    """The one-line error for a file that can't be written. setting: what says where it is to be; "" where that can't be chosen."""
    full = error.errno == errno.ENOSPC
    said = f"The disk is full: {path} was not written." if full else f"Can't write {path}: {error.strerror or error}."
    if not setting:
        return InputError(f"{said} {'Free some space' if full else 'Check the permissions of its folder'}.")
    return InputError(f"{said} {'Free some space, or choose' if full else 'Choose'} another {setting}.")
