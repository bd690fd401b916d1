"""What a GPU's driver and the CPU say of clocks, heat and energy: NVML (package nvidia-ml-py) and RAPL (Linux, powercap).

before, source = joules("cpu")      # None where nothing here counts energy, and why
work()
after, _ = joules("cpu")
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

from ..errors import BackendError
from ..runtime.cuda import Device

_RAPL = Path("/sys/class/powercap")
_THROTTLES = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")


def gpu_state() -> dict[str, Any] | str:
    """Name, driver, clocks (MHz), power (W), temperature (degrees C) and throttle reasons of the GPU that engines run on; or why there is none."""
    nvml = _nvml()
    if isinstance(nvml, str):
        return nvml
    try:
        handle = _handle(nvml)
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


def joules(device: str) -> tuple[float | None, str]:
    """A counter that grows by the energy spent on "cpu" or, for any other name, on the GPU, and what it counts; or None, and why."""
    if device != "cpu":
        nvml = _nvml()
        if isinstance(nvml, str):
            return None, nvml
        try:
            return nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml)) / 1e3, "the GPU, by NVML"
        except nvml.NVMLError as error:
            return None, f"NVML does not count energy here ({error})"
    found = []
    for path in sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj")):
        with contextlib.suppress(OSError, ValueError):
            if (path.parent / "name").read_text().startswith("package"):  # neither its parts nor the whole platform
                found.append(int(path.read_text()))
    return (sum(found) / 1e6, "the CPU's packages, by RAPL") if found else (None, "RAPL can't be read")


def _handle(nvml: Any) -> Any:
    """NVML's handle of CUDA's first device: NVML counts the GPUs that CUDA_VISIBLE_DEVICES hides, too."""
    try:
        return nvml.nvmlDeviceGetHandleByPciBusId(Device().pci_bus.encode())
    except BackendError:
        return nvml.nvmlDeviceGetHandleByIndex(0)


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
