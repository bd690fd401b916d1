"""What people look at: areas that are true, the report in a browser's terms, the quick look."""

import re
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from PIL import Image
from scenes import colourful, noise, spec, write_raster

from sattrt.map.area import cell_areas
from sattrt.map.colours import class_colours
from sattrt.map.config import MapConfig
from sattrt.map.finding import find_scene
from sattrt.map.picture import _font, _letters, scene_picture
from sattrt.map.run import Mapped, map_scenes
from sattrt.runtime import Bundle

WGS84 = rasterio.crs.CRS.from_epsg(4326).to_wkt()


@pytest.fixture(scope="module")
def mapped(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    """A map with its report, of a scene whose name is no markup."""
    folder = tmp_path_factory.mktemp("page")
    path = write_raster(folder / "a <b> & c.tif", colourful(5, 7, 20)[0])
    config = MapConfig(engine="onnxruntime-fp32", stride=32, report=True)
    (found,) = map_scenes(bundle.path, [path], folder / "map.tif", config, False, lambda name: lambda done, total: None)
    return found


class Reader(HTMLParser):
    """Tags that were opened and not closed, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Nothing stays open."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(mapped: Mapped) -> None:
    html = mapped.files[-1].read_text()
    page = Reader()
    page.feed(html)
    assert not page.open
    assert "a <b> & c.tif: land cover" in page.text
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert html.count("data:image/png;base64") == 2
    for index, name in enumerate(mapped.map.classes):
        if mapped.statistics.area[index]:
            assert f"{mapped.statistics.area[index]:,.1f}" in page.text
        assert name in page.text
    assert mapped.map.made["bundle"] in page.text
    assert "32 x 32 pixels" in page.text
    assert "prefers-color-scheme: dark" in html


def test_areas_and_confidences_are_those_of_the_map(mapped: Mapped) -> None:
    with rasterio.open(mapped.files[0]) as file:
        classes, confidence = file.read()
    across, down = np.full(15, 32.0), np.full(11, 32.0)
    across[-1], down[-1] = 468 - 14 * 32, 340 - 10 * 32
    hectares = down[:, None] * across * 100 / 10_000
    assert mapped.statistics.area == pytest.approx([hectares[classes == value].sum() for value in (1, 2, 3)])
    assert mapped.statistics.area.sum() == pytest.approx(340 * 468 / 100)
    assert mapped.statistics.histogram.sum() == pytest.approx(340 * 468 / 100)
    value = int(mapped.statistics.area.argmax()) + 1
    expected = np.average(confidence[classes == value], weights=hectares[classes == value])
    assert mapped.statistics.confidence[value - 1] == pytest.approx(expected)


def test_the_quick_look_shows_the_colours_of_the_classes(mapped: Mapped) -> None:
    with Image.open(mapped.files[0].with_suffix(".png")) as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1_000_000)}
    colours = class_colours(mapped.map.classes)
    assert {colours[index] for index in np.flatnonzero(mapped.statistics.area)} <= shown
    assert len(set(colours)) == 3
    assert len(set(class_colours(tuple(map(str, range(40)))))) == 40


def test_the_area_between_two_latitudes_is_the_true_one() -> None:
    whole = cell_areas(WGS84, (1, 0, -180, 0, -1, 90), np.array([90, 90]), np.array([360]))
    assert whole.unit == "ha"
    north, south = whole.strip(0, 2)
    assert (north + south).sum() * 1e4 == pytest.approx(510_065_621_724_000, rel=1e-9)  # the surface of the WGS 84 ellipsoid, m2
    assert north == pytest.approx(south)
    polar = cell_areas(WGS84, (0.01, 0, 10, 0, -0.01, 60), np.array([1]), np.array([1])).strip(0, 1)
    assert polar[0] * 1e4 == pytest.approx(557.997 * 1114.15, rel=1e-3)  # a hundredth of a degree each way at 60 degrees north


def test_the_area_in_a_projection_follows_its_unit() -> None:
    feet = rasterio.crs.CRS.from_epsg(2263).to_wkt()
    areas = cell_areas(feet, (100, 0, 0, 0, -100, 0), np.array([2]), np.array([3, 1]))
    assert areas.unit == "ha"
    assert areas.strip(0, 1)[0] == pytest.approx(np.array([6, 2]) * 30.48006096**2 / 10_000)
    assert cell_areas("", None, np.array([2]), np.array([3])).unit == "pixels"
    workshop = 'LOCAL_CS["workshop",UNIT["metre",1]]'
    assert cell_areas(workshop, (1, 0, 0, 0, -1, 0), np.array([2]), np.array([3])).unit == "pixels"


def test_the_area_in_web_mercator_is_that_on_the_ground() -> None:
    mercator, radius, top = rasterio.crs.CRS.from_epsg(3857).to_wkt(), 6_378_137.0, 8_000_000.0
    rows, columns = np.array([300] * 90 + [7]), np.array([300] * 70 + [11])
    areas = cell_areas(mercator, (10, 0, 1e6, 0, -10, top), rows, columns).strip(0, len(rows))
    edges = np.degrees(np.arctan(np.sinh((top - 10 * np.concatenate([[0], np.cumsum(rows)])) / radius)))
    for row in (0, 45, 90):  # a cell lies between two meridians and two circles of latitude: its area has a formula
        north, south, wide = edges[row], edges[row + 1], np.degrees(10 / radius)
        [expected] = cell_areas(WGS84, (wide, 0, 0, 0, south - north, north), np.array([1]), columns).strip(0, 1)
        assert areas[row] == pytest.approx(expected, rel=1e-5)
        assert areas[row].sum() < 0.5 * rows[row] * columns.sum() / 100


@pytest.mark.parametrize(
    ("crs", "left", "top", "off"),
    [
        ("EPSG:32632", 600_000, 5_300_000, 0),  # in its zone UTM keeps areas to 0.2 %, and is taken at its word
        ("EPSG:32632", 20_000, 5_300_000, 4e-3),  # far out of it
        ("EPSG:3035", 4_000_000, 3_000_000, 0),  # an equal-area projection
        ("EPSG:3413", -640, 640, 0.06),  # the north pole
        ("EPSG:3857", 20_037_508 - 640, 8_000_000, 0.7),  # either side of the antimeridian
    ],
)
def test_the_area_in_any_projection_is_that_on_the_ground(crs: str, left: float, top: float, off: float) -> None:
    count = np.full(4, 32)
    areas = cell_areas(rasterio.crs.CRS.from_string(crs).to_wkt(), (10, 0, left, 0, -10, top), count, count)
    assert areas.unit == "ha"
    if not off:
        assert (areas.strip(0, 4) == 32 * 32 / 100).all()
    east, north = ([each] for each in rasterio.warp.transform(crs, "EPSG:4326", [left + 640], [top - 640]))
    equal = f"+proj=laea +lon_0={east[0][0]} +lat_0={north[0][0]} +ellps=WGS84"
    x, y = np.meshgrid(left + 320 * np.arange(5), top - 320 * np.arange(5))
    x, y = (np.reshape(each, (5, 5)) for each in rasterio.warp.transform(crs, equal, x.ravel(), y.ravel()))
    across, down = x[1:, 1:] - x[:-1, :-1], x[1:, :-1] - x[:-1, 1:]
    expected = np.abs(across * (y[1:, :-1] - y[:-1, 1:]) - down * (y[1:, 1:] - y[:-1, :-1])) / 20_000
    assert areas.strip(0, 4) == pytest.approx(expected, rel=1e-5 if off else 2e-3)
    assert abs(expected.sum() / (16 * 32 * 32 / 100) - 1) >= 0.9 * off


def test_a_geographic_crs_may_count_in_grads() -> None:
    paris = rasterio.crs.CRS.from_epsg(4807).to_wkt()  # 400 grads make a circle
    degrees = rasterio.crs.CRS.from_wkt(re.sub(r'UNIT\["grad",[\d.]+', 'UNIT["degree",0.0174532925199433', paris)).to_wkt()
    count = np.full(3, 10)
    in_grads = cell_areas(paris, (0.01, 0, 0, 0, -0.01, 54), count, count).strip(0, 3)
    in_degrees = cell_areas(degrees, (0.009, 0, 0, 0, -0.009, 48.6), count, count).strip(0, 3)
    assert in_grads == pytest.approx(in_degrees, rel=1e-9)


def test_where_a_projection_ends_areas_are_counted_in_pixels() -> None:
    mollweide = rasterio.crs.CRS.from_string("ESRI:54009").to_wkt()
    corner = cell_areas(mollweide, (10_000, 0, -18_000_000, 0, -10_000, 9_000_000), np.full(9, 200), np.full(18, 200))
    assert (corner.unit, corner.strip(0, 9).sum()) == ("pixels", 1800 * 3600)


def test_a_scene_is_shown_in_its_own_colours_or_in_grey(tmp_path: Path) -> None:
    pixels = noise(4, 80, 80)
    path = write_raster(tmp_path / "s.tif", pixels, ("B08", "B02", "B03", "B04"))
    drawn, says = scene_picture(find_scene(path, spec(), MapConfig()))
    assert says == "Red, green and blue, digital numbers as EuroSAT scales them."
    picture = np.asarray(drawn)
    times = picture.shape[0] // 80
    expected = np.floor(np.minimum(pixels[3].astype(float) * 254 / 2750 + 1, 255) + 0.5)
    assert (picture[::times, ::times, 0] == expected).all()
    drawn, says = scene_picture(find_scene(path, spec(("B08",), "uint16"), MapConfig()))
    assert says == "B08, in grey, digital numbers as EuroSAT scales them."
    grey = np.asarray(drawn)
    assert (grey[..., 0] == grey[..., 2]).all()
    wide = write_raster(tmp_path / "w.tif", noise(4, 64, 901), ("B08", "B02", "B03", "B04"))
    assert scene_picture(find_scene(wide, spec(), MapConfig()))[1].endswith("scales them, downsampled.")


def test_names_that_are_not_ascii_are_shown() -> None:
    plain, known = _font("Water"), _font("Grünland")
    assert _letters("Grünland, Été, Øre, 水", plain) == "Grunland, Ete, ?re, ?"
    assert _letters("水", known) == "?"
    found = find_spec("matplotlib")  # whose font is taken where the system has none
    assert _letters("Grünland, Été, Øre", known) == ("Grünland, Été, Øre" if found else "Grunland, Ete, ?re")
