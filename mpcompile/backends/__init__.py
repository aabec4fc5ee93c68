"""Backends by name: a new one is a folder here and a line in `BACKENDS`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from mpcompile.contract.backend import Backend
from mpcompile.errors import BackendError


@dataclass(frozen=True)
class _Entry:
    """What is known of a backend before it is imported.

    Attributes:
        place: module and class.
        devices: devices that it runs on.
        takes: arguments of the class, of "device" and "builder".
        builders: values of "builder", the default first.
        packages: distributions that it needs beside our own.
    """

    place: str
    devices: tuple[str, ...]
    takes: tuple[str, ...] = ()
    builders: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


BACKENDS = {
    "openvino": _Entry("openvino.backend:OpenVinoBackend", ("cpu",), packages=("openvino",)),
    "eager": _Entry("torch.eager:EagerBackend", ("cpu",), packages=("torch",)),
    "inductor": _Entry("torch.inductor:InductorBackend", ("cpu", "cuda"), ("device",), packages=("torch",)),
    "tensorrt": _Entry(
        "tensorrt.backend:TensorRtBackend",
        ("cuda",),
        ("builder",),
        ("onnx", "torch_tensorrt"),
        ("tensorrt", "cuda-python"),
    ),
}
"""The first one that runs on a CPU is what "auto" means: the fastest there."""
DEVICES = ("auto", "cpu", "cuda")
PACKAGES = tuple(dict.fromkeys(package for entry in BACKENDS.values() for package in entry.packages))
"""Distributions that one backend or another needs."""
BUILDERS = ("auto", *(builder for entry in BACKENDS.values() for builder in entry.builders))


def find_backend(name: str, device: str = "auto", builder: str = "auto") -> Backend:
    """The backend of a name; "auto" is OpenVINO, the fastest one on a CPU.

    Args:
        name: "auto" or one of `BACKENDS`.
        device: one of `DEVICES`. "auto" is where the backend runs; one that runs on both takes the GPU where there is
            one.
        builder: one of `BUILDERS`, for backends that have several; "auto" is the first of theirs.

    Raises:
        BackendError: when there is no such backend, device or builder, or its library is missing.
    """
    if builder not in BUILDERS:
        raise BackendError(f"builder {builder!r}: expected {_list(BUILDERS)}")
    if device not in DEVICES:
        raise BackendError(f"device {device!r}: expected {_list(DEVICES)}")
    taken = next(iter(BACKENDS)) if name == "auto" else name
    if taken not in BACKENDS:
        raise BackendError(f"backend {name!r}: expected 'auto' or one of {_list(BACKENDS)}")
    entry = BACKENDS[taken]
    if builder != "auto" and builder not in entry.builders:
        others = [other for other, found in BACKENDS.items() if builder in found.builders]
        raise BackendError(f"builder {builder!r}: backend {name!r} has none to choose; pass backend={_or(others)}")
    if device not in ("auto", *entry.devices):
        where = "the CPU" if entry.devices == ("cpu",) else "a GPU"
        others = [other for other, found in BACKENDS.items() if device in found.devices]
        raise BackendError(f"device {device!r}: backend {name!r} runs on {where}; pass backend={_or(others)}")
    first = entry.builders[0] if entry.builders else "auto"
    return _make(taken, {"device": device, "builder": first if builder == "auto" else builder})


def _make(name: str, options: dict[str, str]) -> Backend:
    module, _, kind = BACKENDS[name].place.partition(":")
    try:
        found = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    except ModuleNotFoundError as error:
        raise BackendError(f"backend {name!r}: {error.name} is not installed; pip install mpcompile[build]") from error
    backend: Backend = found(**{option: options[option] for option in BACKENDS[name].takes})
    return backend


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _or(names: list[str]) -> str:
    return " or ".join(map(repr, names))
