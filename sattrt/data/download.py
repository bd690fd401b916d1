"""The official EuroSAT archive: downloaded with progress, resumed after a break, its digest checked.

    archive = fetch(EUROSAT, Path("dataset"), on_progress=print)

Source: Helber et al., EuroSAT, IEEE JSTARS 2019; archive at https://doi.org/10.5281/zenodo.7711810.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..spec import sha256_file, unwritable

Progress = Callable[[int, int], None]
_BUSY = (429, 500, 502, 503, 504)  # answers that may be better in a moment


@dataclass(frozen=True)
class Archive:
    """A file on the web: where it is, what its content must be, the ground sampling distance of its tiles in metres."""

    name: str
    url: str
    sha256: str
    gsd: float | None = None


EUROSAT = Archive(
    "EuroSAT_RGB.zip",
    "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip?download=1",
    "b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
    gsd=10.0,
)


def fetch(archive: Archive, folder: Path, on_progress: Progress = lambda done, total: None, tries: int = 5) -> Path:
    """Path of the archive in `folder`, downloaded unless it is there.

    on_progress: called with bytes done and bytes in all (0 where the server doesn't say).
    Raises InputError without a network, on a full disk, or where the digest of what is fetched or was there is not the published one.
    """
    target = folder / archive.name
    if target.exists():
        if (found := sha256_file(target)) != archive.sha256:
            raise InputError(
                f"{target} is there and has the sha256 {found[:12]}…, not {archive.sha256[:12]}… as published: it is not replaced. "
                "Give its path if it is what you want, or move it away."
            )
        return target
    part = folder / f"{archive.name}.part"
    for attempt in range(1, tries + 1):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(archive.url, part, on_progress)
            break
        except urllib.error.HTTPError as error:
            if error.code in _BUSY and attempt < tries:
                time.sleep(min(2**attempt, 10))
                continue
            raise InputError(f"{archive.url} answers {error.code} {error.reason}. Download it yourself and give its path.") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            if attempt == tries:
                kept = (
                    f"What was fetched is kept in {part}; the same command continues from there" if part.exists() else "Check the network"
                )
                raise InputError(f"Can't download {archive.url} ({error}). {kept}, or download it yourself and give its path.") from None
            time.sleep(min(2**attempt, 10) / 4)
        except OSError as error:
            raise unwritable(part, error) from None
    if (found := sha256_file(part)) != archive.sha256:
        part.unlink()
        raise InputError(f"{archive.url} has the sha256 {found[:12]}…, not {archive.sha256[:12]}…: it was deleted. Try again.")
    os.replace(part, target)
    return target


def _download(url: str, part: Path, on_progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch: the part is whole, or it is wrong and the digest will say so
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        done = file.tell()
        length = int(response.headers.get("Content-Length") or 0)
        total = done + length if length else 0
        while chunk := response.read(1 << 18):
            file.write(chunk)
            done += len(chunk)
            on_progress(done, total)
    if done < total:
        raise ConnectionError(f"the connection ended at {done} of {total} bytes")
