"""`optimize`: from a fine-tuned model to a compiled one, stage by stage."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpcompile.backends import find_backend
from mpcompile.compile.adapt.finetune import finetune
from mpcompile.compile.build import build_plans
from mpcompile.compile.certify.check import Checked, check_point
from mpcompile.compile.certify.front import certify_front, check_amount
from mpcompile.compile.choose.choosing import Chosen, check_plan, choose_without_texts, find_exits, measure_cost_model
from mpcompile.compile.choose.precision import Expected, check_precision, choose_precision, pick_offer
from mpcompile.compile.context import Context, TextPart, Texts, encode_examples, split_texts
from mpcompile.compile.measure.front import Systems, make_workload, measure_chosen, measure_fronts, measure_pace
from mpcompile.compile.measure.samples import trace_samples
from mpcompile.compile.original import Original, open_original
from mpcompile.compile.pack import find_versions, head_weights, pack_model
from mpcompile.compile.reference import ask_original, build_unpruned
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples, Label, load_examples
from mpcompile.compile.texts.labels import check_labels
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.front import Choice, MeasuredPoint, choose_point
from mpcompile.contract.options import takes
from mpcompile.contract.precision import fastest_float
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.cost.timing import Timing
from mpcompile.errors import SettingError
from mpcompile.graph.capture import capture, find_task
from mpcompile.graph.segments import partition
from mpcompile.progress import StageProgress
from mpcompile.report.pyramid import count_pyramid
from mpcompile.report.records import SampleText
from mpcompile.report.report import Report, split_gain
from mpcompile.runtime.cores import count_cores
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.runner import make_runtime
from mpcompile.runtime.runtime import Runtime
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store, digest_arrays

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

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
            workload; 1 to 100. The point that loses least among those that reach it is taken.
        tokenizer: found beside the model when it is a path or id.
        texts: unlabelled or labelled texts of the domain: strings, pairs, a datasets.Dataset, or a path to csv,
            jsonl or parquet. None leaves out what needs data (exits), and the accuracy is unknown.
        labels: class names or ids of `texts`, lists of them where several hold, or scores; with classes accuracy is
            measured, without them agreement.
        test: labelled texts that are read once, at the end, for the report.
        **options: see `Settings`.

    Raises:
        SettingError: when an option has a value that is not allowed.
        CaptureError: when the model is not an encoder that is understood.
        DataError: when texts or labels are malformed, or too few for `max_drop` and `confidence`.
        TargetUnreachable: when no point reaches the target within `max_drop`.
        StudyError: when the study in `storage` is of another model or other texts, or out of reach.
        BackendError: when the backend is missing or cannot build an engine.
    """
    settings = Settings.read("optimize", {"target_speedup": target_speedup, **options})
    max_drop = settings.max_drop
    check_precision(settings, texts is not None)
    if texts is None and settings.selection == "threshold":
        raise SettingError("selection: 'threshold' needs texts to find thresholds on; pass texts=... or use 'top'")
    if texts is None and (labels is not None or max_drop is not None):
        missing = "labels" if labels is not None else f"max_drop={max_drop:g}"
        raise SettingError(f"{missing}: cannot be used without texts; pass texts=... of the model's domain")
    examples = None if texts is None else load_examples(texts, labels)
    test_examples = None if test is None else load_examples(test, name="test")
    original = open_original(model, tokenizer)
    _check_labels(original, {"texts": examples, "test": test_examples})
    if examples is not None:
        has_classes = find_task(original.model).has_classes
        check_amount(settings, len(examples), examples.labels is not None and has_classes)
    with StageProgress(settings.progress) as bars, original.evaluating():
        has_pairs = examples is not None and examples.text_pairs is not None
        context = open_context(original, settings, bars, has_pairs)
        parts = None if examples is None else _ask_about(context, split_texts(context, examples))
        if parts is not None:
            context = dataclasses.replace(context, task=parts.choosing.task)
        test_part = None
        if test_examples is not None:
            test_part = ask_original(context, encode_examples(context, test_examples, "test"), "test texts")
        precision_notes: tuple[str, ...] = ()
        length = _typical_length(context, parts)
        pace = measure_pace(context, _choosing(parts), length)
        if parts is None:
            unpruned = build_unpruned(context, context.precision)
            cost = measure_cost_model(context, unpruned, length)
            chains: tuple[Chosen, ...] = (choose_without_texts(context, cost, length),)
        else:
            adapted, trained = context, None
            if parts.training is not None:
                adapted, trained = finetune(context, parts.training, find_exits(context))
            best, precision_notes = choose_precision(context, adapted, trained, parts.choosing, length, pace)
            context, unpruned, chains = best.context, best.unpruned, best.chains
        # Texts are drawn evenly along where they leave at the middle of the front.
        rank = None if parts is None else chains[0].candidates[len(chains[0].candidates) // 2].exit_layer
        workload = make_workload(context, _choosing(parts), rank, length, pace.num_batches)
        make_systems = partial(Systems, context, workload, unpruned, num_threads=pace.num_threads)
        built, front = _build_best(context, chains, length, _choosing(parts), make_systems)
        choice, front, timings = _settle(built.systems, front, settings)
        if parts is not None and max_drop is not None:
            front = certify_front(context, built.systems.runtime, front, choice.index, parts.certifying)
        checked = check_point(context, built.systems.runtime, front[choice.index].point, parts, test_part)
        report = _report(context, built, front, choice, timings, checked, parts, examples)
        if not built.chosen.prune_layers and chains[0].prune_layers:
            report = report.with_notes("pruning was tried and left out: without it the engines measured better")
        report = report.with_notes(*precision_notes)
        report = _add_pictures(report, context, built, parts)
        return pack_model(context, built.systems.runtime, built.plans, built.chosen.heads, report)


def open_context(original: Original, settings: Settings, bars: StageProgress, has_pairs: bool = False) -> Context:
    """Captures a model and finds what to run it with.

    Args:
        has_pairs: whether it reads text pairs, whose separators no prune may drop.
    """
    found = find_backend(settings.backend, settings.device, settings.builder)
    native = found.precisions()
    precision = fastest_float(native) if settings.precision == "auto" else settings.precision
    if precision not in native:
        raise SettingError(
            f"precision: {precision!r}; backend {found.name!r} runs {', '.join(native)} natively on this machine"
        )
    with bars.stage("capture"):
        separator_id = original.separator_id if has_pairs else None
        captured = capture(original.model, original.pooling.normalise, separator_id)
        if settings.plan is not None:
            check_plan(settings.plan, captured.num_layers)
        tokenizer = None
        if original.tokenizer is not None:
            tokenizer = Tokenizer.from_transformers(original.tokenizer, captured.max_length)
        return Context(
            settings=settings,
            original=original,
            captured=captured,
            backend=found,
            precision=precision,
            config=BuildConfig(),
            tokenizer=tokenizer,
            store=Store(settings.cache_dir),
            progress=bars,
            digest=original.digest() if separator_id is None else f"{original.digest()} separator {separator_id}",
            task=captured.task,
        )


@dataclass(frozen=True)
class _Built:
    """Engines, what they were built for and what they are measured with."""

    chosen: Chosen
    systems: Systems
    plans: tuple[bytes, ...]
    length: int


def _typical_length(context: Context, parts: Texts | None) -> int:
    if parts is None:
        return min(LENGTH_WITHOUT_TEXTS, context.captured.max_length)
    return int(np.median(parts.choosing.lengths))


def _build_best(
    context: Context,
    chains: Sequence[Chosen],
    length: int,
    part: TextPart | None,
    make_systems: Callable[[Runtime], Systems],
) -> tuple[_Built, tuple[MeasuredPoint, ...]]:
    """Builds and times every chain, and returns the one with the best point, with its front."""
    built = []
    for chosen in chains:
        runtime, plans = _build(context, chosen, length)
        built.append(_Built(chosen, make_systems(runtime), plans, length))
    fronts = measure_fronts([(its.systems, its.chosen) for its in built], part)
    if len(chains) == 1:
        return built[0], fronts[0]
    offers = [[Expected(row.speedup, row.drop or 0.0) for row in front] for front in fronts]
    best = pick_offer(offers, context.settings.target_speedup, context.settings.max_drop)
    return built[best], fronts[best]


def _build(context: Context, chosen: Chosen, length: int) -> tuple[Runtime, tuple[bytes, ...]]:
    selection = context.settings.selection
    segments = partition(
        context.captured, chosen.heads, chosen.prune_layers, chosen.last_exit, context.precision, selection
    )
    weights = {name: value.numpy() for name, value in head_weights(chosen.heads).items()}
    digest = f"{context.digest} {digest_arrays(weights)} {chosen.prune_layers} {chosen.last_exit}"
    digest += "" if selection == "top" else f" {selection}"
    size = context.settings.batch_size
    profile = OptimizationProfile(Range(1, size, max(size, 32)), Range(2, length, context.captured.max_length))
    with context.progress.stage("build engines") as stage:
        plans = build_plans(
            context.backend, segments, profile, context.config, context.store, digest, stage, context.calibration
        )
    split_tokens = chosen.cost.split_tokens(
        tuple(segment.exit_layer for segment in segments), length, chosen.prune_layers
    )
    runtime = make_runtime(context.backend, segments, plans, context.config, context.captured.num_labels, split_tokens)
    return runtime, tuple(plans)


def _check_labels(original: Original, given: dict[str, Examples | None]) -> None:
    task, names = find_task(original.model), original.model.config.id2label or {}
    id2label = {int(i): str(name) for i, name in names.items()}
    for name, examples in given.items():
        if examples is not None:
            check_labels(examples, task, id2label, f"labels of {name}")


def _ask_about(context: Context, parts: Texts) -> Texts:
    """What the original answers to all texts, before anything is done to its weights."""
    choosing = ask_original(context, parts.choosing, "choosing")
    certifying = ask_original(context, parts.certifying, "held-out texts")
    task = context.task.calibrated(choosing.original_answer)
    training = None if parts.training is None else ask_original(context, parts.training, "training")
    return Texts(dataclasses.replace(choosing, task=task), dataclasses.replace(certifying, task=task), training)


def _choosing(parts: Texts | None) -> TextPart | None:
    return None if parts is None else parts.choosing


def _settle(
    systems: Systems, front: tuple[MeasuredPoint, ...], settings: Settings
) -> tuple[Choice, tuple[MeasuredPoint, ...], dict[str, Timing]]:
    """Picks a point and times it afresh; a point that misses the target then gives way to the next faster one."""
    while True:
        choice = choose_point(front, settings.target_speedup, settings.max_drop)
        timings = measure_chosen(systems, front[choice.index].point)
        speedup = timings["original"].median_s / timings["chosen"].median_s
        front = _replace_time(front, choice.index, timings["chosen"].median_s, speedup)
        if choice.warning or speedup >= settings.target_speedup:
            return choice, front, timings


def _replace_time(
    front: tuple[MeasuredPoint, ...], index: int, measured_s: float, speedup: float
) -> tuple[MeasuredPoint, ...]:
    changed = dataclasses.replace(front[index], measured_s=measured_s, speedup=speedup)
    return (*front[:index], changed, *front[index + 1 :])


def _report(
    context: Context,
    built: _Built,
    front: tuple[MeasuredPoint, ...],
    choice: Choice,
    timings: dict[str, Timing],
    checked: Checked,
    parts: Texts | None,
    examples: Examples | None,
) -> Report:
    seconds = {name: timing.median_s for name, timing in timings.items()}
    notes = []
    if choice.warning:
        logger.warning(choice.warning)
        notes.append(choice.warning)
    if parts is None:
        notes.append("no texts were given: no exits were trained, and what pruning costs in accuracy is unknown")
    elif examples is not None and len(examples) > context.settings.max_texts:
        notes.append(f"{context.settings.max_texts} of {len(examples)} texts were drawn (max_texts)")
    if not context.task.has_exits:
        notes.append(context.task.explain_no_exits())
    notes.extend(_busy_notes())
    lengths = parts.choosing.lengths if parts is not None else np.array([built.length])
    return Report(
        target_speedup=context.settings.target_speedup,
        measured_speedup=seconds["original"] / seconds["chosen"],
        speedup_over_unpruned=seconds["unpruned"] / seconds["chosen"],
        flops_ratio=front[choice.index].flops_ratio,
        original_s=seconds["original"],
        unpruned_s=seconds["unpruned"],
        measured_s=seconds["chosen"],
        gains=split_gain(*(seconds[name] for name in ("original", "unpruned", "exits", "chosen"))),
        accuracy=checked.accuracy,
        original_accuracy=checked.original_accuracy,
        agreement=checked.agreement,
        certified_drop=checked.certified_drop,
        confidence=context.settings.confidence,
        measured_on=checked.measured_on,
        chosen=choice.index,
        operating_points=front,
        workload={
            "batch_size": context.settings.batch_size,
            "num_batches": len(built.systems.workload.batches),
            "mean_length": float(lengths.mean()),
            "max_length": int(lengths.max()),
            "original_threads": built.systems.num_threads,
        },
        machine=describe_machine(context),
        notes=tuple(notes),
        similarity=checked.similarity,
        max_drop=context.settings.max_drop,
        held_out=0 if parts is None else len(parts.certifying.encoded),
    )


def _add_pictures(report: Report, context: Context, built: _Built, parts: Texts | None) -> Report:
    """What report.html shows beside the numbers: the model, the pyramid and what became of some texts."""
    point, num_layers = report.operating_points[report.chosen].point, context.captured.num_layers
    exit_layer = next(candidate.exit_layer for candidate in built.chosen.candidates if candidate.point == point)
    lengths = np.array([built.length])
    samples: tuple[SampleText, ...] = ()
    if parts is not None:
        lengths = parts.choosing.lengths
    if parts is not None and context.settings.show_texts:
        with context.progress.stage("trace sample texts"):
            samples = trace_samples(context, built.systems.runtime, point, parts.certifying)
    name = context.original.name
    return dataclasses.replace(
        report,
        model={
            "name": Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name,
            "num_layers": num_layers,
            "num_labels": context.captured.num_labels,
            "task": context.task.kind,
        },
        pyramid=count_pyramid(lengths, exit_layer, point, num_layers),
        samples=samples,
    )


def describe_machine(context: Context) -> dict[str, str]:
    """Hardware and versions that the numbers belong to."""
    return {
        "backend": context.backend.name,
        "precision": context.precision,
        **context.backend.fingerprint(),
        **find_versions(),
    }


def _busy_notes() -> list[str]:
    """Says so when other processes had the machine, too: torch's OpenMP suffers from that far more than OpenVINO."""
    if not hasattr(os, "getloadavg"):
        return []
    load, cores = os.getloadavg()[0], count_cores()
    if load <= 1.25 * cores:
        return []
    return [
        f"the machine was busy (load {load:.1f} on {cores} cores): measured times are not to be trusted; run it again"
    ]
