"""The report of a tuned artifact: the report of the start, with what is no longer true replaced."""

from __future__ import annotations

import dataclasses
from typing import Any

from mpcompile.contract.front import MeasuredPoint
from mpcompile.report.report import Report, split_gain
from mpcompile.tuning.retiming import PointTimes, Times
from mpcompile.tuning.variant import Variant


def retell(
    report: Report, times: Times, variant: Variant, workload: dict[str, Any], fingerprint: dict[str, str], note: str
) -> Report:
    """The report of a tuned artifact: every time measured again, on the workload of the tuning.

    Args:
        report: of the artifact that tuning started from.
        times: of the variant.
        variant: what is written.
        workload: what was timed, see `Report.workload`.
        fingerprint: of the backend on the machine that measured.
        note: what tuning did.
    """
    front = tuple(_retime_point(report.operating_points[row.index], row, times) for row in times.points)
    chosen = next(i for i, row in enumerate(times.points) if row.index == variant.point)
    if variant.point != report.chosen:
        report = _describe_point(report, report.operating_points[variant.point])
    elif front[chosen].point != report.operating_points[variant.point].point and report.certified_drop is not None:
        note_of_bound = "tuning changed precision or exits: what it loses at most was shown of the engines before"
        report = dataclasses.replace(report, certified_drop=None, notes=(*report.notes, note_of_bound))
    seconds = front[chosen].measured_s
    taken = {"original": times.original_s, "unpruned": times.unpruned_s, "exits": times.exits_s, "chosen": seconds}
    return dataclasses.replace(
        report,
        measured_speedup=front[chosen].speedup,
        speedup_over_unpruned=times.unpruned_s / seconds,
        flops_ratio=front[chosen].flops_ratio,
        original_s=times.original_s,
        unpruned_s=times.unpruned_s,
        measured_s=seconds,
        gains=split_gain(front[chosen].point, report.model.get("num_layers", 0), taken),
        operating_points=front,
        chosen=chosen,
        workload={**report.workload, **workload, "original_threads": times.original_threads},
        machine={**report.machine, **fingerprint, "precision": variant.precision},
        notes=(*report.notes, note, *_left_out(len(report.operating_points) - len(front))),
    )


def _retime_point(row: MeasuredPoint, timed: PointTimes, times: Times) -> MeasuredPoint:
    speedup = times.original_s / timed.measured_s
    # Another precision or other exits give other answers than those that were tested.
    certified = row.certified if timed.point == row.point else None
    return dataclasses.replace(
        row, point=timed.point, measured_s=timed.measured_s, speedup=speedup, certified=certified
    )


def _describe_point(report: Report, row: MeasuredPoint) -> Report:
    """The report for another point, which was not certified, so that less is known of it."""
    has_labels = row.accuracy is not None and row.drop is not None
    return dataclasses.replace(
        report,
        accuracy=row.accuracy,
        original_accuracy=(row.accuracy or 0.0) + (row.drop or 0.0) if has_labels else None,
        agreement=row.agreement,
        certified_drop=None,
        measured_on="the texts that points were chosen on",
        pyramid=(),
        samples=(),
        notes=(*report.notes, "tuning changed to another operating point, whose loss is not certified"),
    )


def _left_out(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} operating points need exits or prunes that were merged away and are left out",)
