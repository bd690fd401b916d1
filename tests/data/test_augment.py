import numpy as np
import torch
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_saturation

from sattrt.data.augment import Augmentation, Views, look, mix

RNG = np.random.default_rng(0)
TILES = torch.from_numpy(RNG.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))


def still(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_each_symmetry_is_its_own() -> None:
    tile = TILES[:1].expand(8, -1, -1, -1).contiguous()
    shown = look(tile, Views(torch.arange(8))).numpy()
    first = TILES[0].numpy()
    np.testing.assert_array_equal(shown[1], first[:, ::-1])
    np.testing.assert_array_equal(shown[2], first[::-1])
    np.testing.assert_array_equal(shown[4], first.transpose(1, 0, 2))
    assert len({image.tobytes() for image in shown}) == 8


def test_tiles_are_fetched_by_index() -> None:
    index = torch.tensor([5, 0, 5])
    assert torch.equal(look(TILES, Views(still(3)), index), TILES[index])


def test_a_crop_of_everything_is_the_tile_and_a_quarter_is_a_quarter() -> None:
    whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(look(TILES[:1], Views(still(1), whole)), TILES[:1].float(), atol=0.01, rtol=0)
    flat = TILES[:1].clone()
    flat[:, :4, :4], flat[:, 4:], flat[:, :, 4:] = 200, 0, 0
    quarter = torch.tensor([[0.4, 0.4, -0.5, -0.5]])  # within the top left one
    assert (look(flat, Views(still(1), quarter)) > 199).float().mean() > 0.8


def test_crops_stay_within_the_tile_and_above_their_smallest_area() -> None:
    boxes = Augmentation(crop=0.3).draw(np.random.default_rng(1), 1000, True).boxes
    assert boxes is not None
    half_width, half_height, x, y = boxes.T
    for half, centre in ((half_width, x), (half_height, y)):
        assert half.min() > 0
        assert (half + centre.abs()).max() <= 1.0001
        assert ((half + centre.abs())[half < 0.9]).max() > 0.99  # and reach its edges
    assert 0.25 < (half_width * half_height).min() < 0.35
    ratios = half_width / half_height
    assert (0.74 < ratios.min() < 0.8, 1.25 < ratios.max() < 1.34) == (True, True)


def test_large_crops_are_no_smaller_than_they_may_be() -> None:
    boxes = Augmentation(crop=0.9).draw(np.random.default_rng(1), 1000, True).boxes
    assert boxes is not None
    areas = boxes[:, 0] * boxes[:, 1]
    assert (0.9 <= areas.min() < 0.91, 0.99 < areas.max() <= 1, boxes[:, :2].max() <= 1) == (True, True, True)


def test_neutral_colours_change_nothing_and_others_do() -> None:
    tile = TILES[:2]
    torch.testing.assert_close(look(tile, Views(still(2), None, torch.ones(2, 3))), tile.float(), atol=1e-3, rtol=0)
    bright = look(tile, Views(still(2), None, torch.tensor([[1.3, 1.0, 1.0]] * 2)))
    torch.testing.assert_close(bright, (tile.float() * 1.3).clamp(0, 255))
    grey = look(tile, Views(still(2), None, torch.tensor([[1.0, 1.0, 0.0]] * 2)))
    torch.testing.assert_close(grey[..., 0], grey[..., 2])


def test_colours_vary_as_those_of_torchvision() -> None:
    factors = torch.tensor([[1.2, 0.6, 1.3], [0.8, 1.4, 0.7], [1.0, 1.3, 1.0]])
    shown = look(TILES[:3], Views(still(3), None, factors))
    for tile, found, (brightness, contrast, saturation) in zip(TILES, shown, factors.tolist(), strict=False):
        expected = adjust_brightness(tile.permute(2, 0, 1) / 255, brightness)
        expected = adjust_saturation(adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(found, 255 * expected.permute(1, 2, 0), atol=0.1, rtol=0)


def test_what_is_switched_off_draws_nothing() -> None:
    views = Augmentation(symmetries=False).draw(np.random.default_rng(0), 10, True)
    assert (views.symmetry.max(), views.boxes, views.colours) == (0, None, None)


def test_mixing_keeps_shares_that_sum_to_one() -> None:
    labels = torch.arange(16) % 4
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        for seed in range(20):
            images, targets = mix(TILES, labels, 4, np.random.default_rng(seed), mixup, cutmix)
            torch.testing.assert_close(targets.sum(1), torch.ones(16))
            assert images.shape == TILES.shape
    images, targets = mix(TILES, labels, 4, np.random.default_rng(3), 0.0, 1.0)
    own = (images == TILES).all(-1).float().mean((1, 2))
    torch.testing.assert_close(own, targets[torch.arange(16), labels], atol=0.02, rtol=0)


def test_the_ranks_mix_what_one_alone_would() -> None:
    labels = torch.arange(16) % 4
    for mixup, cutmix in ((0.3, 0.0), (0.0, 1.0)):
        whole = mix(TILES, labels, 4, np.random.default_rng(5), mixup, cutmix)
        halves = [mix(TILES[part], labels[part], 4, np.random.default_rng(5), mixup, cutmix) for part in (slice(8), slice(8, 16))]
        for place, expected in enumerate(whole):
            assert torch.equal(torch.cat([half[place] for half in halves]), expected)
        odd = mix(TILES[:15], labels[:15], 4, np.random.default_rng(5), mixup, cutmix)
        assert torch.equal(odd[0][:14], whole[0][:14])
        assert torch.equal(odd[0][14].float(), TILES[14].float())
        assert odd[1][14].tolist() == [0, 0, 1, 0]


def test_16_bit_tiles_are_shown_and_mixed_as_8_bit_ones_are() -> None:
    wide = TILES.to(torch.uint16)
    views = Views(torch.arange(16) % 8)
    assert torch.equal(look(wide, views), look(TILES, views).to(torch.uint16))
    labels = torch.arange(16) % 4
    for mixup, cutmix in ((0.3, 0.0), (0.0, 1.0)):
        narrow, _ = mix(TILES, labels, 4, np.random.default_rng(0), mixup, cutmix)
        mixed, _ = mix(wide, labels, 4, np.random.default_rng(0), mixup, cutmix)
        assert torch.equal(mixed.float(), narrow.float())
