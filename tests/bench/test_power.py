"""Energy, from a folder that is laid out as Linux lays out powercap."""

import sys
from pathlib import Path
from types import ModuleType

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


class OneField(ModuleType):
    """NVML where a container or a part of a GPU is refused some fields, as `nvidia-ml-py` says so."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __getattr__(self, name: str) -> object:
        def ask(*arguments: object) -> object:
            answers = {"nvmlInit": None, "nvmlDeviceGetName": b"GPU", "nvmlDeviceGetClockInfo": 1200, "nvmlSystemGetDriverVersion": "580.1"}
            answers |= {"nvmlDeviceGetHandleByIndex": 0, "nvmlDeviceGetHandleByPciBusId": 0, "nvmlDeviceGetCurrentClocksThrottleReasons": 5}
            if name not in answers:
                raise self.NVMLError("Not Supported")
            return answers[name]

        if name.startswith("nvml"):
            return ask
        raise AttributeError(name)


def test_what_nvml_does_not_tell_is_unknown_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", OneField("pynvml"))
    state = power.gpu_state()
    told = {"name": "GPU", "driver": "580.1", "sm_clock_mhz": 1200, "memory_clock_mhz": 1200}
    assert state == told | {"power_watts": "unknown", "temperature_celsius": "unknown"}
    assert power.throttles() == {"SwPowerCap"}


def test_the_driver_is_told_without_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(power, "_MODULE", tmp_path / "version")
    assert "driver" not in power.gpu_state()
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\nGCC version:  gcc 12.3.0\n"
    )
    (tmp_path / "version").write_text(text)
    assert str(power.gpu_state()).endswith("; driver 580.65.06")
    assert power.throttles() == set()


def test_nothing_that_counts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_RAPL", tmp_path)
    assert power.joules("cpu") == (None, "RAPL can't be read")
