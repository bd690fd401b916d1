import io
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EUROSAT, MULTISPECTRAL, jpeg, write_geotiff
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from sattrt.bands import ESA, band_name, orders, parse_bands, preview, to_eurosat_rgb
from sattrt.bands import EUROSAT as EUROSAT_ORDER
from sattrt.bench.tiles import TileReader
from sattrt.data.cache import open_cache, write_cache
from sattrt.data.dataset import Dataset
from sattrt.data.decode import read_for
from sattrt.data.geotiff import read_geotiff, read_place
from sattrt.data.loader import Loader
from sattrt.data.scan import SplitRule, scan
from sattrt.errors import ContractError, InputError
from sattrt.model import TileClassifier, adapted_to_bands, load_weights
from sattrt.screen import print_dataset
from sattrt.spec import ModelSpec
from sattrt.training.handover import spec_of

pytest.importorskip("rasterio", reason="GeoTIFF is read by rasterio")
RULE = SplitRule((60, 20, 20))
needs_sample = pytest.mark.skipif(not MULTISPECTRAL.exists(), reason="the 13-band EuroSAT tiles are not at ../shared/data")
# digital numbers as EuroSAT's tiles have them: the mean of each band, and how much it varies with what makes it bright
LEVELS = dict(zip(EUROSAT_ORDER, (1360, 1130, 1060, 970, 1220, 2010, 2380, 2300, 730, 12, 1850, 1150, 2600), strict=True))
GREEN = ("B06", "B07", "B08", "B8A", "B09")  # follow the plants; the others follow the soil


def pixels(order: tuple[str, ...], seed: int, brightness: float = 1.0) -> NDArray[np.uint16]:
    """A tile whose bands look alike as Sentinel-2's do."""
    rng = np.random.default_rng(seed)
    soil, plants = (np.kron(rng.normal(1, 0.25, (16, 16)), np.ones((4, 4))) for _ in range(2))
    found = [LEVELS[name] * (plants if name in GREEN else soil) + rng.normal(0, 3, (64, 64)) for name in order]
    return (brightness * np.stack(found, 2)).clip(1, 60_000).astype(np.uint16)


