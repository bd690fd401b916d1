"""rmldnn's transforms: where each pixel of a sample comes from is composed into one affine map, and sampled once.

    transforms = Transforms((Transform("random_rotate", (20.0,)), Transform("resize", (64, 64))))
    views = transforms.views(height, width, count, rng)          # rng None: the fixed transforms alone, as in evaluation
    samples = views.show(tiles)                                  # uint8 (N, H, W, 3) -> float 0..255 (N, h, w, 3)

rmldnn resamples at every step; sampling once gives the same picture, sharper. What moves no pixel (`normalize`, `convert_color`) is
part of the network: `Transforms.pixels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.transfer import to_device
from ..errors import InputError
from .pixels import Pixels
from .section import Section, is_number

Matrices = NDArray[np.float64]
_SWAPS, _GREYS = ("BGR2RGB", "RGB2BGR"), ("RGB2GRAY", "BGR2GRAY")
_RANDOM = ("jitter_crop", "random_horizontal_flip", "random_vertical_flip", "random_zoom", "random_rotate")
_MOST = 1024


@dataclass(frozen=True)
class Transform:
    """One step: its name in rmldnn, and its numbers (or the name of a colour conversion)."""

    kind: str
    values: tuple[float, ...] = ()
    code: str = ""

    KINDS: ClassVar = ("resize", "center_crop", "rotate", *_RANDOM, "convert_color", "normalize")

    @classmethod
    def read(cls, kind: str, section: Section) -> Transform:
        """From its object. InputError for a value out of range."""
        if kind in ("resize", "center_crop"):
            sides = section.raw(kind)
            if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int and 1 <= side <= _MOST for side in sides):
                raise section.fault(kind, f"two sides in pixels, at most {_MOST}, as in [64, 64]")
            return cls(kind, tuple(sides))
        if kind == "convert_color":
            code = section.text(kind)
            if code.removeprefix("COLOR_").upper() not in (*_SWAPS, *_GREYS):
                raise section.fault(kind, f"one of {', '.join((*_SWAPS, *_GREYS))}: a network for RGB tiles takes no other colours")
            return cls(kind, code=code.removeprefix("COLOR_").upper())
        if kind == "normalize":
            inner = Section(section.raw(kind), f"{section.name}: normalize", ("mean", "std"))
            return cls(kind, (*_channels(inner, "mean", 0.0), *_channels(inner, "std", 1.0)))
        if kind in ("rotate", "random_rotate"):
            return cls(kind, (section.number(kind, 0.0, -360.0 if kind == "rotate" else 0.0, 360.0),))
        return cls(kind, (section.number(kind, 0.0, 0.0, 1.0 if "flip" in kind else 0.9),))

    @property
    def moves(self) -> bool:
        """Whether it changes where a pixel is seen, rather than its colour."""
        return self.kind not in ("convert_color", "normalize")

    @property
    def random(self) -> bool:
        """Whether it is drawn anew for each sample; such steps are left out in evaluation."""
        return self.kind in _RANDOM

    @property
    def fixed(self) -> bool:
        """Whether it moves the pixels of every sample alike."""
        return self.moves and not self.random


@dataclass(frozen=True)
class Transforms:
    """The steps, in the order of the file."""

    steps: tuple[Transform, ...] = ()

    def pixels(self, grayscale: bool) -> Pixels:
        """What the network sees of a pixel. InputError for a conversion or normalisation of channels that are not there."""
        pixels = Pixels(grey=grayscale)
        for step in self.steps:
            if step.kind == "normalize":
                mean, std = step.values[:3], step.values[3:]
                if pixels.grey and (len(set(mean)) > 1 or len(set(std)) > 1):
                    raise InputError(
                        "normalize has a number for each of three channels, but finds grey samples. Give one number for mean and one for std."
                    )
                pixels = pixels.normalised(mean, std)
            elif step.kind == "convert_color":
                if pixels.grey:
                    raise InputError(f"convert_color {step.code} finds grey samples. Leave it, or grayscale, out.")
                if step.code in _SWAPS:
                    pixels = pixels.swapped()
                elif step.code != ("RGB2GRAY" if pixels.order == (0, 1, 2) else "BGR2GRAY"):
                    raise InputError(f"convert_color {step.code} finds the channels the other way round. Tiles come in RGB.")
                else:
                    pixels = Pixels(mean=pixels.rgb_mean, std=pixels.rgb_std, grey=True)
        return pixels

    @property
    def vary(self) -> bool:
        """Whether samples differ from epoch to epoch."""
        return any(step.random for step in self.steps)

    @property
    def resizes(self) -> bool:
        """Whether tiles may come in any size, since the first that is done to all of them is a resize."""
        return [step.kind for step in self.steps if step.fixed][:1] == ["resize"]

    def in_network(self, height: int, width: int) -> int | None:
        """The side that the network can resize a tile to by itself (0: none needed), where that is all the fixed steps do; else None."""
        needed: list[Transform] = []
        size: tuple[float, ...] = (width, height)
        for step in self.steps:
            if not step.fixed or step.values in (size, (0.0,)):
                continue
            needed.append(step)
            size = step.values if len(step.values) == 2 else size
        if not needed:
            return 0
        if len(needed) == 1 and needed[0].kind == "resize" and len(set(size)) == 1:
            return int(size[0])
        return None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a sample. InputError where a crop is larger than what it is cut from, or samples come in many sizes."""
        kept = 1.0  # of each side, of the smallest sample that a jitter_crop leaves
        for step in self.steps:
            if step.kind == "center_crop" and (step.values[0] > kept * width or step.values[1] > kept * height):
                raise InputError(
                    f"center_crop of {step.values[0]:g}x{step.values[1]:g} is larger than the sample, {int(kept * width)}x{int(kept * height)}. "
                    "Crop less, or resize first."
                )
            if step.kind in ("resize", "center_crop"):
                width, height = map(int, step.values)
                kept = 1.0
            if step.kind == "jitter_crop":
                kept *= 1 - step.values[0]
        if kept < 1:
            raise InputError("jitter_crop leaves samples of many sizes. Put a resize after it.")
        return height, width

    def views(self, height: int, width: int, count: int, rng: np.random.Generator | None) -> Views:
        """How `count` tiles of this size are shown: drawn from `rng`, or by the fixed steps alone."""
        every = np.ones(count)
        size, pixels, rim = np.array([width * every, height * every]), Pixels(), (0.0, 0.0, 0.0)
        # from a pixel of the sample to one of what each turn found, and of the tile at first; all from their centres
        found = [(size, _affine(every, every))]
        for step in self.steps:
            if step.kind == "normalize":
                pixels = pixels.normalised(step.values[:3], step.values[3:])
            elif step.kind == "convert_color":
                pixels = pixels.swapped() if step.code in _SWAPS else pixels
            elif rng is not None or not step.random:
                if "rotate" in step.kind:
                    found.append((size, _affine(every, every)))  # what it turns ends where that sample does
                matrices, size = _matrices(step, size, count, rng)
                found = [(there, moved @ matrices) for there, moved in found]
            if "rotate" in step.kind:
                rim = pixels.rgb_mean  # a corner without content is 0 as the values are by then
        windows = [_affine(2 / there[0], 2 / there[1]) @ moved @ _affine(size[0] / 2, size[1] / 2) for there, moved in found]
        tile, *bounds = (torch.from_numpy(each[:, :2].astype(np.float32)) for each in windows)
        return Views(tile, tuple(bounds), (int(size[1, 0]), int(size[0, 0])), rim)


