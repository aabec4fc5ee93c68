"""Backends by name: a new one is a new file here and a line in `find_backend`."""

from __future__ import annotations

from mpcompile.errors import BackendError
from mpcompile.segment import Backend

BACKENDS = ("openvino", "eager", "tensorrt")


def find_backend(name: str, device: str = "auto") -> Backend:
    """The backend of a name; "auto" is the fastest one for the device.

    Args:
        name: "auto" or one of `BACKENDS`.
        device: "auto" or "cpu".

    Raises:
        BackendError: when there is no such backend or device, or its library is missing.
    """
    if device not in ("auto", "cpu"):
        raise BackendError(f"device {device!r}: this version runs on 'cpu' ('auto' picks it)")
    if name in ("auto", "openvino"):
        from mpcompile.backends.openvino import OpenVinoBackend

        return OpenVinoBackend()
    if name == "eager":
        from mpcompile.backends.eager import EagerBackend

        return EagerBackend()
    if name == "tensorrt":
        from mpcompile.backends.tensorrt import TensorRtBackend

        return TensorRtBackend()
    raise BackendError(f"backend {name!r}: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")
