"""The tiles of rmldnn's folders as a `Dataset`.

dataset = labelled(Path("data/train"), Path("data/valid"))       # splits "train" and "valid"
dataset = unlabelled(Path("data/test"))                          # split "test", every image below the folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import posixpath
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..data.dataset import Dataset, Leaks, Tile
from ..data.decode import EXTENSIONS, FAULTS, FORMATS, decode_rgb
from ..data.geotiff import MAX_SIDE
from ..data.scan import SplitRule, scan
from ..data.sources import Source, Unreadable, open_source
from ..errors import InputError

Progress = Callable[[int, int], None]
_COLOURS = ("L", "LA", "P", "RGBA")  # of Pillow's modes, those of 8 bits that RGB is made of without a choice; transparency is dropped


@dataclass(frozen=True, kw_only=True)
class AsGiven(Dataset):
    """Tiles of which some are grey, have a palette or are transparent: they are read as RGB. resized: some are of other sizes, too."""

    resized: bool = False

    def content(self, source: Source, name: str) -> bytes:
        return _Prepared((self.width, self.height) if self.resized else None)(source.read(name))


@dataclass(frozen=True)
class _Prepared:
    """What is made of a file's content: RGB and, where a size (width, height) is given, of that size, bilinear."""

    size: tuple[int, int] | None = None

    def __call__(self, content: bytes) -> bytes:
        content = as_rgb(content)
        if not self.size:
            return content
        try:
            image = Image.fromarray(decode_rgb(content))
        except InputError:  # whoever decodes it says so
            return content
        return content if image.size == self.size else _bmp(image.resize(self.size, Image.Resampling.BILINEAR))


