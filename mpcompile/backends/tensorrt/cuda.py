"""The part of CUDA that engines need: memory, copies, a stream and graphs. Uses cuda-python alone, no torch."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from mpcompile.errors import BackendError


class DeviceMemoryError(BackendError):
    """The device has no memory left."""


class DeviceBuffer:
    """Device memory, freed when nothing refers to it any more.

    Attributes:
        address: where it starts, aligned to 256 bytes.
        num_bytes: its size.
    """

    def __init__(self, address: int, num_bytes: int, free: Callable[[int], object]) -> None:
        self.address, self.num_bytes = address, num_bytes
        weakref.finalize(self, free, address).atexit = False  # the driver may be gone before


class CudaGraph:
    """Work that was captured, to be launched as one."""

    def __init__(self, handle: Any, destroy: Callable[[Any], object]) -> None:
        self.handle = handle
        weakref.finalize(self, destroy, handle).atexit = False


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

    def allocate(self, num_bytes: int) -> DeviceBuffer:
        """New device memory.

        Raises:
            DeviceMemoryError: when there is too little.
        """
        (address,) = self._call("cudaMalloc", max(num_bytes, 1))
        return DeviceBuffer(int(address), num_bytes, self._api.cudaFree)

    def allocate_host(self, num_bytes: int) -> np.ndarray:
        """Page-locked host memory, (num_bytes,) uint8, given back with the array and its views.

        Raises:
            DeviceMemoryError: when there is too little.
        """
        (address,) = self._call("cudaMallocHost", max(num_bytes, 1))
        memory = (ctypes.c_uint8 * max(num_bytes, 1)).from_address(int(address))
        weakref.finalize(memory, self._api.cudaFreeHost, int(address)).atexit = False
        return np.ctypeslib.as_array(memory)

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """Queues a copy to the device; the array must stay as it is until `synchronize`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Queues a copy to the host, which is there after `synchronize`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def capture(self, queue: Callable[[], object]) -> CudaGraph:
        """What `queue` queues, as a graph; nothing of it runs yet.

        Raises:
            BackendError: when something in it cannot be captured.
        """
        # Thread-local: what other threads of the process do with CUDA meanwhile does no harm.
        self._call(
            "cudaStreamBeginCapture", self._stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            queue()
        except BaseException:
            self._api.cudaStreamEndCapture(self._stream)
            raise
        (graph,) = self._call("cudaStreamEndCapture", self._stream)
        try:
            (handle,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._api.cudaGraphDestroy(graph)
        return CudaGraph(handle, self._api.cudaGraphExecDestroy)

    def launch(self, graph: CudaGraph) -> None:
        """Queues a graph."""
        self._call("cudaGraphLaunch", graph.handle, self._stream)

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
