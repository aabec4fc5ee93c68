"""The trials of a search: which schedules were tried and what each came to, in memory or in a database.

A trial is a schedule, a precision and a price of errors; its values are predicted time, as a share of the unpruned
model's, and loss, both of the best point that `Pricer.solve` finds at that price. All three follow from its
parameters. What the same answers give at other prices is kept beside them, as the user attribute `curve`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.store.studies.ownership import check_identity, is_given_up, sign
from mpcompile.store.studies.storage import hide_password, open_storage, using_storage

LEAST_KEPT, STEP = 0.3, 0.05
_SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)
Curve = tuple[tuple[float, float], ...]
"""Time, as a share of the unpruned model's, and loss at each of a study's prices."""


@dataclass(frozen=True)
class Trying:
    """A schedule to try.

    Attributes:
        trial: Optuna's.
        schedule: keep ratios.
        precision: of the engines.
        price: of an error, times the seconds of the unpruned model.
    """

    trial: Trial
    schedule: KeepSchedule
    precision: str
    price: float


@dataclass(frozen=True)
class Tried:
    """A schedule that was tried to the end."""

    schedule: KeepSchedule
    precision: str
    curve: Curve


class TrialBook:
    """Hands out schedules and keeps what came of them. Processes and machines may share one.

    Args:
        url: of an Optuna storage; None keeps the study in memory.
        identity: what the study belongs to: model, texts, precisions.
        setup: what all processes of the study share, such as prices; the first one writes it down.
        layers: that may prune.
        precisions: to choose from.
        seed: of the sampler.

    Raises:
        SettingError: when the storage cannot be opened.
        StudyError: when the study there belongs to something else, or the storage fails.
    """

    def __init__(
        self,
        url: str | None,
        identity: Mapping[str, str],
        setup: Mapping[str, Any],
        layers: tuple[int, ...],
        precisions: Sequence[str],
        seed: int,
    ) -> None:
        self._url = url or "memory"
        self._layers, self._precisions = layers, tuple(precisions)
        storage = None if url is None else open_storage(url)
        with using_storage(self._url):
            self._study = optuna.create_study(
                study_name=name_study(precisions),
                storage=storage,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            where = f"study at {hide_password(self._url)}"
            check_identity(self._study, identity, where, "mpcompile optimize --trials", "choose another --storage")
            if "setup" not in self._study.user_attrs:
                self._study.set_user_attr("setup", dict(setup))
            self.setup: dict[str, Any] = self._study.user_attrs["setup"]
            self._study.sampler = make_sampler(seed + len(self._trials()))
            for trial in self._trials((TrialState.RUNNING,)):
                if is_given_up(trial):
                    self._requeue(trial)

    def enter(self, tried: Tried, price: float, value: tuple[float, float]) -> None:
        """Enters a fixed schedule, from which the sampler starts; does nothing when it is there or off the grid."""
        distributions, params = self._distributions(), self._params(tried.schedule, tried.precision, price)
        off = [name for name, value in params.items() if not _is_allowed(distributions[name], value)]
        with using_storage(self._url):
            if off or any(trial.user_attrs.get("fixed") and trial.params == params for trial in self._trials()):
                return
            attrs = {"fixed": True, "curve": tried.curve}
            self._study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, values=value, user_attrs=attrs)
            )

    def ask(self) -> Trying:
        """The next schedule; what a killed process left comes first."""
        with using_storage(self._url):
            trial = self._study.ask(self._distributions())
            sign(trial)
        ratios = tuple(round(trial.params[f"keep_{layer}"], 2) for layer in self._layers)
        precision = trial.params.get("precision", self._precisions[0])
        return Trying(trial, KeepSchedule(self._layers, ratios), precision, trial.params["price"])

    def complete(self, trying: Trying, value: tuple[float, float], curve: Curve) -> None:
        """Enters what a schedule came to."""
        with using_storage(self._url):
            trying.trial.set_user_attr("curve", curve)
            self._study.tell(trying.trial, value)

    def prune(self, trying: Trying) -> None:
        """Enters that a schedule was given up early, as another beats it at its price."""
        with using_storage(self._url):
            self._study.tell(trying.trial, state=TrialState.PRUNED)

    def put_back(self, trying: Trying) -> None:
        """Leaves a schedule to the next process."""
        with using_storage(self._url):
            self._requeue(self._frozen(trying.trial))

    def count_taken(self) -> int:
        """Schedules that were tried or are being tried, without the fixed ones."""
        with using_storage(self._url):
            trials = self._trials((*_SETTLED, TrialState.RUNNING))
        return sum("fixed" not in trial.user_attrs for trial in trials)

    def count_pruned(self) -> int:
        """Schedules that were given up early."""
        with using_storage(self._url):
            return len(self._trials((TrialState.PRUNED,)))

    def tried(self) -> list[Tried]:
        """Schedules that were tried to the end, without the fixed ones, first one first."""
        with using_storage(self._url):
            trials = [t for t in self._trials((TrialState.COMPLETE,)) if "fixed" not in t.user_attrs]
        rows = []
        for trial in trials:
            ratios = tuple(round(trial.params[f"keep_{layer}"], 2) for layer in self._layers)
            curve = tuple((float(time), float(loss)) for time, loss in trial.user_attrs["curve"])
            precision = trial.params.get("precision", self._precisions[0])
            rows.append(Tried(KeepSchedule(self._layers, ratios), precision, curve))
        return rows

    def _distributions(self) -> dict[str, BaseDistribution]:
        ratio, prices = FloatDistribution(LEAST_KEPT, 1.0, step=STEP), self.setup["prices"]
        found: dict[str, BaseDistribution] = {f"keep_{layer}": ratio for layer in self._layers}
        found["price"] = FloatDistribution(prices[0], prices[-1], log=True)
        if len(self._precisions) > 1:
            found["precision"] = CategoricalDistribution(self._precisions)
        return found

    def _params(self, schedule: KeepSchedule, precision: str, price: float) -> dict[str, Any]:
        ratios = dict(zip(schedule.prune_layers, schedule.keep_ratios, strict=True))
        params: dict[str, Any] = {f"keep_{layer}": ratios.get(layer, 1.0) for layer in self._layers}
        params["price"] = price
        return {**params, "precision": precision} if len(self._precisions) > 1 else params

    def _requeue(self, trial: FrozenTrial) -> None:
        """Closes a trial that no process works on. Another takes its place first, so that it is not lost in between."""
        params = trial.system_attrs.get("fixed_params") or trial.params
        if params.keys() == self._distributions().keys():
            self._study.enqueue_trial(params, user_attrs={"resumes": trial.number}, skip_if_exists=False)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return next(frozen for frozen in self._trials() if frozen.number == trial.number)

    def _trials(self, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=None if states is None else tuple(states))


def name_study(precisions: Sequence[str]) -> str:
    """Name of a search in its database, where that of the same model in another precision may stand beside it."""
    return f"mpcompile search, {' and '.join(precisions)}"


def _is_allowed(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps = (float(value) - distribution.low) / distribution.step
        return distribution.low <= float(value) <= distribution.high and abs(steps - round(steps)) < 1e-6
    return True


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Samples schedules: TPE over both objectives (Ozaki et al. 2022), from the fixed ones on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate and constant_liar are called experimental
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=5)
