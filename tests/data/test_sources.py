import contextlib
import errno
import gzip
import io
import os
import resource
import signal
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from conftest import CLASSES

from sattrt.data.sources import Unreadable, is_archive, open_source
from sattrt.errors import InputError


def pack(tiles: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(tiles.rglob("*.jpg")):
                file.write(path, path.relative_to(tiles.parent))
    else:
        with tarfile.open(archive, "w:" + archive.suffix[1:].replace("tar", "")) as file:
            file.add(tiles, tiles.name)
    return archive


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tar.gz", "t.tar.xz", "t.tar.bz2"])
def test_archives_read_as_the_folder_does(tiles: Path, tmp_path: Path, name: str) -> None:
    with open_source(tiles) as folder, open_source(pack(tiles, tmp_path / name)) as archive:
        names = folder.names()
        assert archive.names() == [f"tiles/{each}" for each in names]
        assert set(archive.folders()) >= {f"tiles/{each}" for each in folder.folders()}
        assert all(archive.read(f"tiles/{each}") == folder.read(each) for each in names)


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tar.gz"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_an_archive_cut_short_is_refused(tiles: Path, tmp_path: Path, name: str, share: float) -> None:
    archive = pack(tiles, tmp_path / name)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"{name}.*(cut short|damaged)"):
        open_source(archive)


@pytest.mark.parametrize("evil", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "C:/evil.jpg"])
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, evil: str) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        file.writestr("a/x.jpg", b"x")
        file.writestr(evil, b"x")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(evil), io.BytesIO())
    for archive in ("t.zip", "t.tar"):
        with pytest.raises(InputError, match=r"leads outside"):
            open_source(tmp_path / archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar", "t.zip"]


def test_a_name_of_any_length_is_refused(tmp_path: Path) -> None:
    name = "a/" * 3000 + "x.jpg"  # the folders above it, all counted in, would have nine million characters
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        file.writestr(name, b"x")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    for archive in ("t.zip", "t.tar"):
        with pytest.raises(InputError, match=rf"{archive} holds a name of 6,005 characters \('a/a/.*; at most 4,096\)\. Pack it again"):
            open_source(tmp_path / archive)


@pytest.mark.parametrize(("mode", "why"), [(0o120777, "link or device"), (0o100666, "world-writable")])
def test_what_a_member_must_not_be(tmp_path: Path, mode: int, why: str) -> None:
    member = zipfile.ZipInfo("a/x.jpg")
    member.create_system, member.external_attr = 3, mode << 16
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(InputError, match=f"'a/x.jpg'.*{why}"):
        open_source(tmp_path / "t.zip")
    packed = tarfile.TarInfo("a/x.jpg")
    packed.mode, packed.type = mode & 0o777, tarfile.SYMTYPE if why.startswith("link") else tarfile.REGTYPE
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        file.addfile(packed)
    with pytest.raises(InputError, match=f"'a/x.jpg'.*{why}"):
        open_source(tmp_path / "t.tar")


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/x.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(InputError, match="link"):
        open_source(tmp_path / "t.tar")


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="neither a folder nor a zip nor a tar"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "nothing")


def test_an_archive_that_can_not_be_opened_is_not_called_damaged(tiles: Path, tmp_path: Path) -> None:
    archive = pack(tiles, tmp_path / "t.zip")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # which refuses root as well, who may read everything
    try:
        with pytest.raises(InputError, match=r"t.zip can't be read: Too many open files. Check the path"):
            open_source(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_left_of_an_archive_is_an_archive_that_is_damaged(tmp_path: Path) -> None:
    volume = struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2) + struct.pack("<4s4H2LH", b"PK\5\6", 1, 1, 0, 0, 0, 0, 0)  # the second of two
    for content in (bytes(200) + volume, gzip.compress(b"tar")[:8]):
        (tmp_path / "tiles").write_bytes(content)
        assert is_archive(tmp_path / "tiles")
        with pytest.raises(InputError, match="tiles is damaged or cut short"):
            open_source(tmp_path / "tiles")
    assert not is_archive(tmp_path / "nothing")


def test_hidden_files_and_system_litter_are_left_aside(tiles: Path, tmp_path: Path) -> None:
    (tiles / ".DS_Store").write_text("")
    (tiles / "Field" / "._Field_0.jpg").write_text("")
    with open_source(tiles) as source:
        assert len(source.names()) == 36
    archive = pack(tiles, tmp_path / "t.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/tiles/Field/x.jpg", b"")
    with open_source(archive) as source:
        assert len(source.names()) == 36


def test_an_encrypted_member_is_not_called_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        file.writestr("a/x.jpg", b"x")
    content = bytearray((tmp_path / "t.zip").read_bytes())
    for start, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.index(start) + flags] |= 1
    (tmp_path / "t.zip").write_bytes(content)
    with open_source(tmp_path / "t.zip") as source, pytest.raises(InputError, match=r"holds 'a/x.jpg' encrypted. Unpack it"):
        source.read("a/x.jpg")


