"""`dataset.json`: the classes, every tile with its split and digest, the statistics, and what was left out.

dataset = Dataset.read(Path("dataset"))
[tile.name for tile in dataset.tiles("valid")]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..bands import ESA, RGB
from ..errors import ContractError, InputError
from ..spec import MOST_OFFSET, check_schema, read_json, write_bytes
from .decode import TileFormat
from .sources import Source, open_source

SCHEMA = 4
SPLITS = ("train", "valid", "test")
_COLUMNS = ["name", "class", "split", "sha256", "bytes"]


@dataclass(frozen=True)
class Tile:
    """One tile: its name in the source, class index, split, sha256 of the file, size of the file in bytes."""

    name: str
    label: int
    split: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Cache:
    """The file that holds all tiles decoded, in their order: its absolute path and its sha256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Leaks:
    """How many pairs stand on both sides of a split, of tiles that show the same ground or that touch; None where it can't be known.

    examples: names of some near-duplicates.
    """

    near_duplicates: int | None = None
    touching: int | None = None
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Everything a later stage has to know about the tiles.

    source: absolute path of the folder or archive that holds the tiles.
    height, width: of every tile, in pixels.
    bands: what is used of each tile, in order; file_bands: what a file holds. Both are red, green, blue of 8-bit tiles.
    mean, std: per band of the train split, of values scaled to 0..1 by the largest of their type.
    split: how the split was made: "94:5:1" or "spatial:94:5:1", with a seed, or "folders".
    left_out: name of a file to the reason why it is not used.
    gsd: ground sampling distance, the metres of ground that a pixel shows along a side; None where nothing says it.
    offset: digital numbers that are taken off tiles whose tags don't say it; None where the user didn't either.
    notes: what was odd about the tiles, for people.
    """

    source: str
    classes: tuple[str, ...]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split: str
    seed: int
    all_tiles: tuple[Tile, ...]
    left_out: dict[str, str]
    bands: tuple[str, ...] = RGB
    file_bands: tuple[str, ...] = RGB
    leaks: Leaks = Leaks()
    cache: Cache | None = None
    gsd: float | None = None
    offset: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def format(self) -> TileFormat:
        """How a tile is decoded."""
        return TileFormat(self.bands, self.file_bands, self.offset)

    @property
    def dtype(self) -> str:
        """Of the pixels: "uint8" or "uint16"."""
        return self.format.dtype

    def tiles(self, split: str) -> list[Tile]:
        """Tiles of one split, in the order of their names."""
        return [tile for tile in self.all_tiles if tile.split == split]

    def open(self) -> Source:
        """The folder or archive of the tiles, to be closed by the caller. InputError where it is gone."""
        if not Path(self.source).exists():
            raise InputError(f"The tiles are no longer at {self.source}. Put them back, or run `sattrt data` again with their new path.")
        return open_source(Path(self.source))

    def content(self, source: Source, name: str) -> bytes:
        """What is decoded, and hashed, of a file."""
        return source.read(name)

    def checked(self, source: Source, tile: Tile) -> bytes:
        """The content of a tile. InputError where it is no longer what was scanned."""
        content = self.content(source, tile.name)
        if hashlib.sha256(content).hexdigest() != tile.sha256:
            raise InputError(f"{tile.name} in {source.path} has changed since it was scanned. Run `sattrt data` again.")
        return content

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of tiles by split and class name."""
        counter = Counter((tile.split, tile.label) for tile in self.all_tiles)
        return {split: {name: counter[split, i] for i, name in enumerate(self.classes)} for split in SPLITS}

    @property
    def tile_bytes(self) -> int:
        """Memory that a decoded tile takes."""
        return self.height * self.width * len(self.bands) * (1 if self.dtype == "uint8" else 2)

    @cached_property
    def digest(self) -> str:
        """sha256 over class names, the content, class and split of every tile, whatever the files are called, bands other than RGB, and what is
        taken off them."""
        lines = sorted(f"{tile.split} {self.classes[tile.label]} {tile.sha256}" for tile in self.all_tiles)
        bands = () if self.bands == RGB else self.bands
        less = [f"less {self.offset}"] if self.offset else []
        return hashlib.sha256("\n".join([*self.classes, *lines, *bands, *less]).encode()).hexdigest()

    @cached_property
    def order(self) -> str:
        """sha256 over the content of the train tiles in the order of their names, which settles what a seed shuffles them into."""
        return hashlib.sha256("\n".join(tile.sha256 for tile in self.tiles("train")).encode()).hexdigest()

    @property
    def split_description(self) -> str:
        """How the tiles were divided and what stands on both sides, for whoever reads a score."""
        kind = f"random, tile by tile ({self.split}, seed {self.seed})"
        if self.split == "folders":
            kind = "train/, valid/ and test/ as they were given"
        elif self.split.startswith("spatial"):
            kind = f"blocks of longitude ({self.split}, seed {self.seed})"
        copies, near = self.leaks.near_duplicates, self.leaks.touching
        return (
            f"{kind}; across splits: {'near-duplicates not checked' if copies is None else f'{copies} near-duplicate pairs'}, "
            f"{'touching tiles unknown (no coordinates)' if near is None else f'{near} pairs of touching tiles'}"
        )

    def require(self, split: str) -> list[Tile]:
        """Tiles of a split that must not be empty: InputError where it is."""
        if tiles := self.tiles(split):
            return tiles
        mend = f"Add a {split}/ folder to it" if self.split == "folders" else "Use --split 80:10:10, or add tiles"
        raise InputError(f"The {split} split of {self.source} is empty. {mend}, and run `sattrt data` again.")

    def require_classes(self, split: str) -> None:
        """InputError where a split has no tile of some class."""
        self.require(split)
        if missing := [name for name, count in self.counts()[split].items() if not count]:
            if lonely := [name for name in missing if sum(counts[name] for counts in self.counts().values()) < 2]:
                raise InputError(
                    f"The {split} split of {self.source} has no tile of {', '.join(lonely)}, of which there is one in all. Add tiles of it, or take "
                    "its folder out, and run `sattrt data` again."
                )
            raise InputError(
                f"The {split} split of {self.source} has no tile of {', '.join(missing)}. {self.way_to_more(split)}, and run `sattrt data` again."
            )

    def way_to_more(self, split: str) -> str:
        """What gives a split tiles of classes that it lacks."""
        if self.split == "folders":
            return f"Add some to its {split}/ folder"
        if self.split.startswith("spatial"):
            return f"Try another --seed, a larger share ({split}), tiles of more places, or --split 80:10:10"
        return f"Try another --seed, a larger share ({split}) or more tiles"

    def write(self, folder: Path) -> Path:
        """Write `dataset.json`, atomically, one tile a line."""
        head = {
            "schema": SCHEMA,
            "source": self.source,
            "classes": self.classes,
            "height": self.height,
            "width": self.width,
            "bands": self.bands,
            "file_bands": self.file_bands,
            "mean": self.mean,
            "std": self.std,
            "gsd": self.gsd,
            "offset": self.offset,
            "split": self.split,
            "seed": self.seed,
            "digest": self.digest,
            "counts": self.counts(),
            "notes": self.notes,
            "leaks": dataclasses.asdict(self.leaks),
            "cache": {"file": Path(self.cache.path).name, "sha256": self.cache.sha256} if self.cache else None,
            "left_out": self.left_out,
            "columns": _COLUMNS,
        }
        rows = ",\n".join("    " + json.dumps(dataclasses.astuple(tile)) for tile in self.all_tiles)
        text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "tiles": [\n{rows}\n  ]\n}}\n'
        path = folder / "dataset.json"
        write_bytes(path, text.encode())
        return path

    @classmethod
    def read(cls, folder: Path) -> Dataset:
        """Read `dataset.json` from a folder. InputError where there is none, ContractError where it is not one."""
        path = folder / "dataset.json" if folder.is_dir() else folder
        if not path.exists():
            raise InputError(f"{path} does not exist. Make it with `sattrt data SOURCE --out {folder}`.")
        data = read_json(path)
        check_schema(data, path, SCHEMA)
        try:
            return cls._from_json(data, path)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"{path} is damaged ({type(error).__name__}: {error}). Run `sattrt data` again.") from None

    @classmethod
    def _from_json(cls, data: dict[str, Any], path: Path) -> Dataset:
        dataset = cls(
            source=data["source"],
            classes=tuple(data["classes"]),
            height=data["height"],
            width=data["width"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            gsd=data["gsd"],
            offset=data["offset"],
            notes=tuple(data["notes"]),
            split=data["split"],
            seed=data["seed"],
            all_tiles=tuple(Tile(*row) for row in data["tiles"]),
            left_out=dict(data["left_out"]),
            bands=tuple(data["bands"]),
            file_bands=tuple(data["file_bands"]),
            leaks=Leaks(**{**data["leaks"], "examples": tuple(map(tuple, data["leaks"]["examples"]))}),
            cache=Cache(str(_beside(path, Path(data["cache"]["file"]).name)), data["cache"]["sha256"]) if data["cache"] else None,
        )
        dataset._check_types(path)
        if dataset.digest != data["digest"]:
            raise ContractError(f"{path} was changed: its tiles don't match its digest. Run `sattrt data` again.")
        return dataset

    def _check_types(self, path: Path) -> None:
        texts = [
            self.source,
            self.split,
            *self.classes,
            *self.notes,
            *(text for tile in self.all_tiles for text in (tile.name, tile.sha256)),
        ]
        sides = [type(side) is int and 0 < side <= 65536 for side in (self.height, self.width)]
        numbers = [isinstance(value, float) and 0 <= value <= 1 for value in (*self.mean, *self.std)]
        labels = [type(tile.label) is int and 0 <= tile.label < len(self.classes) for tile in self.all_tiles]
        known = self.bands == self.file_bands == RGB or (
            set(self.bands) <= set(self.file_bands) <= set(ESA) and len(set(self.bands)) == len(self.bands)
        )
        sound = self.gsd is None or (type(self.gsd) in (int, float) and 0 < self.gsd <= 1e6)
        sound = sound and (self.offset is None or (type(self.offset) is int and 0 <= self.offset <= MOST_OFFSET and self.dtype == "uint16"))
        sound = sound and all(isinstance(text, str) for text in texts) and all(sides + numbers + labels) and min(self.std) > 0
        sound = sound and known and len(self.bands) == len(self.mean) == len(self.std) and (self.dtype == "uint16") == bool(self.cache)
        if not sound or not {tile.split for tile in self.all_tiles} <= set(SPLITS):
            raise ContractError(f"{path} was changed: a field has the wrong type or range. Run `sattrt data` again.")


def balanced(tiles: list[Tile], count: int) -> list[Tile]:
    """A share of `count` tiles, as even over the classes as their sizes allow, chosen by digest, in the given order."""
    by_class: dict[int, list[Tile]] = {}
    for tile in sorted(tiles, key=lambda tile: tile.sha256):
        by_class.setdefault(tile.label, []).append(tile)
    left = min(count, len(tiles))
    chosen: set[str] = set()
    for rank, group in enumerate(sorted(by_class.values(), key=len)):
        quota = min(len(group), math.ceil(left / (len(by_class) - rank)))
        chosen.update(tile.name for tile in group[:quota])
        left -= quota
    return [tile for tile in tiles if tile.name in chosen]


def _beside(path: Path, name: str) -> Path:
    """A file beside dataset.json, or beside what that is a link to."""
    found = path.absolute().with_name(name)
    return found if found.exists() else path.resolve().with_name(name)
