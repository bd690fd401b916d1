"""From a path to a `Scene` that fits an engine: bands by name, one grid, the offset; what can't be right is refused with the reason.

scene = find_scene(Path("scenes/T32UQD.tif"), engine.spec, MapConfig())
"""

from __future__ import annotations

import dataclasses
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..spec import ModelSpec
from .bands import COMMON, ESA, WHITE, band_name
from .config import MapConfig
from .geo import open_raster
from .plausible import check_values, name_13_bands
from .safe import is_product, read_product
from .scene import Band, Scene

_RGB = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a path holds. bands: by name. offsets: by name; None where no metadata speak of it."""

    kind: str
    bands: dict[str, Band]
    offsets: dict[str, int] | None = None
    says: tuple[str, ...] = ()


def find_scene(path: Path, spec: ModelSpec, config: MapConfig) -> Scene:
    """The scene at a path: a raster file, a folder of band files, or a SAFE folder. InputError, with the reason, for any other."""
    found = _look(path, config)
    wanted = tuple(COMMON.get(name, name) for name in spec.bands)
    if missing := [name for name in wanted if name not in found.bands]:
        raise InputError(
            f"{path} ({found.kind}) lacks the band {', '.join(missing)} that the engine takes; it has {', '.join(found.bands) or 'none'}. "
            "Choose another scene, or a bundle of fewer bands."
        )
    return _fitted(path, found, wanted, spec, config)


def _look(path: Path, config: MapConfig) -> _Found:
    if not path.is_dir():
        return _file(path, config)
    return _product(path, config) if is_product(path) else _folder(path)


def _file(path: Path, config: MapConfig) -> _Found:
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give a GeoTIFF, a folder of band files or a SAFE folder.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: 0 bytes. Fetch it again.")
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        raise InputError(f"{path} is an archive. Unpack it, and give the folder or file inside.")
    with open_raster(path) as dataset:
        alpha = [index for index, meaning in enumerate(dataset.colorinterp, 1) if meaning.name == "alpha"]
        indexes = [index for index in dataset.indexes if index not in alpha]
        names = _names(path, dataset, indexes, config)
    said = ["bands named in the config"] if config.bands else []
    if names is None:
        names = name_13_bands(path, indexes)
        said = [f"13 bands without names, in {'EuroSAT' if names[-1] == 'B8A' else 'ESA'}'s order by their statistics"]
    if double := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"{path} has several bands named {double[0]}. Name them in the config: bands = 'B01,B02,...'")
    bands = {name: Band(name=name, path=str(path), index=index) for name, index in zip(names, indexes, strict=True) if name}
    kind = f"raster of {len(indexes)} band{'s' * (len(indexes) > 1)}"
    return _Found(kind=kind, bands=bands, says=tuple(said))


def _names(path: Path, dataset: Any, indexes: list[int], config: MapConfig) -> list[str] | None:
    """A name for each band, empty where it has none; None for 13 bands without any."""
    if config.bands:
        given = [name.strip() for name in config.bands.split(",")]
        known = [band_name(name) or "" for name in given]
        if len(given) != len(indexes) or not all(known):
            wrong = next((name for name, found in zip(given, known, strict=True) if not found), None)
            fault = f"the unknown band {wrong!r}" if wrong is not None else f"{len(given)} names"
            raise InputError(f"The map setting bands has {fault}; {path} has {len(indexes)} bands. Names: {', '.join(ESA)}.")
        return known
    described = [band_name(dataset.descriptions[index - 1] or "") or "" for index in indexes]
    if any(described):
        return described
    coloured = [COMMON.get(dataset.colorinterp[index - 1].name, "") for index in indexes]
    if all(name in coloured for name in ("B04", "B03", "B02")):
        return coloured
    if len(indexes) == 3 and dataset.dtypes[0] == "uint8":
        return [COMMON[name] for name in _RGB]
    if len(indexes) == 13:
        return None
    raise InputError(
        f"{path} has {len(indexes)} band{'s' * (len(indexes) > 1)} of {dataset.dtypes[0]} without names. Give them descriptions such as B04, or "
        "name them in the config: bands = 'B02,B03,...'"
    )


def _folder(path: Path) -> _Found:
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in (".tif", ".tiff", ".jp2") and not file.name.startswith(".") and (name := band_name(file.stem)):
            files.setdefault(name, []).append(_inside(file, path))
    if not files:
        raise InputError(
            f"{path} is no SAFE folder and holds no band files. Give files such as scene_B04.tif, or the product's folder itself."
        )
    return _Found(kind="folder of band files", bands={name: _finest(name, files[name]) for name in ESA if name in files})


def _product(path: Path, config: MapConfig) -> _Found:
    product = read_product(path)
    bands = {name: Band(name=name, path=str(_inside(product.files[name], path))) for name in ESA if name in product.files}
    if product.offsets is None and config.offset is None:
        raise InputError(
            f"{path} is of baseline {product.baseline} and its metadata record no offset. Fetch it again, or set it in the config: offset = 1000"
        )
    kind = f"Sentinel-2 L{product.level}"
    return _Found(kind=kind, bands=bands, offsets=product.offsets, says=(f"{kind}, baseline {product.baseline}",))


def _inside(file: Path, folder: Path) -> Path:
    """The file; InputError for one that lies elsewhere."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} is a link out of its folder. Put the file itself there.")
    return file


