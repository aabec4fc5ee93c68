"""Chooses operating points: searches schedules, exits and thresholds on cached features."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.candidates import Candidate, thin
from mpcompile.compile.choose.collector import Collector, HeldOutAnswers
from mpcompile.compile.choose.heads import Heads
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.ngrams import NGramExit
from mpcompile.compile.choose.point_search import PointSearch
from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.choose.schedules import list_schedules
from mpcompile.compile.job import Job, Model
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.cost.model import CostModel
from mpcompile.store.results import digest_arrays
from mpcompile.store.source import digest_source
from passes import ExitHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """Candidates for the front, and the heads that they use.

    Attributes:
        candidates: slowest first.
        heads: by exit layer, without the model's own classifier.
        prune_layers: layers that any candidate prunes in.
        last_exit: exit that all candidates end at or before, None for the model's own classifier.
        cost: cost model, calibrated on the model.
        ngrams: the exit before the model, None where no candidate has it.
    """

    candidates: tuple[Candidate, ...]
    heads: dict[int, ExitHead]
    prune_layers: tuple[int, ...]
    last_exit: int | None
    cost: CostModel
    ngrams: NGramExit | None = None


@dataclass(frozen=True)
class Question:
    """A search for points: the texts, and the speed that is wanted.

    Attributes:
        part: texts for choosing, with the original's answers.
        cost: predicts time.
        target_gain: speed that is wanted, times that of the unpruned engine.
        heads: exit heads, None for no exits.
        ngrams: the exit before the model, None for none.
        prunes: whether schedules that prune are tried.
    """

    part: TextPart
    cost: CostModel
    target_gain: float
    heads: Heads | None
    ngrams: NGramExit | None = None
    prunes: bool = True

    @property
    def logits_before(self) -> dict[int, np.ndarray]:
        """Logits (N, C) of the exit before the model, by that exit."""
        return {} if self.ngrams is None else {BEFORE: self.ngrams.held_out}

    def price(self, batch_size: int, precision: str) -> Pricer:
        """Prices points in a precision, on texts that come in batches."""
        part = self.part
        predict_before_s = None if self.ngrams is None else self.ngrams.predict_s
        return Pricer(part.truth, part.lengths, self.cost, batch_size, precision, part.task, predict_before_s)


def choose_from_texts(job: Job, model: Model, target: Target, question: Question) -> tuple[Chosen, ...]:
    """Searches points on held-out answers: of the chain of engines that is predicted to be best, and of a plainer one.

    Where the best one prunes, the other one does not: what sorting tokens costs depends on sizes and on what else the
    engine runs, more than is predicted, so that the measurement decides.
    """
    part, heads = question.part, question.heads
    collector = Collector(job, model, target, tuple(sorted(heads.heads)) if heads else (), part)
    held_out = []
    for schedule in collector.schedules if question.prunes else (collector.unpruned,):
        features = collector.collect(schedule)
        logits = heads.predict_held_out(features.pooled) if heads else {}
        logits = {**question.logits_before, **logits, model.num_layers: features.logits}
        held_out.append(HeldOut.from_logits(schedule.measured(features.kept, part.lengths), logits, part.task))
    pricer = question.price(job.settings.batch_size, target.precision)
    if job.settings.trials and question.prunes:
        answers = HeldOutAnswers(job, model, collector, heads, question.logits_before)
        held_out += _search_schedules(
            job, _identify(job, model, target, part, pricer), answers, held_out, pricer, question.target_gain
        )
    with job.progress.stage("search operating points") as stage:
        candidates = PointSearch(held_out, pricer).search(question.target_gain, stage)
    trained = heads.heads if heads else {}
    best = finish_choice(model.num_layers, question.cost, candidates, trained, question.ngrams)
    if not best.prune_layers or not question.prunes or job.settings.selection != "top":
        return (best,)
    plainer = PointSearch(held_out[:1], pricer).search(question.target_gain)
    return best, finish_choice(model.num_layers, question.cost, plainer, trained, question.ngrams)


def _identify(job: Job, model: Model, target: Target, part: TextPart, pricer: Pricer) -> dict[str, str]:
    """The identity of a study of schedules: what it belongs to."""
    return {
        "model": model.digest,
        "texts": part.digest,
        "labels": digest_arrays({"truth": pricer.truth}),
        "heads": f"{job.settings.adapt}, seed {job.settings.seed}",
        "batch size": str(job.settings.batch_size),
        "backend": target.backend.name,
        "precision": target.precision,
        "source code": digest_source(),
    }


def _search_schedules(
    job: Job,
    identity: dict[str, str],
    answers: HeldOutAnswers,
    fixed: list[HeldOut],
    pricer: Pricer,
    target_gain: float,
) -> list[HeldOut]:
    """Held-out answers of the schedules that a study finds, see `search_study`."""
    from mpcompile.compile.choose.schedule_study import StudySettings, search_study  # needs Optuna, which is optional

    settings, precision = job.settings, identity["precision"]
    with job.progress.stage("search keep ratios") as stage:
        price = PointSearch(fixed, pricer).find_aim(target_gain).price
        options = StudySettings(settings.trials, settings.storage, price, settings.seed)
        found = search_study(answers, {precision: fixed}, {precision: pricer}, identity, options, stage)
    logger.info("search: %d schedules tried, %d of them given up early", found.tried + found.pruned, found.pruned)
    return [held_out for _, held_out in found.held_out]


def choose_without_texts(job: Job, model: Model, target: Target, cost: CostModel, length: int) -> Chosen:
    """Points that need no data: importance is not trained, so every schedule of keep ratios is one."""
    end = (model.num_layers,)
    lengths, batch_size = np.array([length]), job.settings.batch_size
    candidates = []
    for schedule in list_schedules(model.num_layers, job.settings.pruning, job.settings.plan, steep=(0.4, 0.3, 0.2)):
        point = OperatingPoint(end, (), schedule.prune_layers, schedule.keep_ratios, target.precision)
        seconds = cost.predict_segment(True, 0, end[0], batch_size, lengths, point)
        exit_layer = np.full(1, end[0])
        candidates.append(Candidate(point, float(seconds[0]), np.nan, exit_layer, np.zeros(1, np.int64)))
    ordered = sorted(candidates, key=lambda candidate: -candidate.seconds)
    return finish_choice(model.num_layers, cost, thin(ordered), {})


def finish_choice(
    num_layers: int,
    cost: CostModel,
    candidates: tuple[Candidate, ...],
    heads: dict[int, ExitHead],
    ngrams: NGramExit | None = None,
) -> Chosen:
    """Keeps what the candidates use: layers after the deepest exit, unused exits and prunes are not built."""
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
        tuple(dataclasses.replace(c, point=keep_prunes(c.point, tuple(prunes))) for c in candidates),
        {layer: heads[layer] for layer in used if BEFORE < layer < num_layers},
        tuple(prunes),
        used[-1] if BEFORE < used[-1] < num_layers else None,
        cost,
        ngrams if BEFORE in used else None,
    )


def keep_prunes(point: OperatingPoint, layers: tuple[int, ...]) -> OperatingPoint:
    """The point with a keep ratio for each of some layers, 1 where it does not prune."""
    ratios = tuple(point.keep_ratio_at(layer) for layer in layers)
    thresholds = tuple(point.token_threshold_at(layer) for layer in layers) if point.token_thresholds else ()
    return dataclasses.replace(point, prune_layers=layers, keep_ratios=ratios, token_thresholds=thresholds)
