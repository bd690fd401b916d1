import io
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EUROSAT, jpeg
from PIL import Image

from sattrt.data.augment import Augmentation
from sattrt.data.dali import DaliDecoder
from sattrt.data.dataset import Dataset
from sattrt.data.decode import decode_rgb as decode
from sattrt.data.loader import Loader, decode_tiles, decoded_at_once
from sattrt.data.scan import SplitRule, scan
from sattrt.data.sources import open_source
from sattrt.data.threads import ThreadedDecoder
from sattrt.errors import ContractError, InputError

CPU = torch.device("cpu")


def batches(loader: Loader, epoch: int = 0, first: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(images.numpy().copy(), labels.numpy()) for images, labels in loader.epoch(epoch, first)]


def pixels(loader: Loader, epoch: int = 0) -> np.ndarray:
    return np.concatenate([images for images, _ in batches(loader, epoch)])


def training(dataset: Dataset, **changes: object) -> Loader:
    options: dict = {"batch_size": 8, "device": CPU, "augmentation": Augmentation(), "seed": 5} | changes
    return Loader(dataset, dataset.tiles("train"), **options)


def test_evaluation_sees_every_tile_once_in_order(dataset: Dataset) -> None:
    tiles = dataset.tiles("valid")
    loader = Loader(dataset, tiles, batch_size=7, device=CPU)
    for _ in range(2):
        got = batches(loader)
        assert len(got) == loader.steps
        assert np.concatenate([labels for _, labels in got]).tolist() == [tile.label for tile in tiles]
    with open_source(Path(dataset.source)) as source:
        expected = np.stack([decode(source.read(tile.name)) for tile in tiles])
    np.testing.assert_array_equal(pixels(loader), expected)


def test_a_seed_gives_the_same_order_and_augmentation(dataset: Dataset) -> None:
    one, two, other = training(dataset), training(dataset), training(dataset, seed=6)
    np.testing.assert_array_equal(pixels(one), pixels(two))
    np.testing.assert_array_equal(pixels(one, 1), pixels(two, 1))
    assert not np.array_equal(pixels(one, 0), pixels(one, 1))
    assert not np.array_equal(pixels(one), pixels(other))


def test_an_epoch_can_begin_at_any_step(dataset: Dataset) -> None:
    whole, rest = batches(training(dataset), 3), batches(training(dataset), 3, first=2)
    assert len(rest) == len(whole) - 2
    for (images, labels), (same_images, same_labels) in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.parametrize("decoder", ["dali", "torchvision"])
def test_a_pass_that_is_left_early_does_the_next_no_harm(dataset: Dataset, decoder: str) -> None:
    loader = training(dataset, batch_size=4, decoder=decoder, cache_gb=0.0)
    expected = pixels(loader, 1)
    for seen in (1, 3):
        left = loader.epoch(0)  # still there while the next pass is made, as where an error of whoever called is being handled
        for _ in range(seen):
            next(left)
        np.testing.assert_array_equal(pixels(loader, 1), expected)


def test_augmentation_shows_the_eight_symmetries_and_nothing_else(dataset: Dataset) -> None:
    tile = dataset.tiles("train")[:1] * 64
    shown = pixels(Loader(dataset, tile, batch_size=64, device=CPU, augmentation=Augmentation()))
    with open_source(Path(dataset.source)) as source:
        original = decode(source.read(tile[0].name))
    symmetries = {np.rot90(side, turns).tobytes() for side in (original, original[:, ::-1]) for turns in range(4)}
    assert len(symmetries) == 8
    assert {image.tobytes() for image in shown} == symmetries


def test_tiles_that_are_not_square_are_flipped_only(tmp_path: Path) -> None:
    from conftest import CLASSES, jpeg

    for name, colour in CLASSES.items():
        (tmp_path / name).mkdir()
        for i in range(8):
            (tmp_path / name / f"{i}.jpg").write_bytes(jpeg(colour, len(name) * 100 + i, size=(48, 32)))
    dataset = scan(tmp_path, SplitRule((1, 0, 0)), workers=1)
    assert pixels(training(dataset)).shape == (24, 32, 48, 3)


