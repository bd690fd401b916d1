import errno
import json
import os
import re
import shutil
import signal
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, jpeg, running
from PIL import Image

from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.data.sources import FolderSource, Source, open_source
from sattrt.data.workers import each_file
from sattrt.errors import BackendError, ContractError, InputError

RULE = SplitRule((80, 10, 10))


def split_by_content(dataset: Dataset) -> dict[str, str]:
    return {tile.sha256: tile.split for tile in dataset.all_tiles}


def test_dataset_survives_its_file(dataset: Dataset, tmp_path: Path) -> None:
    dataset.write(tmp_path)
    assert Dataset.read(tmp_path) == dataset
    assert dataset.classes == ("Field", "Forest", "Water")
    assert sum(len(dataset.tiles(split)) for split in ("train", "valid", "test")) == 120


def test_statistics_are_those_of_the_train_pixels(dataset: Dataset) -> None:
    pixels = np.stack([np.asarray(Image.open(Path(dataset.source, tile.name))) for tile in dataset.tiles("train")]) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-9)


def test_processes_scan_as_one_does(tiles: Path) -> None:
    for i in range(600):
        (tiles / "Water" / f"more_{i}.jpg").write_bytes(jpeg(CLASSES["Water"], 5000 + i))
    assert scan(tiles, RULE, workers=2) == scan(tiles, RULE, workers=1)


def test_adding_files_moves_no_old_one(tiles: Path) -> None:
    before = split_by_content(scan(tiles, RULE, workers=1))
    for name, colour in CLASSES.items():
        for i in range(30):
            (tiles / name / f"a_new_{i}.jpg").write_bytes(jpeg(colour, 90_000 + 100 * len(name) + i))
    after = split_by_content(scan(tiles, RULE, workers=1))
    assert len(after) > len(before)
    assert before.items() <= after.items()


def test_renaming_a_file_keeps_its_split_and_the_digest(tiles: Path) -> None:
    before = scan(tiles, RULE, workers=1)
    (tiles / "Field" / "Field_3.jpg").rename(tiles / "Field" / "zzz.jpg")
    after = scan(tiles, RULE, workers=1)
    assert split_by_content(before) == split_by_content(after)
    assert before.digest == after.digest


def test_seed_and_shares_decide_the_split() -> None:
    digests = [f"{i:064x}" for i in range(20_000)]
    splits = [SplitRule((94, 5, 1), 3).split_of(digest) for digest in digests]
    assert splits != [SplitRule((94, 5, 1), 4).split_of(digest) for digest in digests]
    # binomial: five standard deviations on either side
    assert splits.count("valid") == pytest.approx(1000, abs=155)
    assert splits.count("test") == pytest.approx(200, abs=71)
    assert {SplitRule((1, 0, 0)).split_of(digest) for digest in digests} == {"train"}


@pytest.mark.parametrize("text", ["", "94:5", "a:b:c", "0:50:50", "94:-5:1", "inf:1:1", "nan:1:1"])
def test_a_split_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--split"):
        SplitRule.parse(text)


def test_split_folders_are_kept(tiles: Path, tmp_path: Path) -> None:
    root = tmp_path / "folders"
    for split, wanted in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 12))):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in wanted:
                shutil.copy(tiles / name / f"{name}_{i}.jpg", root / split / name)
    dataset = scan(root, RULE, workers=1)
    assert dataset.split == "folders"
    assert {split: sum(counts.values()) for split, counts in dataset.counts().items()} == {"train": 24, "valid": 6, "test": 6}


def test_duplicates_are_left_out_of_train_first(tiles: Path, tmp_path: Path) -> None:
    root = tmp_path / "folders"
    for split in ("train", "valid", "test"):
        shutil.copytree(tiles, root / split)
    for split, kept in (("train", 8), ("valid", 10), ("test", 12)):
        for name in CLASSES:
            for i in range(kept, 12):
                (root / split / name / f"{name}_{i}.jpg").unlink()
    for name in CLASSES:  # something that only train has
        (root / "train" / name / "own.jpg").write_bytes(jpeg(CLASSES[name], 77_000 + len(name)))
    dataset = scan(root, RULE, workers=1)
    assert {split: sum(counts.values()) for split, counts in dataset.counts().items()} == {"train": 3, "valid": 0, "test": 36}
    assert dataset.left_out["train/Field/Field_0.jpg"] == "duplicate of test/Field/Field_0.jpg"


