"""`sattrt doctor`: what is installed, what hardware was found, what each absence costs and the one command that mends it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from .cores import cores
from .errors import BackendError
from .machine import cpu_has_bf16, cpu_model, gpu, version


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for. cost: what is lost without it; mend: the command that brings it."""

    name: str
    found: str | None
    cost: str = ""
    mend: str = ""


# what it is, packages that provide it, what its absence costs, the command
_PACKAGES = (
    ("PyTorch", ("torch",), "no training, no export", "pip install 'sattrt[train]'"),
    ("torchvision", ("torchvision",), "no training, no export", "pip install 'sattrt[train]'"),
    (
        "NVIDIA DALI",
        ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        "tiles are decoded by torchvision, on the CPU",
        "pip install 'sattrt[train]'",
    ),
    ("ONNX", ("onnx",), "no export", "pip install 'sattrt[train]'"),
    ("onnxscript", ("onnxscript",), "no graphs in bf16; torch's older exporter makes the others", "pip install 'sattrt[train]'"),
    ("matplotlib", ("matplotlib",), "runs, bundles and reports without pictures", "pip install 'sattrt[train]'"),
    ("TensorBoard", ("tensorboard",), "runs without events for TensorBoard", "pip install 'sattrt[train]'"),
    ("ONNX Runtime", ("onnxruntime", "onnxruntime-gpu"), "no ONNX Runtime engine, no export in int8", "pip install 'sattrt[cpu]'"),
    ("OpenVINO", ("openvino",), "no openvino engine", "pip install 'sattrt[openvino]'"),
    ("TensorRT-RTX", ("tensorrt-rtx",), "no tensorrt-rtx engines", "pip install 'sattrt[tensorrt-rtx]'"),
    ("TensorRT", ("tensorrt", "tensorrt-lean"), "no tensorrt engines", "pip install 'sattrt[tensorrt]'"),
    ("rasterio", ("rasterio",), "no GeoTIFF tiles of other bands, no `sattrt map`", "pip install 'sattrt[geo]'"),
    ("Dask", ("distributed",), "`sattrt map` runs only on this machine", "pip install 'sattrt[cluster]'"),
    ("cryptography", ("cryptography",), "bundles are neither signed nor verified", "pip install 'sattrt[sign]'"),
    ("h5py", ("h5py",), "`sattrt rmldnn` reads no .h5 weights and writes no predictions", "pip install 'sattrt[rmldnn]'"),
)


def examine() -> list[Finding]:
    """Look for everything sattrt can use. Never raises: an absence is a finding."""
    found_gpu, driver = None, "none: it is hardware (with one in place: its driver, R580 or later)"
    try:
        found_gpu = gpu()
    except BackendError as error:
        driver = str(error)
    findings = [
        Finding("CPU", f"{cpu_model()}, {cores()} cores"),
        Finding(
            "CPU bf16",
            "yes" if cpu_has_bf16() else None,
            "training on the CPU runs in fp32, which is slower",
            "none: it is a feature of the CPU (AVX512-BF16, AMX)",
        ),
        Finding(
            "NVIDIA GPU",
            f"{found_gpu[0]}, compute capability {found_gpu[1]}" if found_gpu else None,
            "training and inference on the CPU only; TensorRT engines are built where that is possible, not run",
            driver,
        ),
        Finding(
            "C compiler",
            shutil.which(next(iter(os.environ.get("CC", "").split()), "cc")),
            "training on the CPU is up to a tenth slower",
            "gcc, from the system's packages",
        ),
    ]
    for name, packages, cost, mend in _PACKAGES:
        versions = [f"{package} {found}" for package in packages if (found := version(package))]
        findings.append(Finding(name, ", ".join(versions) or None, cost, mend.replace("[cpu]", "[gpu]") if found_gpu else mend))
    if found_gpu and version("onnxruntime") and not version("onnxruntime-gpu"):
        findings.append(
            Finding(
                "ONNX Runtime on the GPU",
                None,
                "onnxruntime engines run on the CPU",
                "pip uninstall -y onnxruntime && pip install 'sattrt[gpu]'",
            )
        )
    if version("onnxruntime") and version("onnxruntime-gpu"):
        findings.append(
            Finding(
                "ONNX Runtime, once",
                None,
                "onnxruntime and onnxruntime-gpu overwrite each other's files",
                f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'sattrt[{'gpu' if found_gpu else 'cpu'}]'",
            )
        )
    return findings
