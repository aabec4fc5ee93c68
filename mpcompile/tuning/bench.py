"""The measuring process: builds the start and the candidates, checks them against each other and times them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mpcompile.backends.cores import count_cores
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.version import VERSION
from mpcompile.cost.timing import measure_interleaved
from mpcompile.runtime.runtime import Runner
from mpcompile.tuning.builder import BuiltVariant, VariantBuilder, strip_graphs
from mpcompile.tuning.retiming import Times, retime
from mpcompile.tuning.space import Machine
from mpcompile.tuning.variant import Variant

Batches = tuple[dict[str, np.ndarray], ...]


@dataclass(frozen=True)
class Job:
    """The job of a measuring process, given when it starts; picklable.

    Attributes:
        directory: the artifact.
        start: the variant that it is.
        batches: workload: input_ids, attention_mask and token_type_ids of each batch, (B, S).
        profile: shapes of the workload.
        cache_dir: where plans are kept; None is the user's cache directory.
    """

    directory: Path
    start: Variant
    batches: Batches
    profile: OptimizationProfile
    cache_dir: Path | None


@dataclass(frozen=True)
class Answers:
    """How a candidate's answers compare with the start's at the candidate's operating point.

    Attributes:
        checked: examples in the workload.
        differing: those that are answered otherwise, see `Task.differs`.
    """

    checked: int
    differing: int


@dataclass(frozen=True)
class _Loaded:
    """Engines at an operating point; their plans are gone, as they are large.

    Attributes:
        index: of the operating point on the front.
        point: the operating point, for the engines' cuts and precision.
        runner: the engines.
    """

    index: int
    point: OperatingPoint
    runner: Runner

    def classify(self, batches: Batches, point: OperatingPoint) -> np.ndarray:
        """Logits of all examples at a point, (N, C)."""
        logits: np.ndarray = np.concatenate([self.runner.run(batch, point).logits for batch in batches])
        return logits

    def find_exits(self, batches: Batches) -> Callable[[OperatingPoint], list[np.ndarray]]:
        """Gives the layers that each example runs at a point, (B,) per batch."""
        return lambda point: [self.runner.run(batch, point).exit_layer for batch in batches]


class Bench:
    """Times candidates against the start, in one process.

    Args:
        job: what to measure.
        clock: seconds.
    """

    def __init__(self, job: Job, clock: Callable[[], float] = time.perf_counter) -> None:
        self.job = job
        self.builder = VariantBuilder(job.directory, job.profile, job.cache_dir)
        self._clock = clock
        start = self.builder.build(job.start)
        self._start_key, self._start = start.key, self._load(start)
        self._candidates: list[_Loaded] = []
        self._answers: dict[int, np.ndarray] = {}
        self._rounds = 0

    def describe_machine(self) -> Machine:
        """The machine that it runs on."""
        backend = self.builder.backend
        return Machine(
            backend=backend.name,
            fingerprint=backend.fingerprint(),
            precisions=backend.precisions(),
            num_threads=backend.count_threads(),
            num_cores=count_cores(),
            version=VERSION,
        )

    def identify_start(self) -> str:
        """The key of the start, see `BuiltVariant`."""
        return self._start_key

    def predict(self, variants: Sequence[Variant]) -> list[float | None]:
        """Time of each variant over that of the start, see `Prior`."""
        from mpcompile.tuning.prior import Prior

        lengths = [batch["attention_mask"].sum(1) for batch in self.job.batches]
        return Prior(self.builder, lengths, self._start.find_exits(self.job.batches)).predict(self.job.start, variants)

    def build(self, variants: Sequence[Variant]) -> list[str]:
        """Builds candidates, in place of those before; returns their keys. Slow.

        Raises:
            BackendError: when the backend cannot build one.
        """
        self._candidates, self._rounds = [], 0
        keys = []
        for variant in variants:
            built = self.builder.build(variant)
            keys.append(built.key)
            self._candidates.append(self._load(built))
        return keys

    def warm_up(self) -> list[Answers]:
        """Runs the workload once through the start and each candidate, and compares the answers."""
        self._answer(self._start.index)
        return [self._compare(candidate) for candidate in self._candidates]

    def measure_round(self) -> list[float]:
        """Mean seconds per batch of the start and of each candidate, one after another on the same batches."""
        systems = [self._start, *self._candidates]
        shift = self._rounds % len(systems)  # no system always comes first
        order = [*range(shift, len(systems)), *range(shift)]
        self._rounds += 1
        calls = {str(i): self._calls(systems[i]) for i in order}
        timings = measure_interleaved(calls, runs=1, warm_up=0, clock=self._clock)
        return [timings[str(i)].median_s for i in range(len(systems))]

    def package(self, variant: Variant) -> BuiltVariant:
        """A variant without graphs, to be written into an artifact."""
        built = self.builder.build(variant)
        return dataclasses.replace(built, segments=strip_graphs(built.segments))

    def retime(self, variant: Variant) -> Times:
        """Times a variant's front against the original, see `retiming`. Slow."""
        self._candidates = []
        return retime(self.builder, self.job.batches, variant)

    def _load(self, built: BuiltVariant) -> _Loaded:
        return _Loaded(built.variant.point, built.point, self.builder.load(built))

    def _calls(self, system: _Loaded) -> list[Callable[[], object]]:
        return [partial(system.runner.run, batch, system.point) for batch in self.job.batches]

    def _compare(self, candidate: _Loaded) -> Answers:
        expected = self._answer(candidate.index)
        task = self.builder.manifest.signature.task
        given = task.answers(candidate.classify(self.job.batches, candidate.point))
        return Answers(len(expected), int(task.differs(given, expected).sum()))

    def _answer(self, index: int) -> np.ndarray:
        """What the start's engines answer at a point of the front, see `Task.answers`."""
        if index not in self._answers:
            point = self.builder.report.operating_points[index].point
            logits = self._start.classify(self.job.batches, point)
            self._answers[index] = self.builder.manifest.signature.task.answers(logits)
        return self._answers[index]
