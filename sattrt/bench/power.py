"""What a GPU's driver and the CPU say of clocks, heat and energy: NVML (package nvidia-ml-py) and RAPL (Linux, powercap).

before, source = joules()           # None where nothing here counts energy, and why
work()
after, _ = joules()
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")
_THROTTLES = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")


def gpu_state() -> dict[str, Any] | str:
    """Name, driver, clocks (MHz), power (W), temperature (degrees C) and throttle reasons of the first GPU; or why there is none."""
    nvml = _nvml()
    if isinstance(nvml, str):
        return nvml
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return {
            "name": _text(nvml.nvmlDeviceGetName(handle)),
            "driver": _text(nvml.nvmlSystemGetDriverVersion()),
            "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttled_by": [name for name in _THROTTLES if reasons & getattr(nvml, f"nvmlClocksThrottleReason{name}", 0)],
        }
    except nvml.NVMLError as error:
        return f"NVML says: {error}"


def joules() -> tuple[float | None, str]:
    """A counter that grows by the energy spent, and what it counts: the GPU where there is one, else the CPU; or None, and why."""
    nvml = _nvml()
    if not isinstance(nvml, str):
        with contextlib.suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(0)) / 1e3, "the GPU, by NVML"
    found = []
    for path in sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1:  # packages, not their parts
            with contextlib.suppress(OSError, ValueError):
                found.append(int(path.read_text()))
    if found:
        return sum(found) / 1e6, "the CPU's packages, by RAPL"
    return None, f"{nvml if isinstance(nvml, str) else 'NVML does not count it'}; RAPL can't be read"


def _nvml() -> Any:
    """NVML, ready to be asked, or why it is not."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "NVML is not installed (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"NVML finds no GPU ({error})"
    return nvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
