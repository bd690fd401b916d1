"""A Sentinel-2 product as ESA delivers it (SAFE, level 1C or 2A): its band files, and the offset that its metadata records.

product = read_product(Path("S2A_MSIL2A_..._N0509_....SAFE"))
product.files["B04"]     # the finest file of the band
product.offsets["B04"]   # 1000
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from ..bands import ESA, band_name
from ..errors import InputError
from ..spec import read_bytes

_OFFSETS = {"1C": "RADIO_ADD_OFFSET", "2A": "BOA_ADD_OFFSET"}
_QUANTIFICATION = {"1C": "QUANTIFICATION_VALUE", "2A": "BOA_QUANTIFICATION_VALUE"}
# where level 2A has a band as it was taken; a coarser copy is no stand-in for it
_OWN = {**dict.fromkeys(("B02", "B03", "B04", "B08"), "R10m"), **dict.fromkeys(("B01", "B09", "B10"), "R60m")}
_MOST_BYTES = 20_000_000  # such a file has some 50 kB


@dataclass(frozen=True)
class Product:
    """level: "1C" or "2A". baseline: of the processing, "05.09". files: by band. offsets: digital numbers to take off, by
    band; None where they should be recorded and are not."""

    level: str
    baseline: str
    files: dict[str, Path]
    offsets: dict[str, int] | None


def is_product(folder: Path) -> bool:
    """Whether a folder is a SAFE folder, by its metadata file."""
    return any((folder / f"MTD_MSIL{level}.xml").is_file() for level in _OFFSETS)


def read_product(folder: Path) -> Product:
    """Find the bands and the offsets of a SAFE folder. InputError for a product without granule, or metadata that make no sense."""
    level = next(level for level in _OFFSETS if (folder / f"MTD_MSIL{level}.xml").is_file())
    path = folder / f"MTD_MSIL{level}.xml"
    root = _parse(path)
    baseline = _text(root, "PROCESSING_BASELINE") or ""
    if not re.fullmatch(r"\d\d\.\d\d", baseline):
        raise InputError(f"{path} names no PROCESSING_BASELINE. Fetch the product again.")
    quantification = _text(root, _QUANTIFICATION[level]) or ""
    if not re.fullmatch(r"10000(\.0*)?", quantification):
        raise InputError(
            f"{path} has the {_QUANTIFICATION[level]} {quantification!r}; engines are trained on 10,000 a unit of reflectance. Choose another product."
        )
    found = _offsets(root, _OFFSETS[level], path)
    inside = (folder / "GRANULE").iterdir() if (folder / "GRANULE").is_dir() else ()
    granules = sorted(each for each in inside if (each / "IMG_DATA").is_dir())
    if len(granules) != 1:
        way_out = "Map each by its band files: give the folder they lie in" if granules else "Fetch it again"
        raise InputError(f"{folder} holds {len(granules)} granules with IMG_DATA; sattrt maps products of one. {way_out}.")
    files: dict[str, Path] = {}
    # R10m before R20m before R60m: the finest of a band comes first
    for file in sorted(_files(granules[0] / "IMG_DATA"), key=lambda each: (each.parent.name, each.name)):
        name = band_name(file.stem)
        if not name or file.suffix.lower() not in (".jp2", ".tif", ".tiff") or file.name.startswith(".") or not file.is_file():
            continue
        if file.parent.name <= _OWN.get(name, "R20m") or level == "1C":
            files.setdefault(name, file)
    # what is not recorded is none only before baseline 04.00
    offsets = {name: found.get(name, 0) for name in ESA} if baseline < "04.00" or set(files) <= set(found) else None
    return Product(level, baseline, files, offsets)


def _files(folder: Path) -> list[Path]:
    """All that lies in a folder and those in it. OSError, which `Path.rglob` would keep to itself, for one that can't be read."""

    def fail(error: OSError) -> None:
        raise error

    return [Path(place, name) for place, _, names in os.walk(folder, onerror=fail) for name in names]


def _parse(path: Path) -> ElementTree.Element:
    content = read_bytes(path)
    # entities can be nested until they fill the memory, and UTF-16 would hide them; ESA's files have neither
    if len(content) > _MOST_BYTES or any(word in content for word in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
        raise InputError(f"{path} is not as ESA writes it: too large, or it declares a document type or entities. Don't use this product.")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not readable XML ({error}). Fetch the product again.") from None


def _text(root: ElementTree.Element, tag: str) -> str | None:
    """The text of the first such element; ESA puts a namespace on the outer elements alone, and in which one varies."""
    return next(((each.text or "").strip() for each in root.iter() if each.tag.rpartition("}")[2] == tag), None)


def _offsets(root: ElementTree.Element, tag: str, path: Path) -> dict[str, int]:
    found = {}
    for each in root.iter():
        if each.tag.rpartition("}")[2] == tag:
            band, value = each.get("band_id", ""), (each.text or "").strip()
            if not (
                re.fullmatch(r"\d{1,2}", band) and int(band) < len(ESA) and re.fullmatch(r"-?\d{1,5}(\.0*)?", value) and float(value) <= 0
            ):
                raise InputError(
                    f"{path} has the {tag} {value!r} for band_id {band!r}, which this sattrt does not know. Fetch the product again."
                )
            found[ESA[int(band)]] = -int(float(value))
    return found
