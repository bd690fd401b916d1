"""`sattrt data`: look at every file once, decide its split, and say what is left out and why.

    dataset = scan(Path("EuroSAT_RGB.zip"), SplitRule((94, 5, 1)))

The split follows from the content alone: a tile's sha256, hashed with the seed, is a number in 0..1 that
is held against the wanted shares. The same tile is thus always in the same split, whatever is added beside
it, and every class is divided at the same rates (the counts are random around them, as in any such draw).
A spatial split draws for whole blocks of longitude instead, so that neighbours stay together.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bands import LEAST_WITH_OFFSET, Statistics, choose_order, named_order, orders
from ..errors import BackendError, InputError
from ..raster import library
from ..spec import same_gsd
from .dataset import SPLITS, Dataset, Leaks, Tile
from .decode import TIFF, TileFormat, decode_rgb, is_of_8_bits
from .geotiff import GeoTile, Place, read_geotiff, read_place
from .layout import Layout
from .neighbours import near_duplicates, thumbnail, touching
from .sources import Source, Unreadable, open_source
from .workers import each_file

BLOCK_DEGREES = 0.25  # of longitude: what a spatial split keeps together
_ASKED, _TRIED, _SHOWN_PAIRS = 9, 200, 20


@dataclass(frozen=True)
class SplitRule:
    """Shares of train, valid and test, in any unit, and the seed of the draw; spatial: drawn for blocks of longitude, not for tiles."""

    shares: tuple[float, float, float] = (94.0, 5.0, 1.0)
    seed: int = 0
    spatial: bool = False

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> SplitRule:
        """Read "94:5:1", "spatial" or "spatial:80:10:10". InputError for anything that is not three numbers with a train share above zero."""
        if text == "spatial":
            return cls(seed=seed, spatial=True)
        shares = text.removeprefix("spatial:")
        try:
            train, valid, test = (float(part) for part in shares.split(":"))
        except ValueError:
            raise InputError(f"--split {text!r} is not three numbers. Write it as 94:5:1, spatial, or spatial:80:10:10.") from None
        if not (train > 0 and valid >= 0 and test >= 0 and train + valid + test < float("inf")):
            raise InputError(f"--split {text!r} needs a train share above 0 and none below 0. Write it as 94:5:1.")
        return cls((train, valid, test), seed, text.startswith("spatial:"))

    def split_of(self, sha256: str, place: Place | None = None) -> str:
        """Split of a tile with this content digest, or of its block of longitude."""
        what = f"block {math.floor(place.longitude / BLOCK_DEGREES)}" if self.spatial and place else sha256
        draw = int(hashlib.sha256(f"{self.seed}:{what}".encode()).hexdigest()[:15], 16) / 16**15 * sum(self.shares)
        _, valid, test = self.shares
        return "test" if draw < test else "valid" if draw < test + valid else "train"

    def __str__(self) -> str:
        return "spatial:" * self.spatial + ":".join(f"{share:g}" for share in self.shares)


@dataclass(frozen=True)
class _Look:
    """What one look at a file showed: its digest, sums, products (bands, bands) and least values of its pixels, or a fault."""

    name: str
    sha256: str
    size: int
    width: int = 0
    height: int = 0
    total: NDArray[np.float64] | None = None
    products: NDArray[np.float64] | None = None
    darkest: NDArray[np.float64] | None = None
    thumbnail: NDArray[np.uint16] | None = None
    place: Place | None = None
    fault: str = ""


@dataclass(frozen=True)
class _Probe:
    """What is kept of a tile that is asked for the format: hundreds of them, decoded, would take gigabytes. zeros: the share of its values."""

    look: _Look
    descriptions: tuple[str | None, ...]
    known_offset: bool
    zeros: float

    @classmethod
    def of(cls, name: str, tile: GeoTile) -> _Probe:
        return cls(_look_at(name, tile.pixels, tile.place), tile.descriptions, tile.known_offset, float((tile.pixels == 0).mean()))


def scan(
    source_path: Path,
    rule: SplitRule,
    workers: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    bands: tuple[str, ...] | None = None,
    convert: Callable[[bytes], bytes] = bytes,
    gsd: float | None = None,
    offset: int | None = None,
) -> Dataset:
    """Scan a folder or archive into a `Dataset`; files that can't be used are in its `left_out`, with the reason.

    workers: processes that decode. on_progress: called with files done and files in all. bands: which are used, of tiles with more
    than red, green and blue; None takes all. convert: what is made of a file's content before it is looked at (see `Dataset.content`);
    it goes to other processes. gsd: ground sampling distance in metres, of tiles that don't say it. offset: digital numbers to take off tiles
    whose tags don't say it; 0 says that there is none.
    Raises InputError for a source that can't be read, an empty class, fewer than two classes, bands that are not there or in an
    order that can't be right; BackendError where the tiles are GeoTIFF and rasterio is not installed.
    """
    looks: list[_Look] = []
    with open_source(source_path) as source:
        layout = Layout.of(source)
        kind, notes = _format_of(source, layout.names, bands, offset)
        for look in each_file(source, layout.names, _Looking(kind, convert), workers):
            looks.append(look)
            on_progress(len(looks), len(layout.names))
    left_out = {**layout.left_out, **{look.name: look.fault for look in looks if look.fault}}
    good = [look for look in looks if not look.fault]
    good, size = _same_size(good, left_out)
    good = _unique(good, layout, left_out)
    if rule.spatial and not layout.split_folders:
        _require_places(source_path, good)
    index = {name: i for i, name in enumerate(layout.classes)}
    splits = [layout.split_folders.get(look.name) or rule.split_of(look.sha256, look.place) for look in good]
    tiles = tuple(
        Tile(look.name, index[layout.class_of[look.name]], split, look.sha256, look.size) for look, split in zip(good, splits, strict=True)
    )
    _refuse_empty(layout, tiles, left_out)
    in_train = [look for look, tile in zip(good, tiles, strict=True) if tile.split == "train"]
    if not in_train:
        mend = "Add a train/ folder to it" if layout.split_folders else "Choose another --split, or add tiles"
        raise InputError(f"The train split of {source_path} is empty. {mend}.")
    mean, std = _normalisation(in_train, float(np.iinfo(kind.dtype).max))
    return Dataset(
        source=str(source_path.resolve()),
        classes=layout.classes,
        width=size[0],
        height=size[1],
        bands=kind.bands,
        file_bands=kind.file_bands,
        mean=mean,
        std=std,
        split="folders" if layout.split_folders else str(rule),
        seed=rule.seed,
        all_tiles=tiles,
        left_out=dict(sorted(left_out.items())),
        leaks=_leaks(tiles, good),
        gsd=_gsd(good, gsd, source_path),
        offset=offset,
        notes=notes,
    )


def _format_of(source: Source, names: list[str], wanted: tuple[str, ...] | None, offset: int | None) -> tuple[TileFormat, tuple[str, ...]]:
    """8-bit RGB, unless bands are asked for or most files are TIFF with other pixels; then which bands a file holds, in which order. And what
    people should know about that."""
    tiffs = _tiffs(names)
    if wanted and not tiffs:
        raise InputError(f"--bands asks for {', '.join(wanted)}; {source.path} holds no GeoTIFF. Leave --bands out for RGB tiles.")
    if not wanted and (2 * len(tiffs) <= len(names) or not _are_spectral(source, tiffs)):
        if offset is not None:
            raise InputError(
                f"--offset {offset} is for GeoTIFF of digital numbers; the tiles of {source.path} are 8-bit RGB. Leave it out."
            )
        return TileFormat(), ()
    tried = tiffs[:: max(1, len(tiffs) // _TRIED)]  # of every class, since names begin with it
    alike: dict[int, list[_Probe]] = {}  # by number of bands: one odd file must not decide for the others
    why = ""
    for name in tried:
        try:
            probe = _Probe.of(name, read_geotiff(source.read(name), offset))
            alike.setdefault(len(probe.descriptions), []).append(probe)
        except InputError as error:
            why = why or f"{name}: {error}"
    if not alike:
        raise InputError(f"{source.path} has no GeoTIFF that can be used ({why}).")
    most = max(alike.values(), key=len)
    descriptions = most[0].descriptions
    try:
        candidates = orders(descriptions, wanted)
    except InputError as error:
        raise InputError(f"{source.path} has no GeoTIFF that can be used ({most[0].look.name}: {error}).") from None
    if offset and (none := float(np.mean([probe.zeros for probe in most]))) > 0.5:
        raise InputError(
            f"--offset {offset} would reduce {100 * none:.0f} % of the values of {source.path} to 0: they don't include it. Give --offset 0, or leave it out."
        )
    found = _statistics([probe.look for probe in most])
    order, odd = choose_order(candidates, found, str(source.path), named_order(descriptions, wanted))
    known = all(probe.known_offset for probe in most)
    if not known and (darkest := float(found.darkest.min())) >= LEAST_WITH_OFFSET:
        raise InputError(
            f"The tiles of {source.path} have hardly a value below {darkest:.0f}: they seem to include the offset of 1,000 (baseline 04.00 and "
            "later). Give --offset 1000, or --offset 0 if they are that bright; or record it in their tags: gdal_edit.py -scale 0.0001 -offset -0.1 TILE"
        )
    if missing := [name for name in wanted or () if name not in order]:
        raise InputError(f"--bands asks for {missing[0]}; the tiles of {source.path} hold {', '.join(order)}. Choose from these.")
    notes = f"bands taken as named ({','.join(order)}), though {odd}. Some ground looks like that; otherwise check the names"
    return TileFormat(wanted or order, order, offset), (notes,) if odd else ()


def _tiffs(names: list[str]) -> list[str]:
    return [name for name in names if posixpath.splitext(name)[1].lower() in (".tif", ".tiff")]


def _are_spectral(source: Source, tiffs: list[str]) -> bool:
    """Whether more of some TIFF files are 16-bit GeoTIFF than 8-bit RGB; a damaged one is neither."""
    contents = []
    for name in tiffs[:: max(1, len(tiffs) // _ASKED)]:
        with contextlib.suppress(Unreadable):
            contents.append(source.read(name))
    others = [content for content in contents if not is_of_8_bits(content)]
    rgb = sum(_can_be_read(decode_rgb, content) for content in contents)
    return 2 * rgb < len(contents) and sum(_can_be_read(read_geotiff, content) for content in others) > rgb


def _can_be_read(read: Callable[[bytes], object], content: bytes) -> bool:
    try:
        read(content)
        return True
    except InputError:
        return False


@dataclass(frozen=True)
class _Looking:
    """What is done with each file, in whichever process."""

    kind: TileFormat
    convert: Callable[[bytes], bytes]

    def __call__(self, source: Source, name: str) -> _Look:
        try:
            content = self.convert(source.read(name))
        except Unreadable as error:
            return _Look(name, "", 0, fault=error.fault)
        except InputError as error:
            return _Look(name, "", 0, fault=str(error))
        known = _Look(name, hashlib.sha256(content).hexdigest(), len(content))
        try:
            tile = self.kind.read(content)
        except InputError as error:
            return replace(known, fault=str(error))
        # only here, not where tiles are decoded to be judged: it takes longer than 8-bit pixels do
        place = read_place(content) if self.kind.dtype == "uint8" and content.startswith(TIFF) else tile.place
        return replace(_look_at(name, tile.pixels, place), sha256=known.sha256, size=known.size)


def _look_at(name: str, pixels: NDArray[np.unsignedinteger], place: Place | None) -> _Look:
    flat = pixels.reshape(-1, pixels.shape[2]).astype(np.float64)  # of 8 bits exact: sums of products stay far below 2**53
    return _Look(name, "", 0, pixels.shape[1], pixels.shape[0], flat.sum(0), flat.T @ flat, flat.min(0), thumbnail(pixels), place)


def _same_size(looks: list[_Look], left_out: dict[str, str]) -> tuple[list[_Look], tuple[int, int]]:
    sizes = Counter((look.width, look.height) for look in looks)
    size = sizes.most_common(1)[0][0] if sizes else (0, 0)
    for look in looks:
        if (look.width, look.height) != size:
            left_out[look.name] = f"wrong size ({look.width}x{look.height}; most tiles have {size[0]}x{size[1]})"
    return [look for look in looks if look.name not in left_out], size


def _unique(looks: list[_Look], layout: Layout, left_out: dict[str, str]) -> list[_Look]:
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


def _refuse_empty(layout: Layout, tiles: tuple[Tile, ...], left_out: dict[str, str]) -> None:
    used = {layout.classes[tile.label] for tile in tiles}
    for name in layout.classes:
        if name not in used:
            faults = [f"{file}: {fault}" for file, fault in left_out.items() if layout.class_of.get(file, posixpath.basename(file)) == name]
            why = f" (left out: {faults[0]}" + (f", and {len(faults) - 1} more)" if len(faults) > 1 else ")") if faults else ""
            raise InputError(f"{layout.path}: the class {name!r} has no usable tile{why}. Add tiles to its folder, or remove it.")


def _require_places(path: Path, looks: list[_Look]) -> None:
    if lost := [look.name for look in looks if not look.place]:
        mend = "Use GeoTIFF tiles with coordinates, or another --split."
        if _tiffs(lost):
            try:
                library()
            except BackendError as error:
                mend = str(error)
        raise InputError(
            f"--split spatial needs tiles that say where they lie; {len(lost)} of {len(looks)} tiles of {path} don't ({lost[0]}). {mend}"
        )


def _moments(looks: list[_Look]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (bands,) and mean product (bands, bands) of all pixels."""
    pixels = sum(look.width * look.height for look in looks)
    total = np.array([look.total for look in looks], np.float64).sum(0)
    return total / pixels, np.array([look.products for look in looks], np.float64).sum(0) / pixels