def write_classes(folder: Path, order: tuple[str, ...], described: bool = False, count: int = 12) -> Path:
    """Two classes of GeoTIFF tiles, each tile a tenth of a degree or so east of the one before."""
    for index, name in enumerate(("Dark", "Bright")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            seed = 100 * index + i
            tile = pixels(order, seed, 1 + 0.5 * index)
            write_geotiff(folder / name / f"{name}_{i}.tif", tile, order if described else None, 400_000 + 9_000 * seed % 200_000)
    return folder


def test_bands_have_many_spellings_and_one_name() -> None:
    assert [band_name(text) for text in ("b4", "B04", "red", "B8a", " B12 ", "B13", "near", "")] == ["B04", "B04", "B04", "B8A", "B12"] + [
        None
    ] * 3
    assert parse_bands("b4,B03, B8A") == ("B04", "B03", "B8A")
    for wrong in ("B04,B4", "B04,B99", ""):
        with pytest.raises(InputError, match="--bands"):
            parse_bands(wrong)
    assert orders(("B02", "b3", "red"), None) == [("B02", "B03", "B04")]
    assert orders((None,) * 4, ("B04", "B03", "B02", "B08")) == [("B04", "B03", "B02", "B08")]
    with pytest.raises(InputError, match="nothing says which 4 bands"):
        orders((None,) * 4)
    with pytest.raises(InputError, match="nothing says which 1 band it holds"):
        orders((None,))
    with pytest.raises(InputError, match="several of its bands are described as B03"):
        orders(("B2", "B3", "B3", "B8"))


@pytest.mark.parametrize("order", [EUROSAT_ORDER, ESA, tuple(name for name in ESA if name != "B10")], ids=["eurosat", "esa", "l2a"])
def test_the_order_of_bands_without_names_is_found(order: tuple[str, ...], tmp_path: Path) -> None:
    dataset = scan(write_classes(tmp_path / "t", order), RULE, workers=1)
    assert dataset.file_bands == dataset.bands == order
    assert dataset.dtype == "uint16"
    means = dict(zip(dataset.bands, np.array(dataset.mean) * 65535, strict=True))
    assert means["B8A"] == pytest.approx(LEVELS["B8A"] * 1.25, rel=0.1)
    few = scan(tmp_path / "t", RULE, workers=1, bands=("B08", "B02"))
    assert few.bands == ("B08", "B02")
    np.testing.assert_allclose(few.mean, [means["B08"] / 65535, means["B02"] / 65535], rtol=1e-9)
    assert few.digest != dataset.digest


def test_an_order_that_can_not_be_right_is_refused_by_name(tmp_path: Path) -> None:
    wrong = ("B01", "B02", "B03", "B08", "B05", "B06", "B07", "B04", "B09", "B10", "B11", "B12", "B8A")
    write_classes(tmp_path / "t", EUROSAT_ORDER)
    for i, path in enumerate(sorted((tmp_path / "t").rglob("*.tif"))):  # the names of two bands are exchanged
        write_geotiff(path, pixels(EUROSAT_ORDER, i), wrong)
    [note] = scan(tmp_path / "t", RULE, workers=1).notes  # B10 is where it is said to be: no ground to refuse them
    assert f"taken as named ({','.join(wrong)}), though B03 and B04 should look alike" in note
    write_classes(tmp_path / "cirrus", ESA, described=True)
    for i, path in enumerate(sorted((tmp_path / "cirrus").rglob("*.tif"))):
        write_geotiff(path, pixels(EUROSAT_ORDER, i), ESA)
    with pytest.raises(InputError, match=r"B10 \(cirrus\) should be by far the darkest"):
        scan(tmp_path / "cirrus", RULE, workers=1)
    for i, path in enumerate(sorted((tmp_path / "cirrus").rglob("*.tif"))):
        write_geotiff(path, pixels(EUROSAT_ORDER, i) + np.uint16(1000))
    with pytest.raises(InputError, match=r"include the offset of 1,000"):
        scan(tmp_path / "cirrus", RULE, workers=1)
    write_classes(tmp_path / "rgb", ("B02", "B03", "B04"))
    assert scan(tmp_path / "rgb", RULE, workers=1, bands=("B02", "B03", "B04")).bands == ("B02", "B03", "B04")


def test_arid_ground_under_named_bands_is_a_note_and_under_a_guessed_order_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twelve = tuple(name for name in ESA if name != "B10")
    for order in (("B02", "B03", "B04"), twelve):
        folder = write_classes(tmp_path / str(len(order)), order, described=order != twelve)
        for i, path in enumerate(sorted(folder.rglob("*.tif"))):
            tile = pixels(order, i)
            tile[..., order.index("B02")] //= 3  # sand: darker in blue than in red, everywhere
            write_geotiff(path, tile, None if order == twelve else order)
    found = scan(tmp_path / "3", RULE, workers=1)
    assert found.bands == ("B02", "B03", "B04")
    [note] = found.notes
    assert "taken as named (B02,B03,B04), though dark places should be brighter in B02 (blue)" in note
    write_cache(found, tmp_path, workers=1).write(tmp_path)
    assert Dataset.read(tmp_path).notes == found.notes
    print_dataset(found)
    assert f"note: {note}" in capsys.readouterr().out
    assert "brighter in B02" in refused(scan, tmp_path / "12", RULE, workers=1)
    assert "brighter in B02" in refused(scan, tmp_path / "12", RULE, workers=1, bands=twelve[:4])  # which names some of them
    named = scan(tmp_path / "12", RULE, workers=1, bands=twelve)
    assert (named.file_bands, len(named.notes)) == (twelve, 1)
    assert named.left_out == {}


@pytest.mark.parametrize("order", [tuple(name for name in EUROSAT_ORDER if name != "B10"), (*ESA[::-1],)])
def test_a_lone_tile_is_read_in_the_order_of_its_dataset(order: tuple[str, ...], tmp_path: Path) -> None:
    """Twelve bands without names have no band that tells EuroSAT's order from ESA's; and thirteen may be in an order that is nobody's."""
    folder = write_classes(tmp_path / "t", order)
    dataset = scan(folder, RULE, workers=1, bands=order)
    assert dataset.file_bands == order
    spec_of(dataset, 0, {}).write(tmp_path / "spec.json")
    spec = ModelSpec.read(tmp_path / "spec.json")
    for path in sorted(folder.rglob("*.tif"))[:3]:
        expected = read_geotiff(path.read_bytes()).pixels
        np.testing.assert_array_equal(read_for(path.read_bytes(), spec.bands, spec.offset, spec.file_bands), expected)


def test_a_fault_of_gdal_names_no_file_of_its_own() -> None:
    with pytest.raises(InputError) as caught:
        read_geotiff(b"II*\0" + bytes(range(200)))
    assert "vsimem" not in str(caught.value)
    assert read_place(b"") is None


def test_missing_bands_and_bands_of_rgb_tiles_are_refused(tmp_path: Path, tiles: Path) -> None:
    write_classes(tmp_path / "t", ("B02", "B03", "B04"), described=True)
    with pytest.raises(InputError, match=r"--bands asks for B08; .* hold B02, B03, B04"):
        scan(tmp_path / "t", RULE, workers=1, bands=("B08",))
    with pytest.raises(InputError, match="holds no GeoTIFF"):
        scan(tiles, RULE, workers=1, bands=("B08",))


def test_odd_geotiffs_are_left_out_with_their_reason(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "t", EUROSAT_ORDER)
    good = sorted((folder / "Dark").glob("*.tif"))[0]
    (folder / "Dark" / "cut.tif").write_bytes(good.read_bytes()[:5000])
    write_geotiff(folder / "Dark" / "few.tif", pixels(EUROSAT_ORDER, 1)[:, :, :4])
    write_geotiff(folder / "Dark" / "float.tif", pixels(EUROSAT_ORDER, 2).astype(np.float32))
    write_geotiff(folder / "Dark" / "signed.tif", pixels(EUROSAT_ORDER, 2).astype(np.int16))
    write_geotiff(folder / "Dark" / "renamed.tif", pixels(EUROSAT_ORDER, 3), ESA)
    write_geotiff(folder / "Dark" / "small.tif", pixels(EUROSAT_ORDER, 4)[:50])
    (folder / "Dark" / "nothing.tif").touch()
    (folder / "Dark" / "photo.tif").write_bytes(jpeg((60, 120, 180), 1))
    left_out = scan(folder, RULE, workers=1).left_out
    assert {Path(name).name: reason.partition(" (")[0] for name, reason in left_out.items()} == {
        "cut.tif": "corrupt or cut short",
        "few.tif": "wrong number of bands",
        "float.tif": "wrong data type",
        "signed.tif": "wrong data type",
        "renamed.tif": "bands in another order",
        "small.tif": "wrong size",
        "nothing.tif": "empty",
        "photo.tif": "not a TIFF",
    }
    assert "float32; uint16 digital numbers are needed; from reflectance 0..1: gdal_translate" in left_out["Dark/float.tif"]
    assert left_out["Dark/signed.tif"].endswith("(int16; uint16 digital numbers are needed; gdal_translate -ot UInt16)")


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_an_rgb_tiff_of_other_values_is_told_from_what_is_no_image(tiles: Path, dtype: str) -> None:
    write_geotiff(tiles / "Field" / "other.tif", np.zeros((64, 64, 3), dtype))
    assert (
        "not a TIFF of 8-bit RGB (other values or bands, or damaged; 8-bit RGB or uint16 is needed)"
        in scan(tiles, RULE, workers=1).left_out["Field/other.tif"]
    )


def test_decoded_tiles_are_cached_and_fed_by_dali_as_they_are(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "t", EUROSAT_ORDER)
    dataset = write_cache(scan(folder, RULE, workers=1, bands=("B08", "B04")), tmp_path / "d", workers=1)
    dataset.write(tmp_path / "d")
    assert Dataset.read(tmp_path / "d") == dataset
    expected = np.stack([read_for((folder / tile.name).read_bytes(), dataset.bands) for tile in dataset.all_tiles])
    for decoder, name in (("dali", "DALI"), ("torchvision", "numpy")):
        if decoder == "dali":
            pytest.importorskip("nvidia.dali", reason="needs DALI")
        for cache_gb in (0, 4):
            loader = Loader(dataset, list(dataset.all_tiles), batch_size=5, device=torch.device("cpu"), decoder=decoder, cache_gb=cache_gb)
            assert loader.decoder == name
            found = np.concatenate([images.numpy().copy() for images, _ in loader.epoch(0)])
            assert found.dtype == np.uint16
            np.testing.assert_array_equal(found, expected)
    path = tmp_path / "d" / "tiles.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ContractError, match=r"tiles\.npy was changed"):
        Loader(dataset, list(dataset.all_tiles), batch_size=5, device=torch.device("cpu"))
    path.unlink()
    with pytest.raises(InputError, match=r"tiles\.npy.* is missing"):
        Loader(dataset, list(dataset.all_tiles), batch_size=5, device=torch.device("cpu"))


def test_to_find_the_format_takes_the_memory_of_a_few_tiles(tmp_path: Path) -> None:
    order = ("B02", "B03", "B04")
    folder = write_classes(tmp_path / "t", order, count=20)
    for path in folder.rglob("*.tif"):
        write_geotiff(path, np.kron(read_geotiff(path.read_bytes()).pixels, np.ones((4, 4, 1), np.uint16)), order)
    scan(folder, RULE, workers=1)  # what is imported or kept for good is there already
    tracemalloc.start()
    scan(folder, RULE, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 256 * 256 * 3 * 2  # half of the tiles, decoded


@needs_sample
def test_eurosats_own_13_band_tiles() -> None:
    dataset = scan(MULTISPECTRAL, SplitRule((60, 20, 20)), workers=1)
    assert (dataset.bands, dataset.left_out, len(dataset.all_tiles)) == (EUROSAT_ORDER, {}, 270)
    # published means of the 13 bands are near these; the sample is a hundredth of the tiles
    np.testing.assert_allclose(np.array(dataset.mean)[[1, 7, 12]] * 65535, (1119, 2300, 2600), rtol=0.06)


@needs_sample
@pytest.mark.skipif(not EUROSAT.exists(), reason="the EuroSAT tiles are not at ../shared/data")
def test_rgb_out_of_13_bands_is_what_eurosat_has() -> None:
    errors = []
    with zipfile.ZipFile(MULTISPECTRAL) as spectral, zipfile.ZipFile(EUROSAT) as rgb:
        names = set(rgb.namelist())
        for name in spectral.namelist():
            twin = name.replace("EuroSAT_MS", "EuroSAT_RGB").replace(".tif", ".jpg")
            if twin in names:
                made = to_eurosat_rgb(read_for(spectral.read(name), ("B04", "B03", "B02")))
                errors.append(np.abs(made.astype(int) - np.asarray(Image.open(io.BytesIO(rgb.read(twin))))).mean())
    assert len(errors) > 200
    assert np.mean(errors) < 2  # of 255 grey levels; measured: 1.5, the tiles are JPEG
    assert max(errors) < 6


def test_a_preview_is_in_natural_colours_where_it_can_be() -> None:
    tile = pixels(("B02", "B08", "B04", "B03"), 0)[None]
    np.testing.assert_array_equal(preview(tile, ("B02", "B08", "B04", "B03")), to_eurosat_rgb(tile[..., [2, 3, 0]]))
    grey = preview(tile, ("B08", "B05", "B06", "B07"))
    assert grey.shape == (1, 64, 64, 3)
    assert (np.ptp(grey, axis=3) == 0).all()
    assert grey.max() == 255


def test_imagenets_filters_stay_with_their_colours() -> None:
    filters = torch.randn(64, 3, 7, 7)
    found = adapted_to_bands(filters, ("B08", "B02", "B04", "B03"))
    torch.testing.assert_close(found[:, [2, 3, 1]], filters)
    torch.testing.assert_close(found[:, 0], filters.mean(1))


def test_weights_of_three_bands_load_into_a_network_of_any(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = TileClassifier(4, (0.5,) * 3, (0.2,) * 3).backbone.state_dict()
    save_file(source, tmp_path / "rgb.safetensors")
    bands = ("B08", "B02", "B04", "B03")
    model = TileClassifier(4, (0.02,) * 4, (0.01,) * 4, dtype="uint16")
    load_weights(model, str(tmp_path / "rgb.safetensors"), bands)
    torch.testing.assert_close(model.backbone.conv1.weight.detach(), adapted_to_bands(source["conv1.weight"], bands))
    torch.testing.assert_close(model.backbone.layer4[2].conv3.weight.detach(), source["layer4.2.conv3.weight"])
    tiles = torch.from_numpy(pixels(bands, 0)[None])
    by_hand = (tiles.float().permute(0, 3, 1, 2) / 65535 - 0.02) / 0.01
    torch.testing.assert_close(model.eval()(tiles), model.backbone(by_hand), atol=1e-3, rtol=1e-3)


def test_one_odd_file_does_not_decide_what_the_others_are(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "t", EUROSAT_ORDER)
    first = folder / "Bright" / "Bright_0.tif"
    first.write_bytes(first.read_bytes()[:200])
    found = scan(folder, RULE, workers=1)
    assert (found.bands, list(found.left_out)) == (EUROSAT_ORDER, ["Bright/Bright_0.tif"])
    twelve = tuple(name for name in ESA if name != "B10")
    first.unlink()
    write_geotiff(first, pixels(twelve, 0), twelve)
    assert list(scan(folder, RULE, workers=1).left_out) == ["Bright/Bright_0.tif"]
    for name in ("Bright", "Dark"):
        (tmp_path / "rgb" / name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng([i, len(name)]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "rgb" / name / f"{i}.png")
    (tmp_path / "rgb" / "Dark" / "stray.tif").write_bytes((folder / "Dark" / "Dark_0.tif").read_bytes())
    assert list(scan(tmp_path / "rgb", RULE, workers=1).left_out) == ["Dark/stray.tif"]


def test_a_share_of_the_tiles_is_not_read_by_the_rows_of_all(tmp_path: Path) -> None:
    found = write_cache(scan(write_classes(tmp_path / "t", EUROSAT_ORDER), RULE, workers=1), tmp_path, workers=1)
    share = replace(found, all_tiles=found.all_tiles[3:])
    with pytest.raises(ContractError, match="are decoded"):
        Loader(share, list(share.all_tiles), batch_size=2, device=torch.device("cpu"))


def test_the_offset_in_a_tiles_tags_is_taken_off(tmp_path: Path) -> None:
    import rasterio

    plain, tagged = tmp_path / "plain.tif", tmp_path / "tagged.tif"
    numbers = pixels(EUROSAT_ORDER, 0)
    write_geotiff(plain, numbers, EUROSAT_ORDER)
    write_geotiff(tagged, numbers + 1000, EUROSAT_ORDER)
    assert "include the offset of 1,000" in refused(read_for, tagged.read_bytes(), EUROSAT_ORDER)
    with rasterio.open(tagged, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 13, (-0.1,) * 13
    np.testing.assert_array_equal(read_for(tagged.read_bytes(), EUROSAT_ORDER), read_for(plain.read_bytes(), EUROSAT_ORDER))
    with rasterio.open(tagged, "r+") as file:
        file.scales = (2.0,) * 13
    assert "the scale 2" in refused(read_for, tagged.read_bytes(), EUROSAT_ORDER)


def test_a_lone_tile_of_no_digital_numbers_is_refused(tmp_path: Path) -> None:
    for numbers, reason in ((np.zeros((64, 64, 13)), "holds no data"), (pixels(EUROSAT_ORDER, 0) / 40, "8-bit colours in 16 bits")):
        write_geotiff(tmp_path / "t.tif", numbers.astype(np.uint16), EUROSAT_ORDER)
        assert reason in refused(read_for, (tmp_path / "t.tif").read_bytes(), EUROSAT_ORDER)


def test_dark_water_whose_tags_record_an_offset_is_read(tmp_path: Path) -> None:
    import rasterio

    path, numbers = tmp_path / "t.tif", np.full((64, 64, 3), 1100, np.uint16)
    write_geotiff(path, numbers, bands := ("B08", "B11", "B12"))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 3, (-0.1,) * 3
    np.testing.assert_array_equal(read_for(path.read_bytes(), bands), numbers - 1000)


def test_tiles_that_carry_the_offset_are_refused_whatever_their_bands(tmp_path: Path) -> None:
    four = ("B04", "B03", "B02", "B08")
    folder = write_classes(tmp_path / "t", four, described=True)
    assert scan(folder, RULE, workers=1).bands == four
    for path in folder.rglob("*.tif"):
        tile = read_geotiff(path.read_bytes())
        write_geotiff(path, tile.pixels + 1000, four)
    said = refused(scan, folder, RULE, workers=1)
    assert "include the offset of 1,000" in said
    assert said.index("--offset 1000") < said.index("gdal_edit.py")


def test_an_offset_that_no_tag_speaks_of_is_taken_off_wherever_the_tiles_are_read(tmp_path: Path) -> None:
    four = ("B04", "B03", "B02", "B08")
    plain, carrying = (write_classes(tmp_path / name, four, described=True) for name in ("plain", "carrying"))
    for path in carrying.rglob("*.tif"):
        write_geotiff(path, read_geotiff(path.read_bytes()).pixels + 1000, four)
    rule = SplitRule((1, 0, 0))  # of other content, each tile would be in another split
    expected = write_cache(scan(plain, rule, workers=1), tmp_path / "p", workers=1)
    found = write_cache(scan(carrying, rule, workers=1, offset=1000), tmp_path / "c", workers=1)
    assert (found.mean, found.std) == (expected.mean, expected.std)
    np.testing.assert_array_equal(open_cache(found), open_cache(expected))
    found.write(tmp_path / "c")
    assert Dataset.read(tmp_path / "c") == found
    spec = spec_of(found, 0, {})
    spec.write(tmp_path / "spec.json")
    assert ModelSpec.read(tmp_path / "spec.json").offset == 1000
    files = sorted(carrying.rglob("*.tif"))[:3]
    for file in files:
        same = read_for((plain / file.relative_to(carrying)).read_bytes(), found.bands)
        np.testing.assert_array_equal(read_for(file.read_bytes(), found.bands, ModelSpec.read(tmp_path / "spec.json").offset), same)
    with TileReader(found, found.tiles("train")[:3], 1) as reader:  # as the bench does
        np.testing.assert_array_equal(next(iter(reader))[0], open_cache(expected)[:3])
    bright = scan(carrying, rule, workers=1, offset=0)
    assert (bright.offset, bright.file_bands) == (0, four)
    np.testing.assert_allclose(np.array(bright.mean) * 65535, np.array(expected.mean) * 65535 + 1000, rtol=1e-9)
    assert len({each.digest for each in (found, bright, replace(found, offset=None))}) == 2  # what is taken off tells pixels apart


def test_tags_go_before_an_offset_that_is_given_and_what_can_not_carry_it_is_refused(tmp_path: Path, tiles: Path) -> None:
    import rasterio

    four = ("B04", "B03", "B02", "B08")
    folder = write_classes(tmp_path / "t", four, described=True)
    plain = scan(folder, RULE, workers=1)
    for path in folder.rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = (1e-4,) * 4, (0.0,) * 4
    tagged = read_geotiff(path.read_bytes(), 1000)
    assert tagged.known_offset
    np.testing.assert_array_equal(tagged.pixels, read_geotiff(path.read_bytes()).pixels)
    assert scan(folder, RULE, workers=1, offset=1000).file_bands == plain.file_bands
    low = write_classes(tmp_path / "low", ("B02", "B04", "B12"), described=True)
    assert "--offset 5000 would reduce 100 % of the values" in refused(scan, low, RULE, workers=1, offset=5000)
    assert "--offset 1000 is for GeoTIFF of digital numbers" in refused(scan, tiles, RULE, workers=1, offset=1000)
    assert "--offset 0 is for GeoTIFF of digital numbers" in refused(scan, tiles, RULE, workers=1, offset=0)


def refused(work: Any, *given: object, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        work(*given, **settings)
    return str(caught.value)


def test_a_geotiff_of_too_many_values_is_not_decoded(tmp_path: Path) -> None:
    import rasterio

    with rasterio.open(
        tmp_path / "t.tif", "w", driver="GTiff", width=4096, height=4096, count=64, dtype="uint16", sparse_ok=True, tiled=True
    ):
        pass
    content = (tmp_path / "t.tif").read_bytes()
    assert len(content) < 10**6
    with pytest.raises(InputError, match=r"too large \(1074 million values; at most 50 million"):
        read_geotiff(content)
