"""Builds engines: from ONNX to a plan, each in a process of its own, since a builder can kill its process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpcompile.backends.tensorrt.build_log import EngineFacts, read_log
from mpcompile.backends.tensorrt.loader import TensorRt, load_tensorrt
from mpcompile.backends.tensorrt.profiles import Shapes
from mpcompile.errors import BackendError
from mpcompile.store.scratch import scratch_directory

RTX_TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""GPUs that TensorRT-RTX 1.7 builds for ahead of time."""
BUILD_LIMIT_S = 1800.0
"""Seconds after which a build counts as hung."""
_MODEL, _JOB, _PLAN, _CACHE, _FACTS = "model.onnx", "job.json", "engine.plan", "timing.cache", "facts.json"


@dataclass(frozen=True)
class BuilderOptions:
    """Options of building engines.

    Attributes:
        targets: of TensorRT-RTX, any of `RTX_TARGETS`; () for the GPU that is here.
        workspace_bytes: scratch memory that a layer may take; None for all there is.
        limit_s: seconds that a build may take.
    """

    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    limit_s: float = BUILD_LIMIT_S

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in RTX_TARGETS:
                raise BackendError(
                    f"target {target!r}: TensorRT-RTX builds for {', '.join(RTX_TARGETS)}; for another GPU, write a "
                    "bundle (mpcompile export) and build it there (mpcompile build)"
                )


@dataclass(frozen=True)
class BuiltEngine:
    """A plan, what its builder said, and what it learned about kernels.

    Attributes:
        plan: for TensorRT of this version and flavour on this GPU, or the targets.
        facts: see `EngineFacts`.
        timing_cache: makes the next build faster; b"" where there is none.
    """

    plan: bytes
    facts: EngineFacts
    timing_cache: bytes


def build_engine(
    model: bytes, profiles: Sequence[Shapes], options: BuilderOptions, timing_cache: bytes = b"", name: str = "segment"
) -> BuiltEngine:
    """Builds an engine in another process.

    Args:
        model: ONNX, strongly typed: the precision is in the graph.
        profiles: one or more; at run time the first that holds the sizes is taken.
        options: see `BuilderOptions`.
        timing_cache: of builds before, on the same GPU and version.
        name: of what is built, for people.

    Raises:
        BackendError: when the builder refuses the model, dies or hangs, with its last words.
    """
    with scratch_directory() as folder:
        (folder / _MODEL).write_bytes(model)
        (folder / _CACHE).write_bytes(timing_cache)
        (folder / _JOB).write_text(json.dumps({"profiles": list(profiles), "options": asdict(options)}))
        command = [sys.executable, "-m", __name__, str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise BackendError(
                f"{name}: TensorRT was still building after {options.limit_s:g} s and was stopped; narrow the profile "
                "(--max-batch-size, --max-length) or build on a machine that is not busy"
            ) from error
        if done.returncode != 0:
            words = "\n".join(done.stderr.strip().splitlines()[-5:]) or "it said nothing"
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise BackendError(f"{name}: TensorRT could not build it ({how}): {words}")
        facts = EngineFacts.from_json(json.loads((folder / _FACTS).read_text()))
        return BuiltEngine((folder / _PLAN).read_bytes(), facts, (folder / _CACHE).read_bytes())


def main(folder: Path) -> None:
    """The building process: reads a job from a folder and writes the engine into it."""
    job = json.loads((folder / _JOB).read_text())
    options = BuilderOptions(**{**job["options"], "targets": tuple(job["options"]["targets"])})
    found = load_tensorrt()
    build = _Build(found)
    started = time.perf_counter()
    plan, cache = build.run((folder / _MODEL).read_bytes(), job["profiles"], options, (folder / _CACHE).read_bytes())
    facts = read_log(build.messages, len(plan), time.perf_counter() - started)
    (folder / _PLAN).write_bytes(plan)
    (folder / _CACHE).write_bytes(cache)
    (folder / _FACTS).write_text(json.dumps(facts.to_json()))


class _Build:
    """One build, and what the builder says meanwhile."""

    def __init__(self, found: TensorRt) -> None:
        self._found, self._trt = found, found.module
        self.messages: list[str] = []
        self.errors: list[str] = []
        self._logger = self._make_logger()

    def run(
        self, model: bytes, profiles: Sequence[Shapes], options: BuilderOptions, timing_cache: bytes
    ) -> tuple[bytes, bytes]:
        trt = self._trt
        builder = trt.Builder(self._logger)
        # By name, since the number differs: 10.x has to be asked for strong typing, later versions always do it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)  # owns the weights until the build returns
        if not parser.parse(model):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise SystemExit("the ONNX model cannot be read: " + "; ".join(errors))
        config = self._configure(builder, options, timing_cache)
        names = {network.get_input(i).name for i in range(network.num_inputs)}
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for name, (low, best, high) in shapes.items():
                if name in names:  # what the graph does not read is no input of the network
                    profile.set_shape(name, low, best, high)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise SystemExit("; ".join(self.errors[:3]) or "the builder gave no plan and no reason")
        return bytes(plan), b"" if self._found.is_rtx else bytes(config.get_timing_cache().serialize())

    def _configure(self, builder: Any, options: BuilderOptions, timing_cache: bytes) -> Any:
        trt, config = self._trt, builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # Side streams wait for each other at every fork: without them there are fewer launches.
        config.max_aux_streams = 0
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.targets:
            if not self._found.is_rtx:
                raise SystemExit(f"targets {', '.join(options.targets)}: only TensorRT-RTX builds for another GPU")
            config.num_compute_capabilities = len(options.targets)
            for index, target in enumerate(options.targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
        if not self._found.is_rtx:  # which has none: it compiles kernels on the device
            config.set_timing_cache(config.create_timing_cache(timing_cache), False)
        return config

    def _make_logger(self) -> Any:
        base: Any = self._trt.ILogger
        build = self

        class Logger(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                build.messages.append(message)
                if severity <= base.Severity.ERROR:
                    build.errors.append(message)

        return Logger()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
