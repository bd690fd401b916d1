"""What a GPU's driver and the CPU say of clocks, heat and energy: NVML (package nvidia-ml-py) and RAPL (Linux, powercap).

before, source = joules("cpu")      # None where nothing here counts energy, and why
work()
after, _ = joules("cpu")
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import BackendError
from ..runtime.cuda import Device

_RAPL, _MODULE = Path("/sys/class/powercap"), Path("/proc/driver/nvidia/version")
# NVML's bits, whose names in nvidia-ml-py change from ThrottleReason to EventReason
_THROTTLES = {"SwPowerCap": 0x4, "HwSlowdown": 0x8, "SwThermalSlowdown": 0x20, "HwThermalSlowdown": 0x40, "HwPowerBrakeSlowdown": 0x80}


def gpu_state() -> dict[str, Any] | str:
    """Name, driver, clocks (MHz), power (W) and temperature (degrees C) of the GPU that engines run on; or why there is none.

    What NVML refuses to tell, as in a container or a part of a GPU, is "unknown".
    """
    nvml = _nvml()
    if isinstance(nvml, str):
        return f"{nvml}; driver {driver}" if (driver := _driver()) else nvml
    try:
        handle = _handle(nvml)
    except nvml.NVMLError as error:
        return f"NVML says: {error}"
    asked: dict[str, Callable[[], Any]] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except (nvml.NVMLError, AttributeError):  # later versions of NVML drop functions
            found[name] = "unknown"
    return found


def throttles() -> set[str]:
    """Why the GPU that engines run on is slower than it could be at this moment; empty where nothing is, or where nobody can say."""
    nvml = _nvml()
    if isinstance(nvml, str):
        return set()
    for word in ("Event", "Throttle"):  # NVML's new word for it, and the old one
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            reasons = getattr(nvml, f"nvmlDeviceGetCurrentClocks{word}Reasons")(_handle(nvml))
            return {name for name, bit in _THROTTLES.items() if reasons & bit}
    return set()


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


def _driver() -> str | None:
    """Version of NVIDIA's driver, as its kernel module has it."""
    with contextlib.suppress(OSError):
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _MODULE.read_text().partition("\n")[0])
        return found[0] if found else None
    return None


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