def test_ranks_share_an_epoch(dataset: Dataset) -> None:
    alone = batches(training(dataset, batch_size=8))
    ranks = [batches(training(dataset, batch_size=4, rank=rank, world=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone)
    for (images, _), (first, _), (second, _) in zip(alone, *ranks, strict=True):
        np.testing.assert_array_equal(images, np.concatenate([first, second]))


def test_ranks_count_every_validation_tile_once(dataset: Dataset) -> None:
    tiles = dataset.tiles("valid")
    loaders = [Loader(dataset, tiles, batch_size=4, device=CPU, rank=rank, world=3) for rank in range(3)]
    seen = [image.tobytes() for loader in loaders for image in pixels(loader)]
    assert sorted(seen) == sorted(image.tobytes() for image in decode_tiles(dataset, tiles)[0])


def test_large_tiles_are_decoded_a_few_at_a_time(dataset: Dataset) -> None:
    assert decoded_at_once(dataset) == 256
    assert decoded_at_once(replace(dataset, width=2048, height=2048)) == 21  # of 12.6 MB
    assert decoded_at_once(replace(dataset, width=4096, height=4096, bands=("red",) * 30)) == 1


def test_a_split_smaller_than_a_batch_fills_one(dataset: Dataset) -> None:
    loader = Loader(dataset, dataset.tiles("train")[:5], batch_size=8, device=CPU, augmentation=Augmentation())
    assert [len(images) for images, _ in batches(loader)] == [8]


def test_a_tile_changed_since_the_scan_is_named(tiles: Path) -> None:
    dataset = scan(tiles, SplitRule((1, 0, 0)), workers=1)
    (tiles / "Field" / "Field_3.jpg").write_bytes((tiles / "Field" / "Field_4.jpg").read_bytes())
    with pytest.raises(InputError, match=r"Field_3.jpg .*changed since"):
        pixels(training(dataset, batch_size=4))


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_a_tile_that_dali_can_not_decode_is_named(tiles: Path, cache_gb: float) -> None:
    exif = Image.Exif()
    exif[274] = 1
    Image.open(tiles / "Field" / "Field_3.jpg").save(tiles / "Field" / "odd.webp", lossless=True, exif=exif)
    dataset = scan(tiles, SplitRule((1, 0, 0)), workers=1)
    with pytest.raises(InputError, match=r'DALI can\'t decode Field/odd.webp .*decoder = "torchvision"'):
        pixels(training(dataset, batch_size=4, decoder="dali", cache_gb=cache_gb))
    assert len(pixels(training(dataset, batch_size=37, decoder="torchvision"))) == 37


def test_dali_outlives_what_it_can_not_decode_in_batches_of_any_size() -> None:
    """DALI 2.4 ends the process in half of such failures where it is given 32 tiles and more at once."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a crash is then a failure of this test alone
        assert pool.submit(_fails_time_and_again, jpeg((60, 120, 180), 1)).result(timeout=300) == [37] * 12


def _fails_time_and_again(good: bytes) -> list[int]:
    """What is said to be the culprit each time."""
    found = []
    for _ in range(12):
        decoder = DaliDecoder(lambda index: b"this is no image" * 40 if index == 37 else good, CPU, 64, 2)
        for images in decoder.batches([np.arange(10)]):
            assert images.shape == (10, 64, 64, 3)
        with pytest.raises(InputError, match=r"DALI can't decode (\d+)") as caught:
            list(decoder.batches([np.arange(64), np.arange(64)]))
        found.append(int(str(caught.value).split()[3]))
    return found


def test_a_batch_that_dali_gets_in_parts_is_whole(dataset: Dataset) -> None:
    assert [len(images) for images, _ in batches(training(dataset, batch_size=70, decoder="dali", cache_gb=0.0))] == [70]
    parts, whole = (batches(training(dataset, batch_size=size, decoder="dali", cache_gb=0.0))[0][0] for size in (30, 60))
    np.testing.assert_array_equal(whole[:30], parts)


def test_tiles_that_are_gone_are_named(tiles: Path) -> None:
    dataset = scan(tiles, SplitRule((1, 0, 0)), workers=1)
    gone = tiles / dataset.tiles("train")[3].name
    gone.unlink()
    with pytest.raises(InputError, match=f"{gone} is gone. Put it back, or run `sattrt data` again"):
        pixels(training(dataset))
    shutil.rmtree(tiles)
    with pytest.raises(InputError, match=f"no longer at {tiles}. Put them back, or run `sattrt data` again with their new path"):
        training(dataset)


@pytest.mark.skipif(not EUROSAT.exists(), reason="the EuroSAT tiles are not at ../shared/data")
def test_dali_decodes_real_tiles_as_pillow_does() -> None:
    full = scan(EUROSAT, SplitRule(), workers=2)
    dataset = replace(full, all_tiles=tuple(full.tiles("test")[:64]))
    images, _ = decode_tiles(dataset, list(dataset.all_tiles))
    with open_source(EUROSAT) as source:
        expected = np.stack([decode(source.read(tile.name)) for tile in dataset.all_tiles])
    assert np.abs(images.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("augmentation", [None, Augmentation(crop=0.5, colour=0.2)])
def test_tiles_that_are_kept_and_tiles_that_stream_are_the_same(dataset: Dataset, augmentation: Augmentation | None) -> None:
    options = {"batch_size": 8, "device": CPU, "augmentation": augmentation, "seed": 2, "rank": 1, "world": 2}
    kept, streamed = (Loader(dataset, dataset.tiles("train"), cache_gb=gb, **options) for gb in (1.0, 0.0))  # type: ignore[arg-type]
    assert (kept.keeps, streamed.keeps) == (True, False)
    for epoch in range(2):
        for (images, labels), (same, same_labels) in zip(batches(kept, epoch), batches(streamed, epoch), strict=True):
            np.testing.assert_array_equal(images, same)
            np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_without_dali_the_batches_are_the_same(dataset: Dataset, cache_gb: float) -> None:
    options = {"augmentation": Augmentation(crop=0.6), "cache_gb": cache_gb}
    dali, host = (training(dataset, decoder=name, **options) for name in ("dali", "torchvision"))
    assert (dali.decoder, host.decoder) == ("DALI", "torchvision")
    for (images, labels), (same, same_labels) in zip(batches(dali, 1), batches(host, 1), strict=True):
        np.testing.assert_array_equal(labels, same_labels)
        assert np.abs(images - same).max() <= 1  # the decoders' rounding


def test_without_dali_a_tile_that_changed_is_named(tiles: Path) -> None:
    dataset = scan(tiles, SplitRule((1, 0, 0)), workers=1)
    (tiles / "Field" / "Field_3.jpg").write_bytes((tiles / "Field" / "Field_4.jpg").read_bytes())
    with pytest.raises(InputError, match=r"Field_3.jpg .*changed since"):
        pixels(training(dataset, batch_size=4, decoder="torchvision"))


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 2}, {"quality": 30, "progressive": True}, {"restart_marker_rows": 1}]
)
def test_threads_decode_jpeg_as_pillow_does_bit_for_bit(options: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    written = []
    for side in (64, 64, 64, 63, 63):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        coarse.save(file := io.BytesIO(), "JPEG", **options)
        written.append(file.getvalue())
    decoder = ThreadedDecoder(written.__getitem__, CPU, threads=2)
    found = [images.numpy() for images in decoder.batches([np.array([2, 0, 1]), np.array([4]), np.array([3, 4])])]
    assert [len(images) for images in found] == [3, 1, 2]
    for image, index in zip([each for images in found for each in images], [2, 0, 1, 4, 3, 4], strict=True):
        np.testing.assert_array_equal(image, decode(written[index]))
    with pytest.raises(ContractError, match="not all of one size"):
        list(decoder.batches([np.array([0, 3])]))


def test_threads_leave_to_pillow_what_torchvision_can_not_decode(tiles: Path) -> None:
    jpeg = (tiles / "Field" / "Field_3.jpg").read_bytes()
    Image.open(io.BytesIO(jpeg)).save(png := io.BytesIO(), "PNG")
    Image.open(io.BytesIO(jpeg)).convert("CMYK").save(cmyk := io.BytesIO(), "JPEG")
    for content, fault in (
        (jpeg[:30], "corrupt or cut short|not an image"),
        (cmyk.getvalue(), "wrong mode .CMYK"),
        (b"text", "not an image"),
    ):
        with pytest.raises(InputError, match=fault):
            list(ThreadedDecoder([content].__getitem__, CPU, threads=1).batches([np.array([0])]))
    [[from_png]] = ThreadedDecoder([png.getvalue()].__getitem__, CPU, threads=1).batches([np.array([0])])
    np.testing.assert_array_equal(from_png, decode(jpeg))


def test_decoding_in_threads_leaves_the_warnings_of_the_process_as_they_are(dataset: Dataset) -> None:
    before = list(warnings.filters)
    pixels(training(dataset, decoder="torchvision", threads=4))
    assert list(warnings.filters) == before
