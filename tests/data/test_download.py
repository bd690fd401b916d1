"""The downloader against a real web server on this machine, which can break off and resume."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sattrt.data.download import Archive, fetch
from sattrt.errors import InputError

CONTENT = bytes(range(256)) * 4096


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `limit` bytes at most per answer, as a line that breaks."""

    limit = len(CONTENT)
    status = 200
    busy = 0  # answers that are 503 first
    ranged = True  # whether it can begin in the middle

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.busy:
            self.server.busy -= 1
            self.send_error(503)
            return
        wanted = wanted if self.server.ranged else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if self.server.status != 200 or start >= len(CONTENT):
            self.send_error(416 if self.server.status == 200 else self.server.status)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.server.limit])

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def archive(server: Server, content: bytes = CONTENT) -> Archive:
    return Archive("tiles.zip", f"http://127.0.0.1:{server.server_port}/tiles.zip", hashlib.sha256(content).hexdigest())


def test_it_is_fetched_once_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch(archive(server), tmp_path, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    fetch(archive(server), tmp_path)
    assert len(server.ranges) == 1


def test_it_goes_on_after_a_break(server: Server, tmp_path: Path) -> None:
    server.limit = 600_000
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=600000-"]


def test_a_line_that_stays_broken_keeps_what_was_fetched(server: Server, tmp_path: Path) -> None:
    server.limit = 1000
    with pytest.raises(InputError, match=r"kept in .*tiles.zip.part"):
        fetch(archive(server), tmp_path, tries=2)
    assert (tmp_path / "tiles.zip.part").stat().st_size == 2000
    server.limit = len(CONTENT)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken_if_its_digest_is_right(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiles.zip.part").write_bytes(CONTENT)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    (tmp_path / "tiles.zip").unlink()
    (tmp_path / "tiles.zip.part").write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match="sha256"):
        fetch(archive(server), tmp_path)
    assert server.ranges == [f"bytes={len(CONTENT)}-"] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_begins_anew_is_taken_at_its_word(server: Server, tmp_path: Path) -> None:
    server.ranged = False
    (tmp_path / "tiles.zip.part").write_bytes(CONTENT[:5000])
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_file_of_ones_own_under_that_name_is_not_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiles.zip").write_bytes(b"my own")
    with pytest.raises(InputError, match=r"tiles.zip is there and has the sha256 .*: it is not replaced"):
        fetch(archive(server), tmp_path)
    assert (tmp_path / "tiles.zip").read_bytes() == b"my own"
    assert server.ranges == []


def test_another_content_is_refused_and_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sha256"):
        fetch(archive(server, b"something else"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_refuses_is_quoted(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match="404"):
        fetch(archive(server), tmp_path)


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 1
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]
    server.busy = 1
    with pytest.raises(InputError, match="503"):
        fetch(archive(server), tmp_path / "other", tries=1)


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Can't download"):
        fetch(Archive("a", "http://127.0.0.1:9/a", ""), tmp_path, tries=1)
