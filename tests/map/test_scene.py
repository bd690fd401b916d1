"""Scenes: what is recognised, which pixels come out, and what is refused with which reason."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import EUROSAT, SHARED
from numpy.typing import NDArray
from PIL import Image
from scenes import interpolated, noise, spec, write_raster

from sattrt.bands import ESA, band_name
from sattrt.bands import EUROSAT as EUROSAT_ORDER
from sattrt.errors import InputError
from sattrt.map.config import MapConfig
from sattrt.map.finding import find_scene
from sattrt.map.plausible import order_of_13
from sattrt.map.scene import Reader, table
from sattrt.shift import percentiles

MULTISPECTRAL = SHARED / "EuroSAT_MS_sample.zip"


def read(path: Path, wanted: tuple[str, ...], dtype: str = "uint16", **settings: object) -> NDArray[np.uint16]:
    """A whole scene as an engine of these bands would take it (bands, height, width)."""
    scene = find_scene(path, spec(wanted, dtype), MapConfig(**settings))  # type: ignore[arg-type]
    with Reader(scene) as reader:
        return reader.read(0, 0, scene.height, scene.width)[0]


def refusal(path: Path, wanted: tuple[str, ...] = ("red", "green", "blue"), dtype: str = "uint8", **settings: object) -> str:
    """The one line that a refused scene says, and nothing written beside it."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as caught:
        find_scene(path, spec(wanted, dtype), MapConfig(**settings))  # type: ignore[arg-type]
    assert sorted(path.parent.iterdir()) == before
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B04", "B04"),
        ("B4", "B04"),
        ("B8A", "B8A"),
        ("b8a", "B8A"),
        ("Band 8", "B08"),
        ("B12 (2190 nm)", "B12"),
        ("T32UQD_20220701T101559_B8A_20m", "B8A"),
        ("nir", "B08"),
        ("Red", "B04"),
        ("swir", None),
        ("B13", None),
        ("B04 B08", None),
        ("T32UQD_20220701T101559_TCI_10m", None),
        ("SB04X", None),
    ],
)
def test_names_of_bands(text: str, name: str | None) -> None:
    assert band_name(text) == name


def test_bands_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    pixels = noise(4, 80, 90)
    path = write_raster(tmp_path / "s.tif", pixels, ("B8", "B2", "B4", "B3"))
    assert (read(path, ("B04", "B08")) == pixels[[2, 0]]).all()
    assert "lacks the band B11 that the engine takes; it has B08, B02, B04, B03" in refusal(path, ("B04", "B11"), "uint16")
    plain = write_raster(tmp_path / "plain.tif", pixels)
    assert "4 bands of uint16 without names" in refusal(plain)
    assert (read(plain, ("B04", "B08"), bands="B8,B2,B4,B3") == pixels[[2, 0]]).all()
    assert "has 3 names" in refusal(plain, bands="B8,B2,B4")
    assert "unknown band 'B99'" in refusal(plain, bands="B8,B2,B4,B99")
    assert "several bands named B04" in refusal(write_raster(tmp_path / "twice.tif", pixels, ("B4", "B04", "B03", "B02")))


def test_8_bit_colours_go_in_as_they_are_and_digital_numbers_as_eurosat_scales_them(tmp_path: Path) -> None:
    colours = noise(3, 70, 70, most=255).astype(np.uint8)
    assert (read(write_raster(tmp_path / "rgb.tif", colours), ("red", "green", "blue"), "uint8") == colours).all()
    numbers = noise(3, 70, 70, most=5000)
    scaled = read(write_raster(tmp_path / "dn.tif", numbers, ("blue", "green", "red")), ("red", "green", "blue"), "uint8")
    assert (scaled == np.floor(np.minimum(numbers[::-1].astype(float) * 254 / 2750 + 1, 255) + 0.5)).all()
    assert "it is for digital numbers" in refusal(tmp_path / "rgb.tif", offset=1000)
    assert "holds 8-bit pixels; the engine takes uint16" in refusal(tmp_path / "rgb.tif", ("B04", "B03"), "uint16")


