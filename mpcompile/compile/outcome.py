"""The outcome of a run: settles on a point and writes the report of it."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from mpcompile.compile.certify.check import Checked
from mpcompile.compile.chains import Built, Front
from mpcompile.compile.job import Job, Model
from mpcompile.compile.measure.front import Baseline, measure_chosen
from mpcompile.compile.measure.samples import trace_samples
from mpcompile.compile.measure.workload import Traffic
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import Texts
from mpcompile.contract.backend import Target
from mpcompile.contract.front import Choice, MeasuredPoint, choose_point
from mpcompile.cost.timing import Timing
from mpcompile.progress import StageProgress
from mpcompile.report.pyramid import count_pyramid
from mpcompile.report.records import SampleText
from mpcompile.report.report import Report, split_gain
from mpcompile.runtime.cores import count_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The engines that are returned, and what was measured of them.

    Attributes:
        built: the chain of engines.
        baseline: the systems that the engines were timed against.
        front: measured points.
        choice: the point that is returned.
        timings: timings of the original, the unpruned engine, the exits alone and the point.
        notes: notes for the report on how the chain was chosen.
    """

    built: Built
    baseline: Baseline
    front: Front
    choice: Choice
    timings: Mapping[str, Timing]
    notes: tuple[str, ...] = ()

    @property
    def point(self) -> MeasuredPoint:
        """The point that is returned."""
        return self.front[self.choice.index]


def settle(progress: StageProgress, built: Built, baseline: Baseline, front: Front, settings: Settings) -> Outcome:
    """Picks a point and times it afresh; a point that misses the target then gives way to the next faster one."""
    while True:
        choice = choose_point(front, settings.target_speedup, settings.max_drop)
        timings = measure_chosen(progress, baseline, built.runtime, front[choice.index].point)
        speedup = timings["original"].median_s / timings["chosen"].median_s
        row = dataclasses.replace(front[choice.index], measured_s=timings["chosen"].median_s, speedup=speedup)
        front = (*front[: choice.index], row, *front[choice.index + 1 :])
        if choice.warning or speedup >= settings.target_speedup:
            return Outcome(built, baseline, front, choice, timings)


def write_report(
    job: Job, model: Model, outcome: Outcome, checked: Checked, traffic: Traffic, parts: Texts | None
) -> Report:
    """The report of a run.

    Args:
        job: settings and progress.
        model: the model that is deployed.
        outcome: engines and times.
        checked: what the point costs on texts that nothing was chosen on.
        traffic: what was timed.
        parts: the user's texts, None without any.
    """
    seconds = {name: timing.median_s for name, timing in outcome.timings.items()}
    lengths = np.array([traffic.length]) if parts is None else parts.choosing.lengths
    settings, point = job.settings, outcome.point
    exit_layer = next(c.exit_layer for c in outcome.built.chosen.candidates if c.point == point.point)
    return Report(
        target_speedup=settings.target_speedup,
        measured_speedup=seconds["original"] / seconds["chosen"],
        speedup_over_unpruned=seconds["unpruned"] / seconds["chosen"],
        flops_ratio=point.flops_ratio,
        original_s=seconds["original"],
        unpruned_s=seconds["unpruned"],
        measured_s=seconds["chosen"],
        gains=split_gain(*(seconds[name] for name in ("original", "unpruned", "exits", "chosen"))),
        accuracy=checked.accuracy,
        original_accuracy=checked.original_accuracy,
        agreement=checked.agreement,
        certified_drop=checked.certified_drop,
        confidence=settings.confidence,
        measured_on=checked.measured_on,
        chosen=outcome.choice.index,
        operating_points=outcome.front,
        workload={
            "batch_size": settings.batch_size,
            "num_batches": len(outcome.baseline.workload.batches),
            "mean_length": float(lengths.mean()),
            "max_length": int(lengths.max()),
            "original_threads": outcome.baseline.num_threads,
        },
        machine=describe_machine(outcome.built.target),
        notes=_list_notes(settings, model, outcome, parts),
        similarity=checked.similarity,
        max_drop=settings.max_drop,
        held_out=0 if parts is None else len(parts.certifying.encoded),
        model=_describe_model(job, model),
        pyramid=count_pyramid(lengths, exit_layer, point.point, model.num_layers),
        samples=_trace(job, model, outcome, parts),
    )


def _list_notes(settings: Settings, model: Model, outcome: Outcome, parts: Texts | None) -> tuple[str, ...]:
    notes = []
    if outcome.choice.warning:
        logger.warning(outcome.choice.warning)
        notes.append(outcome.choice.warning)
    if parts is None:
        notes.append("no texts were given: no exits were trained, and what pruning costs in accuracy is unknown")
    elif parts.num_given > settings.max_texts:
        notes.append(f"{settings.max_texts} of {parts.num_given} texts were drawn (max_texts)")
    if not model.task.has_exits:
        notes.append(model.task.explain_no_exits())
    return (*notes, *_busy_notes(), *outcome.notes)


def _describe_model(job: Job, model: Model) -> dict[str, str | int]:
    name = job.original.name
    path = Path(name).expanduser()
    return {
        "name": path.resolve().name if path.is_dir() else name,
        "num_layers": model.num_layers,
        "num_labels": model.captured.num_labels,
        "task": model.task.kind,
    }


def _trace(job: Job, model: Model, outcome: Outcome, parts: Texts | None) -> tuple[SampleText, ...]:
    """Some texts for report.html, traced token by token; none where they are confidential."""
    if parts is None or not job.settings.show_texts:
        return ()
    with job.progress.stage("trace sample texts"):
        return trace_samples(outcome.built.runtime, outcome.point.point, parts.certifying, model.captured.id2label)


def describe_machine(target: Target) -> dict[str, str]:
    """Hardware and versions that the numbers belong to."""
    return {
        "backend": target.backend.name,
        "precision": target.precision,
        **target.backend.fingerprint(),
        **find_versions(),
    }


def find_versions() -> dict[str, str]:
    """Versions of what makes an artifact."""
    versions = {"python": platform.python_version()}
    for name in ("mpcompile", "torch", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _busy_notes() -> list[str]:
    """A note when other processes used the machine, too: torch's OpenMP suffers from that far more than OpenVINO."""
    if not hasattr(os, "getloadavg"):
        return []
    load, cores = os.getloadavg()[0], count_cores()
    if load <= 1.25 * cores:
        return []
    return [
        f"the machine was busy (load {load:.1f} on {cores} cores): measured times are not to be trusted; run it again"
    ]
