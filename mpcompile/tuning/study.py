"""The study: keeps every candidate and every round in a database from the moment that it is measured.

A trial is a variant; its intermediate values are ratios, time of the candidate over that of the start in the same
round, so that trials of different hours and machines of one kind compare; its value is their median. A trial that was
stopped early is "pruned". One that failed says why in the user attribute `reason`; without one it was given up: its
process was killed, and another trial goes on with its rounds, or it repeats what another trial measures.
"""

from __future__ import annotations

import socket
import statistics
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from mpcompile.store.studies.ownership import check_identity, is_given_up, sign
from mpcompile.store.studies.storage import hide_password, open_storage, using_storage
from mpcompile.tuning.space import Space
from mpcompile.tuning.variant import Variant

ENQUEUED = 12
"""Candidates that are taken in order of prediction before the sampler (TPE) chooses."""
MIN_ROUNDS = 3
"""A median of fewer is no ground to call a candidate one of the best."""
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class OpenTrial:
    """A candidate that is being measured.

    Attributes:
        trial: Optuna's.
        variant: the candidate.
        ratios: of the rounds so far, also of a process that was killed.
    """

    trial: Trial
    variant: Variant
    ratios: list[float]


@dataclass(frozen=True)
class Counts:
    """Numbers of candidates, by what became of them.

    Attributes:
        measured: measured to the end.
        stopped: stopped early as clearly slower.
        same: not measured, because another candidate runs the same engines with the same settings.
        failed: could not be measured, or answered differently.
        resumed: of all these, taken up from a process that was killed.
    """

    measured: int
    stopped: int
    same: int
    failed: int
    resumed: int

    @property
    def total(self) -> int:
        """Candidates that are settled."""
        return self.measured + self.stopped + self.same + self.failed


