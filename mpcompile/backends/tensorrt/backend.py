"""The TensorRT backend: one engine per segment, on NVIDIA GPUs and Jetson. Imports torch only to build."""

from __future__ import annotations

from mpcompile.backends.tensorrt.builder import BuilderOptions, build_engine
from mpcompile.backends.tensorrt.cuda import Cuda
from mpcompile.backends.tensorrt.engine import TensorRtEngine
from mpcompile.backends.tensorrt.loader import load_tensorrt
from mpcompile.backends.tensorrt.profiles import list_shapes
from mpcompile.backends.tensorrt.session import Session
from mpcompile.backends.tensorrt.torch_builder import (
    build_with_torch_tensorrt,
    describe_torch_tensorrt,
    find_reason_against,
)
from mpcompile.contract.backend import BuildConfig, Engine, Samples
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError

PRECISIONS = ("f32", "bf16", "f16")


class TensorRtBackend:
    """Builds and runs engines on the GPU that is here. Written against the API; no engine of it was ever run.

    Args:
        builder: "onnx", or "torch_tensorrt".

    Raises:
        BackendError: when TensorRT, cuda-python or the builder is missing, or there is no GPU.
    """

    name = "tensorrt"
    needs_graph = False
    fusion = "TensorRT"
    device_kind = "gpu"

    def __init__(self, builder: str = "onnx") -> None:
        self._device = Cuda()  # first: without a GPU, there is no need to load the library
        self._session = Session(load_tensorrt(), self._device)
        self._builder = {} if builder == "onnx" else {"builder": describe_torch_tensorrt()}

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(BuilderOptions(), self._device) | self._builder

    def precisions(self) -> tuple[str, ...]:
        return PRECISIONS

    def find_quantiser(self) -> str:
        raise BackendError(f"precision 'int8': TensorRT engines are built in {', '.join(PRECISIONS)}")

    def count_threads(self) -> int:
        return 1

    def unsupported_reason(self, segment: Segment) -> str | None:
        if segment.precision not in PRECISIONS:
            return f"precision {segment.precision!r}: TensorRT engines are built in {', '.join(PRECISIONS)}"
        if segment.prunes_by_threshold:
            return "it prunes by threshold, so that sizes depend on data, which an engine would stop for; use 'top'"
        return find_reason_against(segment) if self._builder else None

    def build(
        self, segment: Segment, profile: OptimizationProfile, config: BuildConfig, samples: Samples | None = None
    ) -> bytes:
        if self._builder:
            return build_with_torch_tensorrt(segment, profile)
        from mpcompile.graph.onnx_segments import export_onnx

        shapes = list_shapes(segment, profile)
        return build_engine(export_onnx(segment), shapes, BuilderOptions(), name=f"segment {segment.index}").plan

    def load(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        return TensorRtEngine(plan, segment, self._session, config)

    def load_streams(self, plan: bytes, segment: Segment, config: BuildConfig) -> tuple[Engine, ...]:
        if config.num_streams > 1:
            raise BackendError(f"num_streams: {config.num_streams}; a GPU is shared by batching: 1 is expected")
        return (self.load(plan, segment, config),)


def fingerprint(options: BuilderOptions, device: Cuda | None = None) -> dict[str, str]:
    """The fingerprint of engines: flavour and version of TensorRT, and the GPU that is here or the targets.

    Raises:
        BackendError: when TensorRT is missing, or no target is given and there is no GPU.
    """
    found = load_tensorrt()
    where = {"targets": " ".join(options.targets)} if options.targets else {"gpu": (device or Cuda()).describe()}
    return {"tensorrt": f"{found.flavour} {found.version}", **where}