@pytest.mark.skipif(not (MULTISPECTRAL.exists() and EUROSAT.exists()), reason="the real tiles are not here")
def test_the_scaling_is_that_of_the_real_tiles_and_their_order_is_recognised() -> None:
    differences = []
    with zipfile.ZipFile(MULTISPECTRAL) as bands, zipfile.ZipFile(EUROSAT) as colours:
        known = set(colours.namelist())
        for name in bands.namelist():
            if not name.endswith(".tif"):
                continue
            with rasterio.MemoryFile(bands.read(name)) as memory, memory.open() as file:
                pixels = file.read()
            medians = np.median(pixels.reshape(13, -1), axis=1)
            assert order_of_13(medians, name) == EUROSAT_ORDER
            in_esa_order = medians[[EUROSAT_ORDER.index(band) for band in ESA]]
            assert order_of_13(in_esa_order, name) == ESA
            jpeg = name.replace("EuroSAT_MS/", "EuroSAT_RGB/").replace(".tif", ".jpg")
            if jpeg in known:
                ours = table(0, scaled=True)[pixels[[3, 2, 1]]].transpose(1, 2, 0).astype(int)
                differences.append(float(np.abs(np.asarray(Image.open(io.BytesIO(colours.read(jpeg)))) - ours).mean()))
    assert len(differences) > 200
    assert np.mean(differences) < 2  # grey levels: what JPEG loses
    assert max(differences) < 6


def test_a_name_is_a_name_whatever_it_looks_like(tmp_path: Path) -> None:
    pixels = noise(2, 70, 70)
    for name in ("a#b.tif", "a?b=c.tif", "zip+file:a!b.tif", "sc ene%20.tif"):
        assert (read(write_raster(tmp_path / name, pixels, ("B04", "B08")), ("B08",)) == pixels[1:]).all()


def test_an_order_that_can_not_be_is_refused(tmp_path: Path) -> None:
    pixels = noise(13, 70, 70, least=1000, most=1500)
    pixels[4] = 300
    assert "B10 must be the darkest, and band 5 is" in refusal(write_raster(tmp_path / "odd.tif", pixels))
    pixels[10] = 5
    assert (read(tmp_path / "odd.tif", ("B8A",), bands=",".join(EUROSAT_ORDER)) == noise(13, 70, 70, least=1000, most=1500)[12]).all()
    write_raster(tmp_path / "esa.tif", pixels)
    assert (read(tmp_path / "esa.tif", ("B8A",)) == pixels[8]).all()
    for names, said in (
        (ESA, "bands named in the config"),
        (EUROSAT_ORDER, f"implausible: B10 must be the darkest band, and what is called {EUROSAT_ORDER[10]} is"),
    ):
        says = find_scene(tmp_path / "esa.tif", spec(("B04",), "uint16"), MapConfig(bands=",".join(names), offset=0)).says
        assert any(each.endswith(said) for each in says), says


def test_offsets_are_taken_off_where_they_are_recorded(tmp_path: Path) -> None:
    pixels = noise(2, 70, 70, least=1010)
    names = ("B04", "B08")
    lost = write_raster(tmp_path / "lost.tif", pixels, names)
    message = refusal(lost, names, "uint16")
    assert "records no offset" in message
    assert "--set offset=1000" in message
    assert (read(lost, names, offset=1000) == pixels - 1000).all()
    assert (read(lost, names, offset=0) == pixels).all()
    tagged = write_raster(tmp_path / "tagged.tif", pixels, names, scales=(1e-4, 1e-4), offsets=(-0.1, -0.1))
    assert (read(tagged, names) == pixels - 1000).all()
    scaled = read(write_raster(tmp_path / "rgb.tif", noise(3, 70, 70, least=1010), ("B04", "B03", "B02")), ("red",), "uint8", offset=1000)
    assert (scaled == table(0, scaled=True)[noise(3, 70, 70, least=1010)[:1] - 1000]).all()
    landsat = write_raster(tmp_path / "landsat.tif", pixels, names, scales=(2.75e-5, 2.75e-5), offsets=(-0.2, -0.2))
    said = refusal(landsat, names, "uint16")
    assert "scale 2.75e-05" in said
    assert said.endswith("gdal_translate -unscale -ot Float32, and that to digital numbers, gdal_translate -ot UInt16 -scale 0 1 0 10000")


def test_values_that_can_not_be_right_are_refused(tmp_path: Path) -> None:
    names = ("B04", "B03", "B02")
    assert "8-bit colours in 16 bits" in refusal(write_raster(tmp_path / "dark.tif", noise(3, 70, 70, least=1, most=250), names))
    bright = write_raster(tmp_path / "bright.tif", noise(3, 70, 70, least=500, most=65_000), names)
    assert "whose median is" in refusal(bright)
    dim = write_raster(tmp_path / "dim.tif", noise(3, 70, 70, most=900), names)
    assert "below the offset of 1000" in refusal(dim, offset=1000)


