"""Whether what was found fits an engine: one grid, one data type, the offsets, values that make sense; if so it is a `Scene`.

scene = fit(path, found, ("B04", "B03", "B02"), engine.spec, MapConfig())
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bands import FROM_REFLECTANCE, WHITE, conversion_of, tagged_offset
from ..errors import InputError
from ..shift import shifts
from ..spec import ModelSpec, same_gsd
from .area import gsd_of
from .config import MapConfig
from .geo import has_mask, nodata_of, open_raster, same_crs
from .plausible import check_values, sample
from .scene import Band, Scene, converted

_SAME_PLACE = 0.05  # of the finest band's pixel, which two grids may lie apart


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a path holds. bands: by name. offsets: by name; None where no metadata speak of it."""

    kind: str
    bands: dict[str, Band]
    offsets: dict[str, int] | None = None
    says: tuple[str, ...] = ()


def fit(path: Path, found: Found, wanted: tuple[str, ...], spec: ModelSpec, config: MapConfig) -> Scene:
    """The scene as the engine reads it. wanted: names of bands, in its order. InputError, with the reason, where it can't be right."""
    bands = [found.bands[name] for name in wanted]
    shapes: dict[str, Shape] = {}
    offsets: list[int | None] = []
    for band in bands:
        with open_raster(band.path) as dataset:
            shapes[band.path] = shape = Shape.of(dataset, band)
            recorded = found.offsets[band.name] if found.offsets else _tagged_offset(dataset, band)
        require_numbers(band.path, shape.dtype)
        offsets.append(recorded if config.offset is None else config.offset)
    fine = max(shapes.values(), key=lambda shape: shape.width)
    factors = {name: fine.factor(shape, name) for name, shape in shapes.items()}
    dtypes, nothing = {shape.dtype for shape in shapes.values()}, {shape.nodata for shape in shapes.values() if shape.nodata is not None}
    if len(nothing) > 1 and config.nodata is None:
        raise InputError(
            f"{path} has files that declare {' and '.join(map(str, sorted(nothing)))} to be no data. Choose one: --set nodata=0"
        )
    if len(dtypes) > 1:
        raise InputError(f"{path} has files of {' and of '.join(sorted(dtypes))}. Give files of one type, as they were delivered.")
    if (dtype := dtypes.pop()) == "uint8" and spec.dtype != "uint8":
        raise InputError(f"{path} holds 8-bit pixels; the engine takes {spec.dtype} digital numbers. Give the scene as it was delivered.")
    if fine.height < spec.height or fine.width < spec.width:
        raise InputError(
            f"{path} has {fine.width}x{fine.height} pixels, less than one tile of {spec.width}x{spec.height}. Give a larger scene."
        )
    numbers = dtype == "uint16"
    if config.offset and not numbers:
        raise InputError(
            f"{path} holds 8-bit colours, and the map setting offset is {config.offset}: it is for digital numbers. Leave it out."
        )
    if config.nodata is not None and config.nodata > 255 and not numbers:
        raise InputError(f"{path} holds 8-bit colours, and the map setting nodata is {config.nodata}. Give 0 to 255.")
    nodata = next(iter(nothing), None) if config.nodata is None else config.nodata
    georeference = () if fine.transform else ("no georeference: mapped in pixels",)
    scene = Scene(
        path=str(path),
        kind=found.kind,
        bands=tuple(
            dataclasses.replace(band, factor=factors[band.path], offset=offset or 0 if numbers else 0)
            for band, offset in zip(bands, offsets, strict=True)
        ),
        height=fine.height,
        width=fine.width,
        crs=fine.crs,
        transform=fine.transform,
        dtype=dtype,
        scaled=numbers and spec.dtype == "uint8",
        nodata=nodata,
        masked=any(shape.masked for shape in shapes.values()),
        says=(*found.says, *georeference, *_gsd_said(fine, spec)),
    )
    if numbers:
        own = [band.name for band in scene.bands]
        others = tuple(
            dataclasses.replace(band, factor=factors[band.path])
            for band in found.bands.values()
            if band.path in shapes and band.name not in own
        )
        seen = check_values(scene, others, known_offset=None not in offsets)
    else:
        seen = sample(scene)
    return dataclasses.replace(scene, says=(*scene.says, *_decided(scene), *shifts(spec, converted(scene, seen))))