def test_the_same_content_in_two_classes_is_in_neither(tiles: Path) -> None:
    shutil.copy(tiles / "Field" / "Field_0.jpg", tiles / "Water" / "copy.jpg")
    left_out = scan(tiles, RULE, workers=1).left_out
    assert left_out == {
        "Field/Field_0.jpg": "same content as Water/copy.jpg, in another class",
        "Water/copy.jpg": "same content as Field/Field_0.jpg, in another class",
    }


def test_what_can_not_be_used_is_left_out_with_its_reason(tiles: Path) -> None:
    good = (tiles / "Field" / "Field_0.jpg").read_bytes()
    spoilt = {
        "cut.jpg": (good[: len(good) // 2], "corrupt or cut short"),
        "empty.jpg": (b"", "not an image"),
        "text.jpg": (b"hello, I am text", "not an image"),
        "grey.jpg": (jpeg((9, 9, 9), 1, mode="L"), r"wrong mode \(L"),
        "alpha.png": (jpeg((9, 9, 9), 1, mode="RGBA"), r"wrong mode \(RGBA"),
        "palette.png": (jpeg((9, 9, 9), 1, mode="P"), r"wrong mode \(P"),
        "wide.jpg": (jpeg((9, 9, 9), 1, size=(100, 80)), "wrong size.*100x80.*64x64"),
        "long.png": (jpeg((9, 9, 9), 1, size=(8, 4097), mode="P"), r"too large \(8x4097; at most 4096"),
        "twin.jpg": (good, "duplicate of Field/Field_0.jpg"),
        "notes.txt": (b"hello", "not an image file"),
    }
    for name, (content, _) in spoilt.items():
        (tiles / "Field" / name).write_bytes(content)
    dataset = scan(tiles, RULE, workers=1)
    assert sorted(dataset.left_out) == sorted(f"Field/{name}" for name in spoilt)
    for name, (_, reason) in spoilt.items():
        assert re.search(reason, dataset.left_out[f"Field/{name}"]), (name, dataset.left_out[f"Field/{name}"])
    assert len(dataset.all_tiles) == 36


def test_a_tile_that_a_tag_turns_is_left_out(tiles: Path) -> None:
    pixels = Image.open(tiles / "Field" / "Field_0.jpg")
    for orientation in (1, 6):
        pixels.save(tiles / "Field" / f"turned_{orientation}.tif", tiffinfo={274: orientation})
    assert scan(tiles, RULE, workers=1).left_out == {"Field/turned_6.tif": "rotated by its EXIF orientation tag (6; save it upright)"}


def test_what_an_archive_holds_damaged_or_too_large_is_left_out(tiles: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for tile in sorted(tiles.rglob("*.jpg")):
            archive.write(tile, tile.relative_to(tiles))
        archive.writestr("Field/large.jpg", bytes(101 * 10**6), zipfile.ZIP_DEFLATED)
        place = archive.getinfo("Water/Water_3.jpg").header_offset + 200
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    dataset = scan(path, RULE, workers=1)
    assert len(dataset.all_tiles) == 35
    assert dataset.left_out["Field/large.jpg"] == "101 MB, too large for a tile (at most 100 MB)"
    assert "damaged or cut short in the archive (Bad CRC-32" in dataset.left_out["Water/Water_3.jpg"]


def test_a_file_too_large_for_a_tile_is_not_read(tiles: Path) -> None:
    with open(tiles / "Field" / "large.jpg", "wb") as file:
        file.truncate(8 * 10**9)  # of holes
    assert scan(tiles, RULE, workers=1).left_out == {"Field/large.jpg": "8000 MB, too large for a tile (at most 100 MB)"}


def test_invisible_characters_of_a_script_may_be_in_names_and_control_characters_not(tiles: Path) -> None:
    (tiles / "Field").rename(tiles / "\u7530\u3000\u7551\u00a0\u200d")
    assert scan(tiles, RULE, workers=1).classes[-1] == "\u7530\u3000\u7551\u00a0\u200d"
    (tiles / "Water").rename(tiles / "Wa\x1bter")
    with pytest.raises(InputError, match=r"Wa.x1bter.*not text that can be shown"):
        scan(tiles, RULE, workers=1)


def test_folders_without_train_are_told_to_add_it(tiles: Path, tmp_path: Path) -> None:
    for split in ("valid", "test"):
        shutil.copytree(tiles, tmp_path / "folders" / split)
    with pytest.raises(InputError, match=r"train split .* is empty. Add a train/ folder"):
        scan(tmp_path / "folders", RULE, workers=1)


def test_tiffs_of_8_bits_need_no_rasterio_to_be_told_from_others(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in tiles.glob("*/*.jpg"):
        Image.open(path).convert("RGBA").save(path.with_suffix(".tif"))
        path.unlink()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"'Field' has no usable tile \(left out: Field/Field_0.tif: wrong mode \(RGBA"):
        scan(tiles, RULE, workers=1)


def test_a_process_that_the_system_ends_is_one_line(dataset: Dataset) -> None:
    names = [tile.name for tile in dataset.all_tiles] * 10
    with (
        open_source(Path(dataset.source)) as source,
        pytest.raises(BackendError, match="was killed by the system, most likely out of memory"),
    ):
        list(each_file(source, names, end_this_process, 2))


def test_no_more_is_read_ahead_than_a_few_chunks(tiles: Path) -> None:
    with open_source(tiles) as source:
        before = {name: source.read(name) for name in source.names()}
        names = [*before] * 15
        results = each_file(source, names, FolderSource.read, 2, chunk=4)
        assert next(results) == before[names[0]]
        for name in before:
            (tiles / name).write_bytes(b"new")
        found = [content == before[name] for name, content in zip(names[1:], results, strict=True)]
    assert sum(found) < 2 * 2 * 4


def end_this_process(source: Source, name: str) -> None:
    """What the system does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_empty_class_is_named(tiles: Path) -> None:
    (tiles / "Desert").mkdir()
    with pytest.raises(InputError, match="'Desert' has no usable tile"):
        scan(tiles, RULE, workers=1)


def test_a_class_of_nothing_but_faults_says_which(tiles: Path) -> None:
    (tiles / "Desert").mkdir()
    (tiles / "Desert" / "a.jpg").write_text("text")
    with pytest.raises(InputError, match=r"'Desert' has no usable tile \(left out: Desert/a.jpg: not an image"):
        scan(tiles, RULE, workers=1)


def test_one_class_only_is_refused(tiles: Path) -> None:
    shutil.rmtree(tiles / "Field")
    shutil.rmtree(tiles / "Water")
    with pytest.raises(InputError, match="only the class 'Forest'"):
        scan(tiles, RULE, workers=1)


def test_images_without_class_folders_are_refused(tiles: Path) -> None:
    with pytest.raises(InputError, match="no class folder"):
        scan(tiles / "Field", RULE, workers=1)


def test_classes_at_several_depths_are_refused(tiles: Path) -> None:
    (tiles / "Field" / "quicklooks").mkdir()
    shutil.copy(tiles / "Field" / "Field_0.jpg", tiles / "Field" / "quicklooks")  # a stray one is left out
    dataset = scan(tiles, RULE, workers=1)
    assert dataset.left_out == {"Field/quicklooks/Field_0.jpg": "not in a class folder"}
    (tiles / "Field" / "2018").mkdir()
    for path in sorted((tiles / "Field").glob("*.jpg")):
        path.rename(tiles / "Field" / "2018" / path.name)
    with pytest.raises(InputError, match=r"class folders at several depths \(13 of \d+ images lie as Field/2018/Field_0.jpg\)"):
        scan(tiles, RULE, workers=1)


def test_no_image_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        scan(tmp_path, RULE, workers=1)


def test_a_changed_dataset_file_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = dataset.write(tmp_path)
    data = json.loads(path.read_text())
    data["tiles"][0][1] = (data["tiles"][0][1] + 1) % 3
    path.write_text(json.dumps(data))
    with pytest.raises(ContractError, match="was changed"):
        Dataset.read(tmp_path)
    del data["tiles"]
    path.write_text(json.dumps(data))
    with pytest.raises(ContractError, match="damaged"):
        Dataset.read(tmp_path)


def test_a_share_is_even_over_the_classes(dataset: Dataset) -> None:
    tiles = dataset.tiles("train")
    share = balanced(tiles, 30)
    assert [sum(tile.label == label for tile in share) for label in range(3)] == [10, 10, 10]
    assert balanced(list(reversed(tiles)), 30) == share[::-1]
    assert balanced(tiles, 10_000) == tiles


def test_a_missing_split_folder_is_said(tiles: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles, tmp_path / "folders" / "train")
    dataset = scan(tmp_path / "folders", RULE, workers=1)
    with pytest.raises(InputError, match=r"valid split .* is empty. Add a valid/ folder"):
        dataset.require("valid")


def test_a_class_that_the_tiles_name_but_the_list_does_not(dataset: Dataset, tmp_path: Path) -> None:
    path = dataset.write(tmp_path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"classes": data["classes"][:2]}))
    with pytest.raises(ContractError, match="was changed"):
        Dataset.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"source": 5},
        {"height": "64"},
        {"height": -1},
        {"mean": ["a", 0.1, 0.1]},
        {"mean": [0.5]},
        {"std": [0.0, 0.1, 0.1]},
        {"split": None},
    ],
)
def test_a_field_of_the_wrong_type_is_refused(dataset: Dataset, tmp_path: Path, change: dict[str, object]) -> None:
    path = dataset.write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ContractError, match="was changed"):
        Dataset.read(tmp_path)


def test_what_is_no_file_is_left_out_and_never_waited_for(tiles: Path) -> None:
    os.mkfifo(tiles / "Field" / "pipe.jpg")
    (tiles / "Field" / "loop.jpg").symlink_to(tiles / "Field" / "loop.jpg")
    assert scan(tiles, RULE, workers=1).left_out == {"Field/loop.jpg": "not a regular file", "Field/pipe.jpg": "not a regular file"}
    with pytest.raises(InputError, match="neither a folder nor a file"):
        scan(tiles / "Field" / "pipe.jpg", RULE, workers=1)


def test_a_name_that_is_no_text_is_refused(tiles: Path) -> None:
    os.mkdir(os.fsencode(tiles) + b"/caf\xe9")
    with pytest.raises(InputError, match=r"caf.*Rename it"):
        scan(tiles, RULE, workers=1)


def test_class_folders_may_be_links_but_not_back_to_where_they_lie(tiles: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in CLASSES:
        (linked / name).symlink_to(tiles / name)
    (tiles / "Water" / "again").symlink_to(linked)
    found = scan(linked, RULE, workers=1)
    assert found.classes == tuple(sorted(CLASSES))
    assert len(found.all_tiles) == 36


@pytest.mark.parametrize("end", [".png", ".tif"])
def test_16_bits_a_channel_are_not_taken_for_8(tiles: Path, end: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 2750, (64, 64, 3), dtype=np.uint16)
    path = tiles / "Water" / f"wide{end}"
    if end == ".tif":
        rasterio = pytest.importorskip("rasterio", reason="a 16-bit RGB TIFF is written by rasterio")
        shape = {"width": 64, "height": 64, "count": 3, "dtype": "uint16"}
        with rasterio.open(path, "w", driver="GTiff", photometric="RGB", **shape) as file:
            file.write(numbers.transpose(2, 0, 1))
    else:
        path.write_bytes(png_of_16_bits(numbers))
    assert "16 bits a channel" in scan(tiles, RULE, workers=1).left_out[f"Water/wide{end}"]


def png_of_16_bits(numbers: np.ndarray) -> bytes:
    """Pillow writes none: its chunks by hand."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = numbers.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in numbers)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_a_folder_that_can_not_be_read_is_left_out_with_its_reason(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiles / "Field" / "closed").mkdir()
    scandir = os.scandir

    def closed(path: str) -> Any:  # root may read everything: the system's refusal has to be made
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert scan(tiles, RULE, workers=1).left_out == {"Field/closed": "a folder that can't be read: Permission denied"}
    (tiles / "disclosed").mkdir()
    with pytest.raises(InputError, match=r"'disclosed' has no usable tile \(left out: disclosed: a folder that can't be read: Permission"):
        scan(tiles, RULE, workers=1)
    (tiles / "disclosed").rmdir()
    with pytest.raises(InputError, match=r"closed can't be read: Permission denied. Check its permissions"):
        scan(tiles / "Field" / "closed", RULE, workers=1)


SCAN = """
import os, sys, time
from pathlib import Path
from sattrt.data.sources import FolderSource
from sattrt.data.workers import each_file

def work(source, name):
    Path(sys.argv[2], str(os.getpid())).touch()
    time.sleep(0.05)

if __name__ == "__main__":
    source = FolderSource(Path(sys.argv[1]))
    list(each_file(source, source.names(), work, 2))
"""


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    for folder in ("files", "pids"):
        (tmp_path / folder).mkdir()
    for i in range(600):
        (tmp_path / "files" / str(i)).touch()
    (tmp_path / "main.py").write_text(SCAN)
    with running([sys.executable, str(tmp_path / "main.py"), str(tmp_path / "files"), str(tmp_path / "pids")]) as process:
        while not os.listdir(tmp_path / "pids"):
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.wait()
        end = time.monotonic() + 60
        while any(Path("/proc", pid).exists() for pid in os.listdir(tmp_path / "pids")):
            assert time.monotonic() < end
            time.sleep(0.1)
