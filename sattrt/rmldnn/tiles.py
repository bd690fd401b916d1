"""The tiles of rmldnn's folders as a `Dataset`.

dataset = labelled(Path("data/train"), Path("data/valid"))       # splits "train" and "valid"
dataset = unlabelled(Path("data/test"))                          # split "test", every image below the folder
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import posixpath
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from ..data.dataset import Dataset, Tile
from ..data.decode import EXTENSIONS, FORMATS, MAX_SIDE, decode_rgb
from ..data.scan import SplitRule, scan
from ..data.sources import Source, open_source
from ..errors import InputError
from ..machine import cores

Progress = Callable[[int, int], None]
_COLOURS = ("L", "LA", "P", "RGBA")  # of Pillow's modes, those of 8 bits that RGB is made of without a choice; transparency is dropped


@dataclass(frozen=True, kw_only=True)
class AnyColour(Dataset):
    """Tiles of which some are grey, have a palette or are transparent: they are read as RGB."""

    def content(self, source: Source, name: str) -> bytes:
        return as_rgb(source.read(name))


def as_rgb(content: bytes) -> bytes:
    """An image of other colours as RGB, in a BMP; any other content as it is, since whoever decodes it says what is wrong."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.mode not in _COLOURS or max(image.size) > MAX_SIDE:
                return content
            image.convert("RGB").save(written := io.BytesIO(), "BMP")
            return written.getvalue()
    except (OSError, ValueError, TypeError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return content


def labelled(train: Path, valid: Path, on_progress: Progress = lambda done, total: None) -> Dataset:
    """Two folders of class folders, as the splits "train" and "valid" of one dataset. InputError where their classes or sizes differ, or
    where one folder is both."""
    if train.resolve() == valid.resolve():
        raise InputError(f"data.input_path and data.test_input_path are both {train}: a network is judged on tiles that it has not seen.")
    scans = [_scanned(path, on_progress) for path in (train, valid)]
    first, second = scans
    for name in sorted(set(first.classes) ^ set(second.classes)):
        there, lacking = (train, valid) if name in first.classes else (valid, train)
        raise InputError(f"{there} has the class {name!r}, {lacking} has not. Give both folders the same class folders.")
    if (first.width, first.height) != (second.width, second.height):
        sizes = f"{first.width}x{first.height} pixels, those of {valid} {second.width}x{second.height}"
        raise InputError(f"The tiles of {train} have {sizes}. Cut them alike.")
    root = os.path.commonpath([each.source for each in scans])
    tiles: list[Tile] = []
    left_out: dict[str, str] = {}
    for each, split in zip(scans, ("train", "valid"), strict=True):
        folder = PurePosixPath(os.path.relpath(each.source, root))
        tiles += [replace(tile, name=str(folder / tile.name), split=split) for tile in each.all_tiles]
        left_out |= {str(folder / name): reason for name, reason in each.left_out.items()}
    return _any_colour(first, source=root, split="folders", all_tiles=tuple(tiles), left_out=left_out)


def unlabelled(path: Path) -> Dataset:
    """Every image below a folder, in order of their names. InputError for one that can't be read, or is of another size."""
    tiles: list[Tile] = []
    size, first = (0, 0), ""
    with open_source(path) as source:
        for name in source.names():
            if posixpath.splitext(name)[1].lower() not in EXTENSIONS:
                continue
            content = as_rgb(source.read(name))
            try:
                height, width, _ = decode_rgb(content).shape
            except InputError as error:
                raise InputError(f"{path / name}: {error}. Mend it, or take it out.") from None
            if not tiles:
                size, first = (height, width), name
            if (height, width) != size:
                raise InputError(f"{path / name} has {width}x{height} pixels, {first} {size[1]}x{size[0]}. Give tiles of one size.")
            tiles.append(Tile(name, 0, "test", hashlib.sha256(content).hexdigest(), len(content)))
    if not tiles:
        raise InputError(f"{path} holds no image ({', '.join(sorted(EXTENSIONS))}). Check data.test_input_path.")
    return AnyColour(
        source=str(path.resolve()),
        classes=("unknown",),
        height=size[0],
        width=size[1],
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        split="folders",
        seed=0,
        all_tiles=tuple(tiles),
        left_out={},
    )


def on_both_sides(dataset: Dataset) -> int:
    """How many of the tiles to validate with are to be trained on as well, byte for byte."""
    seen = {tile.sha256 for tile in dataset.tiles("train")}
    return sum(tile.sha256 in seen for tile in dataset.tiles("valid"))


def known_by_folder(dataset: Dataset) -> Dataset:
    """The same tiles with the folder that each lies in as its class. InputError for one that lies in none."""
    folders = [PurePosixPath(tile.name).parent.name for tile in dataset.all_tiles]
    if "" in folders:
        name = dataset.all_tiles[folders.index("")].name
        raise InputError(f"{dataset.source} has {name!r} in no class folder. Put it in one, or take target_type out.")
    classes = tuple(sorted(set(folders)))
    tiles = tuple(replace(tile, label=classes.index(folder)) for tile, folder in zip(dataset.all_tiles, folders, strict=True))
    return replace(dataset, classes=classes, all_tiles=tiles)


def _any_colour(dataset: Dataset, **changes: object) -> AnyColour:
    values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
    return AnyColour(**{**values, **changes})


def _scanned(path: Path, on_progress: Progress) -> Dataset:
    if not path.is_dir():
        raise InputError(f"{path} is no folder. Give a folder of class folders (paths begin where the command is run).")
    dataset = scan(path, SplitRule((1, 0, 0)), cores(), on_progress, convert=as_rgb)
    if dataset.split == "folders":
        raise InputError(f"{path} is divided into train/, valid/ or the like. Give the one that is meant, such as {path / 'train'}.")
    if dataset.dtype != "uint8":
        raise InputError(f"{path} holds tiles of {len(dataset.bands)} bands; rmldnn's images are 8-bit RGB. Train with `sattrt train`.")
    return dataset