def test_what_is_no_scene_is_refused(tmp_path: Path) -> None:
    good = write_raster(tmp_path / "good.tif", noise(3, 300, 300), ("B04", "B03", "B02"))
    content = good.read_bytes()
    (tmp_path / "empty.tif").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "empty.tif")
    (tmp_path / "text.tif").write_text("no raster at all")
    assert "or no GeoTIFF, JPEG2000, PNG or JPEG" in refusal(tmp_path / "text.tif")
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    assert "cut short" in refusal(tmp_path / "cut.tif")
    assert "does not exist" in refusal(tmp_path / "nothing.tif")
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.write(good, "good.tif")
    assert "is an archive" in refusal(tmp_path / "scene.zip")
    with tarfile.open(tmp_path / "scene.tar", "w") as tar:
        tar.add(good, "good.tif")
    assert "is an archive" in refusal(tmp_path / "scene.tar")
    (tmp_path / "scene.gz").write_bytes(gzip.compress(content)[:20])
    assert "cut short" in refusal(tmp_path / "scene.gz")
    volume = b"of another volume" * 9 + struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2) + struct.pack("<4s4H2LH", b"PK\5\6", 1, 1, 1, 1, 46, 0, 0)
    (tmp_path / "scene.z02").write_bytes(volume)
    assert "or no GeoTIFF, JPEG2000, PNG or JPEG" in refusal(tmp_path / "scene.z02")
    (tmp_path / "remote.vrt").write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>')
    assert "or no GeoTIFF, JPEG2000, PNG or JPEG" in refusal(tmp_path / "remote.vrt")
    assert "1 band of uint16 without names" in refusal(write_raster(tmp_path / "one.tif", noise(1, 70, 70)))
    assert "less than one tile of 64x64" in refusal(write_raster(tmp_path / "small.tif", noise(3, 63, 200), ("B04", "B03", "B02")))
    floats = noise(3, 70, 70).astype(np.float32)
    floats[:, 3] = np.nan
    said = refusal(write_raster(tmp_path / "nan.tif", floats, ("B04", "B03", "B02"), nodata=np.nan))
    assert "holds float32" in said
    assert said.endswith("from reflectance 0..1: gdal_translate -ot UInt16 -scale 0 1 0 10000")
    said = refusal(write_raster(tmp_path / "int16.tif", noise(3, 70, 70).astype(np.int16), ("B04", "B03", "B02")))
    assert "holds int16" in said
    assert said.endswith("10,000 a unit of reflectance; gdal_translate -ot UInt16")
    palette = write_raster(tmp_path / "palette.tif", noise(1, 70, 70, least=0, most=3).astype(np.uint8), photometric="palette")
    assert refusal(palette).endswith("has a palette in place of colours. Expand it: gdal_translate -expand rgb")
    coloured = write_raster(tmp_path / "rgb.tif", noise(3, 70, 70, most=255).astype(np.uint8))
    assert "holds 8-bit colours, and the map setting nodata is 300. Give 0 to 255." in refusal(coloured, nodata=300)
    rgba = write_raster(tmp_path / "rgba.tif", noise(4, 70, 70, most=255).astype(np.uint8), photometric="RGB", alpha="YES")
    assert "has 4 names; " in (said := refusal(rgba, bands="B04,B03,B02,B08"))
    assert "has 3 bands beside its alpha. Names: " in said
    assert "holds float32" in refusal(write_raster(tmp_path / "bare.tif", floats[:2]))
    names = ("B02", "B03", *(f"other {i}" for i in range(11)))
    assert "say which is which: --set bands=" in refusal(write_raster(tmp_path / "half.tif", noise(13, 70, 70), names))
    assert "13 bands of uint8" in refusal(write_raster(tmp_path / "many.tif", noise(13, 70, 70, most=250).astype(np.uint8)))


