"""Fine-tuning, adapt="finetune": trains backbone and exit heads on texts that nothing else reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.adapt.elastic import Elastic, ElasticHeads, train_elastic
from mpcompile.compile.adapt.frozen import name_head_weights, read_heads, train_exit_heads
from mpcompile.compile.adapt.lesson import ElasticSettings, Lesson, Start, TaughtTexts
from mpcompile.compile.adapt.losses import find_loss
from mpcompile.compile.adapt.token_thresholds import Pyramid, ThresholdSettings, train_thresholds
from mpcompile.compile.adapt.trainer import name_weights
from mpcompile.compile.choose.exits import find_exits
from mpcompile.compile.choose.features import FeatureCollector
from mpcompile.compile.choose.schedules import KeepSchedule, keep_schedules
from mpcompile.compile.job import Job, Model
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.backend import Target
from mpcompile.graph.segments import tap
from mpcompile.store.results import digest_arrays
from passes import ExitHead

VALIDATION_SHARE, MAX_VALIDATION = 0.1, 400
"""Share of the texts for training that decide when to stop, and the largest number of them."""


@dataclass(frozen=True)
class Adapted:
    """The model that is deployed.

    Attributes:
        model: a fine-tuned copy of the original, or the original itself.
        heads: exit heads that were trained with it; None where none were.
    """

    model: Model
    heads: ElasticHeads | None = None


def finetune(job: Job, model: Model, target: Target, part: TextPart) -> Adapted:
    """Trains a copy of the model at all exits, and at many keep ratios at once or with thresholds that it learns.

    Args:
        job: settings, store and progress.
        model: left as it is.
        target: computes the features that the first heads are trained on.
        part: texts for training, with the original's answers.
    """
    options = job.settings
    training, validation = split_validation(part)
    max_seconds = None if options.train_minutes is None else 60.0 * options.train_minutes
    settings = ElasticSettings(max_epochs=options.train_epochs, max_seconds=max_seconds, seed=options.seed)
    prune_layers, _ = keep_schedules(model.num_layers)
    heads = train_first_heads(job, model, target, training)
    start = Start(model.captured, heads, prune_layers)
    lesson = Lesson(teach(training), teach(validation), part.tokenizer)
    loss = find_loss(model.task)
    trained: Elastic | Pyramid
    with job.progress.stage("elastic fine-tuning") as stage:
        if options.selection == "threshold":
            stages = ThresholdSettings(soft=_halve(settings), hard=_halve(settings))
            trained = train_thresholds(start, lesson, job.store, stages, loss, stage)
        else:
            trained = train_elastic(start, lesson, job.store, settings, loss, stage)
    return Adapted(adopt(model, trained), ElasticHeads(trained.heads) if trained.heads else None)


def split_validation(part: TextPart) -> tuple[TextPart, TextPart]:
    """Texts to learn from, and those that decide when to stop."""
    count = len(part.encoded)
    num_validation = max(1, min(MAX_VALIDATION, round(VALIDATION_SHARE * count)))
    return part.take(np.arange(num_validation, count)), part.take(np.arange(num_validation))


def adopt(model: Model, trained: Elastic | Pyramid) -> Model:
    """The model with trained weights in place of the captured ones."""
    weights = {name: value.detach().numpy() for name, value in name_weights(trained.captured.graph_module).items()}
    digest = f"{model.digest} {digest_arrays(weights)}"
    learned = trained.token_thresholds if isinstance(trained, Pyramid) else None
    return dataclasses.replace(model, captured=trained.captured, digest=digest, token_thresholds=learned)


def _halve(settings: ElasticSettings) -> ElasticSettings:
    """Each of two stages in half of the epochs and of the time."""
    seconds = None if settings.max_seconds is None else settings.max_seconds / 2
    return dataclasses.replace(settings, max_epochs=-(-settings.max_epochs // 2), max_seconds=seconds)


def teach(part: TextPart) -> TaughtTexts:
    """Texts as a trainer takes them, with the original's answers."""
    assert part.original is not None
    return TaughtTexts(part.encoded, part.original, part.labels)


def train_first_heads(job: Job, model: Model, target: Target, part: TextPart) -> dict[int, ExitHead]:
    """Heads to start from, from the store where they were trained before: a checkpoint is of one start only."""
    exit_layers = find_exits(job.settings, model)
    if not exit_layers:
        return {}
    key: dict[str, object] = {
        "kind": "first exit heads",
        "model": model.digest,
        "texts": part.digest,
        "exits": exit_layers,
        "seed": job.settings.seed,
    }
    arrays = job.store.fetch(key, lambda: name_head_weights(_compute_heads(job, model, target, part, exit_layers)))
    return read_heads(arrays, exit_layers, model.captured.hidden_size, model.task)


def _compute_heads(
    job: Job, model: Model, target: Target, part: TextPart, exit_layers: tuple[int, ...]
) -> dict[int, ExitHead]:
    assert part.original is not None
    collector = tap_model(model, target, exit_layers, part)
    with job.progress.stage("features for training") as stage:
        features = collector.collect(part.encoded, KeepSchedule((), ()), stage)
    with job.progress.stage("train exit heads") as stage:
        return train_exit_heads(features.pooled, part.original, 0, job.settings.seed, stage, model.task).heads


def tap_model(model: Model, target: Target, exit_layers: tuple[int, ...], part: TextPart) -> FeatureCollector:
    """Computes features at exits in floating point, every token kept."""
    segment = tap(model.captured, exit_layers, (), target.float_precision)
    return FeatureCollector(segment, target, model.captured.max_length, part.tokenizer)
