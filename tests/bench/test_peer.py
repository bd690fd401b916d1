import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sattrt.bench import peer as peer_module
from sattrt.bench.peer import run_peer
from sattrt.errors import InputError

TILES = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * np.ones((6, 4, 4, 3), np.uint8)
CLASSES = ("River", "Sea Lake", "Forest")
THEIRS = """
import sys, time, numpy as np
tiles = np.load(sys.argv[1])
time.sleep(0.05 * len(tiles))
for tile in tiles:
    print({answer})
"""


def program(answer: str) -> str:
    return f'"{sys.executable}" -c "{THEIRS.format(answer=answer)}" {{tiles}}'


@pytest.mark.parametrize("answer", ["tile[0, 0, 0] % 3", "('River', 'Sea Lake', 'Forest')[tile[0, 0, 0] % 3]"])
def test_a_foreign_program_is_timed_without_its_start(answer: str) -> None:
    peer = run_peer(program(answer), TILES, CLASSES, 60)
    assert peer.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert peer.start_seconds == np.median(peer.starts) > 0.05  # it sleeps 50 ms for the one tile that it is started with


def test_a_program_that_does_nothing_has_no_speed_that_could_be_quoted() -> None:
    def outcome() -> str:
        try:
            peer = run_peer(f'"{sys.executable}" -c "import sys; print(*[0] * {len(TILES)}, sep=chr(10))"', TILES, CLASSES, 20)
        except InputError as error:
            return str(error)
        return "too much to tell its speed" if peer.indicative else f"{peer.images_per_second} tiles a second"

    assert "too much to tell its speed" in outcome()


def test_tiles_that_are_soon_done_are_given_several_times_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds as a program takes them that starts in 1 to 1.2 s and needs 10 ms a tile."""
    starts = iter([0.0, 1.0, 1.0, 1.2, 1.2, 1.1, 1.1] + [1.0, 1.0, 1.2, 1.2, 1.1, 1.1] * 9)
    asked: list[int] = []

    def run(words: list[str], command: str, path: Path, limit: float) -> tuple[float, str]:
        asked.append(len(np.load(path)))
        return next(starts) + 0.01 * asked[-1], "0\n" * asked[-1]

    monkeypatch.setattr(peer_module, "_run", run)
    peer = run_peer("x", TILES, CLASSES, 1000)
    assert (peer.indicative, peer.images) == (False, asked[-1])
    assert peer.images > 200
    assert peer.images_per_second == pytest.approx(100)
    assert peer.starts == pytest.approx([1.01, 1.21, 1.11])
    assert asked[1:7] == [1, 6] * 3  # in turns
    starts = iter([0.0] + [1.0, 1.0, 1.2, 1.2, 1.1, 1.1] * 9)
    assert run_peer("x", np.resize(TILES, (60, 4, 4, 3)), CLASSES, 2).indicative  # no time for more


def test_of_two_class_names_the_longer_that_fits_is_meant() -> None:
    answer = "('Sea 0.9', 'Sea Lake 0.9', 'Sea Lake')[tile[0, 0, 0] % 3]"
    assert run_peer(program(answer), TILES, ("Sea", "Sea Lake"), 60).labels.tolist() == [0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/program", "can't be started: No such file"),
        ("'", "is not a command"),
        (" ", "empty command"),
        ("false", "failed with exit code 1: it says nothing"),
        ("sh -c 'echo broken >&2; exit 3'", "exit code 3: broken"),
        ("true", "prints '0 lines'"),
        ("echo Desert", "prints 'Desert"),
        (r"printf '\tx\n%.0s' 1 2 3 4 5 6", "prints ''"),
    ],
)
def test_a_program_that_fails_is_one_line(command: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_peer(command, TILES, CLASSES, 60)


def test_a_program_that_hangs_is_stopped_with_what_it_started() -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match="stopped after 1 s"):
        run_peer("sh -c 'sleep 300 & wait'", TILES, CLASSES, 1)
    assert time.monotonic() - begin < 10


def test_a_disk_that_is_too_small_for_the_tiles_is_one_line() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is refused then, and kills nobody
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match="tiles for a peer were not written"):
            run_peer(program("0"), np.resize(TILES, (20_000, *TILES.shape[1:])), CLASSES, 60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, kept)