def test_a_folder_of_band_files(tmp_path: Path) -> None:
    folder = tmp_path / "bands"
    folder.mkdir()
    fine, coarse = noise(1, 120, 120), noise(1, 60, 60, 1)
    write_raster(folder / "x_B04_10m.tif", fine)
    write_raster(folder / "x_B04_20m.tif", noise(1, 60, 60, 2), transform=rasterio.Affine(20, 0, 600_000, 0, -20, 5_300_000))
    write_raster(folder / "x_B11_20m.tif", coarse, transform=rasterio.Affine(20, 0, 600_000, 0, -20, 5_300_000))
    write_raster(folder / "x_TCI.tif", noise(3, 120, 120))
    pixels = read(folder, ("B04", "B11"))
    assert (pixels[0] == fine[0]).all()
    assert (pixels[1, 1:-1:2, 1:-1:2] == np.floor(_bilinear_of_2(coarse[0])[1:-1:2, 1:-1:2] + 0.5)).all()
    write_raster(folder / "x_B12.tif", noise(1, 70, 70))
    with pytest.raises(InputError, match="Leave the map setting bands out"):
        find_scene(folder, spec(("B04",), "uint16"), MapConfig(bands="B04"))
    with pytest.raises(InputError, match="doesn't fit"):
        find_scene(folder, spec(("B04", "B12"), "uint16"), MapConfig())
    for moved in (rasterio.Affine(20, 0, 600_005, 0, -20, 5_300_000), rasterio.Affine(20, 1, 600_000, 0, -20, 5_300_000)):
        write_raster(folder / "x_B12.tif", coarse, transform=moved)
        with pytest.raises(InputError, match="doesn't fit"):
            find_scene(folder, spec(("B04", "B12"), "uint16"), MapConfig())
    (folder / "x_B08.tif").symlink_to(write_raster(tmp_path / "elsewhere.tif", fine))
    with pytest.raises(InputError, match="is a link out of its folder"):
        find_scene(folder, spec(), MapConfig())
    (folder / "x_B08.tif").unlink()
    write_raster(folder / "x_B08.tif", fine, nodata=9)
    with pytest.raises(InputError, match="declare 0 and 9 to be no data"):
        find_scene(folder, spec(("B04", "B08"), "uint16"), MapConfig())
    (tmp_path / "none").mkdir()
    assert "holds no band files" in refusal(tmp_path / "none")