@dataclass(frozen=True)
class Views:
    """windows: float32 (N, 2, 3), from the sample's -1..1 to the tile's. bounds: alike, to the sample's that each turn was given. size: of a
    sample. rim: RGB in 0..1 of what lies outside of the tile, or of a sample that was turned."""

    windows: Tensor
    bounds: tuple[Tensor, ...]
    size: tuple[int, int]
    rim: tuple[float, float, float]

    def show(self, tiles: Tensor) -> Tensor:
        """Tiles (N, H, W, 3), uint8 or float 0..255, as samples: float32 (N, h, w, 3), bilinear."""
        values = tiles.permute(0, 3, 1, 2).float()
        grid, *others = (
            F.affine_grid(to_device(each.numpy(), tiles.device), [*values.shape[:2], *self.size], align_corners=False)
            for each in (self.windows, *self.bounds)
        )
        shown = F.grid_sample(values, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)
        inside = (grid.abs() <= 1 + 1e-5).all(3, keepdim=True)
        for other in others:
            inside &= (other.abs() <= 1 + 1e-5).all(3, keepdim=True)
        return torch.where(inside, shown, _rim(self.rim, tiles.device))


@cache
@torch.inference_mode(False)  # it outlives whoever asks first
def _rim(rim: tuple[float, float, float], device: torch.device) -> Tensor:
    """A rim's colour in 0..255: put on the device once, since each step would wait for the copy."""
    return 255 * torch.tensor(rim, dtype=torch.float32, device=device)


