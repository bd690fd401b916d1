"""What this machine is: cores, CPU features, GPU, library versions. Imports none of the libraries it reports on."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from .cores import cores
from .errors import BackendError

LIBRARIES = (
    "numpy",
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-lean",
    "tensorrt-rtx",
    "pillow",
    "rasterio",
    "safetensors",
    "onnxscript",
    "timm",
)
_FEATURES = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm"}
_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86 with AMX, Arm


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Feature flags of the first CPU; empty where the system doesn't say."""
    info = _cpuinfo()
    return set((info.get("flags") or info.get("Features") or "").split())


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16, AMX, Arm's bf16)."""
    return bool(_BF16_FLAGS & cpu_flags())


def cpu_has_int8() -> bool:
    """Whether the CPU sums products of 8-bit integers in 32 bits (VNNI, AMX, Arm's i8mm or dot products); others sum pairs in 16, and clip."""
    return bool(_INT8_FLAGS & cpu_flags())


def gpu() -> tuple[str, str] | None:
    """Name and compute capability of the first NVIDIA GPU, asked of its driver; None where there is none. BackendError for one that fails."""
    from .runtime.cuda import Device, NoGpuError

    try:
        device = Device()
    except NoGpuError:
        return None
    return device.name, device.compute_capability


def version(package: str) -> str | None:
    """Installed version of a package, or None."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def environment() -> dict[str, Any]:
    """Everything a figure's reader has to know about the machine it was measured on."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "cpu_features": sorted(cpu_flags() & _FEATURES),
        "gpu": _gpu_in_words(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": commit(),
        "libraries": {name: found_version for name in LIBRARIES if (found_version := version(name))},
    }


def commit() -> str | None:
    """The git commit of the checkout that sattrt runs from, with a + where files were changed; None without one, or without git."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        asked = [
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except OSError:  # a checkout that was copied to where no git is
        return None
    return asked[0] + "+" * bool(asked[1]) or None


def _gpu_in_words() -> str | None:
    try:
        found = gpu()
    except BackendError as error:
        return str(error)
    return f"{found[0]} (compute capability {found[1]})" if found else None


def _cpuinfo() -> dict[str, str]:
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, separator, value = line.partition(":")
            if separator:
                fields.setdefault(key.strip(), value.strip())
    return fields
