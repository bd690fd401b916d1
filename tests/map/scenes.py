"""Scenes for tests: small rasters, folders of band files, and SAFE folders laid out as ESA's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from conftest import CLASSES
from numpy.typing import NDArray

from sattrt.bands import ESA
from sattrt.map.config import MapConfig
from sattrt.map.run import Mapped, map_scenes
from sattrt.runtime import Bundle
from sattrt.spec import ModelSpec

ENGINE = "onnxruntime-fp32"
CRS, TRANSFORM = "EPSG:32632", rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_000)
# of a name of its own, which is no part of what a CRS means
LAMBERT = (
    'PROJCS["{}",GEOGCS["unknown",DATUM["unknown",SPHEROID["GRS 1980",6378137,298.257222101]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Conformal_Conic_2SP"],PARAMETER["latitude_of_origin",44],'
    'PARAMETER["central_meridian",9.5],PARAMETER["standard_parallel_1",41],PARAMETER["standard_parallel_2",47],'
    'PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["metre",1]]'
)
RESOLUTION = {name: 60 if name in ("B01", "B09", "B10") else 10 if name in ("B02", "B03", "B04", "B08") else 20 for name in ESA}


def quiet(done: int, total: int) -> None:
    """No progress bar."""


def mapped(bundle: Bundle, scene: Path, out: Path, resume: bool = False, **settings: object) -> Mapped:
    """The map of one scene, by the command's own function."""
    config = MapConfig(engine=ENGINE, **settings)  # type: ignore[arg-type]
    (found,) = map_scenes(bundle.path, [scene], out, config, resume, lambda name: quiet)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def spec(bands: tuple[str, ...] = ("red", "green", "blue"), dtype: str = "uint8", tile: int = 64) -> ModelSpec:
    """A contract for these bands; the engine behind it is of no concern to whom reads scenes."""
    ones = (1.0,) * len(bands)
    return ModelSpec(classes=tuple(CLASSES), height=tile, width=tile, mean=ones, std=ones, bands=bands, dtype=dtype, dataset_digest="")


def noise(bands: int, height: int, width: int, seed: int = 0, least: int = 100, most: int = 3000) -> NDArray[np.uint16]:
    """Digital numbers at random, all of them data."""
    return np.random.default_rng(seed).integers(least, most, (bands, height, width)).astype(np.uint16)


def write_raster(path: Path, pixels: NDArray[Any], names: tuple[str, ...] = (), placed: bool = True, **profile: Any) -> Path:
    """A GeoTIFF of (bands, height, width), with a georeference if `placed`."""
    place = {"crs": CRS, "transform": TRANSFORM} if placed else {}
    tags = {key: profile.pop(key) for key in ("scales", "offsets") if key in profile}
    size = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff", **size, **place, **profile}) as file:
        file.write(pixels)
        if names:
            file.descriptions = names
        for key, values in tags.items():
            setattr(file, key, values)
    return path


def interpolated(coarse: NDArray[np.uint16], factor: int) -> NDArray[np.float64]:
    """Finer by a factor, bilinear, exact but for the last division."""
    parts = 2 * factor  # of the way from one coarse pixel to the next

    def between(values: NDArray[np.int64]) -> NDArray[np.int64]:
        place = 2 * np.arange(len(values) * factor) + 1 - factor
        first, share = place // parts, (place % parts)[:, None]
        low, high = (values[np.clip(each, 0, len(values) - 1)] for each in (first, first + 1))
        return low * (parts - share) + high * share

    return between(between(coarse.astype(np.int64)).T).T / parts**2


def colourful(tiles_down: int, tiles_across: int, extra: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """An 8-bit RGB scene of noisy 64-pixel tiles around the colours that the test bundle knows, and the class of each tile."""
    layout = np.random.default_rng(1).integers(0, 3, (tiles_down, tiles_across))
    colours = np.array(list(CLASSES.values()))[layout].repeat(64, 0).repeat(64, 1)
    colours = np.pad(colours, ((0, extra), (0, extra), (0, 0)), mode="edge")
    grainy = colours + np.random.default_rng(2).normal(0, 25, colours.shape)
    return grainy.clip(1, 255).astype(np.uint8).transpose(2, 0, 1), layout


def write_safe(folder: Path, level: str, pixels: dict[str, NDArray[np.uint16]], offset: int | None, baseline: str) -> Path:
    """A SAFE folder with these bands, JPEG2000 without loss. offset: as the metadata record it (-1000), None for none."""
    tile = "T32TPT_20220701T101559"
    granule = folder / "GRANULE" / f"L{level}_T32TPT_A027789_20220701T101600"
    for name, band in pixels.items():
        where = granule / "IMG_DATA" / (f"R{RESOLUTION[name]}m" if level == "2A" else "")
        where.mkdir(parents=True, exist_ok=True)
        step = RESOLUTION[name]
        lossless = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "YCBCR420": "NO"}
        file = where / (f"{tile}_{name}_{step}m.jp2" if level == "2A" else f"{tile}_{name}.jp2")
        write_raster(file, band[None], transform=rasterio.Affine(step, 0, 600_000, 0, -step, 5_300_000), **lossless)
    tag, around = ("RADIO_ADD_OFFSET", "Radiometric_Offset_List") if level == "1C" else ("BOA_ADD_OFFSET", "BOA_ADD_OFFSET_VALUES_LIST")
    listed = "".join(f'<{tag} band_id="{index}">{offset}</{tag}>' for index in range(13)) if offset is not None else ""
    quantification = '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
    if level == "2A":
        quantification = (
            '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
            '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
        )
    (folder / f"MTD_MSIL{level}.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n<n1:Level-{level}_User_Product '
        f'xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd"><n1:General_Info><Product_Info>'
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><PRODUCT_TYPE>S2MSI{level}</PRODUCT_TYPE></Product_Info>"
        f"<Product_Image_Characteristics>{quantification}{f'<{around}>{listed}</{around}>' if listed else ''}"
        f"</Product_Image_Characteristics></n1:General_Info></n1:Level-{level}_User_Product>\n"
    )
    return folder


def safe_pixels(level: str, side: int = 120, least: int = 100) -> dict[str, NDArray[np.uint16]]:
    """Noise for every band that a level has, `side` pixels at 10 m."""
    names = [name for name in ESA if not (level == "2A" and name == "B10")]
    return {name: noise(1, side * 10 // RESOLUTION[name], side * 10 // RESOLUTION[name], i, least)[0] for i, name in enumerate(names)}