class TuningStudy:
    """Hands out candidates and keeps what was measured. Threads and processes may share a study.

    Args:
        url: of an Optuna storage.
        name: of the study in it.
        identity: what it belongs to: model, version, workload and machine.
        space: candidates, the most promising first.
        seed: of the sampler.

    Raises:
        SettingError: when the storage cannot be opened.
        StudyError: when a study of that name belongs to something else.
    """

    def __init__(self, url: str, name: str, identity: Mapping[str, str], space: Space, seed: int) -> None:
        self.url, self.name = url, name
        self._space, self._wanted = space, frozenset(space.candidates)
        self._open: set[int] = set()
        self._lock = threading.RLock()
        self._distributions: dict[str, BaseDistribution] = {
            key: CategoricalDistribution(values) for key, values in space.choices.items()
        }
        storage = open_storage(url)
        with using_storage(url):
            self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
            where = f"study {name!r} at {hide_password(url)}"
            fix = "choose another name with --study, or another --storage"
            check_identity(self._study, identity, where, "mpcompile tune", fix)
            self._study.sampler = _make_sampler(seed + len(self._trials()))
            self._requeue([trial for trial in self._trials((TrialState.RUNNING,)) if is_given_up(trial)])

    def ask(self) -> OpenTrial | None:
        """The next candidate, None when all are settled or under way; what a killed process left comes first."""
        with self._lock, using_storage(self.url):
            is_repeated = False
            while remaining := self._remaining():
                is_early = len(self._space.candidates) - len(remaining) < ENQUEUED
                if (is_early or is_repeated) and not self._trials((TrialState.WAITING,)):
                    self._study.enqueue_trial(remaining[0].to_json())
                trial = self._study.ask(self._distributions)
                sign(trial)
                variant = Variant(**trial.params)
                if variant in self._remaining(trial.number):
                    self._open.add(trial.number)
                    kept = self._frozen(trial).intermediate_values
                    return OpenTrial(trial, variant, [kept[step] for step in sorted(kept)])
                self._study.tell(trial, state=TrialState.FAIL)
                is_repeated = True
        return None

    def close(self) -> None:
        """Puts candidates that were not closed back into the queue, with their rounds."""
        with self._lock, using_storage(self.url):
            self._requeue([trial for trial in self._trials((TrialState.RUNNING,)) if trial.number in self._open])

    def report(self, trial: OpenTrial, ratio: float) -> None:
        """Keeps a round."""
        with self._lock, using_storage(self.url):
            trial.trial.report(ratio, len(trial.ratios))
            trial.ratios.append(ratio)
            sign(trial.trial)

    def complete(self, trial: OpenTrial) -> None:
        """Closes a trial that was measured to the end."""
        with self._lock, using_storage(self.url):
            self._tell(trial, statistics.median(trial.ratios))

    def stop(self, trial: OpenTrial) -> None:
        """Closes a trial that was clearly slower."""
        with self._lock, using_storage(self.url):
            self._tell(trial, state=TrialState.PRUNED)

    def refuse(self, trial: OpenTrial, reason: str) -> None:
        """Closes a trial that answers differently; no other one of its point and precision is handed out."""
        with self._lock, using_storage(self.url):
            trial.trial.set_user_attr("refused", [trial.variant.point, trial.variant.precision])
            self.fail(trial, reason)

    def fail(self, trial: OpenTrial, reason: str) -> None:
        """Closes a trial that could not be measured."""
        with self._lock, using_storage(self.url):
            trial.trial.set_user_attr("reason", reason)
            self._tell(trial, state=TrialState.FAIL)

    def settle_as_twin(self, trial: OpenTrial, key: str, start_key: str) -> bool:
        """Closes a trial that runs the same as the start or as a measured trial; returns False when there is none.

        Args:
            key, start_key: see `BuiltVariant.key`.
        """
        with self._lock, using_storage(self.url):
            twins = [t for t in self._trials(_DONE) if t.user_attrs.get("key") == key]
            trial.trial.set_user_attr("key", key)
            if key != start_key and not twins:
                return False
            trial.trial.set_user_attr("same_as", "start" if key == start_key else twins[0].number)
            if key == start_key:
                self._tell(trial, 1.0)
            elif twins[0].state == TrialState.COMPLETE:
                self._tell(trial, twins[0].value)
            else:
                self._tell(trial, state=TrialState.PRUNED)
            return True

    def best_ratio(self) -> float:
        """The lowest ratio of a candidate measured to the end; 1, the start's, when none is lower."""
        return min((ratio for ratio, _ in self._measured((TrialState.COMPLETE,))), default=1.0)

    def best_variants(self, count: int) -> list[Variant]:
        """The fastest candidates of those that beat the start, fastest first; also such as the best stopped early."""
        ordered = sorted(self._measured(_DONE), key=lambda item: item[0])
        return [variant for ratio, variant in ordered if ratio < 1.0][:count]

    def count(self) -> Counts:
        """Counts the candidates so far, by what became of them."""
        trials = self._trials()
        same = [trial for trial in trials if trial.state in _DONE and "same_as" in trial.user_attrs]
        failed = [trial for trial in trials if "reason" in trial.user_attrs]
        of_state = {state: sum(trial.state == state for trial in trials if trial not in same) for state in _DONE}
        resumed = sum("resumes" in trial.user_attrs and trial.state.is_finished() for trial in trials)
        return Counts(of_state[TrialState.COMPLETE], of_state[TrialState.PRUNED], len(same), len(failed), resumed)

    def count_taken(self) -> int:
        """Candidates that are settled, and those that are being measured here."""
        with self._lock:
            return self.count().total + len(self._open)

    def failures(self) -> list[tuple[Variant, str]]:
        """Candidates that failed, and why."""
        return [(Variant(**t.params), t.user_attrs["reason"]) for t in self._trials() if "reason" in t.user_attrs]

    def load_final_rounds(self, variants: Sequence[Variant]) -> list[list[float]]:
        """Rounds of the last comparison of just these variants on this machine, see `save_final_rounds`."""
        with self._lock, using_storage(self.url):
            saved = self._study.user_attrs.get(self._final_name(), {})
        is_same = saved.get("variants") == [variant.to_json() for variant in variants]
        return list(saved["rounds"]) if is_same else []

    def save_final_rounds(self, variants: Sequence[Variant], rounds: Sequence[Sequence[float]]) -> None:
        """Keeps the last comparison: seconds of the start and each variant, for each round."""
        values = {"variants": [variant.to_json() for variant in variants], "rounds": [list(row) for row in rounds]}
        with self._lock, using_storage(self.url):
            self._study.set_user_attr(self._final_name(), values)

    def _tell(self, trial: OpenTrial, value: float | None = None, state: TrialState | None = None) -> None:
        self._study.tell(trial.trial, value, state)
        self._open.discard(trial.trial.number)

    def _final_name(self) -> str:
        return f"final on {socket.gethostname()}"

    def _requeue(self, trials: Sequence[FrozenTrial]) -> None:
        """Closes trials that no process works on, and lets new trials go on with their rounds."""
        taken_up = {trial.user_attrs.get("resumes") for trial in self._trials()}
        for trial in trials:
            params = trial.system_attrs.get("fixed_params") or trial.params
            # The new trial comes first: killed in between, the rounds are there twice and not gone.
            if trial.number not in taken_up and len(params) == len(self._distributions):
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        system_attrs={"fixed_params": params},
                        user_attrs={"resumes": trial.number},
                        intermediate_values=trial.intermediate_values,
                    )
                )
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _remaining(self, number: int | None = None) -> list[Variant]:
        """Candidates that no trial but one has settled or measures, and that were not refused for their answers."""
        settled = self._settled(number)
        refused = [trial.user_attrs.get("refused") for trial in self._trials((TrialState.FAIL,))]
        return [
            variant
            for variant in self._space.candidates
            if variant not in settled and [variant.point, variant.precision] not in refused
        ]

    def _settled(self, number: int | None = None) -> set[Variant | None]:
        return {
            _variant_maybe(trial)
            for trial in self._trials((*_DONE, TrialState.RUNNING, TrialState.FAIL))
            if trial.number != number and (trial.state != TrialState.FAIL or "reason" in trial.user_attrs)
        }

    def _measured(self, states: Sequence[TrialState]) -> list[tuple[float, Variant]]:
        """Median ratios of candidates that had some rounds and may be returned."""
        trials = [trial for trial in self._trials(states) if "same_as" not in trial.user_attrs]
        ratios = [list(trial.intermediate_values.values()) for trial in trials]
        rows = [(r, Variant(**trial.params)) for r, trial in zip(ratios, trials, strict=True) if len(r) >= MIN_ROUNDS]
        return [(statistics.median(r), variant) for r, variant in rows if variant in self._wanted]

    def _trials(self, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        with self._lock, using_storage(self.url):
            return self._study.get_trials(deepcopy=False, states=None if states is None else tuple(states))

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return next(frozen for frozen in self._trials() if frozen.number == trial.number)


def _variant_maybe(trial: FrozenTrial) -> Variant | None:
    """The variant of a trial; None while its process is still writing it down."""
    params = trial.system_attrs.get("fixed_params") or trial.params
    return Variant(**params) if params.keys() == Variant.__dataclass_fields__.keys() else None


def _make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate and constant_liar are called experimental
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=ENQUEUED)
