import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sattrt import spec
from sattrt.errors import ContractError, InputError
from sattrt.spec import ModelSpec, atomic_folder, atomic_path, parse_json, write_bytes

SPEC = ModelSpec(classes=("a", "b"), height=64, width=64, mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3), dataset_digest="d")


def test_spec_survives_its_file(tmp_path: Path) -> None:
    SPEC.write(tmp_path / "spec.json")
    assert ModelSpec.read(tmp_path / "spec.json") == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"classes": None}, "'classes' is not a list"),
        ({"classes": ["a", "a"]}, "two different class names"),
        ({"classes": ["a", "\ud800"]}, "name is not text"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"height": -4}, "input size"),
        ({"mean": [0.5]}, "don't match"),
        ({"std": [0, 1, 1]}, "don't match"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 10**400}, "temperature 1000"),
        ({"temperature": True}, "temperature True"),
        ({"layout": "NCHW"}, "NCHW"),
        ({"training": []}, "wrong type"),
        ({"gsd": 0}, "ground sampling distance"),
        ({"gsd": True}, "ground sampling distance"),
        ({"dtype": "uint16", "offset": -1}, "offset -1"),
        ({"dtype": "uint16", "offset": 1e3}, "offset 1000.0"),
        ({"offset": 1000}, "offset 1000 of uint8 tiles"),
    ],
)
def test_reader_refuses_what_breaks_the_contract(tmp_path: Path, change: dict[str, object], message: str) -> None:
    SPEC.write(tmp_path / "spec.json")
    data = json.loads((tmp_path / "spec.json").read_text()) | change
    (tmp_path / "spec.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match=message):
        ModelSpec.read(tmp_path / "spec.json")


def test_reader_names_a_missing_field(tmp_path: Path) -> None:
    SPEC.write(tmp_path / "spec.json")
    data = json.loads((tmp_path / "spec.json").read_text())
    del data["mean"]
    (tmp_path / "spec.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match="lacks the field 'mean'"):
        ModelSpec.read(tmp_path / "spec.json")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\x00"])
def test_no_json_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "spec.json").write_text(content)
    with pytest.raises(ContractError, match="not readable JSON"):
        ModelSpec.read(tmp_path / "spec.json")


@pytest.mark.parametrize("comment", ["// {}", "/* {} */", "# {}"])
@pytest.mark.parametrize("where", ['{C\n"a": 1}', '{"a": 1, C\n"b": 2}', '{"a": 1 C\n}', 'C\n{"a": 1}'])
def test_a_comment_is_called_one(comment: str, where: str) -> None:
    with pytest.raises(ContractError, match="JSON has no comments"):
        parse_json(where.replace("C", comment).encode(), Path("a.json"))


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failure_while_writing_keeps_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "b") as folder:
        write_bytes(folder / "x", b"old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "b") as folder:
        write_bytes(folder / "x", b"new")
        raise ZeroDivisionError
    assert (tmp_path / "b" / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b"]


def test_a_folder_replaces_no_file_and_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"/proc is a mount point.*--out"), atomic_folder(Path("/proc")):
        raise AssertionError("before any work")
    with pytest.raises(InputError, match=r"file is a file.*--out"), atomic_folder(tmp_path / "file"):
        pass
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "old")
    with atomic_folder(tmp_path / "link") as folder:
        write_bytes(folder / "x", b"new")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old" / "x").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "old"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a.*--out"):
        write_bytes(tmp_path / "file" / "a", b"")


def test_there_is_no_moment_without_a_folder(tmp_path: Path) -> None:
    """The old one and the new one change names in one step: whoever looks all the time never finds neither."""
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    if not spec._exchange(tmp_path / "b", tmp_path / "c"):
        pytest.skip("folders can't be exchanged on this file system")
    (tmp_path / "c").rmdir()
    missed, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not os.path.isdir(tmp_path / "b"):
                missed.append(time.monotonic())

    with ThreadPoolExecutor(1) as threads:
        looking = threads.submit(look)
        for i in range(200):
            with atomic_folder(tmp_path / "b") as folder:
                write_bytes(folder / "x", str(i).encode())
        done.set()
        looking.result(timeout=60)
    assert missed == []
    assert (tmp_path / "b" / "x").read_bytes() == b"199"
    assert os.listdir(tmp_path) == ["b"]


def test_where_folders_can_not_be_exchanged_a_signal_between_the_two_renames_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "_exchange", lambda one, other: False)
    with atomic_folder(tmp_path / "b") as folder:
        write_bytes(folder / "x", b"old")
    replace, moved = os.replace, []

    def told_to_stop(source: Path, target: Path) -> None:
        moved.append(source)
        if len(moved) == 2:  # the old folder has just been put aside
            raise SystemExit(143)
        replace(source, target)

    with pytest.raises(SystemExit), atomic_folder(tmp_path / "b") as folder:
        monkeypatch.setattr(os, "replace", told_to_stop)
    assert (tmp_path / "b" / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b"]


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    left = [tmp_path / name for name in (".b.0123abcd.tmp", ".b.89efcdab.old", ".b.00000000.tmp")]
    for folder in left:
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
    for path in (left[0], left[1], left[0] / "model.onnx", left[1] / "model.onnx", left[2]):
        os.utime(path, (0, 0))  # but for a file of the last, which somebody may be writing
    foreign = tmp_path / ".b.notes.tmp"
    foreign.mkdir()
    for kept in (left, left[2:]):  # the first time there is no b: what was put aside may be all that there is of it
        with atomic_folder(tmp_path / "b"):
            pass
        assert sorted(os.listdir(tmp_path)) == sorted([*(path.name for path in kept), foreign.name, "b"])
