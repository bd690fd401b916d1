"""How maps are written: Cloud-Optimised GeoTIFFs of 8-bit bands, the first with a colour table and names.

write_cog(path, work, layout, rows)      # rows: uint8 (bands, width), from top to bottom
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from ..raster import faults
from .colours import Colour
from .geo import environment

_TILE = 256
_EXTRA_SAMPLES, _ENTRY = 338, 12  # a TIFF tag, and how long an entry of a directory is


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A file of 8-bit bands. bands: their descriptions. nodata: in all of them. colours: of values of the first, with their names.

    crs: as WKT, empty for none; transform: six numbers, or None. tags: of the file; band_tags: of the first band.
    """

    height: int
    width: int
    bands: tuple[str, ...]
    nodata: int
    crs: str
    transform: tuple[float, ...] | None
    colours: dict[int, tuple[str, Colour]]
    tags: dict[str, str]
    band_tags: dict[str, str]


def write_cog(path: Path, work: Path, layout: Layout, rows: Iterable[NDArray[np.uint8]]) -> None:
    """Write rows, uint8 (bands, width) each, as a COG; a plain GeoTIFF lies in the folder `work` meanwhile.

    OSError where one of them can't be written.
    """
    plain = work / f"{path.name}.plain"
    with environment() as rasterio:
        profile = {"driver": "GTiff", "dtype": "uint8", "count": len(layout.bands), "height": layout.height, "width": layout.width}
        if layout.transform:
            profile |= {"crs": layout.crs, "transform": rasterio.Affine(*layout.transform)}
        tiles = {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "compress": "deflate"}
        try:
            with rasterio.open(plain, "w", **profile, **tiles, nodata=layout.nodata) as file:
                if layout.colours:
                    invisible = {layout.nodata: (0, 0, 0, 0)}
                    file.write_colormap(1, invisible | {value: (*colour, 255) for value, (_, colour) in layout.colours.items()})
                file.descriptions = layout.bands
                file.update_tags(**layout.tags)
                file.update_tags(1, **layout.band_tags)
                for top, row in enumerate(rows):
                    file.write(row[:, None], window=rasterio.windows.Window(0, top, layout.width, 1))
            options = {
                "compress": "deflate",
                "blocksize": _TILE,
                "overview_resampling": "mode" if layout.colours else "average",  # a mean of class numbers means nothing
                "bigtiff": "no" if layout.colours else "if_safer",
            }
            rasterio.shutil.copy(plain, path, driver="COG", **options)
            if layout.colours:
                _no_alpha(path)
            with rasterio.open(path) as written:  # a disk that fills up as a file is closed is found out here at the latest
                for _, window in written.block_windows(1):
                    written.read(window=window)
        except faults(rasterio) as error:
            raise _as_os_error(error) from None
        finally:
            plain.unlink(missing_ok=True)  # it takes space that a run which goes on needs


def names_path(out: Path) -> Path:
    """Where `names_beside` goes."""
    return out.with_name(f"{out.name}.aux.xml")


def files_of(out: Path, probabilities: bool = True, page: bool = True) -> list[Path]:
    """All that is written for a map, the map first."""
    return [out, names_path(out), out.with_suffix(".png"), *[probabilities_path(out)] * probabilities, *[out.with_suffix(".html")] * page]


def probabilities_path(out: Path) -> Path:
    """Where the probabilities of a map's cells go."""
    return out.with_name(f"{out.stem}-probabilities.tif")


def names_beside(layout: Layout) -> bytes:
    """The content of the .aux.xml beside a map: names of the first band's values, for QGIS and everything else that GDAL opens."""
    names = ["" for _ in range(max(layout.colours) + 1)]
    for value, (name, _) in layout.colours.items():
        names[value] = name
    listed = "".join(f"      <Category>{escape(name)}</Category>\n" for name in names)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        + listed
        + "    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    ).encode()


def _no_alpha(path: Path) -> None:
    """Say of the second band that it is no alpha: GDAL calls it so beside a colour table, and viewers would blend with it.

    Two bytes in each directory of the TIFF; nothing moves, so that it remains a COG.
    """
    with open(path, "rb+") as file:
        file.seek(4)
        (place,) = struct.unpack("<I", file.read(4))
        while place:
            file.seek(place)
            (count,) = struct.unpack("<H", file.read(2))
            directory = file.read(count * _ENTRY + 4)
            for entry in range(count):
                if struct.unpack_from("<H", directory, entry * _ENTRY)[0] == _EXTRA_SAMPLES:
                    file.seek(place + 2 + entry * _ENTRY + 8)
                    file.write(struct.pack("<H", 0))
            (place,) = struct.unpack_from("<I", directory, count * _ENTRY)


def _as_os_error(error: Exception) -> OSError:
    """GDAL has no number for a full disk, only words."""
    return OSError(28, "No space left") if "No space left" in str(error) else OSError(None, str(error))
