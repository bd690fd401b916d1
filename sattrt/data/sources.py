"""Where tiles lie: a folder, a zip or a tar, read in place through one small interface.

    with open_source(Path("EuroSAT_RGB.zip")) as source:
        names = source.names()
        content = source.read(names[0])

Nothing is ever unpacked, so no path inside an archive can write anywhere; an archive that tries to
is refused as a whole.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Generic, Self, TypeVar, cast

from ..errors import InputError
from ..spec import unwritable

MAX_BYTES = 100 * 10**6
_UNIX = 3  # of zip's systems, the one whose members have a mode
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


class Source(ABC):
    """Files by name, with `/` between the parts, in sorted order."""

    path: Path
    opens_cheaply = True

    @property
    def irregular(self) -> tuple[str, ...]:
        """Names of what is no file: pipes, devices, links that lead nowhere."""
        return ()

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all files, sorted; hidden files and system litter left aside."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of all folders, sorted, the empty ones too."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file. InputError where it can't be read."""

    def close(self) -> None:  # noqa: B027 - a folder has nothing to close
        """Let go of the archive."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_source(path: Path) -> Source:
    """Open a folder, zip or tar. InputError for anything else, a damaged archive or an unsafe member."""
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{path} does not exist. Give a folder, a zip or a tar of tiles (or the word 'eurosat').")
    if not path.is_file():
        raise InputError(f"{path} is neither a folder nor a file. Give a folder, a zip or a tar of tiles.")
    try:
        if zipfile.is_zipfile(path):
            return ZipSource(path)
        if _is_tar(path):
            return TarSource(path)
    except (*_DAMAGED, OSError) as error:
        raise _damaged(path, error) from None
    if path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz"}:
        raise InputError(f"{path} is damaged or cut short: it can't be opened as an archive. Fetch it again.")
    raise InputError(f"{path} is neither a folder nor a zip nor a tar. Give one of these.")


class FolderSource(Source):
    """Files below a folder, which is walked when its names are first asked for: whoever knows them needs no walk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(self._walked[0])

    def folders(self) -> list[str]:
        return sorted(self._walked[1])

    @property
    def irregular(self) -> tuple[str, ...]:
        return self._walked[2]

    @cached_property
    def _walked(self) -> tuple[list[str], list[str], tuple[str, ...]]:
        """Names of the files, of the folders, and of what is neither."""
        found: list[str] = []
        below: list[str] = []
        for root, folders, files in os.walk(self.path, followlinks=True):
            folders[:] = sorted(name for name in folders if _visible(name) and not _leads_back(root, name))
            base = Path(root).relative_to(self.path)
            below += [(base / name).as_posix() for name in folders]
            found += [(base / name).as_posix() for name in files if _visible(name)]
        irregular = tuple(name for name in found if not os.path.isfile(self.path / name))
        return [name for name in found if name not in irregular], below, irregular

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise InputError(f"Can't read {self.path / name}: {error.strerror}. Check its permissions, or take it out.") from None


Member = TypeVar("Member", bound=zipfile.ZipInfo | tarfile.TarInfo)


class ArchiveSource(Source, Generic[Member]):
    """What zip and tar share: safe names, folders that follow from them, members by name."""

    def __init__(self, path: Path, files: dict[str, Member], folders: list[str]) -> None:
        self.path = path
        for unchecked in (*files, *folders):
            _refuse_unsafe(path, unchecked)
        self._members: dict[str, Member] = {_normal(name): member for name, member in files.items() if _visible(name)}
        found = {_normal(name) for name in folders if _visible(name)}
        for folder in {posixpath.dirname(name) for name in self._members}:
            found.update([folder, *map(str, PurePosixPath(folder).parents)])
        self._folders = sorted(found - {"", "."})

    def names(self) -> list[str]:
        return sorted(self._members)

    def folders(self) -> list[str]:
        return list(self._folders)

    def _member(self, name: str) -> Member:
        try:
            return self._members[name]
        except KeyError:
            raise InputError(f"{name} is no longer in {self.path}. Run `sattrt data` again.") from None


