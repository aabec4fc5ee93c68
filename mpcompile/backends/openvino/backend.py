"""The OpenVINO backend: one compiled model per segment, on the CPU. Imports torch only to build."""

from __future__ import annotations

import dataclasses
import platform
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpcompile.backends.cores import count_allowed, count_cores
from mpcompile.contract.backend import BuildConfig, Engine, Samples
from mpcompile.contract.precision import fastest_float
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.store.scratch import scratch_directory

try:
    import openvino
except ImportError as error:
    raise BackendError("backend 'openvino': the package is not installed; pip install openvino") from error

_HEADER = struct.Struct("<Q")


class OpenVinoEngine:
    """A compiled segment with one inference request of its own."""

    def __init__(self, compiled: openvino.CompiledModel, segment: Segment) -> None:
        self._request = compiled.create_infer_request()
        self._input_names = segment.input_names
        self._output_names = segment.output_names

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        request = self._request
        # Shared memory: the hidden state of the segment before is read where it lies.
        for position, name in enumerate(self._input_names):
            request.set_input_tensor(position, openvino.Tensor(inputs[name], shared_memory=True))
        request.infer()
        return {name: request.get_output_tensor(i).data for i, name in enumerate(self._output_names)}


class OpenVinoBackend:
    """Converts torch.export programs directly; a plan is the OpenVINO IR, compiled where it is loaded."""

    name = "openvino"
    needs_graph = False
    fusion = "OpenVINO"
    device_kind = "cpu"

    def __init__(self) -> None:
        self._core = openvino.Core()

    def fingerprint(self) -> dict[str, str]:
        return {
            "openvino": openvino.get_version(),
            "machine": platform.machine(),
            "cpu": str(self._core.get_property("CPU", "FULL_DEVICE_NAME")),
            "capabilities": " ".join(sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
        }

    def precisions(self) -> tuple[str, ...]:
        native = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("f32", *(name for name in ("bf16", "int8") if name.upper() in native))

    def find_quantiser(self) -> str:
        from mpcompile.backends.openvino.quantise import find_quantiser

        return find_quantiser()

    def count_threads(self) -> int:
        # OpenVINO decides when it compiles, by cores, sockets and hyperthreads: the smallest model asks it.
        parameter = openvino.opset13.parameter([1], np.float32)
        model = openvino.Model([openvino.opset13.relu(parameter)], [parameter])
        compiled = self._core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        return min(int(compiled.get_property("INFERENCE_NUM_THREADS")), count_cores())

    def unsupported_reason(self, segment: Segment) -> str | None:
        if segment.precision not in self.precisions():
            return f"precision {segment.precision!r}: OpenVINO runs {', '.join(self.precisions())} on this CPU"
        return None

    def build(
        self, segment: Segment, profile: OptimizationProfile, config: BuildConfig, samples: Samples | None = None
    ) -> bytes:
        from mpcompile.backends.openvino.convert import convert, number_operations

        model = convert(segment)
        if segment.precision == "int8":
            from mpcompile.backends.openvino.quantise import quantise

            model = quantise(model, samples, f"segment {segment.index}")
            number_operations(model)
        with scratch_directory() as folder:
            path = folder / "segment.xml"
            try:
                openvino.save_model(model, path, compress_to_fp16=False)
            except RuntimeError as error:
                raise BackendError(
                    f"segment {segment.index}: OpenVINO could not write its engine to {folder}: {error}; make room "
                    "there, or set TMPDIR to a folder that has it"
                ) from error
            xml = path.read_bytes()
            return _HEADER.pack(len(xml)) + xml + path.with_suffix(".bin").read_bytes()

    def load(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        return self.load_streams(plan, segment, dataclasses.replace(config, num_streams=1))[0]

    def load_streams(self, plan: bytes, segment: Segment, config: BuildConfig) -> tuple[Engine, ...]:
        (length,) = _HEADER.unpack_from(plan.ljust(_HEADER.size, b"\0"))
        start = _HEADER.size + length
        is_int8 = segment.precision == "int8"
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # What is quantised says so in the plan; the hint is for the rest of it.
            "INFERENCE_PRECISION_HINT": fastest_float(self.precisions()) if is_int8 else segment.precision,
        }
        if config.num_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = config.num_threads
        elif count_cores() < count_allowed():  # it does not know the quota of a container
            settings["INFERENCE_NUM_THREADS"] = self.count_threads()
        if config.num_streams > 1:
            # Of the segments of a chain each is a model of its own, so pinned streams of two would share a core.
            settings |= {"NUM_STREAMS": config.num_streams, "ENABLE_CPU_PINNING": False}
        try:
            model = self._core.read_model(plan[_HEADER.size : start], plan[start:])
            compiled = self._core.compile_model(model, "CPU", settings)
            return tuple(OpenVinoEngine(compiled, segment) for _ in range(config.num_streams))
        except RuntimeError as error:
            raise BackendError(f"segment {segment.index}: OpenVINO could not load its engine: {error}") from error
