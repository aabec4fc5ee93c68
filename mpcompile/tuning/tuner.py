"""`tune`: from an artifact to a faster one, or the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcompile.contract.options import takes
from mpcompile.contract.version import VERSION
from mpcompile.errors import SettingError, TuningError
from mpcompile.progress import StageProgress
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import MANIFEST, REPORT, Manifest, read_manifest
from mpcompile.runtime.directories import check_target_directory
from mpcompile.store.results import digest
from mpcompile.store.source import digest_source
from mpcompile.store.studies.storage import find_default_url, hide_password
from mpcompile.tuning.batches import TuningWorkload, build_tuning_workload
from mpcompile.tuning.bench import Job
from mpcompile.tuning.cuts import find_cuts
from mpcompile.tuning.final import Decision, decide
from mpcompile.tuning.measurer import Channel, MeasureFailed, Worker
from mpcompile.tuning.process import ProcessChannel
from mpcompile.tuning.result import TuneResult
from mpcompile.tuning.retold import retell
from mpcompile.tuning.settings import TuneSettings
from mpcompile.tuning.space import Limits, Machine, Space, allow_points, build_space, rank
from mpcompile.tuning.study import TuningStudy
from mpcompile.tuning.trials import Budget, Rules, search
from mpcompile.tuning.variant import Variant
from mpcompile.tuning.writing import copy_artifact, tune_manifest, write_tuned

logger = logging.getLogger(__name__)

STUDY_FORMAT = "1"
"""Counts up when trials of an older study can no longer be read."""


@takes(TuneSettings)
def tune(directory: str | Path, out: str | Path, *, texts: Any = None, **options: Any) -> TuneResult:
    """Looks for a faster way to run an artifact on this machine: threads, streams, cuts, splits, precision, profile.

    Candidates come from the cost model and are measured in turns with the start, in a process of their own that may
    hang or die. Whatever is measured is in a database at once; a killed run goes on where it was. The result is
    never slower than the start: what does not beat it by more than the noise is not returned.

    Call it under `if __name__ == "__main__":` in a script, as it starts a process that imports the script.

    Args:
        directory: the artifact to start from, as `OptimizedModel.save` wrote it.
        out: folder of the tuned artifact; may be `directory`.
        texts: texts of the domain, see `mpcompile.optimize`. None times random ids of the lengths in the report,
            which leave at other exits than texts do, so that operating point and precision stay as they are.
        **options: see `TuneSettings`.

    Raises:
        SettingError: when an option has a value that is not allowed, or the storage cannot be opened.
        ArtifactError: when the artifact is damaged, or `out` cannot be written.
        DataError: when texts are malformed.
        StudyError: when the study belongs to something else or its storage fails.
        TuningError: when the start cannot be measured.
    """
    settings = TuneSettings.read("tune", options)
    target = Path(out).expanduser()
    check_target_directory(target)
    with StageProgress(settings.progress) as bars, _told():
        with bars.stage("read"):
            start = _read_start(Path(directory).expanduser(), settings, texts)
        with _open_workers(start.job, settings) as workers, contextlib.ExitStack() as stack:
            with bars.stage("start measuring"):
                machine = _check_machines(workers)
                opened = stack.enter_context(contextlib.closing(_open_study(start, settings, machine, workers[0])))
                rules = Rules(start.variant, workers[0].identify_start(), settings.min_agreement)
            with bars.stage("measure candidates") as stage:
                budget = Budget(settings.budget_s, settings.max_trials, time.monotonic)
                search(opened, workers, rules, budget, stage)
            with bars.stage("compare the best") as stage:
                decision = decide(opened, workers[0], start.variant, stage)
            with bars.stage("time the original"):
                return _write(start, target, decision, opened, machine, workers[0])


@dataclass(frozen=True)
class _Start:
    """The artifact to beat, and what it is measured on."""

    manifest: Manifest
    report: Report
    digest: str
    variant: Variant
    workload: TuningWorkload
    job: Job


def _read_start(directory: Path, settings: TuneSettings, texts: Any) -> _Start:
    manifest = read_manifest(directory)
    if any(segment.prunes_by_threshold for segment in manifest.segments):
        raise SettingError(
            f"{directory}: it prunes by thresholds (selection='threshold'), which cannot be tuned yet; optimize with "
            "selection='top' to tune"
        )
    report = Report.from_json(json.loads((directory / REPORT).read_text("utf-8")))
    variant = Variant(
        point=report.chosen,
        precision=manifest.segments[0].precision,
        num_threads=manifest.config.num_threads,
        num_streams=manifest.config.num_streams,
    )
    batch_size = settings.batch_size or int(report.workload["batch_size"])
    workload = build_tuning_workload(directory, manifest, report, texts, batch_size, settings.seed)
    job = Job(directory, variant, workload.batches, workload.profile, settings.cache_dir)
    sha = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    return _Start(manifest, report, sha, variant, workload, job)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns a failure to measure the start into an error for the user."""
    try:
        yield
    except MeasureFailed as error:
        raise TuningError(f"the artifact to start from cannot be measured: {error.reason}") from error