class ZipSource(ArchiveSource[zipfile.ZipInfo]):
    """Members of a zip archive."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        members = self._zip.infolist()
        for member in members:
            _refuse_mode(path, member.filename, member.external_attr >> 16 if member.create_system == _UNIX else 0)
        files = {member.filename: member for member in members if not member.is_dir()}
        super().__init__(path, files, [member.filename for member in members if member.is_dir()])

    def read(self, name: str) -> bytes:
        member = self._member(name)
        _refuse_huge(self.path, name, member.file_size)
        try:
            return self._zip.read(member)
        except (*_DAMAGED, OSError) as error:
            raise _damaged(self.path, error, name) from None

    def close(self) -> None:
        self._zip.close()


class TarSource(ArchiveSource[tarfile.TarInfo]):
    """Members of a tar archive; a compressed one is unpacked once to an unnamed temporary file, for random access."""

    def __init__(self, path: Path) -> None:
        self._file, self.opens_cheaply = _plain_tar(path)
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            members = tar.getmembers()
        end = os.fstat(self._file.fileno()).st_size
        for member in members:
            _refuse_mode(path, member.name, member.mode | (0 if member.isfile() or member.isdir() else stat.S_IFLNK))
            if member.offset_data + member.size > end:
                raise InputError(f"{path} is cut short at {member.name!r}. Fetch it again.")
        files = {member.name: member for member in members if member.isfile()}
        super().__init__(path, files, [member.name for member in members if member.isdir()])

    def read(self, name: str) -> bytes:
        member = self._member(name)
        _refuse_huge(self.path, name, member.size)
        return os.pread(self._file.fileno(), member.size, member.offset_data)

    def close(self) -> None:
        self._file.close()


def _is_tar(path: Path) -> bool:
    # tarfile.is_tarfile() answers False for an archive that is cut short in its first member.
    if path.suffix.lower() in {".tar", ".tgz"} or path.name.lower().endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
        return True
    return tarfile.is_tarfile(path)


def _plain_tar(path: Path) -> tuple[IO[bytes], bool]:
    """The tar without its compression, and whether that cost nothing."""
    with open(path, "rb") as file:
        magic = file.read(6)
    openers = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
    for start, opener in openers:
        if magic.startswith(start):
            plain = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
            try:
                with cast(IO[bytes], opener(path)) as packed:
                    shutil.copyfileobj(packed, plain, 1 << 20)
                plain.flush()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise unwritable(Path(tempfile.gettempdir(), path.name), error) from None
                raise
            plain.seek(0)
            return plain, False
    return open(path, "rb"), True


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _visible(name: str) -> bool:
    return not any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _refuse_unsafe(path: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
        raise InputError(f"{path} holds {name!r}, a path that leads outside. Don't trust it; pack it again without such names.")


def _refuse_mode(path: Path, name: str, mode: int) -> None:
    """InputError for a member that is a link or a device, or that anybody could have changed before it was packed."""
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{path} holds {name!r}, a link or device, which may lead outside. Pack it again without links.")
    if mode & stat.S_IWOTH:
        raise InputError(f"{path} holds {name!r}, which anybody may write. Make sure it is what it was: chmod -R o-w, and pack it again.")


def _refuse_huge(path: Path, name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(f"{path} holds {name!r} of {size / 1e6:.0f} MB, which is no tile. Take it out; at most {MAX_BYTES / 1e6:.0f} MB.")


def _damaged(path: Path, error: Exception, name: str = "") -> InputError:
    where = f" at {name!r}" if name else ""
    return InputError(f"{path} is damaged or cut short{where} ({error}). Fetch it again.")


def _leads_back(root: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in, and so would be walked for ever."""
    target, here = os.path.realpath(os.path.join(root, name)), os.path.realpath(root)
    return os.path.islink(os.path.join(root, name)) and os.path.commonpath([target, here]) == target
