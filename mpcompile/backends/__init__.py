"""Backends by name: a new one is a new file here and a line in `find_backend`."""

from __future__ import annotations

from mpcompile.contract.backend import Backend
from mpcompile.errors import BackendError

BACKENDS = ("openvino", "eager", "inductor", "tensorrt")
DEVICES = ("auto", "cpu", "cuda")
BUILDERS = ("auto", "onnx", "torch_tensorrt")
"""Builders of the tensorrt backend's engines."""
_ON_CPU, _ON_GPU = ("auto", "openvino", "eager"), ("tensorrt",)


def find_backend(name: str, device: str = "auto", builder: str = "auto") -> Backend:
    """The backend of a name; "auto" is OpenVINO, the fastest one on a CPU.

    Args:
        name: "auto" or one of `BACKENDS`.
        device: one of `DEVICES`. "auto" is where the backend runs; "inductor" takes the GPU where there is one.
        builder: one of `BUILDERS`, for "tensorrt"; "auto" is "onnx".

    Raises:
        BackendError: when there is no such backend, device or builder, or its library is missing.
    """
    if builder not in BUILDERS:
        raise BackendError(f"builder {builder!r}: expected {', '.join(map(repr, BUILDERS))}")
    if builder != "auto" and name != "tensorrt":
        raise BackendError(f"builder {builder!r}: backend {name!r} has none to choose; pass backend='tensorrt'")
    if device not in DEVICES:
        raise BackendError(f"device {device!r}: expected {', '.join(map(repr, DEVICES))}")
    if (device == "cuda" and name in _ON_CPU) or (device == "cpu" and name in _ON_GPU):
        where, others = ("the CPU", "'tensorrt' or 'inductor'") if name in _ON_CPU else ("a GPU", "'openvino'")
        raise BackendError(f"device {device!r}: backend {name!r} runs on {where}; pass backend={others}")
    if name in ("auto", "openvino"):
        from mpcompile.backends.openvino.backend import OpenVinoBackend

        return OpenVinoBackend()
    if name == "eager":
        from mpcompile.backends.torch.eager import EagerBackend

        return EagerBackend()
    if name == "inductor":
        from mpcompile.backends.torch.inductor import InductorBackend

        return InductorBackend(device)
    if name == "tensorrt":
        from mpcompile.backends.tensorrt.backend import TensorRtBackend

        return TensorRtBackend("onnx" if builder == "auto" else builder)
    raise BackendError(f"backend {name!r}: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")
