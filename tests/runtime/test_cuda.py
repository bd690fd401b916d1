"""The driver's calls that an engine of TensorRT needs: tried without a plan, so that a GPU of any kind will do."""

from collections.abc import Iterator
from ctypes import c_size_t, c_uint64, c_void_p

import numpy as np
import pytest

from sattrt.errors import BackendError
from sattrt.machine import gpu
from sattrt.runtime.cuda import Device, Memory

pytestmark = pytest.mark.skipif(not gpu(), reason="the driver's calls need an NVIDIA GPU")
BYTES = 1 << 20


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(Device())
    yield memory
    memory.close()


def duplicate(device: Device, memory: Memory, target: int, source: int) -> None:
    """Queue a copy from one buffer to another, as an engine queues its work."""
    device.call("cuMemcpyDtoDAsync_v2", c_uint64(target), c_uint64(source), c_size_t(BYTES), c_void_p(memory.stream))


def test_what_is_copied_there_and_back_is_the_same(memory: Memory) -> None:
    device, sent, back = Device(), np.random.default_rng(0).integers(0, 256, BYTES, np.uint8), np.zeros(BYTES, np.uint8)
    with memory.current():
        source, target = memory.allocate(BYTES), memory.allocate(BYTES)
        memory.copy_in(source, sent)
        assert memory.seconds(lambda: duplicate(device, memory, target, source)) > 0
        memory.copy_out(back, target)
        memory.synchronize()
    np.testing.assert_array_equal(back, sent)


def test_what_is_recorded_runs_when_it_is_replayed_with_what_is_there_then(memory: Memory) -> None:
    device, back = Device(), np.zeros(BYTES, np.uint8)
    with memory.current():
        source, target = memory.allocate(BYTES), memory.allocate(BYTES)
        memory.copy_in(target, np.zeros(BYTES, np.uint8))
        memory.copy_in(source, np.full(BYTES, 1, np.uint8))
        for value in (2, 3):  # the second recording takes the place of the first
            memory.record(lambda: duplicate(device, memory, target, source))
            memory.copy_out(back, target)
            memory.synchronize()
            assert not (back == value).any()  # recorded alone, it has not run
            memory.copy_in(source, np.full(BYTES, value, np.uint8))
            memory.replay()
            memory.copy_out(back, target)
            memory.synchronize()
            np.testing.assert_array_equal(back, np.full(BYTES, value, np.uint8))
        memory.forget()
        memory.forget()


def test_a_recording_that_fails_leaves_the_stream_usable(memory: Memory) -> None:
    def fail() -> None:
        raise ValueError("on the way")

    with memory.current():
        with pytest.raises(ValueError, match="on the way"):
            memory.record(fail)
        address, back = memory.allocate(BYTES), np.zeros(BYTES, np.uint8)
        memory.copy_in(address, np.full(BYTES, 7, np.uint8))
        memory.copy_out(back, address)
        memory.synchronize()
    assert (back == 7).all()


def test_what_the_driver_refuses_is_one_line(memory: Memory) -> None:
    with memory.current(), pytest.raises(BackendError, match=r"^The NVIDIA driver refuses cuMemAlloc_v2: .*\. Check `nvidia-smi`"):
        memory.allocate(1 << 60)
