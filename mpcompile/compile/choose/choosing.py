"""Chooses operating points: trains exit heads and searches schedules and thresholds on cached features."""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.frozen import TrainedHeads, train_exit_heads
from mpcompile.compile.adapt.quantiles import find_token_thresholds
from mpcompile.compile.choose.candidates import Candidate, thin
from mpcompile.compile.choose.features import FeatureCollector, Features, KeepSchedule, exit_candidates, keep_schedules
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.point_search import PointSearch
from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.context import Context, TextPart
from mpcompile.compile.measure.workload import random_batch
from mpcompile.compile.recording import describe_calibration
from mpcompile.compile.reference import unpruned_point
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.forecast import Forecast
from mpcompile.cost.model import CostModel
from mpcompile.cost.profiles import find_profile
from mpcompile.cost.timing import measure_interleaved
from mpcompile.cost.work import estimate_work
from mpcompile.errors import SettingError
from mpcompile.runtime.runtime import Runtime
from mpcompile.store.results import digest_arrays
from passes import ExitHead

logger = logging.getLogger(__name__)

THRESHOLD_SCALES = (0.0, 0.5, 1.0, 1.5)
"""Learned thresholds are tried at these shares of themselves; at 0 nothing is pruned."""


@dataclass(frozen=True)
class Chosen:
    """Candidates for the front, and the heads that they use.

    Attributes:
        candidates: slowest first.
        heads: by exit layer, without the model's own classifier.
        prune_layers: layers that any candidate prunes in.
        last_exit: exit that all candidates end at or before, None for the model's own classifier.
        cost: calibrated on the model.
    """

    candidates: tuple[Candidate, ...]
    heads: dict[int, ExitHead]
    prune_layers: tuple[int, ...]
    last_exit: int | None
    cost: CostModel


def measure_cost_model(context: Context, unpruned: Runtime, length: int) -> CostModel:
    """The cost model of this model on this machine.

    The machine's profile is measured once and kept; one scalar, the median of measured over
    predicted time of the unpruned model at three batch sizes, fits it to the model.

    Args:
        unpruned: the whole model as one engine.
        length: a typical length of its texts.
    """
    captured = context.captured
    with context.progress.stage("measure this machine") as stage:
        profile = find_profile(context.backend, context.precision, context.config, context.store, stage)
        work = estimate_work(captured, context.backend.name)
        cost = CostModel(work, profile.rates, max_length=captured.max_length)
        ratios = [_measured_over_predicted(context, cost, unpruned, size, length) for size in (1, 8, 32)]
    return dataclasses.replace(cost, scale=float(np.median(ratios)))


def _measured_over_predicted(
    context: Context, cost: CostModel, unpruned: Runtime, batch_size: int, length: int
) -> float:
    inputs = random_batch(context.captured.vocab_size, batch_size, length, seed=batch_size)
    point = unpruned_point(context)
    timing = measure_interleaved({"unpruned": [lambda: unpruned.run(inputs, point)]}, runs=5)["unpruned"]
    return timing.median_s / float(cost.predict_unpruned(batch_size, np.float64(length)))


def choose_from_texts(
    context: Context, cost: CostModel, part: TextPart, target_gain: float, heads: TrainedHeads | ElasticHeads | None
) -> tuple[Chosen, ...]:
    """Searches points on held-out answers: of the chain of engines that is predicted to be best, and of a plainer one.

    Where the best one prunes, the other one does not: what sorting tokens costs depends on sizes and on what else the
    engine runs, more than is predicted, and the clock is to decide.

    Args:
        cost: predicts time.
        part: texts for choosing, with the original's answers.
        target_gain: speed that is wanted, times that of the unpruned engine.
        heads: exit heads, None for no exits.
    """
    collector = _Collector(context, tuple(sorted(heads.heads)) if heads else (), part)
    held_out = []
    for schedule in collector.schedules:
        features = collector.collect(schedule)
        logits = heads.predict_held_out(features.pooled) if heads else {}
        logits = {**logits, context.captured.num_layers: features.logits}
        held_out.append(HeldOut.from_logits(schedule.measured(features, part.lengths), logits, part.task))
    size = context.settings.batch_size
    pricer = Pricer(part.truth, part.lengths, cost, size, context.precision, part.task)
    if context.settings.trials:
        held_out += _search_schedules(context, part, collector, heads, held_out, pricer, target_gain)
    with context.progress.stage("search operating points") as stage:
        candidates = PointSearch(held_out, pricer).search(target_gain, stage)
    trained = heads.heads if heads else {}
    best = finish_choice(context, cost, candidates, trained)
    if not best.prune_layers or context.settings.selection != "top":
        return (best,)
    plainer = PointSearch(held_out[:1], pricer).search(target_gain)
    return best, finish_choice(context, cost, plainer, trained)


