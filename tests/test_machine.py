import os
from pathlib import Path

import pytest

import sattrt
from sattrt.cores import cores, granted
from sattrt.machine import commit, cpu_has_bf16, cpu_has_int8


@pytest.mark.skipif(not (Path(sattrt.__file__).parents[1] / ".git").exists(), reason="sattrt is not in a checkout here")
def test_a_checkout_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


@pytest.mark.parametrize(
    ("cpuinfo", "bf16", "int8"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni", True, True),
        ("flags\t\t: fpu avx2 avx_vnni", False, True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile amx_int8", True, True),
        ("flags\t\t: fpu avx2 fma", False, False),
        ("Features\t: fp asimd asimddp", False, True),
        ("Features\t: fp asimd i8mm bf16", True, True),
        ("Features\t: fp asimd", False, False),
        ("", False, False),
    ],
)
def test_what_a_cpu_multiplies_follows_from_its_flags(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, bf16: bool, int8: bool) -> None:
    read_text = Path.read_text
    given = f"processor\t: 0\n{cpuinfo}\n"
    monkeypatch.setattr(Path, "read_text", lambda path, *rest: given if str(path) == "/proc/cpuinfo" else read_text(path, *rest))
    assert (cpu_has_bf16(), cpu_has_int8()) == (bf16, int8)


@pytest.mark.parametrize(
    ("group", "files", "share"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "1600000 100000"}, None),  # more than there are
        ("0::/app/one", {"app/cpu.max": "50000 100000", "app/one/cpu.max": "max 100000"}, 1),  # of a group above
        ("0::/", {"cpu.max": "0 100000"}, 1),
        ("0::/", {"cpu.max": "no numbers"}, None),
        ("0::/", {}, None),
        ("3:cpu,cpuacct:/box\n2:memory:/", {"cpu/box/cpu.cfs_quota_us": "90000", "cpu/box/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu:/outer/box", {"cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "100000"}, 1),  # as a container sees its own
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_container_has_the_cores_that_it_was_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, files: dict[str, str], share: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert cores(tmp_path / "nowhere") == 8
    assert (cores(tmp_path), granted(tmp_path)) == (share or 8, share)