def _finest(name: str, files: list[Path]) -> Band:
    sizes = {}
    for file in files:
        with open_raster(file) as dataset:
            sizes[file] = dataset.width
            if dataset.count != 1:
                raise InputError(
                    f"{file} has {dataset.count} bands; a band file has one. Give the file itself as the scene, or leave it out."
                )
    return Band(name=name, path=str(max(files, key=lambda file: sizes[file])))


def _fitted(path: Path, found: _Found, wanted: tuple[str, ...], spec: ModelSpec, config: MapConfig) -> Scene:
    """One grid, one data type, the offsets, and values that make sense."""
    bands = [found.bands[name] for name in wanted]
    shapes: dict[str, _Shape] = {}
    offsets: list[int | None] = []
    for band in bands:
        with open_raster(band.path) as dataset:
            shapes[band.path] = shape = _Shape.of(dataset)
            recorded = found.offsets[band.name] if found.offsets else _tagged_offset(dataset, band)
        if shape.dtype not in ("uint8", "uint16"):
            raise InputError(
                f"{band.path} holds {shape.dtype}; engines take digital numbers, uint16, or 8-bit colours. Convert it to the numbers that "
                "Sentinel-2 has (10,000 a unit of reflectance): gdal_translate -ot UInt16"
            )
        offsets.append(recorded if config.offset is None else config.offset)
    fine = max(shapes.values(), key=lambda shape: shape.width)
    factors = {name: fine.factor(shape, name) for name, shape in shapes.items()}
    dtypes = {shape.dtype for shape in shapes.values()}
    if len(dtypes) > 1 or ((dtype := dtypes.pop()) == "uint8" and spec.dtype != "uint8"):
        raise InputError(f"{path} holds 8-bit pixels; the engine takes {spec.dtype} digital numbers. Give the scene as it was delivered.")
    if fine.height < spec.height or fine.width < spec.width:
        raise InputError(
            f"{path} has {fine.width}x{fine.height} pixels, less than one tile of {spec.width}x{spec.height}. Give a larger scene."
        )
    numbers = dtype == "uint16"
    nodata = fine.nodata if config.nodata is None else config.nodata
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
        masked=fine.masked,
        says=(*found.says, *georeference),
    )
    if numbers:
        own = [band.name for band in scene.bands]
        others = [band for band in found.bands.values() if band.path in shapes and band.name not in own]
        check_values(
            scene, tuple(dataclasses.replace(band, factor=factors[band.path]) for band in others), known_offset=None not in offsets
        )
    return dataclasses.replace(scene, says=(*scene.says, *_decided(scene)))


def _decided(scene: Scene) -> list[str]:
    """What is done to the pixels, for people."""
    said = []
    if taken := sorted({band.offset for band in scene.bands} - {0}):
        said.append(f"offset of {', '.join(map(str, taken))} taken off")
    if scene.scaled:
        said.append(f"digital numbers 0..{WHITE} scaled to 1..255")
    if coarse := [band.name for band in scene.bands if band.factor > 1]:
        said.append(f"{', '.join(coarse)} interpolated (bilinear) to the finest grid")
    return said


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """The grid of a file. crs, transform: empty and None without georeference."""

    width: int
    height: int
    crs: str
    transform: tuple[float, ...] | None
    dtype: str
    nodata: int
    masked: bool

    @classmethod
    def of(cls, dataset: Any) -> _Shape:
        placed = bool(dataset.crs) and not dataset.transform.is_identity
        flags = {flag.name for each in dataset.mask_flag_enums for flag in each}
        declared = dataset.nodata
        return cls(
            width=dataset.width,
            height=dataset.height,
            crs=dataset.crs.to_wkt() if placed else "",
            transform=tuple(dataset.transform)[:6] if placed else None,
            dtype=dataset.dtypes[0],
            nodata=int(declared) if declared is not None and declared == declared and 0 <= declared <= 65_535 else 0,
            masked=bool(flags & {"per_dataset", "alpha"}),
        )

    def factor(self, other: _Shape, name: str) -> int:
        """How many of our pixels one of another file's covers along each side. InputError where the grids don't fit into each other."""
        factor = round(self.width / other.width)
        fits = (factor * other.width, factor * other.height) == (self.width, self.height)
        if fits and self.transform and other.transform:
            reach = factor * abs(self.transform[0]) / 2  # half a pixel of the coarser
            fits = other.crs == self.crs and all(abs(self.transform[i] - other.transform[i]) < reach for i in (2, 5))
            fits = fits and abs(other.transform[0] / factor - self.transform[0]) < reach / self.width
        if not fits:
            raise InputError(f"{name} lies on a grid that doesn't fit the finest band's. Bring all to one grid with gdalwarp -te -tr.")
        return factor


def _tagged_offset(dataset: Any, band: Band) -> int | None:
    """Digital numbers to take off by GDAL's scale and offset; None where the band has neither."""
    scale, offset = float(dataset.scales[band.index - 1]), float(dataset.offsets[band.index - 1])
    if (scale, offset) == (1, 0):
        return None
    if abs(scale - 1e-4) > 1e-9 or not -1 <= offset <= 0:
        raise InputError(
            f"{band.path} has the scale {scale:g} and the offset {offset:g} in its tags; engines are trained on 10,000 a unit of reflectance. "
            "Convert it with gdal_translate -unscale, or remove the tags."
        )
    return round(-offset / scale)