def _matrices(step: Transform, size: Matrices, count: int, rng: np.random.Generator | None) -> tuple[Matrices, Matrices]:
    """From the pixels after a step to those before it: (N, 3, 3), or (1, 3, 3) for all; and the sizes (width and height, N) after it."""
    first, kept = step.values[0], np.ones(count)
    if step.kind in ("resize", "center_crop"):
        to = np.array(step.values)[:, None] * kept
        return _affine(*(size / to if step.kind == "resize" else (kept, kept))), to
    if step.kind == "rotate":
        return _rotation(np.array([first])), size
    assert rng is not None
    if step.kind == "random_rotate":
        return _rotation(rng.uniform(-first, first, count)), size
    if step.kind == "random_zoom":
        zoom = 1 - rng.uniform(0, first, (2, count))
        return _affine(zoom[0], zoom[1]), size
    if step.kind == "jitter_crop":
        left, right, top, bottom = rng.uniform(0, first, (4, count)) / 2
        x, y = (left - right) * size[0] / 2, (top - bottom) * size[1] / 2
        return _affine(kept, kept, x, y), size * [1 - left - right, 1 - top - bottom]
    turned = np.where(rng.uniform(0, 1, count) < first, -1.0, 1.0)
    return (_affine(turned, kept) if "horizontal" in step.kind else _affine(kept, turned)), size


def _affine(x_scale: Matrices, y_scale: Matrices, x: Matrices | float = 0.0, y: Matrices | float = 0.0) -> Matrices:
    found = np.zeros((len(x_scale), 3, 3))
    found[:, 0, 0], found[:, 1, 1], found[:, 2, 2] = x_scale, y_scale, 1
    found[:, 0, 2], found[:, 1, 2] = x, y
    return found


def _rotation(degrees: Matrices) -> Matrices:
    """Clockwise to the eye, y pointing down."""
    found = _affine(np.cos(np.radians(degrees)), np.cos(np.radians(degrees)))
    found[:, 0, 1] = np.sin(np.radians(degrees))
    found[:, 1, 0] = -found[:, 0, 1]
    return found


def _channels(section: Section, key: str, default: float) -> Sequence[float]:
    """One number for all channels, or one for each."""
    value = section.raw(key, default)
    values = value if isinstance(value, list) and len(value) == 3 else [value] * 3
    if not all(is_number(each) and abs(each) <= 1e5 and (key == "mean" or each >= 1e-5) for each in values):
        raise section.fault(key, "a number, or three" + ("" if key == "mean" else ", above 0"))
    return [float(each) for each in values]
