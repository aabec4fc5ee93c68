"""The outcome of a run: settles on a point and writes the report of it."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from mpcompile.compile.certify.check import Checked
from mpcompile.compile.certify.front import certify_front, confirm_front
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.chains import Built, Front
from mpcompile.compile.job import Job, Model
from mpcompile.compile.measure.front import Baseline, MeasuredFronts, measure_pruning
from mpcompile.compile.measure.samples import trace_samples
from mpcompile.compile.measure.workload import Traffic
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import Texts
from mpcompile.contract.backend import Target
from mpcompile.contract.front import MAX_NOISE, Choice, MeasuredPoint, choose_point, describe_front
from mpcompile.errors import TargetUnreachable
from mpcompile.report.pyramid import count_pyramid
from mpcompile.report.records import SampleText
from mpcompile.report.report import Report, split_gain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timed:
    """A chain of engines, and how long it and others take.

    Attributes:
        built: the chain of engines.
        baseline: the systems that the engines were timed against.
        front: measured points.
        fronts: the run that timed them, with the baseline.
        notes: notes for the report on how the chain was chosen.
    """

    built: Built
    baseline: Baseline
    front: Front
    fronts: MeasuredFronts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The engines that are returned, and the point that they are returned at.

    Attributes:
        timed: the engines and their times.
        front: measured points; with `max_drop` it says which are certified.
        choice: the point that is returned.
        pruning_gain: see `measure_pruning`.
    """

    timed: Timed
    front: Front
    choice: Choice
    pruning_gain: float

    @property
    def point(self) -> MeasuredPoint:
        """The point that is returned."""
        return self.front[self.choice.index]


def settle(job: Job, timed: Timed, answers: PointAnswers | None) -> Outcome:
    """Picks a point.

    Args:
        job: settings and progress.
        timed: the engines, and the front that is picked from.
        answers: to held-out texts, None without texts: what a point costs is unknown then.

    Raises:
        TargetUnreachable: when no point is certified to keep within `max_drop`, or when the target is not reached and
            `require_target` is set.
    """
    settings, front = job.settings, timed.front
    if answers is None:
        choice = choose_point(front, settings.target_speedup)
    elif settings.max_drop is not None:
        front, choice = certify_front(settings, front, answers)
    else:
        choice = confirm_front(settings, front, answers.part.allowed_drop(settings), answers)
    if settings.require_target and choice.warning is not None:
        raise TargetUnreachable(f"{choice.warning}. The front:\n{describe_front(front)}", front)
    runtime, point = timed.built.runtime, front[choice.index].point
    return Outcome(timed, front, choice, measure_pruning(job.progress, timed.baseline, runtime, point))


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
    timed, times = outcome.timed, outcome.timed.fronts
    original_s, unpruned_s = times.original.median_s, times.unpruned.median_s
    lengths = np.array([traffic.length]) if parts is None else parts.choosing.lengths
    settings, point = job.settings, outcome.point
    exit_layer = next(c.exit_layer for c in timed.built.chosen.candidates if c.point == point.point)
    return Report(
        target_speedup=settings.target_speedup,
        measured_speedup=point.speedup,
        speedup_over_unpruned=unpruned_s / point.measured_s,
        flops_ratio=point.flops_ratio,
        original_s=original_s,
        unpruned_s=unpruned_s,
        measured_s=point.measured_s,
        gains=split_gain(point.point, model.num_layers, _seconds(outcome)),
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
            "num_batches": len(timed.baseline.workload.batches),
            "mean_length": float(lengths.mean()),
            "max_length": int(lengths.max()),
            "original_threads": timed.baseline.num_threads,
            "original_place": timed.baseline.original.describe_place(),
        },
        machine=describe_machine(timed.built.target),
        notes=_list_notes(settings, model, outcome, parts),
        warnings=_list_warnings(outcome, checked),
        similarity=checked.similarity,
        max_drop=settings.max_drop,
        held_out=0 if parts is None else len(parts.certifying.encoded),
        model=_describe_model(job, model),
        pyramid=count_pyramid(lengths, exit_layer, point.point, model.num_layers),
        samples=_trace(job, model, outcome, parts),
    )


def _seconds(outcome: Outcome) -> dict[str, float]:
    """What `split_gain` reads."""
    times, chosen_s = outcome.timed.fronts, outcome.point.measured_s
    seconds = {"original": times.original.median_s, "unpruned": times.unpruned.median_s}
    if times.grouped is not None:
        seconds["grouped"] = times.grouped.median_s
    return {**seconds, "exits": chosen_s * outcome.pruning_gain, "chosen": chosen_s}


def _list_notes(settings: Settings, model: Model, outcome: Outcome, parts: Texts | None) -> tuple[str, ...]:
    notes = []
    if parts is None:
        notes.append("no texts were given: no exits were trained, and what pruning costs in accuracy is unknown")
    if parts is not None and parts.timing is None:
        notes.append("there were too few texts to put some aside for timing: on those timed more may leave early")
    if parts is not None and not parts.has_unseen:
        notes.append(
            "losses and speeds hold for texts like those given: if the model was fine-tuned on them, it is surer of "
            "them than of others; pass texts that it has not seen as held_out=... (--held-out)"
        )
    if parts is not None and parts.num_given > settings.max_texts:
        notes.append(f"{settings.max_texts} of {parts.num_given} texts were drawn (max_texts)")
    if outcome.timed.built.target.backend.device_kind == "gpu":
        notes.append(f"the original was timed on {outcome.timed.baseline.original.describe_place()}")
    if not model.task.has_exits:
        notes.append(model.task.explain_no_exits())
    return (*notes, *_busy_notes(outcome.point), *outcome.timed.notes)


def _list_warnings(outcome: Outcome, checked: Checked) -> tuple[str, ...]:
    """What nobody should overlook: losses that texts show beyond doubt, and why the point is not what was asked for."""
    warnings = checked.warnings if outcome.choice.warning is None else (*checked.warnings, outcome.choice.warning)
    for warning in warnings:
        logger.warning(warning)
    return warnings


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
        return trace_samples(
            outcome.timed.built.runtime, outcome.point.point, parts.certifying, model.captured.id2label
        )


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


def _busy_notes(point: MeasuredPoint) -> tuple[str, ...]:
    """A note where repeated timings of the same calls differ by more than a target may be missed by."""
    if point.noise <= MAX_NOISE:
        return ()
    return (
        f"the machine was busy: timed again and again, the speedup differs by {point.noise:.0%} (half the distance of "
        "the quartiles); run it again where nothing else runs",
    )
