"""The few calls of the CUDA driver that an engine needs, through ctypes: no torch, no CUDA package.

    device = Device()                       # asks the driver only
    memory = Memory(device)                 # takes a context, a stream and buffers
    with memory.current():
        address = memory.allocate(1024)

Source: CUDA Driver API reference (cuInit, cuCtx*, cuMem*, cuStream*, cuEvent*, cuGraph*).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from numpy.typing import NDArray

from ..errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NO_GPU = (34, 100)  # CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_NO_DEVICE
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: while a blocking stream is recorded, the host program's default stream can't be used
_OF_THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads of the host program do is not recorded


class NoGpuError(BackendError):
    """There is no driver, or no GPU, or it is hidden: not one that is there and fails."""


class Device:
    """The first GPU: its name and compute capability. NoGpuError where there is none, else BackendError."""

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise NoGpuError("No NVIDIA driver (libcuda.so.1) was found. Use an onnxruntime engine, or a machine with a GPU.") from None
        self.call("cuInit", 0)
        self.handle, name = c_int(), ctypes.create_string_buffer(100)
        self.call("cuDeviceGet", byref(self.handle), 0)
        self.call("cuDeviceGetName", name, 100, self.handle)
        major, minor = c_int(), c_int()
        self.call("cuDeviceGetAttribute", byref(major), _MAJOR, self.handle)
        self.call("cuDeviceGetAttribute", byref(minor), _MINOR, self.handle)
        self.name = name.value.decode()
        self.compute_capability = f"{major.value}.{minor.value}"

    @property
    def pci_bus(self) -> str:
        """Where it is plugged in, "0000:01:00.0"."""
        bus = ctypes.create_string_buffer(32)
        self.call("cuDeviceGetPCIBusId", bus, 32, self.handle)
        return bus.value.decode()

    def call(self, name: str, *arguments: Any) -> None:
        """Call the driver; BackendError with its own words where it refuses."""
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(status, byref(text))
            reason = (text.value or b"unknown error").decode()
            kind = NoGpuError if status in _NO_GPU else BackendError
            raise kind(f"The NVIDIA driver refuses {name}: {reason}. Check `nvidia-smi`, or use an onnxruntime engine.")


class Memory:
    """The device's primary context, one stream, buffers that live until `close`, and a graph recorded from the stream."""

    def __init__(self, device: Device) -> None:
        self._device, self._context, stream = device, c_void_p(), c_void_p()
        device.call("cuDevicePrimaryCtxRetain", byref(self._context), device.handle)
        with self.current():
            device.call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self.stream = int(stream.value or 0)
        self._buffers: list[int] = []
        self._graph = c_void_p()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context the calling thread's for a while; what the host program had there comes back."""
        self._device.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._device.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the GPU."""
        address = c_uint64()
        self._device.call("cuMemAlloc_v2", byref(address), c_size_t(size))
        self._buffers.append(address.value)
        return address.value

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy from the host, of a contiguous array."""
        host, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._device.call("cuMemcpyHtoDAsync_v2", c_uint64(address), host, size, c_void_p(self.stream))

    def copy_out(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy to the host."""
        host, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._device.call("cuMemcpyDtoHAsync_v2", host, c_uint64(address), size, c_void_p(self.stream))

    def synchronize(self) -> None:
        """Wait for everything queued."""
        self._device.call("cuStreamSynchronize", c_void_p(self.stream))

    def seconds(self, work: Callable[[], None]) -> float:
        """What `work` queues takes on the GPU, from its start there to its end, in seconds."""
        start, end, milliseconds = c_void_p(), c_void_p(), c_float()
        for event in (start, end):
            self._device.call("cuEventCreate", byref(event), 0)
        try:
            self._device.call("cuEventRecord", start, c_void_p(self.stream))
            work()
            self._device.call("cuEventRecord", end, c_void_p(self.stream))
            self._device.call("cuEventSynchronize", end)
            self._device.call("cuEventElapsedTime", byref(milliseconds), start, end)
        finally:
            for event in (start, end):
                self._device.call("cuEventDestroy_v2", event)
        return milliseconds.value / 1e3

    def record(self, work: Callable[[], None]) -> None:
        """Record what `work` queues on the stream, without running it, in place of what was recorded before."""
        self.forget()
        graph = c_void_p()
        self._device.call("cuStreamBeginCapture_v2", c_void_p(self.stream), _OF_THIS_THREAD)
        try:
            work()
        except BaseException:
            with contextlib.suppress(BackendError):  # a recording that failed is ended, and has nothing to give
                self._device.call("cuStreamEndCapture", c_void_p(self.stream), byref(graph))
            raise
        self._device.call("cuStreamEndCapture", c_void_p(self.stream), byref(graph))
        try:
            self._device.call("cuGraphInstantiateWithFlags", byref(self._graph), graph, c_uint64(0))
        finally:
            self._device.call("cuGraphDestroy", graph)

    def replay(self) -> None:
        """Queue what was recorded, as one launch."""
        self._device.call("cuGraphLaunch", self._graph, c_void_p(self.stream))

    def forget(self) -> None:
        """Free what was recorded."""
        if self._graph:
            self._device.call("cuGraphExecDestroy", self._graph)
            self._graph = c_void_p()

    def close(self) -> None:
        """Free buffers, graph and stream, let go of the context."""
        # after a fault of the GPU every call repeats it, and would hide what happened first; the driver then frees all with the process
        with contextlib.suppress(BackendError), self.current():
            self.forget()
            for address in self._buffers:
                self._device.call("cuMemFree_v2", c_uint64(address))
            self._buffers.clear()
            self._device.call("cuStreamDestroy_v2", c_void_p(self.stream))
        with contextlib.suppress(BackendError):
            self._device.call("cuDevicePrimaryCtxRelease_v2", self._device.handle)