@contextlib.contextmanager
def _open_workers(job: Job, settings: TuneSettings) -> Iterator[Sequence[Worker]]:
    """Processes that measure: one here, or one on each node of a cluster."""
    with contextlib.ExitStack() as stack:
        channels: Sequence[Channel] = [ProcessChannel(job)]
        if settings.ray is not None:
            from mpcompile.tuning.ray_workers import open_channels

            channels = stack.enter_context(open_channels(settings.ray, job))
        workers = [Worker(channel, settings.trial_timeout_s) for channel in channels]
        for worker in workers:
            stack.callback(worker.close)
        yield workers


def _check_machines(workers: Sequence[Worker]) -> Machine:
    """The machine that the workers run on; ratios compare only if all run on the same kind."""
    machines = [worker.describe_machine() for worker in workers]
    for worker, machine in zip(workers, machines, strict=True):
        if machine != machines[0]:
            raise TuningError(
                f"{worker.name} is not like {workers[0].name}: {machine} and {machines[0]}; tune on nodes of one kind"
            )
    if machines[0].version != VERSION:
        raise TuningError(f"{workers[0].name} has mpcompile {machines[0].version}, here is {VERSION}; install the same")
    return machines[0]


def _open_study(start: _Start, settings: TuneSettings, machine: Machine, worker: Worker) -> TuningStudy:
    front, workload = start.report.operating_points, start.workload
    points = frozenset({start.variant.point})
    if workload.has_texts:
        points = allow_points(front, start.variant.point, settings.max_drop)
    narrows_profile, is_certified = (
        workload.profile != start.manifest.profile,
        bool(front[start.variant.point].certified),
    )
    limits = Limits(points, workload.can_check_answers, narrows_profile, is_certified)
    batch_size = int(workload.describe()["batch_size"])
    space = build_space(start.variant, front, find_cuts(start.manifest.segments), machine, limits, batch_size)
    identity = {
        "model": start.digest,
        "mpcompile": VERSION,
        "source code": digest_source(),
        "study format": STUDY_FORMAT,
        "workload": workload.digest(),
        "machine": digest({**vars(machine), "precisions": list(machine.precisions)}),
    }
    key = digest(identity)[:16]
    url = settings.storage or find_default_url(key, settings.cache_dir)
    return TuningStudy(url, settings.study or f"mpcompile-{key}", identity, _rank(space, worker), settings.seed)


def _rank(space: Space, worker: Worker) -> Space:
    try:
        return rank(space, worker.predict(space.candidates))
    except MeasureFailed as error:
        logger.warning("candidates are taken as they come: the cost model cannot tell: %s", error.reason)
        return rank(space, [None] * len(space.candidates))


def _write(
    start: _Start, target: Path, decision: Decision, study: TuningStudy, machine: Machine, worker: Worker
) -> TuneResult:
    source, variant = start.job.directory, decision.winner
    times = worker.retime(variant)
    result = TuneResult(
        directory=target,
        start=start.variant,
        variant=variant,
        start_s=decision.start_s,
        tuned_s=decision.winner_s,
        original_s=times.original_s,
        measured_s=next(row.measured_s for row in times.points if row.index == variant.point),
        wins=decision.wins,
        rounds=decision.rounds,
        counts=study.count(),
        failures=tuple(study.failures()),
        workload=start.workload.describe(),
        storage=hide_password(study.url),
        study=study.name,
    )
    if not result.is_faster:
        copy_artifact(source, target)
        return result
    built = worker.package(variant)
    note = (
        f"tuned on this machine from {result.counts.total} candidates: {result.speedup:.2f}x over the start, faster in "
        f"{result.wins} of {result.rounds} rounds; {variant.describe()}"
    )
    report = retell(start.report, times, variant, result.workload, machine.fingerprint, note)
    write_tuned(source, target, tune_manifest(start.manifest, built, machine), report, built)
    return result