def _bilinear_of_2(coarse: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Twice as fine, by the weights 3/4 and 1/4 written out."""
    padded = np.pad(coarse.astype(float), 1, mode="edge")
    out = np.empty((2 * coarse.shape[0], 2 * coarse.shape[1]))
    middle = padded[1:-1, 1:-1]
    for row, up in ((0, padded[:-2]), (1, padded[2:])):
        for column, side in ((0, slice(None, -2)), (1, slice(2, None))):
            across = padded[1:-1, side]
            out[row::2, column::2] = (9 * middle + 3 * up[:, 1:-1] + 3 * across + up[:, side]) / 16
    return out


@pytest.mark.parametrize(("band", "factor"), [("B05", 2), ("B09", 6)])
def test_coarse_bands_are_interpolated_to_the_number(tmp_path: Path, band: str, factor: int) -> None:
    coarse = noise(1, 120 // factor, 120 // factor, 1)
    write_raster(tmp_path / "B04.tif", noise(1, 120, 120))
    step = 10 * factor
    write_raster(tmp_path / f"{band}.tif", coarse, transform=rasterio.Affine(step, 0, 600_000, 0, -step, 5_300_000))
    exact = interpolated(coarse[0], factor)
    assert np.abs(read(tmp_path, (band, "B04"))[0] - exact).max() <= 0.5 + 1e-9  # a half goes either way


def test_a_pixel_is_the_same_in_whatever_window_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "bands"
    folder.mkdir()
    coarse = noise(1, 20, 20, 1)
    coarse[0, 3:7, 4:9] = 0
    write_raster(folder / "B04.tif", noise(1, 120, 120))
    write_raster(folder / "B05.tif", noise(1, 60, 60, 3), transform=rasterio.Affine(20, 0, 600_000, 0, -20, 5_300_000))
    write_raster(folder / "B09.tif", coarse, transform=rasterio.Affine(60, 0, 600_000, 0, -60, 5_300_000))
    scene = find_scene(folder, spec(("B09", "B04", "B05"), "uint16"), MapConfig(offset=0))
    assert [band.factor for band in scene.bands] == [6, 1, 2]
    rng = np.random.default_rng(0)
    with Reader(scene) as reader:
        whole, valid = reader.read(0, 0, 120, 120)
        for _ in range(40):
            top, left = rng.integers(0, 119, 2)
            height, width = rng.integers(1, 120 - top + 1), rng.integers(1, 120 - left + 1)
            part, held = reader.read(int(top), int(left), int(height), int(width))
            assert (part == whole[:, top : top + height, left : left + width]).all()
            assert (held == valid[top : top + height, left : left + width]).all()
    assert (whole[0, 18:42, 24:54] == 0).all()  # beside a pixel of no data nothing is blended with it
    assert whole[0][whole[0] > 0].min() >= 100


def test_no_data_is_what_the_file_declares_or_masks(tmp_path: Path) -> None:
    pixels = noise(3, 100, 100)
    pixels[:, :40] = 7
    names = ("B04", "B03", "B02")
    declared = write_raster(tmp_path / "declared.tif", pixels, names, nodata=7)
    masked = write_raster(tmp_path / "masked.tif", pixels, names)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as file:
        file.write_mask(pixels[0] != 7)
    transparent = write_raster(
        tmp_path / "alpha.tif",
        np.stack([*noise(3, 100, 100, most=255), 255 * (pixels[0] != 7)]).astype(np.uint8),
        photometric="RGB",
        alpha="YES",
    )
    for path in (declared, masked, transparent):
        with Reader(find_scene(path, spec(), MapConfig())) as reader:
            assert (reader.read(0, 0, 100, 100)[1] == (pixels[0] != 7)).all(), path


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_black_that_a_mask_shows_is_data(tmp_path: Path, dtype: str) -> None:
    pixels = noise(4, 100, 100, most=255 if dtype == "uint8" else 2000).astype(dtype)
    pixels[3] = np.iinfo(dtype).max
    pixels[:3, 50:] = 0
    pixels[3, :10] = 0
    path = write_raster(tmp_path / "s.tif", pixels, photometric="RGB", alpha="YES")
    with Reader(find_scene(path, spec(), MapConfig())) as reader:
        assert (reader.read(0, 0, 100, 100)[1] == (pixels[3] > 0)).all()
    with Reader(find_scene(path, spec(), MapConfig(nodata=0))) as reader:
        assert not reader.read(0, 0, 100, 100)[1][50:].any()


@pytest.mark.parametrize("nodata", [None, 3])
@pytest.mark.parametrize("names", ["B04 B03 B02 alpha", "B04 alpha B03 B02", "B04 B03 B02 B08 alpha"])
def test_an_alpha_band_is_heeded_wherever_it_is(tmp_path: Path, names: str, nodata: int | None) -> None:
    order = names.split()
    pixels = noise(len(order), 100, 100, most=255).astype(np.uint8)
    alpha = order.index("alpha")
    pixels[alpha] = 255
    pixels[alpha, :40] = 0
    pixels[:, 90:] = 3
    pixels[alpha, 90:] = 255
    path = write_raster(tmp_path / "s.tif", pixels, tuple(order), photometric="MINISBLACK", nodata=nodata)
    with rasterio.open(path, "r+") as file:
        meanings = list(file.colorinterp)
        meanings[alpha] = rasterio.enums.ColorInterp.alpha
        file.colorinterp = meanings
    valid = np.ones((100, 100), bool)
    valid[:40] = False
    valid[90:] = nodata is None
    with Reader(find_scene(path, spec(), MapConfig())) as reader:
        read, held = reader.read(0, 0, 100, 100)
    assert (held == valid).all()
    assert (read == pixels[[order.index(name) for name in ("B04", "B03", "B02")]]).all()


def test_a_mask_of_one_file_says_nothing_of_another(tmp_path: Path) -> None:
    for name, declared in (("B04", None), ("B08", 7)):
        pixels = noise(1, 100, 100)
        pixels[:, :40] = 7
        write_raster(tmp_path / f"{name}.tif", pixels, nodata=declared)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "B04.tif", "r+") as file:
        file.write_mask(np.arange(100)[:, None] + np.zeros(100) > 30)
    with Reader(find_scene(tmp_path, spec(("B04", "B08"), "uint16"), MapConfig(nodata=0))) as reader:
        held = reader.read(0, 0, 100, 100)[1]
    assert held.all()  # 7 is a value, by the config, and what one band lacks the other has


def test_a_name_that_is_no_text_is_said_so(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff.tif"))
    write_raster(tmp_path / "good.tif", noise(3, 70, 70, most=255).astype(np.uint8)).rename(path)
    with pytest.raises(InputError, match=r"bad\\udcff\.tif' is not readable text\. Rename it\."):
        find_scene(path, spec(), MapConfig())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("B02", "B03", "B04"):
        write_raster(tmp_path / f"{name}.tif", noise(1, 80, 90))
    os.mkfifo(tmp_path / "B08.tif")
    with pytest.raises(InputError, match=r"B08\.tif is not a regular file"):
        find_scene(tmp_path, spec(), MapConfig())


def test_a_scene_without_georeference_is_mapped_and_says_so(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", noise(3, 70, 70, most=255).astype(np.uint8), placed=False)
    scene = find_scene(path, spec(), MapConfig())
    assert scene.transform is None
    assert "no georeference: mapped in pixels" in scene.says


def test_bands_that_are_only_counted_have_no_names(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", noise(4, 80, 90), ("Band 1", "Band 2", "Band 3", "Band 4"))
    assert "4 bands of uint16 without names" in refusal(path)


def test_names_that_the_pixels_deny_are_refused(tmp_path: Path) -> None:
    pixels = noise(13, 80, 90, least=500)
    pixels[EUROSAT_ORDER.index("B10")] = 10
    assert find_scene(write_raster(tmp_path / "s.tif", pixels, EUROSAT_ORDER), spec(("B04",), "uint16"), MapConfig()).bands[0].index == 4
    said = refusal(write_raster(tmp_path / "lie.tif", pixels, ESA), ("B04",), "uint16")
    assert "B10 must be the darkest band, and what is called B09 is" in said


def test_two_dates_are_not_mixed_into_one_scene(tmp_path: Path) -> None:
    for name in ("2018_B02", "2018_B03", "2018_B04", "2024_B03"):
        write_raster(tmp_path / f"{name}.tif", noise(1, 80, 90))
    with pytest.raises(InputError, match=r"band B03 twice: 2018_B03\.tif and 2024_B03\.tif"):
        find_scene(tmp_path, spec(), MapConfig())


def test_values_are_looked_at_where_there_are_some(tmp_path: Path) -> None:
    pixels = np.zeros((3, 1000, 1000), np.uint16)
    pixels[:, 530:620, 270:370] = noise(3, 90, 100, least=1100)
    assert "records no offset" in refusal(write_raster(tmp_path / "small.tif", pixels, ("B04", "B03", "B02")))


@pytest.mark.parametrize(("dtype", "kind"), [("uint16", "uint16"), ("uint8", "uint16"), ("uint8", "uint8")])
def test_a_scene_that_is_unlike_the_train_tiles_says_so(tmp_path: Path, dtype: str, kind: str) -> None:
    least, most, more = (500, 1500, 1200) if kind == "uint16" else (50, 100, 100)
    names, wanted = ("B04", "B03", "B02"), ("B04", "B03", "B02") if dtype == "uint16" else ("red", "green", "blue")
    like, alike, unlike = (noise(3, 200, 200, seed, least, most).astype(kind) for seed in range(3))
    unlike[1] += more
    path = write_raster(tmp_path / "like.tif", like, names)
    tiles = read(path, wanted, dtype).transpose(1, 2, 0)  # as the engine takes them: scaled, where it wants colours
    knows = replace(spec(wanted, dtype), training={"percentiles": percentiles(tiles, wanted)})
    for pixels, found in ((like, []), (alike, []), (unlike, [wanted[1]])):
        says = find_scene(write_raster(path, pixels, names), knows, MapConfig()).says
        assert [text.split()[3] for text in says if "the median of" in text] == found
        assert not any("the median of" in text for text in find_scene(path, spec(wanted, dtype), MapConfig()).says)


def test_an_offset_that_is_not_taken_off_is_noticed_by_the_train_tiles(tmp_path: Path) -> None:
    names = ("B04", "B10")
    tiles = np.concatenate([noise(1, 200, 200), noise(1, 200, 200, least=5, most=30)])
    knows = replace(spec(names, "uint16"), training={"percentiles": percentiles(tiles.transpose(1, 2, 0), names)})
    path = write_raster(tmp_path / "s.tif", tiles + 1000, names)
    assert find_scene(path, knows, MapConfig(offset=1000)).says == ("offset of 1000 subtracted",)
    [said] = find_scene(path, knows, MapConfig(offset=0)).says
    assert said.startswith("the median of B10 is 1017, but 98 % of the training pixels lie between 5 and 29:")
