"""What the network sees of a pixel: which channel, less what, over what. All of it is linear, so a chain of steps stays one step.

pixels = Pixels().swapped().normalised((0.408, 0.458, 0.485), (1 / 255,) * 3)      # BGR less the means of ImageNet, as Caffe had it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

GREY = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


@dataclass(frozen=True)
class Pixels:
    """Channel i of the network is (RGB channel order[i], in 0..1, less mean[i]) over std[i]; grey: one channel, the grey of the three."""

    order: tuple[int, ...] = (0, 1, 2)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    grey: bool = False

    @property
    def channels(self) -> int:
        """How many the network takes."""
        return 1 if self.grey else len(self.order)

    def swapped(self) -> Pixels:
        """The channels in reverse: RGB to BGR and back."""
        return replace(self, order=self.order[::-1], mean=self.mean[::-1], std=self.std[::-1])

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Pixels:
        """Less a mean, over a deviation, both of the values as they are by now."""
        moved = tuple(m + a * s for m, a, s in zip(self.mean, mean, self.std, strict=True))
        return replace(self, mean=moved, std=tuple(s * d for s, d in zip(self.std, std, strict=True)))

    @property
    def rgb_mean(self) -> tuple[float, float, float]:
        """What is taken from red, green and blue, in 0..1."""
        return self._by_rgb(self.mean)

    @property
    def rgb_std(self) -> tuple[float, float, float]:
        """What red, green and blue are divided by."""
        return self._by_rgb(self.std)

    def _by_rgb(self, values: tuple[float, ...]) -> tuple[float, float, float]:
        red, green, blue = (values[self.order.index(channel)] for channel in range(3))
        return red, green, blue