def as_rgb(content: bytes) -> bytes:
    """An image of other colours as RGB, in a BMP; any other content as it is, since whoever decodes it says what is wrong. InputError for one
    of other colours that is damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except FAULTS:
        return content
    if image.mode not in _COLOURS or max(image.size) > MAX_SIDE:
        return content
    try:
        with warnings.catch_warnings(action="ignore"):
            return _bmp(image.convert("RGB"))
    except FAULTS as error:
        raise InputError(f"corrupt or cut short ({error})") from None


def _bmp(image: Image.Image) -> bytes:
    image.save(written := io.BytesIO(), "BMP")  # no compression: the same bytes everywhere
    return written.getvalue()


def labelled(
    train: Path, valid: Path, on_progress: Progress = lambda done, total: None, resizes: bool = False, workers: int = 2
) -> AsGiven:
    """Two folders of class folders, as the splits "train" and "valid" of one dataset.

    resizes: the transforms begin with a resize, so that tiles may be of any size: those of another than most train tiles have are
    resized to that. workers: processes that decode. InputError where classes differ, or sizes without it, or where one folder is both.
    """
    if train.resolve() == valid.resolve():
        raise InputError(f"data.input_path and data.test_input_path are both {train}: a network is judged on tiles that it has not seen.")
    counts = [_sizes(path) for path in (train, valid)] if resizes else []
    several = len(set().union(*counts)) > 1
    size = counts[0].most_common(1)[0][0] if several and counts[0] else None
    scans = [_scanned(path, workers, on_progress, size) for path in (train, valid)]
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
    return _as_given(
        first, source=root, split="folders", all_tiles=tuple(tiles), left_out=left_out, leaks=Leaks(), resized=size is not None
    )


def unlabelled(path: Path, resizes: bool = False) -> AsGiven:
    """Every image below a folder, in order of their names; what is no image by its name is left out. InputError for a file or folder that can't
    be read, and for an image of another size than the first; resizes: it is resized to that."""
    tiles: list[Tile] = []
    left_out: dict[str, str] = {}
    size, first, odd = (0, 0), "", False
    if not path.exists():
        raise InputError(f"{path} does not exist. Check data.test_input_path (paths begin where the command is run).")
    with open_source(path) as source:
        for name in source.names():
            if posixpath.splitext(name)[1].lower() not in EXTENSIONS:
                left_out[name] = f"not an image by its name ({', '.join(sorted(EXTENSIONS))})"
                continue
            try:
                content = as_rgb(source.read(name))
                height, width, _ = decode_rgb(content).shape
            except Unreadable as error:
                raise InputError(f"{path / name}: {error.fault}. Fix it, or remove it.") from None
            except InputError as error:
                raise InputError(f"{path / name}: {error}. Fix it, or remove it.") from None
            if not tiles:
                size, first = (height, width), name
            if (height, width) != size and resizes:
                odd, content = True, _Prepared(size[::-1])(content)
            elif (height, width) != size:
                raise InputError(f"{path / name} has {width}x{height} pixels, {first} {size[1]}x{size[0]}. Give tiles of one size.")
            tiles.append(Tile(name, 0, "test", hashlib.sha256(content).hexdigest(), len(content)))
        if irregular := next(iter(source.irregular.items()), None):  # tiles perhaps, without which the accuracy would be another
            raise InputError(f"{path / irregular[0]}: {irregular[1]}. Fix it, or remove it.")
    names = {tile.name for tile in tiles}
    if both := sorted({str(folder) for name in names for folder in PurePosixPath(name).parents} & names):
        raise InputError(f"{path} holds {both[0]!r} both as an image and as a folder. Rename one of them.")
    if not tiles:
        raise InputError(f"{path} holds no image ({', '.join(sorted(EXTENSIONS))}). Check data.test_input_path.")
    return AsGiven(
        source=str(path.resolve()),
        classes=("unknown",),
        height=size[0],
        width=size[1],
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        split="folders",
        seed=0,
        all_tiles=tuple(tiles),
        left_out=left_out,
        resized=odd,
    )


def on_both_sides(dataset: Dataset) -> int:
    """How many of the tiles to validate with are to be trained on as well, byte for byte."""
    seen = {tile.sha256 for tile in dataset.tiles("train")}
    return sum(tile.sha256 in seen for tile in dataset.tiles("valid"))


def known_by_folder(dataset: AsGiven) -> AsGiven:
    """The same tiles with the folder that each lies in as its class. InputError for one that lies in none."""
    folders = [PurePosixPath(tile.name).parent.name for tile in dataset.all_tiles]
    if "" in folders:
        name = dataset.all_tiles[folders.index("")].name
        raise InputError(f"{dataset.source} has {name!r} in no class folder. Put it in one, or take target_type out.")
    classes = tuple(sorted(set(folders)))
    tiles = tuple(replace(tile, label=classes.index(folder)) for tile, folder in zip(dataset.all_tiles, folders, strict=True))
    return replace(dataset, classes=classes, all_tiles=tiles)


def _as_given(dataset: Dataset, **changes: Any) -> AsGiven:
    values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
    return AsGiven(**{**values, **changes})


def _sizes(path: Path) -> Counter[tuple[int, int]]:
    """How many images of each size (width, height) lie below a folder, by what their files say; none of what is no folder."""
    found: Counter[tuple[int, int]] = Counter()
    if path.is_dir():
        with open_source(path) as source:
            for name in source.names():
                if posixpath.splitext(name)[1].lower() in EXTENSIONS:
                    with (
                        contextlib.suppress(*FAULTS),
                        warnings.catch_warnings(action="ignore"),
                        Image.open(path / name, formats=FORMATS) as image,
                    ):
                        found[image.size] += 1  # its header alone was read
    return found


def _scanned(path: Path, workers: int, on_progress: Progress, size: tuple[int, int] | None = None) -> Dataset:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder. Give a folder of class folders (paths begin where the command is run).")
    dataset = scan(path, SplitRule((1, 0, 0)), workers, on_progress, convert=_Prepared(size))
    if dataset.split == "folders":
        raise InputError(f"{path} is divided into train/, valid/ or the like. Give the one that is meant, such as {path / 'train'}.")
    if dataset.dtype != "uint8":
        raise InputError(f"{path} holds tiles of {len(dataset.bands)} bands; rmldnn's images are 8-bit RGB. Train with `sattrt train`.")
    return dataset
