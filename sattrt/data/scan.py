"""`sattrt data`: look at every file once, decide its split, and say what is left out and why.

    dataset = scan(Path("EuroSAT_RGB.zip"), SplitRule((94, 5, 1)))

The split follows from the content alone: a tile's sha256, hashed with the seed, is a number in 0..1 that
is held against the wanted shares. The same tile is thus always in the same split, whatever is added beside
it, and every class is divided at the same rates (the counts are random around them, as in any such draw).
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import signal
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from .dataset import SPLITS, Dataset, Tile
from .sources import Source, open_source

EXTENSIONS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_SIDE = 4096
_SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_CHUNK = 256


@dataclass(frozen=True)
class SplitRule:
    """Shares of train, valid and test, in any unit, and the seed of the draw."""

    shares: tuple[float, float, float] = (94.0, 5.0, 1.0)
    seed: int = 0

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> SplitRule:
        """Read "94:5:1". InputError for anything that is not three numbers with a train share above zero."""
        try:
            train, valid, test = (float(part) for part in text.split(":"))
        except ValueError:
            raise InputError(f"--split {text!r} is not three numbers. Write it as 94:5:1.") from None
        if not (train > 0 and valid >= 0 and test >= 0 and train + valid + test < float("inf")):
            raise InputError(f"--split {text!r} needs a train share above 0 and none below 0. Write it as 94:5:1.")
        return cls((train, valid, test), seed)

    def split_of(self, sha256: str) -> str:
        """Split of a tile with this content digest."""
        draw = int(hashlib.sha256(f"{self.seed}:{sha256}".encode()).hexdigest()[:15], 16) / 16**15 * sum(self.shares)
        _, valid, test = self.shares
        return "test" if draw < test else "valid" if draw < test + valid else "train"

    def __str__(self) -> str:
        return ":".join(f"{share:g}" for share in self.shares)


@dataclass(frozen=True)
class _Look:
    """What one look at a file showed: its digest, its pixel sums per channel, or a fault."""

    name: str
    sha256: str
    size: int
    width: int = 0
    height: int = 0
    total: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()
    fault: str = ""


def scan(
    source_path: Path, rule: SplitRule, workers: int = 2, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """Scan a folder or archive into a `Dataset`; files that can't be used are in its `left_out`, with the reason.

    workers: processes that decode. on_progress: called with files done and files in all.
    Raises InputError for a source that can't be read, an empty class, or fewer than two classes.
    """
    looks: list[_Look] = []
    with open_source(source_path) as source:
        layout = _Layout.of(source)
        for look in _look_at_all(source, layout.names, workers):
            looks.append(look)
            on_progress(len(looks), len(layout.names))
    left_out = {**layout.left_out, **{look.name: look.fault for look in looks if look.fault}}
    good = [look for look in looks if not look.fault]
    good, size = _same_size(good, left_out)
    good = _unique(good, layout, left_out)
    index = {name: i for i, name in enumerate(layout.classes)}
    tiles = tuple(Tile(look.name, index[layout.class_of[look.name]], layout.split_of(look, rule), look.sha256, look.size) for look in good)
    _refuse_empty(layout, tiles, left_out)
    train = {tile.name for tile in tiles if tile.split == "train"}
    if not train:
        raise InputError(f"The train split of {source_path} is empty. Choose another --split, or add tiles.")
    mean, std = _statistics([look for look in good if look.name in train])
    return Dataset(
        source=str(source_path.resolve()),
        classes=layout.classes,
        width=size[0],
        height=size[1],
        mean=mean,
        std=std,
        split="folders" if layout.split_folders else str(rule),
        seed=rule.seed,
        all_tiles=tiles,
        left_out=dict(sorted(left_out.items())),
    )


@dataclass(frozen=True)
class _Layout:
    """Which file belongs to which class and, where the folders say so, to which split."""

    path: Path
    names: list[str]
    classes: tuple[str, ...]
    class_of: dict[str, str]
    split_folders: dict[str, str]
    left_out: dict[str, str]

    @classmethod
    def of(cls, source: Source) -> _Layout:
        files = source.names()
        for name in (*files, *source.folders(), *source.irregular):
            if not name.isprintable():
                raise InputError(f"{source.path} holds the name {name!a}, which is not readable text in UTF-8. Rename it.")
        images = [name for name in files if posixpath.splitext(name)[1].lower() in EXTENSIONS]
        if not images:
            raise InputError(f"{source.path} holds no image ({', '.join(sorted(EXTENSIONS))}). Give a folder of class folders.")
        depths = Counter(name.count("/") + 1 for name in images)
        depth = depths.most_common(1)[0][0]
        if depth < 2:
            raise InputError(f"{source.path} has its images in no class folder. Put those of each class in a folder of its own.")
        left_out = dict.fromkeys(source.irregular, "not a regular file")
        left_out |= dict.fromkeys(set(files).difference(images), "not an image file")
        left_out |= {name: "not in a class folder" for name in images if name.count("/") + 1 != depth}
        names = [name for name in images if name not in left_out]
        class_folders = {folder for folder in source.folders() if len(PurePosixPath(folder).parts) == depth - 1}
        roots = {PurePosixPath(folder).parent for folder in class_folders}
        named = {root: _SPLIT_FOLDERS.get(root.name.lower()) for root in roots}
        split_folders: dict[str, str] = {}
        if all(named.values()):
            split_folders = {name: str(named[PurePosixPath(name).parent.parent]) for name in names}
        elif len(roots) > 1:
            first, second = sorted(str(root) for root in roots)[:2]
            raise InputError(
                f"{source.path} has class folders in several places ({first}, {second}). "
                "Give one folder of class folders, or train/, valid/ and test/ of them."
            )
        classes = tuple(sorted({PurePosixPath(folder).name for folder in class_folders}))
        class_of = {name: PurePosixPath(name).parent.name for name in names}
        if len(classes) < 2:
            raise InputError(f"{source.path} has the one class {classes[0]!r} only. A classifier needs at least two class folders.")
        return cls(source.path, names, classes, class_of, split_folders, left_out)

    def split_of(self, look: _Look, rule: SplitRule) -> str:
        return self.split_folders.get(look.name) or rule.split_of(look.sha256)


_worker_source: Source | None = None


def _look_at_all(source: Source, names: list[str], workers: int) -> Iterator[_Look]:
    if workers < 2 or len(names) < 2 * _CHUNK or not source.opens_cheaply:
        yield from (_look(name, source.read(name)) for name in names)
        return
    # forkserver: no locks or threads of the parent are inherited, and it costs less than spawn for each worker
    with ProcessPoolExecutor(workers, get_context("forkserver"), _open_in_worker, (source.path,)) as pool:
        try:
            yield from pool.map(_look_in_worker, names, chunksize=_CHUNK)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _open_in_worker(path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    global _worker_source  # an archive's directory is read once a process, not once a tile
    _worker_source = open_source(path)


def _look_in_worker(name: str) -> _Look:
    assert _worker_source is not None
    return _look(name, _worker_source.read(name))


def _look(name: str, content: bytes) -> _Look:
    look = _Look(name, hashlib.sha256(content).hexdigest(), len(content))
    try:
        pixels = decode(content)
    except InputError as error:
        return replace(look, fault=str(error))
    flat = pixels.reshape(-1, 3).astype(np.float64)  # exact: sums of squares stay far below 2**53
    total = tuple(int(value) for value in flat.sum(0))
    squares = tuple(int(value) for value in np.einsum("ij,ij->j", flat, flat))
    return replace(look, width=pixels.shape[1], height=pixels.shape[0], total=total, squares=squares)


def decode(content: bytes) -> np.ndarray:
    """Pixels of an encoded RGB image as uint8 (height, width, 3); InputError with the fault otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if max(image.size) > MAX_SIDE:
                raise InputError(f"too large ({image.width}x{image.height}; at most {MAX_SIDE} a side)")
            if image.mode != "RGB":
                raise InputError(f"wrong mode ({image.mode}; 8-bit RGB is needed)")
            return np.asarray(image)
    except UnidentifiedImageError:
        raise InputError("not an image (no JPEG, PNG, TIFF, BMP or WebP content)") from None
    except (
        OSError,
        ValueError,
        TypeError,
        SyntaxError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise InputError(f"corrupt or cut short ({error})") from None


def _same_size(looks: list[_Look], left_out: dict[str, str]) -> tuple[list[_Look], tuple[int, int]]:
    sizes = Counter((look.width, look.height) for look in looks)
    size = sizes.most_common(1)[0][0] if sizes else (0, 0)
    for look in looks:
        if (look.width, look.height) != size:
            left_out[look.name] = f"wrong size ({look.width}x{look.height}; most tiles have {size[0]}x{size[1]})"
    return [look for look in looks if look.name not in left_out], size


def _unique(looks: list[_Look], layout: _Layout, left_out: dict[str, str]) -> list[_Look]:
    """Keep one of each content: the copy in test before the one in valid before the one in train, so no score is flattered."""
    copies: dict[str, list[_Look]] = {}
    for look in looks:
        copies.setdefault(look.sha256, []).append(look)
    order = {split: rank for rank, split in enumerate(reversed(SPLITS))}
    for same in copies.values():
        if len({layout.class_of[look.name] for look in same}) > 1:
            for look in same:
                other = next(each.name for each in same if layout.class_of[each.name] != layout.class_of[look.name])
                left_out[look.name] = f"same content as {other}, in another class"
            continue
        kept = min(same, key=lambda look: (order.get(layout.split_folders.get(look.name, ""), 0), look.name))
        for look in same:
            if look is not kept:
                left_out[look.name] = f"duplicate of {kept.name}"
    return [look for look in looks if look.name not in left_out]


def _refuse_empty(layout: _Layout, tiles: tuple[Tile, ...], left_out: dict[str, str]) -> None:
    used = {layout.classes[tile.label] for tile in tiles}
    for name in layout.classes:
        if name not in used:
            faults = [f"{file}: {fault}" for file, fault in left_out.items() if layout.class_of.get(file) == name]
            why = f" (left out: {faults[0]}" + (f", and {len(faults) - 1} more)" if len(faults) > 1 else ")") if faults else ""
            raise InputError(f"{layout.path}: the class {name!r} has no usable tile{why}. Add tiles to its folder, or remove it.")


def _statistics(looks: list[_Look]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pixels = sum(look.width * look.height for look in looks)
    mean = np.array([look.total for look in looks], np.float64).sum(0) / pixels / 255
    square = np.array([look.squares for look in looks], np.float64).sum(0) / pixels / 255**2
    # a channel without any contrast would divide by zero; one grey level stands in for its deviation
    std = np.sqrt((square - mean**2).clip(255.0**-2))
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
