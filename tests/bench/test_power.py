"""Energy, from a folder that is laid out as Linux lays out powercap."""

from pathlib import Path

import pytest

from sattrt.bench import power


def test_rapl_counts_packages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zones = {
        "intel-rapl:0": ("package-0", 3_000_000),
        "intel-rapl:0:0": ("core", 2_000_000),
        "intel-rapl:1": ("package-1", 500_000),
        "intel-rapl:2": ("psys", 9_000_000),
    }
    for zone, (name, microjoules) in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
    monkeypatch.setattr(power, "_RAPL", tmp_path)
    assert power.joules("cpu") == (3.5, "the CPU's packages, by RAPL")


def test_nothing_that_counts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_RAPL", tmp_path)
    assert power.joules("cpu") == (None, "RAPL can't be read")
