"""The report of an optimization: what it gained and what it cost, as text and as JSON. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.report.records import PyramidLayer, SampleText
from mpcompile.report.tables import render


def split_gain(original_s: float, unpruned_s: float, exits_s: float, chosen_s: float) -> dict[str, float]:
    """Factors that multiply to the measured speedup, by what brings them: engine, exits, pruning.

    Args:
        original_s: seconds of the original as passed in.
        unpruned_s: seconds of the unpruned model through the backend.
        exits_s: seconds of the chosen point with every token kept.
        chosen_s: seconds of the chosen point.
    """
    return {"engine": original_s / unpruned_s, "exits": unpruned_s / exits_s, "pruning": exits_s / chosen_s}


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
        notes: warnings, fallbacks and what was left out.
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
            "pyramid": [dataclasses.asdict(layer) for layer in self.pyramid],
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Report:
        """What `to_json` described, also of a version that drew no pictures."""
        read = {
            "operating_points": tuple(MeasuredPoint.from_json(point) for point in values["operating_points"]),
            "notes": tuple(values["notes"]),
            "pyramid": tuple(PyramidLayer(**layer) for layer in values.get("pyramid", ())),
            "samples": tuple(SampleText.from_json(sample) for sample in values.get("samples", ())),
        }
        return cls(**{**values, **read})

    def __str__(self) -> str:
        return render(
            self._summary(), _front_table(self.operating_points, self.chosen), *(f"note: {note}" for note in self.notes)
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
        bound = (
            f"at most {100 * self.certified_drop:.2f} points lost, {confidence}, by texts that nothing was chosen on"
        )
        point = self.operating_points[self.chosen]
        if self.max_drop is None or not point.certified:
            return f"{measured}\n{bound}"
        what = "agreement with the original" if point.accuracy is None else "accuracy"
        certificate = f"{what} falls by at most {100 * self.max_drop:g} points {confidence} ({self.held_out:,} texts)"
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
            " ".join(map(str, point.exit_layers)),
            _describe_ratios(point),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _describe_ratios(point: OperatingPoint) -> str:
    """Keep ratios of the layers that the point runs: `0.7*6`, or one by one where they differ."""
    ran = [r for layer, r in zip(point.prune_layers, point.keep_ratios, strict=True) if layer < point.exit_layers[-1]]
    if all(ratio == 1.0 for ratio in ran):
        return "all"
    return f"{ran[0]:g}*{len(ran)}" if len(set(ran)) == 1 else " ".join(f"{ratio:g}" for ratio in ran)
