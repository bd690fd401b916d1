import contextlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from sattrt.data.sources import open_source
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


@pytest.mark.parametrize(("mode", "why"), [(0o120777, "link or device"), (0o100666, "anybody may write")])
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


def test_a_member_that_is_no_tile_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file, file.open("a/x.jpg", "w", force_zip64=True) as member:
        for _ in range(101):
            member.write(bytes(10**6))
    with open_source(tmp_path / "bomb.zip") as source, pytest.raises(InputError, match=r"'a/x.jpg' of 101 MB"):
        source.read("a/x.jpg")


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
