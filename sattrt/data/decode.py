"""From the bytes of a file to the pixels of a tile: 8-bit RGB by Pillow, other bands as 16-bit GeoTIFF by rasterio.

tile = TileFormat().read(content)                                          # 8-bit RGB
tile = TileFormat(bands=("B04", "B08"), file_bands=EUROSAT).read(content)  # uint16, two of thirteen bands
tile.pixels                                                                # (H, W, bands)
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..bands import LEAST_WITH_OFFSET, RGB, Statistics, named_order, orders
from ..errors import InputError
from .geotiff import MAX_SIDE, Place, read_geotiff

EXTENSIONS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
FAULTS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)  # of Pillow, for what is damaged
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what a TIFF or BigTIFF begins with
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # TIFF's tags
# what Pillow can't read is a fault of the file, and said so: neither logged nor warned of as well. Set once, since several threads decode
logging.getLogger("PIL").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", module="PIL")


@dataclass(frozen=True)
class Decoded:
    """pixels: (H, W, bands). place: where they lie, if whoever decodes them can tell: Pillow can't."""

    pixels: NDArray[np.unsignedinteger]
    place: Place | None = None


@dataclass(frozen=True)
class TileFormat:
    """How the tiles of a dataset are decoded. bands: those that are used, in order. file_bands: those that a file holds. offset: digital
    numbers to take off where a file's tags don't say."""

    bands: tuple[str, ...] = RGB
    file_bands: tuple[str, ...] = RGB
    offset: int | None = None

    @property
    def dtype(self) -> str:
        """Of the pixels: "uint8" where they are 8-bit RGB, else "uint16"."""
        return "uint8" if self.file_bands == RGB else "uint16"

    @cached_property
    def _places(self) -> list[int]:
        return [self.file_bands.index(name) for name in self.bands]

    def read(self, content: bytes) -> Decoded:
        """Decode a file; InputError with the fault."""
        if self.file_bands == RGB:
            return Decoded(decode_rgb(content))
        tile = read_geotiff(content, self.offset)
        if tile.pixels.shape[2] != len(self.file_bands):
            raise InputError(f"wrong number of bands ({tile.pixels.shape[2]}; most tiles have {len(self.file_bands)})")
        if named_order(tile.descriptions, self.file_bands) != self.file_bands:
            raise InputError(f"bands in another order ({', '.join(str(text) for text in tile.descriptions)})")
        return Decoded(np.ascontiguousarray(tile.pixels[:, :, self._places]), tile.place)


def read_for(
    content: bytes, bands: tuple[str, ...], offset: int | None = None, file_bands: tuple[str, ...] = ()
) -> NDArray[np.unsignedinteger]:
    """Pixels of a lone file, (H, W, bands), for a network that takes these bands. InputError with the fault, where it lacks one of them, or
    where nothing says which it holds. offset: as in `read_geotiff`. file_bands: those that the files of its dataset hold, if that is known.

    Where a file without names may be in several orders, the brightness of the bands decides; where that can't, it is in the dataset's.
    """
    if bands == RGB:
        return decode_rgb(content, "the engine takes 8-bit RGB")
    tile = read_geotiff(content, offset)
    values = tile.pixels.reshape(-1, tile.pixels.shape[2])
    if not values.any():
        raise InputError(f"it holds no data: every value is 0{f', the offset of {offset} subtracted' * bool(offset)}")
    if values.max() <= 255 and not tile.known_offset:  # who records an offset has digital numbers, and dark water has no more
        raise InputError(f"it has no value above {values.max()}: 8-bit colours in 16 bits, where digital numbers are needed")
    unknown = np.full((values.shape[1],) * 2, np.nan)  # one tile is too little to correlate
    found = Statistics(values.mean(0), unknown, values.min(0).astype(np.float64))
    candidates = orders(tile.descriptions, file_bands or bands)
    if not named_order(tile.descriptions) and len(file_bands) == len(tile.descriptions):
        candidates = [file_bands, *candidates]
    # the darkest band is B10, where cirrus shines and the ground does not
    order = min(candidates, key=lambda order: found.mean[order.index("B10")] if "B10" in order else 0)
    if not tile.known_offset and "B10" in order and found.mean[order.index("B10")] >= LEAST_WITH_OFFSET:
        raise InputError(
            f"the mean of B10 (cirrus) is {found.mean[order.index('B10')]:.0f}: its numbers include the offset of 1,000 (baseline "
            "04.00 and later), which its tags don't record. Record it there: gdal_edit.py -offset -0.1 -scale 0.0001 FILE"
        )
    if missing := [name for name in bands if name not in order]:
        raise InputError(f"it has no band {missing[0]} (it holds {', '.join(order)})")
    return np.ascontiguousarray(tile.pixels[:, :, [order.index(name) for name in bands]])


def decode_rgb(content: bytes, needed: str = "8-bit RGB or uint16 is needed") -> NDArray[np.uint8]:
    """Pixels of an encoded RGB image as uint8 (height, width, 3); InputError with the fault otherwise. needed: what would have been read."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if max(image.size) > MAX_SIDE:
            raise InputError(f"too large ({image.width}x{image.height}; at most {MAX_SIDE} a side)")
        if image.mode != "RGB":
            raise InputError(f"wrong mode ({image.mode}; 8-bit RGB is needed)")
        tags = getattr(image, "tag_v2", {})
        if tags.get(_ORIENTATION, 1) != 1:  # which Pillow follows and DALI does not
            raise InputError(f"rotated by its EXIF orientation tag ({tags[_ORIENTATION]}; save it upright)")
        # Pillow would keep the upper half of 16-bit channels without a word
        if max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8 or ";16" in str(image.tile):
            raise InputError("wrong mode (16 bits a channel; 8-bit RGB is needed)")
        return np.asarray(image)
    except UnidentifiedImageError:
        if content.startswith(TIFF):
            raise InputError(f"not a TIFF of 8-bit RGB (other values or bands, or damaged; {needed})") from None
        raise InputError("not an image (no JPEG, PNG, TIFF, BMP or WebP content)") from None
    except FAULTS as error:
        raise InputError(f"corrupt or cut short ({error})") from None


def is_of_8_bits(content: bytes) -> bool:
    """Whether Pillow knows the image and has at most 8 bits a channel of it: grey, with a palette, RGB or transparent."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        return max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) <= 8 and ";16" not in image.mode
    except FAULTS:
        return False
