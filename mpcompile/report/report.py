"""The report of an optimization: what it gained and what it cost, as text and as JSON. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.report.records import PyramidLayer, SampleText
from mpcompile.report.tables import render

GAINS = {
    "engine": "the unpruned model as one compiled engine",
    "grouping": "batches are split by length, so that less is padded",
    "exits": "easy texts leave early",
    "pruning": "tokens are dropped between layers",
}
"""What brings speed, in the order in which `split_gain` counts it."""


def split_gain(point: OperatingPoint, num_layers: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Factors that multiply to the measured speedup, by what brings them: engine, grouping, exits, pruning.

    What does not apply is left out: grouping at batches of one, exits where all texts run to the last layer, pruning
    where every token is kept.

    Args:
        point: the chosen point.
        num_layers: of the encoder.
        seconds: of the original as passed in; the unpruned model through the backend, a call per batch; maybe grouped,
            the same with batches split by length; exits, the chosen point with every token kept; and chosen, the
            point.
    """
    after = {"engine": seconds["unpruned"]}
    if "grouped" in seconds:
        after["grouping"] = seconds["grouped"]
    if point.exit_layers != (num_layers,):
        after["exits"] = seconds["exits"]
    if point.prunes:
        after["pruning"] = seconds["chosen"]
    after[next(reversed(after))] = seconds["chosen"]
    befores = (seconds["original"], *after.values())
    return {name: before / after[name] for name, before in zip(after, befores, strict=False)}


