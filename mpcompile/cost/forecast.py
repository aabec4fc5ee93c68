"""A forecast: what would meet a target on a device, and why. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import SettingError
from mpcompile.report.tables import render

FORMAT, FORMAT_VERSION = "mpcompile-plan", 1
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": int | float}


@dataclass(frozen=True)
class Memory:
    """The memory that an engine chain occupies on a device, in bytes.

    Attributes:
        weights: all parameters in the precision of the plan.
        activations: the largest kernel's operands and results at the largest batch and length.
        context: of the driver and the libraries, an estimate.
        device: what the device has.
    """

    weights: float
    activations: float
    context: float
    device: float

    @property
    def total(self) -> float:
        """Bytes that are needed."""
        return self.weights + self.activations + self.context


@dataclass(frozen=True)
class SegmentTime:
    """One engine of a chain, on average over batches.

    Attributes:
        first, exit_layer: layers that it runs.
        survival: share of the examples that enter it.
        tokens: tokens of an example that enters, on average.
        tokens_left: tokens of an example when it leaves the segment, on average.
        predicted_s: seconds per batch, times the probability that any example enters.
    """

    first: int
    exit_layer: int
    survival: float
    tokens: float
    tokens_left: float
    predicted_s: float


@dataclass(frozen=True)
class Forecast:
    """A forecast of what a model needs to reach a target on a device. All times are predicted, per batch.

    Attributes:
        model: name of the model.
        device: name of the device.
        precision: precision of the engines.
        batch_size: examples of a batch.
        mean_length: tokens of an example, on average.
        target_speedup: speedup that was asked for, over the unpruned model through the same engines.
        unpruned_s: time of the unpruned model as one engine.
        floor_s: time of that engine when all tokens but [CLS] are deleted before it: what pruning cannot remove.
        reachable_speedup: speedup of the fastest point that the planner knows.
        speedup: speedup of `point`.
        point: keep ratios and exits that meet the target; thresholds are chosen when heads are trained.
        exit_share: share of the examples that must leave at each off-ramp that they meet.
        segments: time of each engine.
        memory: memory that the engines need, and that the device has.
        fixed_share: share of the unpruned time that does not depend on the number of tokens.
        notes: what to know about the prediction.
    """

    model: str
    device: str
    precision: str
    batch_size: int
    mean_length: float
    target_speedup: float
    unpruned_s: float
    floor_s: float
    reachable_speedup: float
    speedup: float
    point: OperatingPoint
    exit_share: float
    segments: tuple[SegmentTime, ...]
    memory: Memory
    fixed_share: float
    notes: tuple[str, ...] = ()

    @property
    def predicted_s(self) -> float:
        """Seconds of a batch."""
        return self.unpruned_s / self.speedup

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **values,
            "predicted_s": self.predicted_s,
            "point": self.point.to_json(),
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "notes": list(self.notes),
        }

    @classmethod
    def load(cls, path: str | Path) -> Forecast:
        """Reads a plan that `mpcompile plan --out` wrote.

        Raises:
            SettingError: when the file cannot be read or is not a plan.
        """
        try:
            values = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SettingError(f"plan {path}: cannot be read: {error}; make one with mpcompile plan --out") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise SettingError(f"plan {path}: not a plan of mpcompile; make one with mpcompile plan --out")
        if values.get("format_version") != FORMAT_VERSION:
            raise SettingError(
                f"plan {path}: format {values.get('format_version')}, this version reads {FORMAT_VERSION}; plan again"
            )
        try:
            return cls._from_json(values)
        except (KeyError, TypeError, AttributeError, SettingError) as error:
            raise SettingError(f"plan {path}: lacks what its format needs ({error!r}); plan again") from error

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> Forecast:
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        memory = Memory(**{field.name: values["memory"][field.name] for field in dataclasses.fields(Memory)})
        segments = tuple(SegmentTime(**segment) for segment in values["segments"])
        point = OperatingPoint.from_json(values["point"])
        if not all(isinstance(layer, int) for layer in (*point.exit_layers, *point.prune_layers)):
            raise TypeError(f"point: layers {point.exit_layers} and {point.prune_layers}")
        fields |= {"point": point, "segments": segments, "memory": memory, "notes": (*values["notes"],)}
        plan = cls(**fields)
        parts: tuple[Forecast | Memory | SegmentTime, ...] = (plan, memory, *segments)
        for part in parts:
            _check_kinds(part)
        return plan

    def __str__(self) -> str:
        return render(self._summary(), self._table(), *(f"note: {note}" for note in self.notes))

    def _summary(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        batch = f"batch of {self.batch_size}, {self.mean_length:.0f} tokens on average, {self.precision}"
        table.add_row("device", f"{self.device}, {batch}")
        table.add_row("unpruned", f"{_ms(self.unpruned_s)} in one engine")
        table.add_row(
            "floor",
            f"{_ms(self.floor_s)} with all tokens but [CLS] deleted: pruning alone ends at "
            f"{self.unpruned_s / self.floor_s:.1f}x",
        )
        reason = f"{100 * self.fixed_share:.0f}% of the unpruned time does not depend on the number of tokens"
        reachable = math.floor(10 * self.reachable_speedup) / 10  # rounded up it would be refused
        table.add_row("reachable", f"{reachable:.1f}x with exits; {reason}")
        table.add_row("plan", f"{_ms(self.predicted_s)}, {self.speedup:.1f}x (asked: {self.target_speedup:g}x)")
        table.add_row("keep ratios", self._describe_keep())
        table.add_row("exits", self._describe_exits())
        needed, has = self.memory.total / 1e6, self.memory.device / 1e6
        table.add_row(
            "memory",
            f"{needed:.0f} MB of {has:.0f} MB: weights {self.memory.weights / 1e6:.0f}, "
            f"activations {self.memory.activations / 1e6:.0f}, driver and libraries {self.memory.context / 1e6:.0f}",
        )
        return table

    def _describe_keep(self) -> str:
        pairs = zip(self.point.prune_layers, self.point.keep_ratios, strict=True)
        pruned = [f"layer {layer}: {ratio:g}" for layer, ratio in pairs if ratio < 1.0]
        return ", ".join(pruned) if pruned else "all tokens are kept"

    def _describe_exits(self) -> str:
        if len(self.point.exit_layers) == 1:
            return "none"
        early = ", ".join(map(str, self.point.exit_layers[:-1]))
        return f"after layers {early}: {100 * self.exit_share:.0f}% of the examples that come by must leave at each"

    def _table(self) -> Table:
        table = Table(title="engines", title_justify="left")
        for name in ("layers", "examples", "tokens in", "tokens out", "predicted", "share"):
            table.add_column(name, justify="right")
        for segment in self.segments:
            table.add_row(
                f"{segment.first}-{segment.exit_layer}",
                f"{100 * segment.survival:.0f}%",
                f"{segment.tokens:.0f}",
                f"{segment.tokens_left:.0f}",
                _ms(segment.predicted_s),
                f"{100 * segment.predicted_s / self.predicted_s:.0f}%",
            )
        return table


def _check_kinds(part: Forecast | Memory | SegmentTime) -> None:
    """Raises TypeError where a text or a number is something else."""
    for field in dataclasses.fields(part):
        value, kind = getattr(part, field.name), _KINDS.get(str(field.type), object)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{field.name}: {value!r}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