def _normalisation(looks: list[_Look], scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, product = _moments(looks)
    # a channel without any contrast would divide by zero; one grey level stands in for its deviation
    std = np.sqrt((product.diagonal() / scale**2 - (mean / scale) ** 2).clip(scale**-2))
    return tuple(float(value) for value in mean / scale), tuple(float(value) for value in std)


def _statistics(looks: list[_Look]) -> Statistics:
    mean, product = _moments(looks)
    covariance = product - np.outer(mean, mean)
    deviation = np.sqrt(covariance.diagonal().clip(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(np.outer(deviation, deviation) > 0, covariance / np.outer(deviation, deviation), np.nan)
    return Statistics(mean, correlation, np.median(np.array([look.darkest for look in looks], np.float64), axis=0))


def _leaks(tiles: tuple[Tile, ...], looks: list[_Look]) -> Leaks:
    small = [look.thumbnail for look in looks if look.thumbnail is not None]
    copies = near_duplicates(tiles, np.stack(small)) if len(small) == len(looks) else None
    neighbours = touching(tiles, [look.place for look in looks]) if any(look.place for look in looks) else None
    return Leaks(
        near_duplicates=None if copies is None else len(copies),
        touching=None if neighbours is None else len(neighbours),
        examples=tuple((copies or [])[:_SHOWN_PAIRS]),
    )


def _gsd(looks: list[_Look], given: float | None, path: Path) -> float | None:
    """Ground sampling distance in metres, to two digits: what the coordinates of the tiles say; what was given, where they have none."""
    found = [look.place.gsd(look.width, look.height) for look in looks if look.place]
    if not found:
        return given
    low, middle, high = (float(f"{each:.2g}") for each in np.percentile(found, (5, 50, 95)))
    if high > 1.5 * low:
        if given is None:
            raise InputError(
                f"The pixels of some tiles of {path} show {low:g} m, of others {high:g} m. Give those of the scenes to be mapped: --gsd {high:g}"
            )
        return given
    if given is not None and not same_gsd(given, middle):
        raise InputError(f"--gsd is {given:g}; the coordinates of the tiles of {path} say that a pixel shows {middle:g} m. Leave it out.")
    return middle
