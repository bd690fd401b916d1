"""Transforms show tiles as their names say; what is drawn is drawn in training alone."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import jpeg
from torch import Tensor

from sattrt.data.decode import decode_rgb as decode
from sattrt.errors import InputError
from sattrt.rmldnn.config import _transforms
from sattrt.rmldnn.transforms import Transforms


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    """Four real JPEG tiles, uint8 (4, 48, 64, 3)."""
    return torch.from_numpy(np.stack([decode(jpeg((60, 120, 180), seed, (64, 48))) for seed in range(4)]))


def transforms(*entries: dict[str, Any]) -> Transforms:
    return _transforms(list(entries), "transforms")


def shown(tiles: Tensor, *entries: dict[str, Any], seed: int | None = 0) -> Tensor:
    rng = None if seed is None else np.random.default_rng(seed)
    return transforms(*entries).views(tiles.shape[1], tiles.shape[2], len(tiles), rng).show(tiles)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), atol=0.02, rtol=0)


def test_flips_crops_and_right_angles_are_exact(tiles: Tensor) -> None:
    close(shown(tiles, {"random_horizontal_flip": 1.0}), tiles.flip(2))
    close(shown(tiles, {"random_vertical_flip": 1}), tiles.flip(1))
    close(shown(tiles, {"random_vertical_flip": 0}), tiles)
    close(shown(tiles, {"center_crop": [32, 24]}), tiles[:, 12:36, 16:48])
    square = tiles[:, :, 8:56]
    close(shown(square, {"rotate": 90}), torch.from_numpy(np.rot90(square.numpy(), -1, (1, 2)).copy()))  # clockwise
    close(shown(square, {"rotate": 180}), square.flip(1, 2))


def test_a_resize_is_torchs_bilinear_one(tiles: Tensor) -> None:
    for size in ([128, 96], [50, 40], [32, 64]):
        expected = F.interpolate(tiles.permute(0, 3, 1, 2).float(), (size[1], size[0]), mode="bilinear", align_corners=False)
        close(shown(tiles, {"resize": size}, seed=None), expected.permute(0, 2, 3, 1))


def test_steps_are_made_in_their_order(tiles: Tensor) -> None:
    first = shown(tiles, {"center_crop": [32, 32]}, {"resize": [64, 64]})
    second = shown(tiles, {"resize": [64, 64]}, {"center_crop": [32, 32]})
    assert (first.shape[1:3], second.shape[1:3]) == ((64, 64), (32, 32))
    close(first[:, 1:-1, 1:-1], shown(tiles[:, 8:40, 16:48].contiguous(), {"resize": [64, 64]})[:, 1:-1, 1:-1])


def test_what_was_cut_off_does_not_come_back_in_the_corners_of_a_turn(tiles: Tensor) -> None:
    square = tiles[:, :, 8:56].contiguous()
    cut = shown(square, {"center_crop": [24, 24]}, {"rotate": 45})
    alone = shown(square[:, 12:36, 12:36].contiguous(), {"rotate": 45})
    assert cut[0, 0, 0].tolist() == [0, 0, 0]
    assert ((cut == 0).all(3) == (alone == 0).all(3)).all()
    middle = slice(8, 16)
    close(cut[:, middle, middle], alone[:, middle, middle])
    whole = shown(square, {"random_zoom": 0.5}, {"random_rotate": 40.0}, seed=3)
    assert (whole[:, 0, 0] == 0).all()


def test_a_crop_that_is_turned_is_no_sheared_one() -> None:
    """A tile whose red is its column and whose green is its row: along a line of the sample both go on at the angle of the turn."""
    line = torch.arange(64.0).mul(3) + 20
    places = torch.stack([line.view(1, 64).expand(64, 64), line.view(64, 1).expand(64, 64), torch.zeros(64, 64)], 2)
    turned = shown(places.expand(64, 64, 64, 3).contiguous(), {"jitter_crop": 0.4}, {"random_rotate": 30.0}, {"resize": [64, 64]})
    across, down = (turned[:, 32, 40] - turned[:, 32, 24])[:, :2], (turned[:, 40, 32] - turned[:, 24, 32])[:, :2]
    assert (across * down).sum(1).abs().max() < 0.02 * (across.norm(dim=1) * down.norm(dim=1)).min()
    assert np.degrees(torch.atan2(across[:, 1], across[:, 0]).abs().max()) > 20


def test_a_crop_is_not_larger_than_what_is_left() -> None:
    with pytest.raises(InputError, match=r"center_crop of 64x64 is larger than the sample, 32x32"):
        transforms({"jitter_crop": 0.5}, {"center_crop": [64, 64]}).size(64, 64)
    assert transforms({"jitter_crop": 0.5}, {"center_crop": [32, 32]}).size(64, 64) == (32, 32)


def test_what_is_drawn_stays_within_its_bounds() -> None:
    # a tile whose red is its column: what is seen says where it was seen
    columns = torch.arange(64.0).mul(4).view(1, 1, 64, 1).expand(256, 64, 64, 3).contiguous()
    zoomed = shown(columns, {"random_zoom": 0.5})[:, 32, :, 0] / 4
    left, right = zoomed[:, 0], 63 - zoomed[:, -1]
    assert 0 <= left.min() < 1
    assert 14 < left.max() <= 16.5  # half of 0.5 of 64
    torch.testing.assert_close(left, right, atol=0.1, rtol=0)
    cropped = shown(columns, {"jitter_crop": 0.5}, {"resize": [64, 64]})[:, 32, :, 0] / 4
    left, right = cropped[:, 0], 63 - cropped[:, -1]
    assert 14 < left.max() <= 16.5
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.3  # each side is drawn on its own
    turned = shown(columns, {"random_rotate": 20})
    slope = (turned[:, 40, 32, 0] - turned[:, 24, 32, 0]) / 4 / 16
    assert 18 < np.degrees(np.arcsin(slope.abs().max())) <= 20.5


def test_the_rim_of_a_turned_tile_is_zero_as_the_network_sees_it(tiles: Tensor) -> None:
    square = tiles[:, :, 8:56]
    assert shown(square, {"rotate": 45})[0, 0, 0].tolist() == [0, 0, 0]
    rim = shown(square, {"normalize": {"mean": [0.1, 0.2, 0.3], "std": 0.5}}, {"rotate": 45})[0, 0, 0]
    assert rim.tolist() == pytest.approx([25.5, 51, 76.5])


def test_evaluation_draws_nothing(tiles: Tensor) -> None:
    drawn = ({"random_rotate": 20}, {"random_zoom": 0.3}, {"jitter_crop": 0.2}, {"random_horizontal_flip": 0.5})
    close(shown(tiles, *drawn, {"resize": [64, 48]}, seed=None), tiles)
    assert not torch.equal(shown(tiles, *drawn, {"resize": [64, 48]}), tiles)
    assert transforms(*drawn).vary
    assert not transforms({"resize": [64, 48]}, {"rotate": 5}).vary


def test_what_the_network_can_do_by_itself() -> None:
    resize = {"resize": [64, 64]}
    assert transforms().in_network(64, 64) == transforms(resize).in_network(64, 64) == 0
    assert transforms({"random_rotate": 20}, resize, {"normalize": {"mean": 0.5}}).in_network(64, 64) == 0
    assert transforms({"resize": [96, 96]}).in_network(64, 64) == 96
    assert transforms({"resize": [96, 64]}).in_network(64, 64) is None
    assert transforms({"resize": [96, 96]}, {"center_crop": [64, 64]}).in_network(64, 64) is None
    assert transforms({"rotate": 5}).in_network(64, 64) is None
    assert transforms({"rotate": 0}, resize).in_network(64, 64) == 0


def test_colours_compose() -> None:
    caffe = transforms({"convert_color": "RGB2BGR"}, {"normalize": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]}}).pixels(False)
    assert (caffe.order, caffe.rgb_mean, caffe.rgb_std) == ((2, 1, 0), (0.3, 0.2, 0.1), (4, 2, 1))
    twice = transforms({"normalize": {"mean": 0.5, "std": 0.5}}, {"normalize": {"mean": 1, "std": 2}}).pixels(False)
    assert (twice.mean[0], twice.std[0]) == (1.0, 1.0)
    assert transforms({"convert_color": "RGB2GRAY"}).pixels(False).channels == 1
    with pytest.raises(InputError, match="grey samples"):
        transforms({"convert_color": "BGR2RGB"}).pixels(True)
    for normalize in ({"mean": [0.1, 0.2, 0.3]}, {"std": [0.1, 0.2, 0.3]}):
        with pytest.raises(InputError, match="normalize has a number for each of three channels, but finds grey samples"):
            transforms({"normalize": normalize}).pixels(True)
        with pytest.raises(InputError, match="Give one number for mean and one for std"):
            transforms({"convert_color": "RGB2GRAY"}, {"normalize": normalize}).pixels(False)
        assert transforms({"normalize": normalize}, {"convert_color": "RGB2GRAY"}).pixels(False).channels == 1
    assert transforms({"normalize": {"mean": [0.1] * 3, "std": 0.5}}).pixels(True).mean == (0.1,) * 3
    with pytest.raises(InputError, match="the other way round"):
        transforms({"convert_color": "BGR2GRAY"}).pixels(False)


def test_sizes_that_can_not_be_are_one_line() -> None:
    with pytest.raises(InputError, match="center_crop of 80x80 is larger than the sample, 64x64"):
        transforms({"center_crop": [80, 80]}).size(64, 64)
    with pytest.raises(InputError, match="Put a resize after it"):
        transforms({"jitter_crop": 0.1}).size(64, 64)
