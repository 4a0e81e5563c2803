"""The few calls of the CUDA driver that an engine needs, through ctypes, so that nothing has to be installed beside
TensorRT.

JetPack brings the driver; torch with CUDA or cuda-python would be one more thing to match with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import MissingPackage, OccError

DRIVER = "libcuda.so.1"
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76  # CUdevice_attribute
PROBE_TIMEOUT_S = 60.0


class Gpu(NamedTuple):
    name: str
    compute_capability: str  # such as 8.7


class CudaError(OccError, RuntimeError):
    """A call of the CUDA driver failed."""


def probe() -> Gpu:
    """Return the first GPU, asked for in a process of its own, because TensorRT crashes without a driver and a broken
    driver may crash too.

    Raises:
        MissingPackage: no driver, or no GPU; says which.
    """
    command = [sys.executable, "-c", "from occ_core.inference.backends.cuda import main; main()"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise MissingPackage(f"no GPU: the CUDA driver did not answer within {PROBE_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise MissingPackage(f"no GPU: asking the CUDA driver ended with code {done.returncode} {done.stderr[-200:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise MissingPackage(f"no GPU: {answer['error']}")
    return Gpu(**answer)


def main() -> None:
    """Print one line of json; `probe` runs this."""
    try:
        print(json.dumps(_first_gpu()._asdict()))
    except (OSError, CudaError) as error:
        print(json.dumps({"error": str(error)}))


def _first_gpu() -> Gpu:
    driver = ctypes.CDLL(DRIVER)
    _checked(driver, "cuInit", 0)
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    _checked(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise CudaError("the CUDA driver is there, but no device")
    _checked(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _checked(driver, "cuDeviceGetName", name, len(name), device)
    version = []
    for attribute in (COMPUTE_MAJOR, COMPUTE_MINOR):
        value = ctypes.c_int()
        _checked(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        version.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(version))


def _checked(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    if code := getattr(driver, function)(*arguments):
        raise CudaError(f"CUDA driver: {function} gives error {code}")


class Cuda:
    """The first GPU's memory and one stream. Its buffers are freed together with it. Any single thread at a time may
    use it."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(DRIVER)
        self._device, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._buffers: list[int] = []
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)  # TensorRT uses the same
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)  # does not wait for the default stream

    @property
    def stream(self) -> int:
        return self._stream.value or 0

    def enter(self) -> None:
        """Make the calling thread work on this GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Return the address of `size` new bytes on the GPU."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._buffers.append(address.value)
        return address.value

    def free(self) -> None:
        """Free every buffer."""
        while self._buffers:
            self._call("cuMemFree_v2", ctypes.c_uint64(self._buffers.pop()))

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the GPU, and wait until it is there."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self._stream)
        self.wait()

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill a contiguous array from the GPU, and wait until it is there."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self._stream)
        self.wait()

    def wait(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, CudaError):  # it may never have come up, or be gone at the very end
            self.enter()
            self.free()

    def _call(self, function: str, *arguments: Any) -> None:
        _checked(self._driver, function, *arguments)
