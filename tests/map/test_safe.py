"""Sentinel-2 SAFE folders, as ESA lays them out: bands of three resolutions, the offset in the metadata, and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scenes import RESOLUTION, safe_pixels, spec, write_safe

from sattrt.bands import ESA
from sattrt.errors import InputError
from sattrt.map.config import MapConfig
from sattrt.map.finding import find_scene
from sattrt.map.safe import read_product
from sattrt.map.scene import Reader
from sattrt.runtime import Bundle


def refusal(folder: Path, *bands: str) -> str:
    with pytest.raises(InputError) as caught:
        find_scene(folder, spec(bands or ("B04", "B08"), "uint16"), MapConfig())
    return str(caught.value)


@pytest.mark.parametrize(
    ("level", "baseline", "offset"), [("1C", "05.09", -1000), ("2A", "04.00", -1000), ("1C", "02.09", None), ("2A", "03.01", None)]
)
def test_the_offset_of_the_metadata_is_taken_off(tmp_path: Path, level: str, baseline: str, offset: int | None) -> None:
    pixels = safe_pixels(level, least=1000)
    folder = write_safe(tmp_path / f"S2A_MSIL{level}.SAFE", level, pixels, offset, baseline)
    scene = find_scene(folder, spec(tuple(pixels), "uint16"), MapConfig(offset=None if offset else 0))
    assert (scene.height, scene.width, scene.kind) == (120, 120, f"Sentinel-2 L{level}")
    assert f"baseline {baseline}" in scene.says
    with Reader(scene) as reader:
        read, valid = reader.read(0, 0, 120, 120)
    assert valid.all()
    for name, band in zip(pixels, read, strict=True):
        factor = RESOLUTION[name] // 10
        if factor == 1:
            assert (band == pixels[name].astype(int) + (offset or 0)).all()
        else:  # bilinear: the mean stays, but for the margin
            assert abs(band.mean() - pixels[name].mean() - (offset or 0)) < 30
    assert not list(tmp_path.rglob("*.aux.xml"))


def test_an_offset_may_differ_from_band_to_band(tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "p.SAFE", "1C", safe_pixels("1C", 60), -1000, "04.00")
    path = folder / "MTD_MSIL1C.xml"
    path.write_text(path.read_text().replace('band_id="8">-1000', 'band_id="8">-900'))
    found = read_product(folder).offsets
    assert found is not None
    assert found == {name: 900 if name == "B8A" else 1000 for name in ESA}


def test_missing_bands_are_named(tmp_path: Path) -> None:
    pixels = safe_pixels("2A")
    del pixels["B08"]
    folder = write_safe(tmp_path / "p.SAFE", "2A", pixels, -1000, "05.10")
    message = refusal(folder, "B04", "B08", "B10")
    assert "p.SAFE (Sentinel-2 L2A) lacks the band B08, B10" in message


def test_a_coarser_copy_is_no_stand_in_for_a_band(tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "p.SAFE", "2A", safe_pixels("2A"), -1000, "05.10")
    (images,) = folder.glob("GRANULE/*/IMG_DATA")
    (band,) = (images / "R10m").glob("*_B04_*")
    (band.parent / f"._{band.name}").write_bytes(b"what macOS leaves beside a file")
    find_scene(folder, spec(("B04", "B05"), "uint16"), MapConfig())
    band.rename(images / "R20m" / band.name.replace("10m", "20m"))
    assert "(Sentinel-2 L2A) lacks the band B04" in refusal(folder, "B04", "B05")


def test_metadata_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "p.SAFE", "2A", safe_pixels("2A"), None, "05.10")
    assert "metadata don't record the offset of every band" in refusal(folder)
    assert find_scene(folder, spec(("B04",), "uint16"), MapConfig(offset=0)).bands[0].offset == 0
    path = folder / "MTD_MSIL2A.xml"
    text = path.read_text()
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    for changed, reason in {
        text.replace("<n1:Level", f"{bomb}<n1:Level", 1): "document type",
        text[:300]: "not readable XML",
        text.replace("05.10", "new"): "names no PROCESSING_BASELINE",
        text.replace(">10000<", ">1000<"): "BOA_QUANTIFICATION_VALUE '1000'",
        text.replace("</Product_Image", '<BOA_ADD_OFFSET band_id="99">-1000</BOA_ADD_OFFSET></Product_Image'): "band_id '99'",
        text.replace("</Product_Image", f'<BOA_ADD_OFFSET band_id="{"1" * 5000}">-1000</BOA_ADD_OFFSET></Product_Image'): "band_id '111",
        text.replace("</Product_Image", '<BOA_ADD_OFFSET band_id="1">5e9</BOA_ADD_OFFSET></Product_Image'): "'5e9'",
    }.items():
        path.write_text(changed)
        message = refusal(folder)
        assert reason in message
        assert str(path) in message
    path.write_text(text.replace('encoding="UTF-8"', 'encoding="UTF-16"'), encoding="utf-16")
    assert "document type" in refusal(folder)


def test_folders_that_are_no_product_are_refused(tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "p.SAFE", "2A", safe_pixels("2A"), -1000, "05.10")
    granule = next((folder / "GRANULE").iterdir())
    (folder / "GRANULE" / "L2A_another" / "IMG_DATA").mkdir(parents=True)
    assert "sattrt maps products of one. Map each by its band files" in refusal(folder)
    (folder / "manifest.safe").write_text("<manifest/>")
    for name in ("MTD_MSIL2A.xml", "manifest.safe"):
        assert f"{name} is one file of a product. Give the product's folder: {folder}" in refusal(folder / name)
    (folder / "GRANULE" / "L2A_another" / "IMG_DATA").rmdir()
    file = next(granule.rglob("*_B04_10m.jp2"))
    outside = tmp_path / "secret.jp2"
    file.rename(outside)
    file.symlink_to(outside)
    assert "is a link out of its folder" in refusal(folder)
    file.unlink()
    file.write_bytes(outside.read_bytes()[:2000])
    assert "cut short or damaged" in refusal(folder)


def test_the_finest_grid_is_that_of_the_bands_that_are_needed(tmp_path: Path) -> None:
    pixels = safe_pixels("2A", 240)
    folder = write_safe(tmp_path / "p.SAFE", "2A", pixels, 0, "05.10")
    scene = find_scene(folder, spec(("B11", "B05"), "uint16"), MapConfig())
    assert (scene.height, [band.factor for band in scene.bands]) == (120, [1, 1])
    with Reader(scene) as reader:
        assert np.array_equal(reader.read(0, 0, 120, 120)[0], np.stack([pixels["B11"], pixels["B05"]]))


def test_an_offset_that_is_recorded_for_some_bands_only_is_none(tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "p.SAFE", "1C", safe_pixels("1C", 60), -1000, "05.09")
    path = folder / "MTD_MSIL1C.xml"
    path.write_text(re.sub(r'<RADIO_ADD_OFFSET band_id="(?!3")\d+">-1000</RADIO_ADD_OFFSET>', "", path.read_text()))
    assert "metadata don't record the offset of every band" in refusal(folder)


def test_a_product_that_may_not_be_read_is_said_so(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "p.SAFE", "2A", safe_pixels("2A"), -1000, "05.10")
    images = next(folder.glob("GRANULE/*/IMG_DATA"))
    band = next(images.rglob("*_B04_10m.jp2"))
    command = [sys.executable, "-m", "sattrt", "map", bundle.path, folder, "--out", tmp_path / "map.tif"]
    if not os.geteuid():  # root may read anything, but for want of these capabilities
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}", *command]
    for path in (folder / "GRANULE", images, images / "R10m", band):
        mode = path.stat().st_mode
        path.chmod(0)
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        path.chmod(mode)
        assert done.returncode == 1
        assert f"{path}: Permission denied. Check" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
