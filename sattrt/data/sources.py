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
from collections import deque
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Generic, Self, TypeVar, cast

from ..errors import InputError

MAX_BYTES = 100 * 10**6
_MAX_NAME = 4096  # characters: no longer path can be unpacked on Linux, and all folders above a file are counted in
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")
_UNIX = 3  # of zip's systems, the one whose members have a mode
_ENCRYPTED = 1  # a flag of a member
_PACKERS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}
# what zipfile and tarfile raise for bytes that are not as they should be; the last three for names and sizes that make no sense
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)


class Unreadable(InputError):
    """A file of a source that can't be read, while others can; `fault` is the reason alone, in a few words."""

    fault = ""


class Source(ABC):
    """Files by name, with `/` between the parts, in sorted order."""

    path: Path
    opens_cheaply = True

    @property
    def irregular(self) -> dict[str, str]:
        """Names of what is not looked into, with the reason: pipes, devices, folders that can't be read, links that lead nowhere, or where one was already."""
        return {}

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all files, sorted; hidden files and system litter left aside."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of all folders, sorted, the empty ones too."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file. Unreadable where it can't be read."""

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
        if _is_zip(path):
            return ZipSource(path)
        if _is_tar(path):
            return TarSource(path)
    except (*_DAMAGED, OSError) as error:
        # the system's own refusal; EINVAL is of an offset in the archive that leads nowhere, and gzip's errors have no number
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            way_out = "Check its permissions." if isinstance(error, PermissionError) else "Check the path and the system."
            raise InputError(f"{path} can't be read: {error.strerror}. {way_out}") from None
        raise _damaged(path, error) from None
    if path.suffix.lower() in ARCHIVES:
        raise InputError(f"{path} is damaged or cut short: it can't be opened as an archive. Fetch it again.")
    raise InputError(f"{path} is neither a folder nor a zip nor a tar. Give one of these.")


def is_archive(path: Path) -> bool:
    """Whether a file is to be opened by `open_source`: by its name, which a damaged archive has too, or by what is in it.

    False, and no error, for what can't be read: whoever reads it next says so.
    """
    try:
        return path.suffix.lower() in ARCHIVES or _is_zip(path) or _is_tar(path)
    except OSError:
        return False