def require_numbers(path: Path | str, dtype: str) -> None:
    """InputError for a data type that no engine takes."""
    if dtype not in ("uint8", "uint16"):
        way_out = f"; {words}" if (words := conversion_of(dtype)) else "."
        raise InputError(
            f"{path} holds {dtype}; engines take digital numbers, uint16, or 8-bit colours. Convert it to the numbers that "
            f"Sentinel-2 has, 10,000 a unit of reflectance{way_out}"
        )


def _gsd_said(fine: Shape, spec: ModelSpec) -> list[str]:
    """What is to be said where a scene's pixels show less or more of the ground than those that the network learned from."""
    found = spec.gsd and gsd_of(fine.crs, fine.transform, fine.height, fine.width)
    if not spec.gsd or not found or same_gsd(found, spec.gsd):
        return []
    return [f"its pixels are {found:.3g} m wide, the training tiles' {spec.gsd:g} m: resample the scene before you trust this map"]


def _decided(scene: Scene) -> list[str]:
    """What is done to the pixels, for people."""
    said = []
    if taken := sorted({band.offset for band in scene.bands} - {0}):
        said.append(f"offset of {', '.join(map(str, taken))} subtracted")
    if scene.scaled:
        said.append(f"digital numbers 0..{WHITE} scaled to 1..255")
    if coarse := [band.name for band in scene.bands if band.factor > 1]:
        said.append(f"{', '.join(coarse)} interpolated (bilinear) to the finest grid")
    return said


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The grid of a file. crs, transform: empty and None without georeference."""

    width: int
    height: int
    crs: str
    transform: tuple[float, ...] | None
    dtype: str
    nodata: int | None
    masked: bool

    @classmethod
    def of(cls, dataset: Any, band: Band) -> Shape:
        placed = bool(dataset.crs) and not dataset.transform.is_identity and all(map(math.isfinite, dataset.transform))
        return cls(
            width=dataset.width,
            height=dataset.height,
            crs=dataset.crs.to_wkt() if placed else "",
            transform=tuple(dataset.transform)[:6] if placed else None,
            dtype=dataset.dtypes[band.index - 1],
            nodata=nodata_of(dataset),
            masked=has_mask(dataset),
        )

    def factor(self, other: Shape, name: str) -> int:
        """How many of our pixels one of another file's covers along each side. InputError where the grids don't fit into each other."""
        if self == other:
            return 1
        factor = round(self.width / other.width)
        fits = (factor * other.width, factor * other.height) == (self.width, self.height)
        if fits and self.transform and other.transform:
            near = _SAME_PLACE * math.hypot(self.transform[0], self.transform[3])
            sides = [max(self.width, self.height) * abs(other.transform[i] / factor - self.transform[i]) for i in (0, 1, 3, 4)]
            fits = same_crs(other.crs, self.crs) and max(*sides, *(abs(self.transform[i] - other.transform[i]) for i in (2, 5))) < near
        if not fits:
            raise InputError(f"{name} lies on a grid that doesn't fit the finest band's. Bring all to one grid with gdalwarp -te -tr.")
        return factor


def _tagged_offset(dataset: Any, band: Band) -> int | None:
    """Digital numbers to take off by GDAL's scale and offset; None where the band has neither."""
    try:
        return tagged_offset(float(dataset.scales[band.index - 1]), float(dataset.offsets[band.index - 1]))
    except InputError as error:
        raise InputError(
            f"{band.path} has {error}. Convert it to reflectance, gdal_translate -unscale -ot Float32, and that to digital numbers, {FROM_REFLECTANCE}"
        ) from None