@dataclass(frozen=True)
class Report:
    """Facts of one optimization; every time is measured unless it is called predicted.

    Attributes:
        target_speedup: what was asked.
        measured_speedup: time of the original as passed in over time of the chosen point.
        speedup_over_unpruned: time of the unpruned model through the same backend over time of the chosen point.
        flops_ratio: flops of the original over flops of the chosen point, counted on each text's own length.
        original_s, unpruned_s, measured_s: seconds per batch of the workload.
        gains: see `split_gain`.
        accuracy, original_accuracy: share of right answers, None without labels.
        agreement: share of texts answered as the original does, None without texts.
        certified_drop: upper bound on the loss at `confidence`, None without texts.
        confidence: probability that the bound holds.
        measured_on: texts that accuracy and agreement were measured on.
        chosen: index of the chosen point in `operating_points`.
        operating_points: the front.
        workload: batch size, number of texts and their lengths.
        machine: hardware and versions.
        notes: fallbacks and what was left out.
        warnings: what nobody should overlook: losses beyond doubt, and why the point is not what was asked for.
        max_drop: loss that was allowed, None when no limit was given.
        held_out: texts that the bound and the certificate come from.
        model: name, task, number of encoder layers and of outputs.
        pyramid: what runs in each encoder layer at the chosen point.
        samples: some texts, traced token by token; empty without texts.
        similarity: correlations of scores or cosines of vectors, see `similarity.measure_similarity`; empty of classes.
    """

    target_speedup: float
    measured_speedup: float
    speedup_over_unpruned: float
    flops_ratio: float
    original_s: float
    unpruned_s: float
    measured_s: float
    gains: dict[str, float]
    accuracy: float | None
    original_accuracy: float | None
    agreement: float | None
    certified_drop: float | None
    confidence: float
    measured_on: str
    chosen: int
    operating_points: tuple[MeasuredPoint, ...]
    workload: dict[str, Any]
    machine: dict[str, str]
    notes: tuple[str, ...] = field(default=())
    max_drop: float | None = None
    held_out: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    pyramid: tuple[PyramidLayer, ...] = ()
    samples: tuple[SampleText, ...] = ()
    similarity: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the model answers; where a report does not say, it is of a time that knew one kind alone."""
        return Task(self.model.get("task", "single_label"), self.model.get("num_labels", 2))

    def with_notes(self, *notes: str) -> Report:
        """The report with more notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **values,
            "operating_points": [point.to_json() for point in self.operating_points],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "pyramid": [dataclasses.asdict(layer) for layer in self.pyramid],
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Report:
        """What `to_json` described, also of a version that drew no pictures."""
        read = {
            "operating_points": tuple(MeasuredPoint.from_json(point) for point in values["operating_points"]),
            "notes": tuple(values["notes"]),
            "warnings": tuple(values.get("warnings", ())),
            "pyramid": tuple(PyramidLayer(**layer) for layer in values.get("pyramid", ())),
            "samples": tuple(SampleText.from_json(sample) for sample in values.get("samples", ())),
        }
        return cls(**{**values, **read})

    def __str__(self) -> str:
        return render(
            *(f"warning: {warning}" for warning in self.warnings),
            self._summary(),
            _front_table(self.operating_points, self.chosen),
            *(f"note: {note}" for note in self.notes),
        )

    def _summary(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        batch = f"batch of {self.workload['batch_size']}, {self.workload['mean_length']:.0f} tokens on average"
        table.add_row("measured speedup", f"{self.measured_speedup:.2f}x (asked: {self.target_speedup:g}x), {batch}")
        table.add_row(
            "time per batch",
            f"{self.measured_s * 1e3:.2f} ms; original {self.original_s * 1e3:.2f} ms, "
            f"unpruned through the same engine {self.unpruned_s * 1e3:.2f} ms",
        )
        table.add_row(
            "over unpruned", f"{self.speedup_over_unpruned:.2f}x on the clock, {self.flops_ratio:.2f}x in flops"
        )
        table.add_row("where it comes from", " * ".join(f"{name} {gain:.2f}x" for name, gain in self.gains.items()))
        table.add_row("accuracy", self._accuracy())
        return table

    def _accuracy(self) -> str:
        if self.agreement is None:
            return "unknown: no texts were given, so nothing was checked"
        parts = [f"{100 * self.agreement:.2f}% {self.task.describe_agreement()}"]
        if self.accuracy is not None and self.original_accuracy is not None:
            parts.insert(0, f"{100 * self.accuracy:.2f}%, original {100 * self.original_accuracy:.2f}%")
        measured = "\n".join([f"{'; '.join(parts)}; on {self.measured_on}", *self._similarity()])
        if self.certified_drop is None:
            return measured
        confidence = f"with {100 * self.confidence:g}% confidence"
        on = "on texts like those given, by some that nothing was chosen on"
        bound = f"at most {100 * self.certified_drop:.2f} points lost, {confidence}, {on}"
        point = self.operating_points[self.chosen]
        if self.max_drop is None or not point.certified:
            return f"{measured}\n{bound}"
        what = "agreement with the original" if point.accuracy is None else "accuracy"
        certificate = (
            f"{what} falls by at most {100 * self.max_drop:g} points {confidence}, on "
            f"texts like the {self.held_out:,} tested"
        )
        return f"{measured}\ncertified: {certificate}\n{bound}"

    def _similarity(self) -> list[str]:
        """A line per comparison, such as `with labels: pearson 0.912, spearman 0.899`."""
        return [
            f"{name.replace('_', ' ')}: {', '.join(f'{key} {value:.4f}' for key, value in values.items())}"
            for name, values in self.similarity.items()
            if values
        ]


def _front_table(points: tuple[MeasuredPoint, ...], chosen: int) -> Table:
    table = Table(title="operating points", title_justify="left")
    for name in ("", "speedup", "ms", "predicted", "flops", "accuracy", "agrees", "layers", "exits", "keep"):
        table.add_column(name, justify="right" if name not in ("", "exits", "keep") else "left", no_wrap=True)
    for i, row in sorted(enumerate(points), key=lambda item: item[1].speedup):
        point = row.point
        table.add_row(
            "->" if i == chosen else "",
            f"{row.speedup:.2f}x",
            f"{row.measured_s * 1e3:.2f}",
            f"{row.predicted_s * 1e3:.2f}",
            f"{row.flops_ratio:.1f}x",
            _percent(row.accuracy),
            _percent(row.agreement),
            f"{row.mean_exit_layer:.1f}",
            point.describe_exits(),
            _describe_ratios(point),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _describe_ratios(point: OperatingPoint) -> str:
    """Keep ratios of the layers that the point runs: `0.7*6`, or one by one where they differ."""
    if not point.prunes:
        return "all"
    ran = point.ran_ratios
    return f"{ran[0]:g}*{len(ran)}" if len(set(ran)) == 1 else " ".join(f"{ratio:g}" for ratio in ran)
