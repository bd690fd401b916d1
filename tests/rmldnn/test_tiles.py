"""What of the user's tiles a configuration trains on, and how they are read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg
from PIL import Image

from sattrt.data.loader import decode_tiles
from sattrt.errors import InputError
from sattrt.rmldnn.run import _as_read, _left_out
from sattrt.rmldnn.tiles import labelled, on_both_sides, unlabelled


def test_what_is_left_out_is_said(tutorial: Path, tmp_path: Path) -> None:
    """A tile that is damaged, one of another size, and both of two that have one content and two classes."""
    shutil.copytree(tutorial / "data" / "train", tmp_path / "train")
    field = tmp_path / "train" / "Field"
    (field / "Field_0.jpg").write_bytes((field / "Field_0.jpg").read_bytes()[:500])
    Image.new("RGB", (70, 64)).save(field / "wide.png")
    shutil.copy(field / "Field_1.jpg", tmp_path / "train" / "Water" / "copy.jpg")
    dataset = labelled(tmp_path / "train", tutorial / "data" / "valid")
    assert "near-duplicates not checked" in dataset.split_description  # each folder was scanned by itself
    said = [value for name, value in _left_out(dataset, tmp_path) if name == "left out"]
    assert said[-1] == "4 files in all"
    for line in ("Field/Field_0.jpg: corrupt", "Field/wide.png: wrong size (70x64", "Water/copy.jpg: same content as Field/Field_1.jpg"):
        assert any(line in each for each in said), line
    assert not _left_out(labelled(tutorial / "data" / "train", tutorial / "data" / "valid"), tmp_path)


@pytest.mark.parametrize("decoder", ["dali", "torchvision"])
def test_grey_files_are_read_as_rgb(tutorial: Path, tmp_path: Path, decoder: str) -> None:
    """Palettes and transparency too; what is damaged or of 16 bits is left out still."""
    if decoder == "dali":
        pytest.importorskip("nvidia.dali")
    shutil.copytree(tutorial / "data" / "train", tmp_path / "train")
    paths = sorted((tmp_path / "train").glob("*/*.jpg"))
    wanted = {}
    for path, mode, kind in zip(paths, ["L", "L", "P", "RGBA", "LA"], ["jpg", "png", "png", "png", "tif"], strict=False):
        image = Image.open(path).convert(mode)
        path.unlink()
        image.save(path.with_name(f"{mode}.{kind}"))
        wanted[f"{mode}.{kind}"] = np.asarray(Image.open(path.with_name(f"{mode}.{kind}")).convert("RGB"))
    Image.fromarray(np.full((64, 64), 999, np.uint16)).save(tmp_path / "train" / "Water" / "deep.png")
    dataset = labelled(tmp_path / "train", tutorial / "data" / "valid")
    assert [Path(name).name for name in dataset.left_out] == ["deep.png"]
    tiles = dataset.tiles("train")
    pixels, _ = decode_tiles(dataset, tiles, decoder)
    for name, expected in wanted.items():
        [found] = [pixels[i] for i, tile in enumerate(tiles) if Path(tile.name).name == name]
        np.testing.assert_array_equal(found, expected)
    assert len(unlabelled(tmp_path / "train" / "Field").all_tiles) == 10


def test_a_test_drops_no_image_without_a_word(tutorial: Path, tmp_path: Path) -> None:
    shutil.copytree(tutorial / "data" / "valid", tmp_path / "valid")
    folder = next(path for path in sorted((tmp_path / "valid").iterdir()) if path.is_dir())
    count = len(unlabelled(tmp_path / "valid").all_tiles)
    Image.new("RGB", (64, 64)).save(folder / "another.gif")
    dataset = unlabelled(tmp_path / "valid")
    assert len(dataset.all_tiles) == count
    assert _left_out(dataset)[0][1].startswith(f"{folder.name}/another.gif: not an image by its name (")
    (folder / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone\.jpg: not a regular file\. Fix it, or remove it\."):
        unlabelled(tmp_path / "valid")


def test_tiles_of_other_sizes_are_resized_where_the_transforms_are(tutorial: Path, tmp_path: Path) -> None:
    shutil.copytree(tutorial / "data" / "train", tmp_path / "train")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "train" / "Field" / "wide.png")
    (tmp_path / "valid").mkdir()
    for path in (tutorial / "data" / "valid").glob("*/*.jpg"):
        (tmp_path / "valid" / path.parent.name).mkdir(exist_ok=True)
        Image.open(path).resize((80, 80)).save(tmp_path / "valid" / path.parent.name / f"{path.stem}.png")
    with pytest.raises(InputError, match="Cut them alike"):
        labelled(tmp_path / "train", tmp_path / "valid")
    dataset = labelled(tmp_path / "train", tmp_path / "valid", resizes=True)
    assert (dataset.width, dataset.height, dataset.left_out, len(dataset.tiles("train"))) == (64, 64, {}, 31)
    assert _as_read(dataset) == [("note", "tiles of other sizes are resized to 64x64 as they are read")]
    [wide] = [tile for tile in dataset.tiles("train") if tile.name.endswith("wide.png")]
    pixels, _ = decode_tiles(dataset, [wide, *dataset.tiles("valid")])
    assert pixels.shape == (16, 64, 64, 3)
    np.testing.assert_array_equal(pixels[0], Image.fromarray(noise).resize((64, 64), Image.Resampling.BILINEAR))
    assert not labelled(tutorial / "data" / "train", tutorial / "data" / "valid", resizes=True).resized
    with pytest.raises(InputError, match="Give tiles of one size"):
        unlabelled(tmp_path / "train")
    given = unlabelled(tmp_path / "train", resizes=True)
    assert (len(given.all_tiles), given.resized) == (31, True)
    assert decode_tiles(given, given.tiles("test"))[0].shape == (31, 64, 64, 3)


def test_a_class_may_have_a_size_of_its_own_where_the_transforms_resize(tutorial: Path, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        shutil.copytree(tutorial / "data" / split, tmp_path / split)
        for path in (tmp_path / split / "Water").iterdir():
            Image.open(path).resize((32, 32)).save(path)
    dataset = labelled(tmp_path / "train", tmp_path / "valid", resizes=True)
    assert (dataset.width, dataset.height, dataset.left_out, dataset.resized) == (64, 64, {}, True)
    assert len(dataset.all_tiles) == 45
    with pytest.raises(InputError, match=r"'Water' has no usable tile \(left out: Water/.*wrong size"):
        labelled(tmp_path / "train", tmp_path / "valid")


def test_a_grey_image_that_is_cut_short_is_called_so(tutorial: Path, tmp_path: Path) -> None:
    shutil.copytree(tutorial / "data" / "train", tmp_path / "train")
    path = tmp_path / "train" / "Field" / "Field_0.jpg"
    path.write_bytes(jpeg((90, 90, 90), 1, mode="L")[:600])
    left_out = labelled(tmp_path / "train", tutorial / "data" / "valid").left_out
    [(name, reason)] = left_out.items()
    assert name.endswith("train/Field/Field_0.jpg")
    assert reason.startswith("corrupt or cut short")


def test_tiles_on_both_sides_are_counted(tutorial: Path, tmp_path: Path) -> None:
    shutil.copytree(tutorial / "data" / "valid", tmp_path / "valid")
    for number in range(2):
        shutil.copy(tutorial / "data" / "train" / "Field" / f"Field_{number}.jpg", tmp_path / "valid" / "Field" / f"seen_{number}.jpg")
    assert on_both_sides(labelled(tutorial / "data" / "train", tmp_path / "valid")) == 2