class FolderSource(Source):
    """Files below a folder, which is walked when its names are first asked for: whoever knows them needs no walk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(self._walked[0])

    def folders(self) -> list[str]:
        return sorted(self._walked[1])

    @property
    def irregular(self) -> dict[str, str]:
        return self._walked[2]

    @cached_property
    def _walked(self) -> tuple[list[str], list[str], dict[str, str]]:
        """Names of the files, of the folders, and of what is neither, with the reason.

        Each folder is walked once, by its own name before that of a link to it: linked to each other they would be walked for ever.
        """
        found: list[str] = []
        below: list[str] = []
        irregular: dict[str, str] = {}

        def unreadable(error: OSError) -> None:
            name = Path(error.filename).relative_to(self.path).as_posix()
            if name == ".":
                raise InputError(f"{self.path} can't be read: {error.strerror}. Check its permissions.")
            irregular[name] = f"a folder that can't be read: {error.strerror}"

        top, walked, waiting = os.path.realpath(self.path), set[str](), deque([Path()])
        while waiting:
            linked = waiting.popleft()
            real = os.path.realpath(self.path / linked)
            if real in walked or (linked.parts and os.path.commonpath([real, top]) == real):
                irregular[linked.as_posix()] = "a link to a folder that is included already"
                continue
            below += [linked.as_posix()] * bool(linked.parts)
            for root, folders, files in os.walk(self.path / linked, onerror=unreadable):
                walked.add(os.path.realpath(root))
                base = Path(root).relative_to(self.path)
                folders[:] = sorted(filter(_visible, folders))
                links = [name for name in folders if os.path.islink(os.path.join(root, name))]
                waiting += [base / name for name in links]
                folders[:] = [name for name in folders if name not in links and os.path.realpath(os.path.join(root, name)) not in walked]
                below += [(base / name).as_posix() for name in folders]
                for name in filter(_visible, files):
                    if os.path.isfile(os.path.join(root, name)):
                        found.append((base / name).as_posix())
                    else:
                        irregular[(base / name).as_posix()] = "not a regular file"
        return found, below, irregular

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with open(path, "rb") as file:
                _refuse_huge(self.path, name, os.fstat(file.fileno()).st_size)
                return file.read()
        except FileNotFoundError:
            raise _unreadable(f"{path} is gone. Put it back, or run `sattrt data` again.", "gone") from None
        except OSError as error:
            fault = f"can't be read: {error.strerror}"
            raise _unreadable(f"{path} {fault}. Check its permissions, or take it out and run `sattrt data` again.", fault) from None


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
            raise _unreadable(f"{name} is no longer in {self.path}. Run `sattrt data` again.", "gone") from None


class ZipSource(ArchiveSource[zipfile.ZipInfo]):
    """Members of a zip archive."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        members = self._zip.infolist()
        for member in members:
            if not member.filename:
                raise zipfile.BadZipFile("a member has no name")
            _refuse_mode(path, member.filename, member.external_attr >> 16 if member.create_system == _UNIX else 0)
        files = {member.filename: member for member in members if not member.is_dir()}
        super().__init__(path, files, [member.filename for member in members if member.is_dir()])

    def read(self, name: str) -> bytes:
        member = self._member(name)
        _refuse_huge(self.path, name, member.file_size)
        if member.flag_bits & _ENCRYPTED:
            raise _unreadable(
                f"{self.path} holds {name!r} encrypted. Unpack it, and give the folder.", "encrypted; unpack the archive first"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are unpacked whole, whatever size they declare
            packed = _PACKERS.get(member.compress_type, f"method {member.compress_type}")
            raise _unreadable(
                f"{self.path} holds {name!r} packed by {packed}. Pack it again with deflate.", f"packed by {packed}; deflate can be read"
            )
        try:
            with self._zip.open(member) as file:
                return file.read(member.file_size)  # no more is unpacked than it declares
        except (*_DAMAGED, OSError) as error:
            raise _unreadable(str(_damaged(self.path, error, name)), f"damaged or cut short in the archive ({error})") from None

    def close(self) -> None:
        self._zip.close()


class TarSource(ArchiveSource[tarfile.TarInfo]):
    """Members of a tar archive; a compressed one is unpacked once to an unnamed temporary file, for random access."""

    def __init__(self, path: Path) -> None:
        self._file, self.opens_cheaply = _plain_tar(path)
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            members = tar.getmembers()
        for member in members:
            _refuse_mode(path, member.name, member.mode | (0 if member.isfile() or member.isdir() else stat.S_IFLNK))
        files = {member.name: member for member in members if member.isfile()}
        super().__init__(path, files, [member.name for member in members if member.isdir()])

    def read(self, name: str) -> bytes:
        member = self._member(name)
        _refuse_huge(self.path, name, member.size)
        if member.issparse():
            raise _unreadable(f"{self.path} holds {name!r} as a sparse file. Pack it again without --sparse.", "packed as a sparse file")
        try:
            content = os.pread(self._file.fileno(), member.size, member.offset_data)
        except OSError as error:
            raise _unreadable(
                f"{self.path}: {name!r} can't be read: {error.strerror or error}.", f"can't be read: {error.strerror or error}"
            ) from None
        if len(content) < member.size:
            raise _unreadable(f"{self.path} is damaged or cut short: {name!r} ends early. Fetch it again.", "ends early in its archive")
        return content

    def close(self) -> None:
        self._file.close()


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except _DAMAGED:  # the last of several volumes: to open it says so
        return True


def _is_tar(path: Path) -> bool:
    # tarfile.is_tarfile() answers False for an archive that is cut short in its first member.
    if path.suffix.lower() in {".tar", ".tgz"} or path.name.lower().endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
        return True
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGED:  # a gzip that is cut short before its first member: to open it says so
        return True


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
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise InputError(
                        f"The disk is full: {path} is unpacked into {tempfile.gettempdir()} to be read. Free some space there, or set TMPDIR "
                        "to a folder with more."
                    ) from None
                raise
            plain.seek(0)
            return plain, False
    return open(path, "rb"), True


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _visible(name: str) -> bool:
    return not any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _refuse_unsafe(path: Path, name: str) -> None:
    if len(name) > _MAX_NAME:
        raise InputError(
            f"{path} holds a name of {len(name):,} characters ({name[:40]!r}...; at most {_MAX_NAME:,}). Pack it again with shorter names."
        )
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
        raise InputError(f"{path} holds {name!r}, a path that leads outside. Don't trust it; pack it again without such names.")


def _refuse_mode(path: Path, name: str, mode: int) -> None:
    """InputError for a member that is a link or a device, or that anybody could have changed before it was packed."""
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{path} holds {name!r}, a link or device, which may lead outside. Pack it again without links.")
    if mode & stat.S_IWOTH:
        raise InputError(
            f"{path} holds {name!r}, which is world-writable. Unpack it and give the folder, or pack it again after chmod -R o-w."
        )


def _refuse_huge(path: Path, name: str, size: int) -> None:
    if size > MAX_BYTES:
        fault = f"{size / 1e6:.0f} MB, too large for a tile (at most {MAX_BYTES / 1e6:.0f} MB)"
        raise _unreadable(f"{path} holds {name!r} of {fault}. Take it out.", fault)


def _unreadable(text: str, fault: str) -> Unreadable:
    error = Unreadable(text)
    error.fault = fault
    return error


def _damaged(path: Path, error: Exception, name: str = "") -> InputError:
    where = f" at {name!r}" if name else ""
    return InputError(f"{path} is damaged or cut short{where} ({error}). Fetch it again.")
