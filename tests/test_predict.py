"""Tiles wherever they lie, and answers for all that can be used."""

import csv
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import documented, jpeg, sattrt, write_tiles
from PIL import Image
from rasterio.io import MemoryFile

from sattrt.data.sources import open_source
from sattrt.errors import InputError
from sattrt.predict import csv_of_answers, predict_files
from sattrt.runtime import REJECTED, Bundle


def archive(folder: Path, path: Path) -> Path:
    """A zip or tar of a folder."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for each in files:
                packed.write(each, each.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            for each in files:
                tar.add(each, each.relative_to(folder))
    return path


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tar.gz"])
def test_folders_archives_and_files_are_answered_alike(bundle: Bundle, tmp_path: Path, name: str) -> None:
    tiles = write_tiles(tmp_path / "tiles", 30)  # more than a batch
    (tiles / "Field" / "deeper" / "still").mkdir(parents=True)
    (tiles / "Field" / "Field_0.jpg").rename(tiles / "Field" / "deeper" / "still" / "a.jpg")
    packed, lone = archive(tiles, tmp_path / name), tiles / "Water" / "Water_3.jpg"
    members = open_source(tiles).names()
    progress: list[tuple[int, int]] = []
    left_out: dict[str, str] = {}
    with bundle.open("onnxruntime-fp32") as engine:
        expected = engine.predict(np.stack([np.asarray(Image.open(tiles / member)) for member in members]))
        found = list(predict_files(engine, [tiles, packed, lone], left_out, on_progress=lambda *each: progress.append(each)))
    assert left_out == {}
    assert [answer.file for answer in found] == [f"{path}/{member}" for path in (tiles, packed) for member in members] + [str(lone)]
    assert members == sorted(members)
    for start in (0, len(members)):
        part = found[start : start + len(members)]
        assert [answer.name for answer in part] == expected.names
        np.testing.assert_allclose([list(answer.probabilities.values()) for answer in part], expected.probabilities, atol=1e-5)
    assert list(found[0].probabilities) == list(bundle.spec.classes)
    assert progress[-1] == (len(found), len(found))


def test_what_can_not_be_used_is_said_and_the_rest_is_answered(bundle: Bundle, tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", 1)
    (tiles / "Field" / "cut.jpg").write_bytes(jpeg((9, 9, 9), 1)[:500])
    (tiles / "Field" / "notes.txt").write_text("notes")
    (tiles / "a\nb.jpg").write_bytes(jpeg((9, 9, 9), 1, size=(100, 80)))
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("../evil.jpg", b"")
    (tmp_path / "cut.tar").write_bytes(b"no tar")
    os.mkfifo(tmp_path / "pipe.jpg")
    bad = [tmp_path / name for name in ("nothing.jpg", "evil.zip", "cut.tar", "empty", "pipe.jpg")]
    done = sattrt("predict", bundle.path, *bad, tiles, "--engine", "onnxruntime-fp32")
    assert done.returncode == 1
    assert [line.rpartition("  ")[2] for line in done.stdout.splitlines()] == [
        f"{tiles}/{name}/{name}_0.jpg" for name in ("Field", "Forest", "Water")
    ]
    *lines, by = done.stderr.splitlines()
    assert by == "by onnxruntime-fp32 on cpu"
    for path, reason in zip(
        bad, ("it does not exist", "it holds '../evil.jpg', a path", "it is damaged", "it holds no image", "it is neither"), strict=True
    ):
        assert sum(line.startswith(f"left out: {path}: {reason}") for line in lines) == 1, (path, lines)
    for name, reason in {
        "Field/cut.jpg": "corrupt",
        r"a\nb.jpg": "100x80 pixels; the engine",
    }.items():
        assert sum(line.startswith(f"left out: {tiles}/{name}: {reason}") for line in lines) == 1, (name, lines)
    assert len(lines) == 7  # none for the notes, which are no image


def test_nothing_that_can_be_used_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"text")
    with MemoryFile() as file:
        with file.open(driver="GTiff", width=64, height=64, count=13, dtype="uint16"):
            pass
        (tmp_path / "t.tif").write_bytes(file.read())
    done = sattrt("predict", bundle.path, tmp_path / "t.tif")
    assert "t.tif: not a TIFF of 8-bit RGB (other values or bands, or damaged; the engine takes 8-bit RGB)." in done.stderr
    done = sattrt("predict", bundle.path, tmp_path / "a.jpg", tmp_path / "b.jpg", "--csv", tmp_path / "o.csv", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"sattrt: None of 2 files can be used. The first is {tmp_path}/b.jpg: it does not exist. Give images of ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.csv*")) + list(tmp_path.glob(".*"))
    with bundle.open("onnxruntime-fp32") as engine, pytest.raises(InputError, match="no path was given"):
        next(predict_files(engine, [], {}))


def test_a_table_has_a_row_a_file_and_a_column_a_class(bundle: Bundle, tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", 2)
    (tiles / "notes.txt").write_text("notes")
    done = sattrt("predict", bundle.path, tiles, "--csv", tmp_path / "new" / "o.csv", "--json", "--reject", "--engine", "onnxruntime-fp16")
    assert done.returncode == 0, done.stderr  # whatever lies beside the images
    document = json.loads(done.stdout)
    assert document["left_out"] == {}
    for keys in (document, document["predictions"][0]):
        assert set(keys) <= documented()
    with open(tmp_path / "new" / "o.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "class", "probability", *bundle.spec.classes]
    assert len(rows) == len(document["predictions"]) == 6
    with bundle.open("onnxruntime-fp16") as engine:
        threshold = engine.reject_threshold
    for row, each in zip(rows, document["predictions"], strict=True):
        assert row[:2] == [each["file"], each["class"]]
        likeliest = max(each["probabilities"], key=each["probabilities"].get)
        assert each["class"] == (likeliest if each["probability"] >= threshold else REJECTED)
        assert list(each["probabilities"]) == list(bundle.spec.classes)
        assert [float(value) for value in row[2:]] == pytest.approx([each["probability"], *each["probabilities"].values()], rel=1e-6)
    done = sattrt("predict", bundle.path, tiles / "Field", "--csv", tmp_path / "o.csv")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/o.csv\n")
    done = sattrt("predict", bundle.path, tiles / "Field", "--csv", "/dev/stdout")  # a pipe, which no file takes the place of
    assert (done.returncode, done.stdout) == (0, (tmp_path / "o.csv").read_text())
    assert Path("/dev/stdout").is_symlink()


def test_a_table_that_can_not_be_written_is_refused_before_the_work(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for path, reason in {tmp_path: "it is a folder", tmp_path / "taken" / "o.csv": "taken is not a folder"}.items():
        done = sattrt("predict", bundle.path, tmp_path / "nothing.jpg", "--csv", path)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
        assert done.stderr.rstrip().endswith("Choose another --csv.")


def test_a_table_does_not_take_the_place_of_a_tile(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.TIF", "c.zip", "d.tar.gz", "tile"):
        path = tmp_path / name
        path.write_text("of somebody's")
        with pytest.raises(InputError, match=rf"{name}: .* Choose another --csv"), csv_of_answers(path, ["One"], [tmp_path / "tile"]):
            pass
        assert path.read_text() == "of somebody's"
    with csv_of_answers(tmp_path / "o.csv", ["One"], [tmp_path / "tile"]):
        pass
    assert (tmp_path / "o.csv").read_text() == "file,class,probability,One\n"
    for name in ("tile", "new.csv"):
        with (
            pytest.raises(InputError, match=rf"{name}: it lies in the bundle, .* Choose another --csv"),
            csv_of_answers(tmp_path / name, ["One"], bundle=tmp_path),
        ):
            pass
    assert (tmp_path / "tile").read_text() == "of somebody's"


def test_a_tile_that_may_not_be_read_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg((30, 90, 40), 1))
    (tmp_path / "b.jpg").touch(mode=0)
    (tmp_path / "c").mkdir(mode=0)
    command = [sys.executable, "-m", "sattrt", "predict", bundle.path, *sorted(tmp_path.iterdir())]
    if not os.geteuid():  # root may read anything, but for want of these capabilities
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}", *command]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.endswith(f"{tmp_path}/a.jpg\n")
    assert f"left out: {tmp_path}/b.jpg: can't be read: Permission denied" in done.stderr
    assert f"left out: {tmp_path}/c: " in done.stderr


def test_memory_does_not_grow_with_the_files(bundle: Bundle, tmp_path: Path) -> None:
    content = jpeg((30, 90, 40), 1)
    script = (
        "import resource, sys; from pathlib import Path; from sattrt.predict import predict_files; from sattrt.runtime import open_bundle\n"
        "with open_bundle(sys.argv[1], 'onnxruntime-int8', threads=1) as engine:\n"
        "    assert all(answer.probability for answer in predict_files(engine, [Path(sys.argv[2])], {}))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peak = {}
    for count in (128, 1280):
        with zipfile.ZipFile(tmp_path / f"{count}.zip", "w") as file:
            for i in range(count):
                file.writestr(f"{i}.jpg", content)
        command = [sys.executable, "-c", script, str(bundle.path), str(tmp_path / f"{count}.zip")]
        peak[count] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e3
    assert peak[1280] - peak[128] < 8  # MB; the tiles alone are 14
