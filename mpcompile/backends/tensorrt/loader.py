"""Finds TensorRT: the standard library (data centre, Jetson) or TensorRT-RTX, whichever is installed.

The bindings of 10.3 (JetPack 6) to 11.x and of TensorRT-RTX differ in few names: `NAMES` are those that this package
calls, and `bench/results/tensorrt-names.json` says that they are in each.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcompile.errors import BackendError

NAMES = (
    "Builder", "ExecutionContextAllocationStrategy", "ILogger", "Logger", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParser", "ProfilingVerbosity", "Runtime", "STRONGLY_TYPED",
    "USER_MANAGED", "WORKSPACE", "add_optimization_profile", "build_serialized_network", "create_builder_config",
    "create_execution_context", "create_network", "create_optimization_profile", "create_timing_cache",
    "deserialize_cuda_engine", "device_memory_size_v2", "execute_async_v3", "get_error", "get_input",
    "get_tensor_name", "get_tensor_profile_shape", "get_tensor_shape", "get_timing_cache", "max_aux_streams",
    "num_errors", "num_inputs", "num_io_tensors", "num_optimization_profiles", "parse", "profiling_verbosity",
    "set_device_memory", "set_input_shape", "set_memory_pool_limit", "set_optimization_profile_async", "set_shape",
    "set_tensor_address", "set_timing_cache", "update_device_memory_size_for_shapes",
)  # fmt: skip
"""What is called of the bindings, in every flavour."""
RTX_NAMES = (
    "ComputeCapability", "CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE", "create_runtime_config", "cuda_graph_strategy",
    "num_compute_capabilities", "set_compute_capability", "set_execution_context_allocation_strategy",
)  # fmt: skip
"""What is called of TensorRT-RTX alone."""

_RTX_LIBRARIES = ("libcudart.so.13*", "libtensorrt_rtx.so.1*", "libtensorrt_onnxparser_rtx.so.1*")
"""In the order in which they need each other."""
_BUNDLE = "onnxruntime_ep_nv_tensorrt_rtx"
"""The package that brings them, beside the bindings."""


@dataclass(frozen=True)
class TensorRt:
    """The bindings that were found.

    Attributes:
        module: the bindings.
        flavour: "tensorrt" or "tensorrt_rtx".
    """

    module: Any
    flavour: str

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        return self.flavour == "tensorrt_rtx"


@functools.cache
def load_tensorrt() -> TensorRt:
    """The flavour that is installed, the standard library first.

    Raises:
        BackendError: when there is none, with what was tried.
    """
    tried = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return TensorRt(importlib.import_module(name), name)
        except (ImportError, OSError, RuntimeError) as error:
            tried.append(f"{name}: {error}")
    try:
        return TensorRt(_load_rtx_bundle(), "tensorrt_rtx")
    except (ImportError, OSError) as error:
        tried.append(f"tensorrt_rtx_bindings: {error}")
    raise BackendError(
        f"TensorRT is not installed ({'; '.join(tried)}). On a Jetson it comes with JetPack; on a GPU pip install "
        "tensorrt; to build engines ahead of time for RTX GPUs on any machine pip install 'mpcompile[tensorrt-rtx]'"
    )


def _load_rtx_bundle() -> Any:
    """TensorRT-RTX from the registry: bindings in one wheel, libraries in another."""
    spec = importlib.util.find_spec(_BUNDLE)
    if spec is None or spec.origin is None:
        raise ImportError(f"No module named {_BUNDLE!r}")
    folder = Path(spec.origin).parent
    for pattern in _RTX_LIBRARIES:
        found = sorted(folder.glob(pattern))
        if not found:
            raise ImportError(f"{folder} holds no {pattern}")
        # Bindings find a library by its name once it is in the process: no LD_LIBRARY_PATH is needed.
        ctypes.CDLL(str(found[-1]), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_rtx_bindings")
