"""Augmentation of whole batches on the device that holds them, from parameters that were drawn beforehand.

    views = Augmentation(crop=0.5).draw(np.random.default_rng([seed, epoch]), len(tiles), square=True)
    images = look(tiles, views)                      # uint8 (N, H, W, C) -> uint8 or float of the same shape

What a tile will look like in an epoch follows from (seed, epoch) alone; a resumed run, another number of ranks and
another decoder see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RATIO = 4 / 3  # of a crop's sides, at most (torchvision's RandomResizedCrop)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How tiles are varied in training.

    symmetries: one of the eight of an overhead tile (four where it is not square).
    crop: the smallest share of a tile's area that a random resized crop shows; 1 shows all of it (Szegedy et al., 2015).
    colour: brightness, contrast and saturation are each multiplied by 1 - colour to 1 + colour; RGB only.
    """

    symmetries: bool = True
    crop: float = 1.0
    colour: float = 0.0

    def draw(self, rng: np.random.Generator, count: int, square: bool) -> Views:
        """Parameters for `count` tiles; what is switched off draws nothing."""
        kinds = (8 if square else 4) if self.symmetries else 1
        symmetry = rng.integers(0, kinds, count)
        boxes = colours = None
        if self.crop < 1:
            area = rng.uniform(self.crop, 1, count)
            most = np.minimum(np.log(_RATIO), -np.log(area))  # or a side would be longer than the tile's
            ratio = np.exp(rng.uniform(-1, 1, count) * most)
            sides = np.sqrt([area * ratio, area / ratio]).clip(max=1)
            boxes = torch.from_numpy(np.stack([*sides, *(rng.uniform(-1, 1, (2, count)) * (1 - sides))], 1).astype(np.float32))
        if self.colour > 0:
            colours = torch.from_numpy(rng.uniform(1 - self.colour, 1 + self.colour, (count, 3)).astype(np.float32))
        return Views(torch.from_numpy(symmetry), boxes, colours)


@dataclass(frozen=True)
class Views:
    """For each of N tiles: symmetry int64 (N,) (bit 0: left-right, 1: up-down, 2: transposed); boxes float32 (N, 4): half width,
    half height, centre x and y, the tile being -1..1; colours float32 (N, 3): factors of brightness, contrast, saturation."""

    symmetry: Tensor
    boxes: Tensor | None = None
    colours: Tensor | None = None

    def __getitem__(self, index: Tensor | slice) -> Views:
        return self._each(lambda part: part[index])

    def to(self, device: torch.device) -> Views:
        """The same on a device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Views:
        boxes, colours = (None if part is None else change(part) for part in (self.boxes, self.colours))
        return Views(change(self.symmetry), boxes, colours)


def look(tiles: Tensor, views: Views, index: Tensor | None = None) -> Tensor:
    """Tiles (T, H, W, C) of uint8 or uint16, or those at `index` (N,), as the views show them: of the same type, or float32 in its range where they
    are cropped or coloured."""
    _, height, width, bands = tiles.shape
    rows = torch.arange(len(tiles), device=tiles.device) if index is None else index
    # one gather fetches and turns
    pixels = same_bits(tiles).view(-1, height * width, bands)[rows[:, None], _table(height, width, tiles.device)[views.symmetry]]
    images = pixels.view(-1, height, width, bands).view(tiles.dtype)
    if views.boxes is not None:
        images = _cropped(images, views.boxes)
    if views.colours is not None:
        images = _coloured(images.float(), views.colours)
    return images


def same_bits(tiles: Tensor) -> Tensor:
    """Tiles as torch can index and flip them everywhere: it can't on a GPU where they are uint16, whose bits are int16 then."""
    return tiles.view(torch.int16) if tiles.dtype == torch.uint16 else tiles


def mix(images: Tensor, labels: Tensor, classes: int, rng: np.random.Generator, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of neighbours in a batch (Zhang et al., 2018; Yun et al., 2019): images and class shares (N, classes).

    The first tile is mixed with the second and the second with the first, and so on, so that ranks mix what one rank alone would; the
    last of an odd number stays as it is. mixup, cutmix: the alpha of the Beta distribution that the share is drawn from, one for the
    batch; 0 switches one off, with both a coin decides.
    """
    neighbours = (torch.arange(len(images), device=images.device) ^ 1).clamp(max=len(images) - 1)
    targets = F.one_hot(labels, classes).float()
    use_cutmix = cutmix > 0 and (mixup == 0 or bool(rng.integers(2)))
    share = float(rng.beta(*2 * (cutmix if use_cutmix else mixup,)))
    others = same_bits(images)[neighbours].view(images.dtype)
    if use_cutmix:
        height, width = images.shape[1:3]
        side = np.sqrt(1 - share) / 2
        across, down = rng.uniform(0, 1, 2)
        left, right = (int(np.clip(round(width * edge), 0, width)) for edge in (across - side, across + side))
        top, bottom = (int(np.clip(round(height * edge), 0, height)) for edge in (down - side, down + side))
        mixed = images.clone()
        mixed[:, top:bottom, left:right] = others[:, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = images.float().lerp(others.float(), 1 - share)
    return mixed, targets.lerp(targets[neighbours], 1 - share)


@cache
def _table(height: int, width: int, device: torch.device) -> Tensor:
    """For each symmetry and each pixel it shows, which pixel of the tile that is: (8, height * width), or 4 where not square."""
    grid = torch.arange(height * width).view(height, width)
    flipped = [grid, grid.flip(1), grid.flip(0), grid.flip(0, 1)]
    turned = [each.T for each in flipped] if height == width else []
    return torch.stack([each.reshape(-1) for each in (*flipped, *turned)]).to(device)


def _cropped(images: Tensor, boxes: Tensor) -> Tensor:
    half_width, half_height, x, y = boxes.T
    zero = torch.zeros_like(x)
    window = torch.stack([torch.stack([half_width, zero, x], 1), torch.stack([zero, half_height, y], 1)], 1)
    values = images.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(window, list(values.shape), align_corners=False)
    return F.grid_sample(values, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


@cache
def _grey(device: torch.device) -> Tensor:
    """How much of a pixel's grey is of each colour: put on the device once, not in every step."""
    return torch.tensor(_GREY, device=device)


def _coloured(images: Tensor, colours: Tensor) -> Tensor:
    """As torchvision's ColorJitter, in its order without hue: brightness, contrast about the mean grey, saturation about the own grey."""
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in colours.T)
    weights = _grey(images.device)
    images = (images * brightness).clamp(0, 255)
    images = torch.lerp((images @ weights).mean((1, 2)).view(-1, 1, 1, 1), images, contrast).clamp(0, 255)
    return torch.lerp((images @ weights).unsqueeze(3), images, saturation).clamp(0, 255)
