"""The few calls of the CUDA driver that an engine needs, through ctypes: no torch, no CUDA package.

Source: CUDA Driver API reference (cuInit, cuMemAlloc, cuMemcpy*Async, cuStream*).
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from numpy.typing import NDArray

from ..errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Device:
    """GPU number `index`, its primary context and one stream. BackendError where there is no driver or no GPU."""

    def __init__(self, index: int = 0) -> None:
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise BackendError("No NVIDIA driver (libcuda.so.1) was found. Use an onnxruntime engine, or a machine with a GPU.") from None
        self._call("cuInit", 0)
        device, name = c_int(), ctypes.create_string_buffer(100)
        self._call("cuDeviceGet", byref(device), index)
        self._call("cuDeviceGetName", name, 100, device)
        major, minor = c_int(), c_int()
        self._call("cuDeviceGetAttribute", byref(major), _MAJOR, device)
        self._call("cuDeviceGetAttribute", byref(minor), _MINOR, device)
        self.name = name.value.decode()
        self.compute_capability = f"{major.value}.{minor.value}"
        self._device, self._context, stream = device, c_void_p(), c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), device)
        self.activate()
        self._call("cuStreamCreate", byref(stream), 0)
        self.stream = int(stream.value or 0)
        self._memory: list[int] = []

    def activate(self) -> None:
        """Make this GPU's context the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the GPU, freed by `close`."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
        self._memory.append(address.value)
        return address.value

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy from the host."""
        self._call("cuMemcpyHtoDAsync_v2", c_uint64(address), c_void_p(array.ctypes.data), c_size_t(array.nbytes), c_void_p(self.stream))

    def copy_out(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy to the host."""
        self._call("cuMemcpyDtoHAsync_v2", c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes), c_void_p(self.stream))

    def synchronize(self) -> None:
        """Wait for everything queued."""
        self._call("cuStreamSynchronize", c_void_p(self.stream))

    def close(self) -> None:
        """Free memory, stream and context."""
        for address in self._memory:
            self._call("cuMemFree_v2", c_uint64(address))
        self._memory.clear()
        self._call("cuStreamDestroy_v2", c_void_p(self.stream))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(status, byref(text))
            reason = (text.value or b"unknown error").decode()
            raise BackendError(f"The NVIDIA driver refuses {name}: {reason}. Check `nvidia-smi`, or use an onnxruntime engine.")