def _search_schedules(
    context: Context,
    part: TextPart,
    collector: _Collector,
    heads: TrainedHeads | ElasticHeads | None,
    fixed: list[HeldOut],
    pricer: Pricer,
    target_gain: float,
) -> list[HeldOut]:
    """Held-out answers of the schedules that a study finds, see `search_study`."""
    from mpcompile.compile.choose.schedule_study import StudySettings, search_study  # needs Optuna, which is optional

    settings = context.settings
    answers = HeldOutAnswers(context, collector, heads)
    identity = {
        "model": context.digest,
        "texts": part.digest,
        "labels": digest_arrays({"truth": pricer.truth}),
        "heads": f"{settings.adapt}, seed {settings.seed}",
        "batch size": str(settings.batch_size),
        "backend": context.backend.name,
        "precision": context.precision,
    }
    with context.progress.stage("search keep ratios") as stage:
        price = PointSearch(fixed, pricer).find_aim(target_gain).price
        options = StudySettings(settings.trials, settings.storage, price, settings.seed)
        found = search_study(answers, {context.precision: fixed}, {context.precision: pricer}, identity, options, stage)
    logger.info("search: %d schedules tried, %d of them given up early", found.tried + found.pruned, found.pruned)
    return [held_out for _, held_out in found.held_out]


class HeldOutAnswers:
    """Answers of some of the texts under any schedule, from the store where they were computed before."""

    def __init__(self, context: Context, collector: _Collector, heads: TrainedHeads | ElasticHeads | None) -> None:
        self._context, self._collector, self._heads = context, collector, heads
        weights = {} if heads is None else {k: v.numpy() for k, v in heads.stack.state_dict().items()}
        self.heads_digest = digest_arrays(weights)

    def __call__(self, schedule: KeepSchedule, precision: str, index: np.ndarray) -> HeldOut:
        """Answers of the texts at some positions."""
        key = {**self._collector.key(schedule), "kind": "answers", "heads": self.heads_digest, "precision": precision}
        key["part"] = [int(index[0]), int(index[-1]), len(index)]

        def compute() -> dict[str, np.ndarray]:
            features = self._collector.run(schedule, index)
            logits = {} if self._heads is None else self._heads.predict_held_out(features.pooled, index)
            logits[self._context.captured.num_layers] = features.logits
            return HeldOut.from_logits(schedule, logits, self._context.task).to_arrays()

        return HeldOut.from_arrays(schedule, self._context.store.fetch(key, compute))


def train_heads(context: Context, part: TextPart) -> TrainedHeads | None:
    """Exit heads, trained by cross-fitting on what the unpruned model computes in floating point.

    All precisions share them. None where exits are not wanted, or nothing is trained.
    """
    exits = find_exits(context)
    if not exits or not context.settings.exits or context.settings.adapt != "frozen":
        return None
    collector = _Collector(dataclasses.replace(context, precision=context.float_precision), exits, part)
    return _train(context, collector.collect(collector.unpruned))


def choose_without_texts(context: Context, cost: CostModel, length: int) -> Chosen:
    """Points that need no data: importance is not trained, so every schedule of keep ratios is one."""
    end = (context.captured.num_layers,)
    lengths, batch_size = np.array([length]), context.settings.batch_size
    layers, schedules = keep_schedules(context.captured.num_layers)
    steep = [KeepSchedule(layers, (ratio,) * len(layers)) for ratio in (0.4, 0.3, 0.2)]
    candidates = []
    for schedule in (*schedules, *steep, *_planned(context)):
        point = OperatingPoint(end, (), layers, schedule.keep_ratios, context.precision)
        seconds = cost.predict_segment(True, 0, end[0], batch_size, lengths, point)
        exit_layer = np.full(1, end[0])
        candidates.append(Candidate(point, float(seconds[0]), np.nan, exit_layer, np.zeros(1, np.int64)))
    ordered = sorted(candidates, key=lambda candidate: -candidate.seconds)
    return finish_choice(context, cost, thin(ordered), {})


def finish_choice(
    context: Context, cost: CostModel, candidates: tuple[Candidate, ...], heads: dict[int, ExitHead]
) -> Chosen:
    """Keeps what the candidates use: layers after the deepest exit, unused exits and prunes are not built."""
    num_layers = context.captured.num_layers
    used = sorted({layer for candidate in candidates for layer in candidate.point.exit_layers})
    prunes = sorted(
        {
            layer
            for candidate in candidates
            for layer, ratio in zip(candidate.point.prune_layers, candidate.point.keep_ratios, strict=True)
            if ratio < 1.0 and layer < used[-1]
        }
    )
    return Chosen(
        tuple(dataclasses.replace(c, point=_with_prunes(c.point, tuple(prunes))) for c in candidates),
        {layer: heads[layer] for layer in used if layer < num_layers},
        tuple(prunes),
        None if used[-1] == num_layers else used[-1],
        cost,
    )


def _with_prunes(point: OperatingPoint, layers: tuple[int, ...]) -> OperatingPoint:
    ratios = tuple(point.keep_ratio_at(layer) for layer in layers)
    thresholds = tuple(point.token_threshold_at(layer) for layer in layers) if point.token_thresholds else ()
    return dataclasses.replace(point, prune_layers=layers, keep_ratios=ratios, token_thresholds=thresholds)


def _train(context: Context, features: Features) -> TrainedHeads:
    num_folds = 4 if len(features.logits) >= 64 else 2
    with context.progress.stage("train exit heads") as stage:
        return train_exit_heads(features.pooled, features.logits, num_folds, context.settings.seed, stage, context.task)


