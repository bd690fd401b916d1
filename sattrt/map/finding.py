"""From a path to a `Scene`: what kind it is, and which bands it has, by name; `fitting` does the rest.

scene = find_scene(Path("scenes/T32UQD.tif"), engine.spec, MapConfig())
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

from ..bands import COMMON, ESA, band_name, described
from ..errors import InputError
from ..spec import ModelSpec
from .config import MapConfig
from .fitting import Found, fit, require_numbers
from .geo import alpha_bands, open_raster
from .plausible import check_named, misnamed, name_13_bands
from .safe import is_product, read_product
from .scene import Band, Scene

_RGB = ("red", "green", "blue")


def find_scene(path: Path, spec: ModelSpec, config: MapConfig) -> Scene:
    """The scene at a path: a raster file, a folder of band files, or a SAFE folder. InputError, with the reason, for any other."""
    found = _look(path, config)
    wanted = tuple(COMMON.get(name, name) for name in spec.bands)
    if missing := [name for name in wanted if name not in found.bands]:
        raise InputError(
            f"{path} ({found.kind}) lacks the band {', '.join(missing)} that the engine takes; it has {', '.join(found.bands) or 'none'}. "
            f"{'If they have other names there, say which is which: --set bands=B01,B02,... Or choose' if path.is_file() else 'Choose'} "
            "another scene, or a bundle of fewer bands."
        )
    return fit(path, found, wanted, spec, config)


def _look(path: Path, config: MapConfig) -> Found:
    if not path.is_dir():
        return _file(path, config)
    if config.bands:
        raise InputError(f"{path} is a folder: its files say which bands they are. Leave the map setting bands out.")
    return _product(path, config) if is_product(path) else _folder(path)


def _file(path: Path, config: MapConfig) -> Found:
    if not path.is_file():
        raise InputError(
            f"{path} {'is not a regular file' if path.exists() else 'does not exist'}. Give a GeoTIFF, a folder of band files or a SAFE folder."
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: 0 bytes. Fetch it again.")
    if _is_archive(path):
        raise InputError(f"{path} is an archive. Unpack it, and give the folder or file inside.")
    if path.suffix.lower() in (".xml", ".safe") and is_product(path.parent):
        raise InputError(f"{path} is one file of a product. Give the product's folder: {path.parent}")
    with open_raster(path) as dataset:
        alpha = alpha_bands(dataset)
        indexes = [index for index in dataset.indexes if index not in alpha]
        names = _names(path, dataset, indexes, config)
    said = []
    if names is None:
        names = name_13_bands(path, indexes)
        said = [f"13 bands without names, in {'EuroSAT' if names[-1] == 'B8A' else 'ESA'}'s order by their statistics"]
    elif double := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"{path} has several bands named {double[0]}. Name them: --set bands=B01,B02,...")
    elif config.bands:
        fault = misnamed(path, names, indexes)
        said = [f"bands named in the config{f', though implausible: {fault}' if fault else ''}"]
    else:
        check_named(path, names, indexes)
    bands = {name: Band(name=name, path=str(path), index=index) for name, index in zip(names, indexes, strict=True) if name}
    kind = f"raster of {len(indexes)} band{'s' * (len(indexes) > 1)}"
    return Found(kind=kind, bands=bands, says=tuple(said))


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except (zipfile.BadZipFile, EOFError, OSError):  # the last part of one that was split, or one cut short: GDAL says that it is no raster
        return False


def _names(path: Path, dataset: Any, indexes: list[int], config: MapConfig) -> list[str] | None:
    """A name for each band, empty where it has none; None for 13 bands without any."""
    if config.bands:
        given = [name.strip() for name in config.bands.split(",")]
        known = [band_name(name) or "" for name in given]
        if len(given) != len(indexes) or not all(known):
            wrong = next((name for name, found in zip(given, known, strict=True) if not found), None)
            fault = f"the unknown band {wrong!r}" if wrong is not None else f"{len(given)} names"
            beside = " beside its alpha" if len(indexes) < dataset.count else ""
            raise InputError(f"The map setting bands has {fault}; {path} has {len(indexes)} bands{beside}. Names: {', '.join(ESA)}.")
        return known
    names = [name or "" for name in described([dataset.descriptions[index - 1] for index in indexes])]
    if any(names):
        return names
    coloured = [COMMON.get(dataset.colorinterp[index - 1].name, "") for index in indexes]
    if all(name in coloured for name in ("B04", "B03", "B02")):
        return coloured
    if len(indexes) == 3 and dataset.dtypes[0] == "uint8":
        return [COMMON[name] for name in _RGB]
    if len(indexes) == 13:
        return None
    if any(dataset.colorinterp[index - 1].name == "palette" for index in indexes):
        raise InputError(f"{path} has a palette in place of colours. Expand it: gdal_translate -expand rgb")
    require_numbers(path, dataset.dtypes[0])  # or it would be refused once they are named
    raise InputError(
        f"{path} has {len(indexes)} band{'s' * (len(indexes) > 1)} of {dataset.dtypes[0]} without names of Sentinel-2's. Give them descriptions such as B04, or "
        "name them: --set bands=B02,B03,..."
    )


def _folder(path: Path) -> Found:
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in (".tif", ".tiff", ".jp2") and not file.name.startswith(".") and (name := band_name(file.stem)):
            files.setdefault(name, []).append(_inside(file, path))
    if not files:
        raise InputError(
            f"{path} is not a SAFE folder and holds no band files. Give files such as scene_B04.tif, or the product's folder itself."
        )
    return Found(kind="folder of band files", bands={name: _finest(name, files[name]) for name in ESA if name in files})


def _product(path: Path, config: MapConfig) -> Found:
    product = read_product(path)
    bands = {name: Band(name=name, path=str(_inside(product.files[name], path))) for name in ESA if name in product.files}
    if product.offsets is None and config.offset is None:
        raise InputError(
            f"{path} is of baseline {product.baseline} and its metadata don't record the offset of every band. Fetch it again, or give --set offset=1000"
        )
    kind = f"Sentinel-2 L{product.level}"
    return Found(kind=kind, bands=bands, offsets=product.offsets, says=(f"baseline {product.baseline}",))


def _inside(file: Path, folder: Path) -> Path:
    """The file; InputError for one that lies elsewhere, or is none."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} is a link out of its folder. Put the file itself there.")
    if not file.is_file():  # to open a pipe would wait for whoever writes to it
        raise InputError(f"{file} is not a regular file. Take it out of the folder.")
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
    finest = [file for file in files if sizes[file] == max(sizes.values())]
    if len(finest) > 1:
        raise InputError(
            f"{finest[0].parent} holds band {name} twice: {finest[0].name} and {finest[1].name}. Leave the files of one date there."
        )
    return Band(name=name, path=str(finest[0]))
