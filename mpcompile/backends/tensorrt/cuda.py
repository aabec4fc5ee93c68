"""What the runtime needs of CUDA: memory, copies and a stream. No torch: cuda-python alone, as on a Jetson."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from mpcompile.errors import BackendError


class DeviceMemoryError(BackendError):
    """The device has no memory left for a batch of this size."""


class Cuda:
    """The first CUDA device and one stream on it.

    Raises:
        BackendError: when cuda-python is missing, or no device answers.
    """

    def __init__(self) -> None:
        self._api = _import_runtime()
        (count,) = self._call(
            "cudaGetDeviceCount", fix="is the driver installed, and is the GPU visible to this process?"
        )
        if count == 0:
            raise BackendError("no NVIDIA GPU is visible to this process (cudaGetDeviceCount gives 0)")
        (self._stream,) = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        """Handle of the stream that everything is queued on."""
        return int(self._stream)

    def describe(self) -> str:
        """Name and compute capability of the device."""
        (properties,) = self._call("cudaGetDeviceProperties", 0)
        return f"{properties.name.decode()} {properties.major}.{properties.minor}"

    def allocate(self, num_bytes: int) -> int:
        """Address of new device memory.

        Raises:
            DeviceMemoryError: when there is too little.
        """
        (address,) = self._call("cudaMalloc", max(num_bytes, 1))
        return int(address)

    def allocate_host(self, num_bytes: int) -> np.ndarray:
        """Page-locked host memory, (num_bytes,) uint8, for as long as the process lives."""
        (address,) = self._call("cudaMallocHost", max(num_bytes, 1))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(num_bytes, 1)).from_address(int(address)))

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """Queues a copy to the device; the array must stay as it is until `synchronize`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Queues a copy to the host, which is there after `synchronize`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Waits for everything that was queued."""
        self._call("cudaStreamSynchronize", self._stream)

    def _call(self, name: str, *arguments: Any, fix: str = "") -> tuple[Any, ...]:
        status, *values = getattr(self._api, name)(*arguments)
        errors = self._api.cudaError_t
        if status == errors.cudaErrorMemoryAllocation:
            raise DeviceMemoryError(f"{name}: the GPU is out of memory; send smaller batches")
        if status != errors.cudaSuccess:
            _, text = self._api.cudaGetErrorString(status)
            raise BackendError(f"{name}: {text.decode() if text else status}{f'; {fix}' if fix else ''}")
        return tuple(values)


@functools.cache
def _import_runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # before 12.3
        except ImportError as error:
            raise BackendError("cuda-python is not installed; pip install 'mpcompile[tensorrt]'") from error
    return runtime
