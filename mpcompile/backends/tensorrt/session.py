"""The session that the engines of a chain share: TensorRT, the device, and scratch memory that they use in turns."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mpcompile.backends.tensorrt.loader import TensorRt


class Buffer(Protocol):
    """Device memory, freed when nothing refers to it any more."""

    address: int
    num_bytes: int


class Device(Protocol):
    """The operations that an engine needs of a device; `Cuda` implements them."""

    @property
    def stream(self) -> int: ...
    def allocate(self, num_bytes: int) -> Buffer: ...
    def allocate_host(self, num_bytes: int) -> np.ndarray: ...
    def copy_in(self, address: int, array: np.ndarray) -> None: ...
    def copy_out(self, array: np.ndarray, address: int) -> None: ...
    def capture(self, queue: Any) -> Any: ...
    def launch(self, graph: Any) -> None: ...
    def synchronize(self) -> None: ...


class Session:
    """Engines of one session run one after another on one stream, so that one scratch buffer serves all of them.

    Args:
        found: TensorRT's bindings.
        device: to run on.

    Attributes:
        scratch: the buffer; a graph that has its address must keep a reference to it.
    """

    def __init__(self, found: TensorRt, device: Device) -> None:
        self.found, self.device = found, device
        self.runtime = found.module.Runtime(found.module.Logger(found.module.Logger.WARNING))
        self.scratch = device.allocate(0)

    def reserve(self, num_bytes: int) -> None:
        """Makes sure that the scratch buffer has this size; one that is too small is replaced.

        Raises:
            DeviceMemoryError: when there is too little memory.
        """
        if self.scratch.num_bytes < num_bytes:
            self.scratch = self.device.allocate(num_bytes)

    def create_context(self, engine: Any) -> Any:
        """An execution context without scratch memory of its own; None where TensorRT has no memory left for it.

        TensorRT-RTX compiles kernels for the sizes it meets and captures graphs of its own when it has; a graph of
        ours would hold on to the kernels that it starts with.
        """
        trt = self.found.module
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.found.is_rtx:
            return engine.create_execution_context(managed)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)
