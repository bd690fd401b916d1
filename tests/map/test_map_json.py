"""`sattrt map --json`: the figures of the screen's table and of the page, for programs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import sattrt
from PIL import Image
from scenes import ENGINE, colourful, spec, write_raster

from sattrt.map.colours import class_colours
from sattrt.map.compare import compare_maps
from sattrt.map.config import MapConfig
from sattrt.map.finding import find_scene
from sattrt.map.mapfile import TAG, MapFile
from sattrt.map.output import Layout, write_cog
from sattrt.map.page import to_html
from sattrt.map.run import Mapped
from sattrt.runtime import Bundle
from sattrt.screen import print_change, print_maps

CELLS = np.array([[1, 1, 2], [0, 2, 2]], np.uint8)


def write_scene(path: Path, placed: bool = True) -> Path:
    """2 x 3 tiles, less four pixels to the right and below."""
    return write_raster(path, colourful(2, 3)[0][:, :-4, :-4].copy(), placed=placed)


def write_map(folder: Path, name: str, cells: np.ndarray, placed: bool = True) -> Mapped:
    """A map with these cells, surer from left to right."""
    scene = find_scene(write_scene(folder / f"{name}-scene.tif", placed), spec(), MapConfig())
    made = {"sattrt": "0", "scene": "s", "kind": scene.kind, "says": scene.says, "height": scene.height, "width": scene.width}
    made |= {"stride": 64, "tile": [64, 64], "bundle": "b", "engine": ENGINE, "device": "cpu", "classes": spec().classes, "settings": {}}
    layout = Layout(
        height=2, width=3, bands=("class", "confidence"), nodata=0, crs=scene.crs, colours={}, tags={TAG: json.dumps(made)}, band_tags={},
        transform=scene.transform and tuple(value * 64 if i in (0, 1, 3, 4) else value for i, value in enumerate(scene.transform)),
    )  # fmt: skip
    sure = np.where(cells, np.array([60, 70, 95], np.uint8), 0)
    write_cog(folder / f"{name}.tif", folder, layout, np.stack([cells, sure], axis=1))
    found = MapFile.read(folder / f"{name}.tif")
    return Mapped(files=(found.path,), scene=scene, map=found, statistics=found.statistics(), seconds=1.5)


def test_the_document_the_table_and_the_page_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mapped = write_map(tmp_path, "map", CELLS)
    print_maps([mapped], as_json=True)
    [document] = json.loads(capsys.readouterr().out)["maps"]
    classes = {each["name"]: each for each in document["classes"]}
    assert list(classes) == list(spec().classes)
    assert {name: each["cells"] for name, each in classes.items()} == {"Field": 2, "Forest": 3, "Water": 0}
    assert classes["Water"] == {"name": "Water", "area": 0.0, "share": 0.0, "cells": 0, "confidence": None}
    assert sum(each["share"] for each in classes.values()) == pytest.approx(100)
    full, right, below, corner = 64 * 64 / 100, 64 * 60 / 100, 64 * 60 / 100, 60 * 60 / 100
    assert classes["Field"]["area"] == pytest.approx(2 * full)
    assert classes["Forest"]["area"] == pytest.approx(right + below + corner)
    assert classes["Forest"]["confidence"] == pytest.approx((95 * right + 70 * below + 95 * corner) / (right + below + corner))
    assert document["nodata"] == {"cells": 1, "area": pytest.approx(below)}
    assert (document["unit"], document["cell_pixels"], document["cell_metres"]) == ("ha", 64, pytest.approx(640))
    assert (document["file"], document["scene"]) == (str(mapped.files[0]), mapped.scene.path)
    assert (document["engine"], document["device"], document["seconds"]) == (ENGINE, "cpu", 1.5)
    assert (document["width"], document["height"]) == (3, 2)

    rows = [(name, *(f"{each[key]:,.1f}" for key in ("area", "share", "confidence"))) for name, each in classes.items() if each["cells"]]
    nothing = ("no data", f"{below:,.1f}", "", "")
    assert mapped.table() == [*rows, nothing]
    picture = Image.new("RGB", (3, 2))
    html = to_html(mapped.map, mapped.statistics, picture, "", picture, class_colours(mapped.map.classes))
    on_page = [tuple(re.findall(r"<td>(?:<i [^>]*></i>)?([^<]*)</td>", line)) for line in html.split("<tr>")[2:]]
    assert on_page == [rows[1], rows[0], ("Water", "0.0", "0.0", ""), on_page[3], nothing]  # the largest first
    assert on_page[3] == ("all", f"{sum(each['area'] for each in classes.values()):,.1f}", "100.0", "")
    print_maps([mapped], as_json=False)
    said = capsys.readouterr().out
    assert all(re.search(r"\s+".join(map(re.escape, row)), said) for row in rows)


def test_a_map_that_lies_nowhere_is_counted_in_pixels(tmp_path: Path) -> None:
    document = write_map(tmp_path, "map", np.zeros((2, 3), np.uint8), placed=False).document()
    assert (document["unit"], document["cell_pixels"], document["cell_metres"]) == ("pixels", 64, None)
    assert document["nodata"] == {"cells": 6, "area": 124 * 188}
    assert {(each["area"], each["share"], each["confidence"]) for each in document["classes"]} == {(0.0, 0.0, None)}
    json.dumps(document, allow_nan=False)


def test_a_change_is_told_from_class_to_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = CELLS.copy()
    after[0, 0], after[0, 2] = 3, 1
    old, new = (write_map(tmp_path, name, cells).files[0] for name, cells in (("old", CELLS), ("new", after)))
    change = compare_maps(old, new, 70)
    print_change(change, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["old"], document["new"], document["files"]) == (str(old), str(new), [])
    assert (document["unit"], document["certain_percent"]) == ("ha", 70)
    assert document["possible"]["Field"] == {"Field": pytest.approx(40.96), "Forest": 0.0, "Water": pytest.approx(40.96)}
    assert document["certain"]["Field"] == {"Field": pytest.approx(40.96), "Forest": 0.0, "Water": 0.0}
    table = change.table()
    assert [line[:2] for line in table] == [("Forest", "Field"), ("Field", "Water"), ("unchanged", ""), ("all", "")]
    for before, then, certain, possible in table[:2]:
        assert (f"{document['certain'][before][then]:,.1f}", f"{document['possible'][before][then]:,.1f}") == (certain, possible)
    for kind, place in (("certain", 2), ("possible", 3)):
        assert f"{sum(document[kind][name][name] for name in document[kind]):,.1f}" == table[2][place]
        assert f"{sum(sum(row.values()) for row in document[kind].values()):,.1f}" == table[3][place]


def test_the_command_prints_one_document(bundle: Bundle, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / f"{name}.tif") for name in ("old", "new")]
    words = (bundle.path, *scenes, "--out", tmp_path / "maps", "--engine", ENGINE, "--json")
    done = sattrt("map", *words)
    assert done.returncode == 0, done.stderr
    maps = json.loads(done.stdout)["maps"]
    assert [each["file"] for each in maps] == [str(tmp_path / "maps" / f"{name}.tif") for name in ("old", "new")]
    assert all(each["seconds"] > 0 and Path(path).is_file() for each in maps for path in each["files"])
    again = json.loads(sattrt("map", *words, "--resume").stdout)["maps"]
    assert again == [each | {"seconds": None} for each in maps]
    change = json.loads(sattrt("map", "--compare", *(each["file"] for each in maps), "--json", "--set", "certain=0").stdout)
    assert change["certain"] == change["possible"]
    assert change["unit"] == "ha"
