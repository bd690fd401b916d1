import os
from pathlib import Path

import pytest

import sattrt
from sattrt.cores import cores, granted
from sattrt.machine import commit


@pytest.mark.skipif(not (Path(sattrt.__file__).parents[1] / ".git").exists(), reason="sattrt is not in a checkout here")
def test_a_checkout_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


@pytest.mark.parametrize(
    ("group", "files", "share"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/app/one", {"app/cpu.max": "50000 100000", "app/one/cpu.max": "max 100000"}, 1),  # of a group above
        ("0::/", {"cpu.max": "0 100000"}, 1),
        ("0::/", {"cpu.max": "no numbers"}, None),
        ("0::/", {}, None),
        ("3:cpu,cpuacct:/box\n2:memory:/", {"cpu/box/cpu.cfs_quota_us": "90000", "cpu/box/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu:/outer/box", {"cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "100000"}, 1),  # as a container sees its own
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_container_has_the_cores_that_it_was_granted(tmp_path: Path, group: str, files: dict[str, str], share: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    bound = cores(tmp_path / "nowhere")
    assert bound == len(os.sched_getaffinity(0))
    assert cores(tmp_path) == min(bound, share or bound)
    assert granted(tmp_path) == (share if share and share < bound else None)
