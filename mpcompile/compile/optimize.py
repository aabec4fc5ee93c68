"""`optimize`: from a fine-tuned model to a compiled one, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpcompile.compile.adapt.finetune import Adapted, finetune
from mpcompile.compile.agenda import describe_agenda
from mpcompile.compile.certify.check import check_point
from mpcompile.compile.certify.front import count_needed
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.certify.refusals import Refusals
from mpcompile.compile.chains import build_chains, keep_best
from mpcompile.compile.choose.cost import measure_cost_model
from mpcompile.compile.choose.points import choose_without_texts
from mpcompile.compile.choose.precision import Offer, check_precision, choose_precision, find_wanted
from mpcompile.compile.given import ask_about_texts, ask_more, read_given, split_given
from mpcompile.compile.job import Job, Model, open_job
from mpcompile.compile.measure.front import Baseline, Pace, TimedChain, measure_fronts, measure_pace
from mpcompile.compile.measure.workload import Hardness, Traffic, describe_mismatch
from mpcompile.compile.original import open_original
from mpcompile.compile.outcome import Timed, settle, write_report
from mpcompile.compile.pack import pack_model
from mpcompile.compile.reference import build_unpruned, group_by_length, unpruned_point
from mpcompile.compile.saving import check_adapters, check_saved
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Label
from mpcompile.compile.texts.parts import Texts
from mpcompile.contract.backend import Target
from mpcompile.contract.front import pick
from mpcompile.contract.options import takes
from mpcompile.progress import StageProgress
from mpcompile.runtime.model import OptimizedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LENGTH_WITHOUT_TEXTS = 128
"""Tokens of the timed requests when no texts say otherwise: the length that public BERT latencies are given for."""


@takes(Settings)
def optimize(
    model: PreTrainedModel | str | Path,
    target_speedup: float,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Any = None,
    labels: Sequence[Label] | None = None,
    held_out: Any = None,
    test: Any = None,
    **options: Any,
) -> OptimizedModel:
    """Compiles a fine-tuned encoder into the same model doing less work per input.

    Classifiers of one label or several, regressions (rerankers of one logit among them) and encoders whose answer is
    the mean over their tokens are taken, see `Task`. What has no classes is pruned and has no exits.

    Tokens are pruned between layers and easy inputs exit early (Magic Pyramid, He et al. 2021,
    arXiv 2111.00230). Killed runs resume: what was slow is found again in `cache_dir`.

    Args:
        model: a transformers sequence classifier or encoder, a path to one (a folder of sentence-transformers, too) or
            a hub id; left as it is.
        target_speedup: measured time of `model` as passed in over time of the result, on this machine and
            workload; 1 to 100. The point that loses least among those that reach it is taken; where all of them lose
            more than is allowed, see `max_drop`, the fastest one that does not, and the report warns.
        tokenizer: found beside the model when it is a path or id.
        texts: unlabelled or labelled texts of the domain: strings, pairs, a datasets.Dataset, or a path to csv,
            jsonl or parquet. None leaves out what needs data (exits), and the accuracy is unknown.
        labels: class names or ids of `texts`, lists of them where several hold, or scores; with classes accuracy is
            measured, without them agreement.
        held_out: texts like `texts` that the model was not fine-tuned on, where it was on `texts`: it is surer of those
            that it knows, so that points, times and the certificate are taken from these, and `texts` train exits only.
        test: labelled texts that are read once, at the end, for the report.
        **options: see `Settings`.

    Raises:
        SettingError: when an option has a value that is not allowed.
        CaptureError: when the model is not an encoder that is understood.
        DataError: when texts or labels are malformed, or too few for `max_drop` and `confidence`.
        TargetUnreachable: when no point is certified to lose at most `max_drop`, or when the target is not reached
            and `require_target` is set.
        StudyError: when the study in `storage` is of another model or other texts, or out of reach.
        BackendError: when the backend is missing or cannot build an engine.
    """
    settings = Settings.read("optimize", {"target_speedup": target_speedup, **options})
    check_precision(settings, texts is not None)
    given = read_given(settings, texts, labels, test, held_out)
    check_adapters(model)
    original = open_original(model, tokenizer)
    given.check(settings, original)
    notes: tuple[str, ...] = ()
    with StageProgress(settings.progress) as progress, original.evaluating():
        with progress.stage("save and reload"):
            check_saved(original)
        job, whole, target = open_job(settings, original, progress, given.has_pairs)
        given.check_tokenizer(job, whole.captured.vocab_size)
        refusals = Refusals.read(job.store, whole.digest, given.digest)
        parts, on_test = split_given(job, whole, given, refusals.find_tested(settings))
        traffic = _describe_traffic(settings, whole, parts)
        pace = measure_pace(job, whole, target, traffic)
        progress.say(describe_agenda(settings, pace, parts, on_test))
        job, whole, parts, on_test = ask_about_texts(job, whole, target, parts, on_test)
        adapted = Adapted(whole)
        if parts is not None and parts.training is not None and settings.adapt == "finetune":
            adapted = finetune(job, whole, target, parts.training)
        if parts is None:
            offer = _choose_without_texts(job, whole, target, traffic.length)
        else:
            offer, notes = choose_precision(job, whole, target, adapted, parts, (traffic, pace))
        timed = _build_and_measure(job, adapted.model, offer, (traffic, pace), parts)
        runtime, points = timed.built.runtime, [row.point for row in timed.front]
        if parts is not None and settings.max_drop is not None:
            parts = _ask_enough(job, whole, target, parts, timed)
        held_out = None if parts is None else PointAnswers(job, runtime, points, parts.certifying)
        with refusals.recording(settings, 0 if parts is None else len(parts.certifying.encoded)):
            outcome = settle(job, timed, held_out)
        asked = None if on_test is None else PointAnswers(job, runtime, points, on_test, "test texts")
        checked = check_point(outcome.choice.index, settings.confidence, held_out, asked)
        report = write_report(job, adapted.model, outcome, checked, traffic, parts).with_notes(*notes)
        return pack_model(job, adapted.model, timed.built, report, parts)


def _ask_enough(job: Job, model: Model, target: Target, parts: Texts, timed: Timed) -> Texts:
    """The texts, with as many for the certificate as the wanted point needs."""
    settings = job.settings
    wanted = pick(timed.front, settings.target_speedup, settings.max_drop)
    needed = count_needed(settings, timed.built.chosen.candidates[wanted], parts.choosing)
    return ask_more(job, model, target, parts, needed)


def _describe_traffic(settings: Settings, model: Model, parts: Texts | None) -> Traffic:
    """The batches that are timed: of the texts put aside for it, or random ids."""
    length = min(LENGTH_WITHOUT_TEXTS, model.captured.max_length)
    if parts is not None:
        length = int(np.median(parts.choosing.lengths))
    part = None if parts is None else parts.timed
    return Traffic(part, length, settings.batch_size, model.captured.vocab_size, settings.seed)


def _choose_without_texts(job: Job, model: Model, target: Target, length: int) -> Offer:
    unpruned = build_unpruned(job, model, target)
    cost = measure_cost_model(job, model, target, unpruned, length)
    return Offer(target, unpruned, 1.0, (choose_without_texts(job, model, target, cost, length),))


def _build_and_measure(
    job: Job, model: Model, offer: Offer, timing: tuple[Traffic, Pace], parts: Texts | None
) -> Timed:
    """Builds the chains of an offer, times their fronts, and keeps the better one."""
    settings, first, (traffic, pace) = job.settings, offer.chains[0], timing
    chains = build_chains(job, model, offer, traffic.length)
    point, names = unpruned_point(model, offer.target.precision), model.captured.input_names
    hardness, notes = None, tuple[str, ...]()
    if parts is not None:
        wanted = find_wanted(offer, parts.choosing, settings)
        with job.progress.stage("see where texts leave") as stage:
            exit_layer = parts.timed.answer(chains[0].runtime, wanted.point, stage).exit_layer
        hardness = Hardness.of(exit_layer, parts.timed.lengths, wanted.exit_layer)
        notes = describe_mismatch(exit_layer, wanted.exit_layer) if parts.timing is not None else ()
    workload = traffic.draw(pace.num_batches, hardness)
    grouped = None
    if settings.batch_size > 1:
        grouped = group_by_length(offer.unpruned, first.cost, model.captured.num_labels, traffic.length)
    baseline = Baseline(pace.original, pace.num_threads, offer.unpruned, point, workload, names, grouped)
    choosing = None if parts is None else parts.choosing
    fronts = measure_fronts(
        job.progress, baseline, [TimedChain(built.runtime, built.chosen) for built in chains], choosing
    )
    notes = (*notes, *pace.describe_slowdown())
    max_drop = None if choosing is None else choosing.allowed_drop(settings)
    built, front = keep_best(chains, fronts.fronts, settings.target_speedup, max_drop)
    if first.prune_layers and not built.chosen.prune_layers:
        notes = (*notes, "pruning was tried and left out: without it the engines measured better")
    return Timed(built, baseline, front, fronts, notes)
