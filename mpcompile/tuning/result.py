"""The result of tuning, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcompile.tuning.study import Counts
from mpcompile.tuning.variant import Variant


@dataclass(frozen=True)
class TuneResult:
    """Outcome of `tune`.

    Attributes:
        directory: the artifact written.
        start: the variant that tuning started from.
        variant: the one that was written; the start where nothing beat it.
        start_s, tuned_s: median seconds per batch, measured in the same rounds.
        original_s: median seconds per batch of the original through torch, on the same batches.
        measured_s: median seconds per batch of what was written, in the same rounds as `original_s`.
        wins, rounds: rounds of the last comparison that the variant won.
        counts: what became of the candidates.
        failures: candidates that failed, and why.
        workload: see `Report.workload`.
        storage, study: where the study is.
    """

    directory: Path
    start: Variant
    variant: Variant
    start_s: float
    tuned_s: float
    original_s: float
    measured_s: float
    wins: int
    rounds: int
    counts: Counts
    failures: tuple[tuple[Variant, str], ...]
    workload: dict[str, Any]
    storage: str
    study: str

    @property
    def is_faster(self) -> bool:
        """Whether a variant beat the start."""
        return self.variant != self.start

    @property
    def speedup(self) -> float:
        """Time of the start over time of the result."""
        return self.start_s / self.tuned_s

    @property
    def speedup_over_original(self) -> float:
        """Time of the original over time of the result."""
        return self.original_s / self.measured_s

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "directory": str(self.directory),
            "start_s": self.start_s,
            "tuned_s": self.tuned_s,
            "speedup": self.speedup,
            "original_s": self.original_s,
            "speedup_over_original": self.speedup_over_original,
            "is_faster": self.is_faster,
            "start": self.start.to_json(),
            "variant": self.variant.to_json(),
            "rounds_won": self.wins,
            "rounds": self.rounds,
            "trials": {**vars(self.counts), "total": self.counts.total},
            "failures": [{"variant": variant.to_json(), "reason": reason} for variant, reason in self.failures],
            "workload": self.workload,
            "storage": self.storage,
            "study": self.study,
        }

    def describe(self) -> str:
        """Lines for people."""
        lines = [
            f"start {self.start_s * 1e3:.2f} ms, tuned {self.tuned_s * 1e3:.2f} ms a batch: {self.speedup:.2f}x; "
            f"{self.speedup_over_original:.2f}x over the original ({self.original_s * 1e3:.2f} ms)",
            f"{self.counts.total} candidates: {self.counts.measured} measured, {self.counts.stopped} stopped early, "
            f"{self.counts.same} the same as another, {self.counts.failed} failed; {self.counts.resumed} resumed",
            *(f"failed: {variant.describe()}: {reason}" for variant, reason in self.failures),
        ]
        if self.is_faster:
            lines.append(f"was: {self.start.describe()}")
            lines.append(f"now: {self.variant.describe()}, faster in {self.wins} of {self.rounds} rounds")
        else:
            lines.append("no candidate beat the start by more than the noise: the artifact is unchanged")
        return "\n".join(lines)
