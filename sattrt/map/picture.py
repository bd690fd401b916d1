"""What a person looks at: the map with its legend as a PNG, and the scene as it would be photographed. Pillow alone.

save_picture(path, title, map_picture(map, colours), legend)
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .colours import Colour
from .geo import open_raster, reading
from .scene import Scene, table

MADE_BY = "sattrt map"  # a picture's note of its software
_SIDE = 900  # of a picture, at most; smaller maps are enlarged in whole steps to come near
_INK, _FAINT = (29, 35, 40), (102, 112, 122)
PAPER = (253, 252, 249)
NOTHING = (255, 255, 255)  # where there is no data; hatched, as a class may be white
_TEXT, _PAD = 18, 28


def map_picture(path: Path, colours: dict[int, Colour], certain: float = 0) -> Image.Image:
    """The first band of a map in its colours, paler where the second is less than `certain` percent."""
    palette = np.full((256, 3), NOTHING, np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    values = _small(path, 1)
    shown = palette[values]
    faint = ((values > 0) & (_small(path, 2) < certain))[:, :, None]
    picture = _enlarged(Image.fromarray(np.where(faint, (shown.astype(np.uint16) + 2 * np.array(PAPER)) // 3, shown).astype(np.uint8)))
    nothing = _enlarged(Image.fromarray(values == 0))
    picture.paste(_hatched(picture.size), mask=nothing)
    return picture


def scene_picture(scene: Scene) -> tuple[Image.Image, str]:
    """A scene in its red, green and blue, or in grey where it is read without them, and what is shown; digital numbers as EuroSAT scales them."""
    by_name = {band.name: band for band in scene.bands}
    shown = [by_name[name] for name in ("B04", "B03", "B02") if name in by_name]
    said = "Red, green and blue"
    if len(shown) < 3:
        shown = [scene.bands[0]] * 3
        said = f"{shown[0].name}, in grey"
    if scene.dtype == "uint16":
        said += ", digital numbers as EuroSAT scales them"
    numbers = [_small(band.path, band.index) for band in shown]
    thinned = max(scene.height, scene.width) > _SIDE * min(band.factor for band in shown)
    size = max((each.shape for each in numbers), key=lambda shape: shape[0])
    layers = []
    for band, each in zip(shown, numbers, strict=True):
        light = table(band.offset, scaled=True)[each] if scene.dtype == "uint16" else each
        layers.append(np.asarray(Image.fromarray(light.astype(np.uint8)).resize((size[1], size[0]))))
    return _enlarged(Image.fromarray(np.stack(layers, axis=2))), f"{said}{', downsampled' * thinned}."


def save_picture(path: Path, title: str, picture: Image.Image, legend: Iterable[tuple[Colour | None, str, str]]) -> None:
    """Write a PNG: a picture, and beside it a line for each colour, its name and a figure; a remark has no colour."""
    lines = list(legend)
    text = _font(title + "".join(name for _, name, _ in lines))
    title, lines = _letters(title, text), [(colour, _letters(name, text), figure) for colour, name, figure in lines]
    names = max((text.getlength(name) for _, name, _ in lines), default=0)
    figures = max((text.getlength(figure) for _, _, figure in lines), default=0)
    width = int(max(names + figures + 3 * _TEXT + _PAD, text.getlength(title)))
    height = max(picture.height, int((len(lines) + 2) * 1.6 * _TEXT))
    sheet = Image.new("RGB", (picture.width + width + 3 * _PAD, height + 2 * _PAD), PAPER)
    sheet.paste(picture, (_PAD, _PAD))
    draw = ImageDraw.Draw(sheet)
    left, top = picture.width + 2 * _PAD, float(_PAD)
    draw.text((left, top), title, fill=_INK, font=text)
    top += 2.2 * _TEXT
    for colour, name, figure in lines:
        box = (int(left), int(top) + 2, int(left) + _TEXT, int(top) + 2 + _TEXT)
        if colour == NOTHING:
            sheet.paste(_hatched((_TEXT, _TEXT)), box)
        elif colour:
            draw.rounded_rectangle(box, 3, fill=colour)
        draw.text((left + 1.7 * _TEXT, top), name, fill=_INK, font=text)
        draw.text((left + width, top), figure, fill=_FAINT, font=text, anchor="ra")
        top += 1.6 * _TEXT
    note = PngInfo()
    note.add_text("Software", MADE_BY)
    sheet.save(path, "PNG", pnginfo=note)


def _font(shown: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which knows ASCII alone; for other letters DejaVu Sans, of the system or of matplotlib, where there is one."""
    places = ["DejaVuSans.ttf"] * (not shown.isascii())
    if places and (found := find_spec("matplotlib")) and found.origin:
        places.append(str(Path(found.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for place in places:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(place, _TEXT)
    return ImageFont.load_default(_TEXT)


def _letters(shown: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text; a letter that the font lacks becomes the ASCII one below its accent, or a question mark, instead of a box."""
    box = bytes(font.getmask("\uffff"))
    return "".join(
        unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?" if bytes(font.getmask(letter)) == box else letter
        for letter in shown
    )


def _hatched(size: tuple[int, int]) -> Image.Image:
    stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) % 8 < 1
    return Image.fromarray(np.where(stripes[:, :, None], _FAINT, NOTHING).astype(np.uint8))


def _small(path: Path | str, index: int) -> NDArray[Any]:
    """A band, thinned out to at most `_SIDE` pixels along its longer side."""
    with open_raster(path) as file, reading(path):
        shrink = max(1, -(-max(file.height, file.width) // _SIDE))
        values: NDArray[Any] = file.read(index, out_shape=(-(-file.height // shrink), -(-file.width // shrink)))
        return values


def _enlarged(picture: Image.Image) -> Image.Image:
    times = max(1, _SIDE // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
