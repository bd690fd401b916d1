"""How many CPU cores this process may use: what it is bound to, and the share of a container (cgroups v2 and v1).

from sattrt.cores import cores
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use, at least 1. root: where /proc and /sys/fs/cgroup are looked for."""
    return granted(root) or _bound_to()


def granted(root: Path = Path("/")) -> int | None:
    """Cores that a container is granted, at least 1, where those are fewer than this process can be run on; None where they are not.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), https://docs.kernel.org/scheduler/sched-bwc.html (cfs_quota_us).
    """
    quota = min((max(1, math.ceil(quota)) for quota in _quotas(root)), default=None)
    return quota if quota and quota < _bound_to() else None


def _bound_to() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> list[float]:
    """Cores that the control groups of this process grant, each of them and each of those above it that has a bound."""
    found, mount = [], root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            folder = (mount / "cpu" if controllers else mount) / path.lstrip("/")
            for each in (folder, *folder.parents):  # a container sees its own group as the mount itself
                if each.is_relative_to(mount):
                    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                        found.append(_quota(each, bool(controllers)))
    return found


def _quota(group: Path, first: bool) -> float:
    """Cores that one group grants; first: it is of cgroups v1. OSError or ValueError where it sets no bound."""
    if not first:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    bound = int((group / "cpu.cfs_quota_us").read_text())
    if bound <= 0:
        raise ValueError
    return bound / int((group / "cpu.cfs_period_us").read_text())
