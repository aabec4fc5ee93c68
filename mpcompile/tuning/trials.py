"""The search: candidates measured against the start, until time, candidates or the allowed number run out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mpcompile.tuning.bench import Answers
from mpcompile.tuning.measurer import MeasureFailed, Measurer
from mpcompile.tuning.stopping import MAX_ROUNDS, is_hopeless
from mpcompile.tuning.study import OpenTrial, TuningStudy
from mpcompile.tuning.variant import Variant


@dataclass
class Budget:
    """The budget of a search: when to start no further candidate.

    Attributes:
        seconds: from the start of the search.
        max_trials: candidates that may be settled in the study, None for no limit.
        clock: seconds.
        cancelled: set when the user wants no more.
    """

    seconds: float
    max_trials: int | None
    clock: Callable[[], float]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds

    def has_more(self, taken: int) -> bool:
        """Whether another candidate may be started beside those that were."""
        in_time = self.clock() < self._end and not self.cancelled.is_set()
        return in_time and (self.max_trials is None or taken < self.max_trials)

    def share_used(self, settled: int) -> float:
        """Share of the time or of the candidates that is used up, [0, 1]."""
        shares = [1.0 - (self._end - self.clock()) / self.seconds]
        if self.max_trials is not None:
            shares.append(settled / self.max_trials)
        return min(max(shares), 1.0)


@dataclass(frozen=True)
class Rules:
    """The rules that a candidate has to meet.

    Attributes:
        start: what it is measured against.
        start_key: see `BuiltVariant.key`.
        min_agreement: share of the workload that it must answer as the start does at the same operating point.
    """

    start: Variant
    start_key: str
    min_agreement: float

    def refusal_maybe(self, variant: Variant, answers: Answers) -> str | None:
        """Why a candidate's answers are not good enough, or None."""
        # Where only the order of sums differs, an example with two nearly equal classes may change its answer.
        allowed = max((1.0 - self.min_agreement) * answers.checked, float(variant.precision == self.start.precision))
        if answers.differing <= allowed + 1e-9:
            return None
        agreement = 1.0 - answers.differing / answers.checked
        return (
            f"answers {100 * agreement:.2f}% of {answers.checked} examples as the start does; "
            f"{100 * self.min_agreement:g}% are needed"
        )


def search(
    study: TuningStudy,
    measurers: Sequence[Measurer],
    rules: Rules,
    budget: Budget,
    on_trial: Callable[[float], None] = lambda _: None,
) -> None:
    """Measures candidates until the budget is spent, one at a time on each device.

    Args:
        study: hands out candidates.
        measurers: a device each.
        rules: what candidates have to meet.
        budget: when to stop.
        on_trial: called after each candidate with the share of the budget that is used.
    """

    taking = threading.Lock()

    def take_maybe() -> OpenTrial | None:
        with taking:
            return study.ask() if budget.has_more(study.count_taken()) else None

    def work(measurer: Measurer) -> None:
        while (trial := take_maybe()) is not None:
            measure_trial(study, trial, measurer, rules, budget.cancelled)
            on_trial(budget.share_used(study.count().total))

    if len(measurers) == 1:
        work(measurers[0])
        return
    with ThreadPoolExecutor(len(measurers)) as pool:
        futures = [pool.submit(work, measurer) for measurer in measurers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            budget.cancelled.set()
            for measurer in measurers:
                measurer.close()
            raise


def measure_trial(
    study: TuningStudy, trial: OpenTrial, measurer: Measurer, rules: Rules, cancelled: threading.Event
) -> None:
    """Measures one candidate in rounds, each of which is kept at once, and closes its trial."""
    try:
        (key,) = measurer.build([trial.variant])
        if study.settle_as_twin(trial, key, rules.start_key):
            return
        (answers,) = measurer.warm_up()
        refusal = rules.refusal_maybe(trial.variant, answers)
        if refusal is not None:
            study.refuse(trial, refusal)
            return
        while len(trial.ratios) < MAX_ROUNDS:
            start_s, candidate_s = measurer.measure_round()
            study.report(trial, candidate_s / start_s)
            if is_hopeless(trial.ratios, study.best_ratio()):
                study.stop(trial)
                return
        study.complete(trial)
    except MeasureFailed as error:
        if not cancelled.is_set():  # else the process was ended on purpose, and the trial goes on another time
            study.fail(trial, error.reason)