def test_a_member_that_is_no_tile_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file, file.open("a/x.jpg", "w", force_zip64=True) as member:
        for _ in range(101):
            member.write(bytes(10**6))
    with open_source(tmp_path / "bomb.zip") as source, pytest.raises(InputError, match=r"'a/x.jpg' of 101 MB"):
        source.read("a/x.jpg")


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
def test_what_unpacks_to_any_size_is_not_unpacked(tmp_path: Path, method: int, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w", method) as file:
        file.writestr("a/x.jpg", bytes(10**6))
    with (
        open_source(tmp_path / "t.zip") as source,
        pytest.raises(InputError, match=f"'a/x.jpg' packed by {name}. Pack it again with deflate"),
    ):
        source.read("a/x.jpg")


def test_no_more_is_unpacked_than_a_member_declares(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/x.jpg", bytes(50_000_000))
    content = (tmp_path / "t.zip").read_bytes()
    (tmp_path / "t.zip").write_bytes(content.replace((50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    tracemalloc.start()
    with open_source(tmp_path / "t.zip") as source, pytest.raises(InputError, match=r"t.zip is damaged or cut short at 'a/x.jpg'"):
        source.read("a/x.jpg")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_an_archive_that_was_replaced_is_said(tiles: Path, tmp_path: Path) -> None:
    with open_source(pack(tiles, tmp_path / "t.zip")) as source, pytest.raises(InputError, match=r"no longer in .*t.zip"):
        source.read("tiles/Field/gone.jpg")


def test_a_name_that_stands_twice_is_read_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        for content in (b"old", b"new"):
            with pytest.warns(UserWarning, match="Duplicate") if content == b"new" else contextlib.nullcontext():
                file.writestr("a/x.jpg", content)
    with open_source(tmp_path / "t.zip") as source:
        assert source.names() == ["a/x.jpg"]
        assert source.read("a/x.jpg") == b"new"


def test_names_and_sizes_that_make_no_sense_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    for name, other in (("a/x\u00e9.jpg", b"a/x\xff\xff.jpg"), ("a", b"")):  # flagged as UTF-8, but none; no name at all
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"tile")
        content = path.read_bytes()
        assert len(other) in (0, len(name.encode()))
        path.write_bytes(content.replace(name.encode(), other) if other else no_name(content))
        with pytest.raises(InputError, match=r"t.zip is damaged or cut short"), open_source(path) as source:
            source.read("")
    header = tarfile.TarInfo("a/x.jpg").tobuf()
    for size in (b"\x80" + b"\xff" * 11, b"\x80\0\0\0" + b"\x7f" * 8):
        spoilt = header[:124] + size + header[136:148] + b" " * 8 + header[156:]
        path.with_suffix(".tar").write_bytes(spoilt[:148] + b"%06o\0 " % sum(spoilt) + spoilt[156:] + bytes(1024))
        with pytest.raises(InputError, match=r"t.tar is damaged or cut short"):
            open_source(path.with_suffix(".tar"))


def no_name(content: bytes) -> bytes:
    """A zip of the one member "a" without its name."""
    local, central, end = (content.index(mark) for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6"))
    file, directory = content[local:central], content[central:end]
    file = file[:26] + bytes(2) + file[28:30] + file[31:]
    directory = directory[:28] + bytes(2) + directory[30:46] + directory[47:]
    return file + directory + content[end : end + 12] + struct.pack("<II", len(directory), len(file)) + content[end + 20 :]


def test_folders_that_are_linked_to_each_other_are_walked_once(tiles: Path) -> None:
    for name in CLASSES:
        for other in (*CLASSES, "."):
            (tiles / name / f"to {other}").symlink_to(tiles / other)
    with open_source(tiles) as source:
        assert len(source.names()) == 36
        assert source.folders() == sorted(CLASSES)
        assert source.irregular == {
            f"{name}/to {other}": "a link to a folder that is included already" for name in CLASSES for other in (*CLASSES, ".")
        }


def test_a_small_place_for_temporary_files_is_named(tiles: Path, tmp_path: Path) -> None:
    archive = pack(tiles, tmp_path / "t.tar.gz")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"t.tar.gz is unpacked into .*TMPDIR"):
            open_source(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_tar_that_can_not_be_read_any_more_names_the_tile(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(pack(tiles, tmp_path / "t.tar")) as source:
        name = source.names()[0]

        def fails(*given: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pread", fails)
        with pytest.raises(Unreadable, match=rf"t.tar: '{name}' can't be read: Input/output error"):
            source.read(name)
        monkeypatch.undo()
        os.truncate(tmp_path / "t.tar", 2000)
        with pytest.raises(InputError, match=r"t.tar is damaged or cut short"):
            source.read(source.names()[-1])


def test_a_tar_with_holes_is_not_read_as_one_without(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with open(tmp_path / "a" / "x.jpg", "wb") as file:
        file.truncate(10**6)
        file.seek(10**5)
        file.write(b"tile")
    subprocess.run(["tar", "--sparse", "-cf", "t.tar", "a"], cwd=tmp_path, check=True)
    with open_source(tmp_path / "t.tar") as source, pytest.raises(InputError, match="without --sparse"):
        source.read("a/x.jpg")