def find_exits(context: Context) -> tuple[int, ...]:
    """Off-ramps to train heads for: the usual ones, and those of the user's plan; none without classes."""
    if not context.task.has_exits:
        return ()
    plan, num_layers = context.settings.plan, context.captured.num_layers
    planned = () if plan is None else plan.point.exit_layers[:-1]
    return tuple(sorted({*exit_candidates(num_layers), *planned}))


def check_plan(plan: Forecast, num_layers: int) -> None:
    """Refuses a plan of a model with other layers.

    Raises:
        SettingError: when it is.
    """
    layers, _ = keep_schedules(num_layers)
    if plan.point.exit_layers[-1] != num_layers or not set(plan.point.prune_layers) <= set(layers):
        raise SettingError(
            f"plan: made for {plan.model} with {plan.point.exit_layers[-1]} encoder layers; this model has "
            f"{num_layers}: plan again for it"
        )


def _planned(context: Context) -> tuple[KeepSchedule, ...]:
    """Keep ratios of the user's plan."""
    plan = context.settings.plan
    if plan is None:
        return ()
    layers, _ = keep_schedules(context.captured.num_layers)
    return (KeepSchedule(layers, tuple(plan.point.keep_ratio_at(layer) for layer in layers)),)


def _with_thresholds(context: Context, part: TextPart, schedules: tuple[KeepSchedule, ...]) -> tuple[KeepSchedule, ...]:
    """Schedules of thresholds: shares of those that were learned, else such as keep what the given ones keep."""
    layers, ones = schedules[0].prune_layers, schedules[0].keep_ratios
    if context.token_thresholds is not None:
        learned = [context.token_thresholds[layer] for layer in layers]
        scaled = [tuple(scale * threshold for threshold in learned) for scale in THRESHOLD_SCALES]
        return tuple(KeepSchedule(layers, ones, thresholds) for thresholds in scaled)
    assert context.tokenizer is not None
    tokenizer, captured = context.tokenizer, context.captured
    return tuple(
        KeepSchedule(layers, s.keep_ratios, find_token_thresholds(captured, tokenizer, part.encoded, s))
        for s in schedules
    )


class _Collector:
    """Features of one part of the texts under several schedules, from the store where they were computed before."""

    def __init__(self, context: Context, exits: tuple[int, ...], part: TextPart) -> None:
        self._context, self._exits, self._part = context, exits, part
        self.prune_layers, self._usual = keep_schedules(context.captured.num_layers)
        self._memory: dict[KeepSchedule, Features] = {}

    @property
    def unpruned(self) -> KeepSchedule:
        """The schedule that keeps every token."""
        keeps_all = self._usual[0]
        if self._context.settings.selection == "top":
            return keeps_all
        return dataclasses.replace(keeps_all, token_thresholds=(0.0,) * len(self.prune_layers))

    @functools.cached_property
    def schedules(self) -> tuple[KeepSchedule, ...]:
        """Schedules to try, the unpruned one first."""
        context = self._context
        if not context.settings.pruning:
            return (self.unpruned,)
        if context.settings.selection == "threshold":
            return _with_thresholds(context, self._part, self._usual)
        return tuple(dict.fromkeys((*self._usual, *_planned(context))))

    def key(self, schedule: KeepSchedule) -> dict[str, object]:
        """Everything that the features of a schedule depend on."""
        return {
            "kind": "features",
            "model": self._context.digest,
            "texts": self._part.digest,
            "exits": self._exits,
            "prunes": schedule.prune_layers,
            "keep_ratios": schedule.keep_ratios,
            **({"token_thresholds": schedule.token_thresholds} if schedule.token_thresholds else {}),
            "backend": self._context.backend.name,
            "fingerprint": self._context.backend.fingerprint(),
            "precision": self._context.precision,
            **describe_calibration(self._context.precision, self._context.calibration),
        }

    def collect(self, schedule: KeepSchedule) -> Features:
        if schedule not in self._memory:
            keeps = (
                "all" if min(schedule.keep_ratios) == 1.0 else " ".join(f"{ratio:g}" for ratio in schedule.keep_ratios)
            )
            with self._context.progress.stage(f"features, keep {keeps}") as stage:
                arrays = self._context.store.fetch(
                    self.key(schedule), lambda: self._engine.collect(self._part.encoded, schedule, stage).to_arrays()
                )
            self._memory[schedule] = Features.from_arrays(arrays)
        return self._memory[schedule]

    def run(self, schedule: KeepSchedule, index: np.ndarray) -> Features:
        """Features of some of the texts, kept nowhere."""
        return self._engine.collect(self._part.take(index).encoded, schedule, lambda _: None)

    @functools.cached_property
    def _engine(self) -> FeatureCollector:
        context = self._context
        assert context.tokenizer is not None
        return FeatureCollector(
            context.captured,
            self._exits,
            self.prune_layers,
            context.backend,
            context.precision,
            context.tokenizer,
            context.config,
            context.calibration,
            context.settings.selection,
        )
