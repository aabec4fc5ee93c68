"""Fine-tuning, adapt="finetune": trains backbone and exit heads on texts that nothing else reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from mpcompile.compile.adapt.elastic import Elastic, ElasticHeads, train_elastic
from mpcompile.compile.adapt.frozen import train_exit_heads
from mpcompile.compile.adapt.losses import find_loss
from mpcompile.compile.adapt.token_thresholds import Pyramid, ThresholdSettings, train_thresholds
from mpcompile.compile.adapt.trainer import ElasticSettings, TaughtTexts, name_weights
from mpcompile.compile.choose.features import FeatureCollector, KeepSchedule, keep_schedules
from mpcompile.compile.context import Context, TextPart
from mpcompile.store.results import digest_arrays
from passes import ExitHead

VALIDATION_SHARE, MAX_VALIDATION = 0.1, 400
"""Of the texts for training, how many decide when to stop."""


def finetune(context: Context, part: TextPart, exit_layers: tuple[int, ...]) -> tuple[Context, ElasticHeads | None]:
    """Trains the model at all exits, and at many keep ratios at once or with thresholds that it learns.

    Args:
        part: texts for training, with the original's answers.
        exit_layers: off-ramps to train heads for.

    Returns:
        The context with the trained model in place of the captured one, and the trained heads, None without any.
    """
    assert context.tokenizer is not None
    options = context.settings
    training, validation = split_validation(part)
    max_seconds = None if options.train_minutes is None else 60.0 * options.train_minutes
    settings = ElasticSettings(max_epochs=options.train_epochs, max_seconds=max_seconds, seed=options.seed)
    prune_layers, _ = keep_schedules(context.captured.num_layers)
    heads = train_first_heads(context, training, exit_layers)
    arguments = (heads, prune_layers, teach(training), teach(validation), context.tokenizer, context.store)
    loss = find_loss(context.task)
    trained: Elastic | Pyramid
    with context.progress.stage("elastic fine-tuning") as stage:
        if options.selection == "threshold":
            stages = ThresholdSettings(soft=_halve(settings), hard=_halve(settings))
            trained = train_thresholds(context.captured, *arguments, stages, loss, stage)
        else:
            trained = train_elastic(context.captured, *arguments, settings, loss, stage)
    return adopt(context, trained), ElasticHeads(trained.heads) if trained.heads else None


def split_validation(part: TextPart) -> tuple[TextPart, TextPart]:
    """Texts to learn from, and those that decide when to stop."""
    count = len(part.encoded)
    num_validation = max(1, min(MAX_VALIDATION, round(VALIDATION_SHARE * count)))
    return part.take(np.arange(num_validation, count)), part.take(np.arange(num_validation))


def adopt(context: Context, trained: Elastic | Pyramid) -> Context:
    """The context with a trained model in place of the captured one."""
    weights = {name: value.detach().numpy() for name, value in name_weights(trained.captured.graph_module).items()}
    digest = f"{context.digest} {digest_arrays(weights)}"
    learned = trained.token_thresholds if isinstance(trained, Pyramid) else None
    return dataclasses.replace(context, captured=trained.captured, digest=digest, token_thresholds=learned)


def _halve(settings: ElasticSettings) -> ElasticSettings:
    """Each of two stages in half of the epochs and of the time."""
    seconds = None if settings.max_seconds is None else settings.max_seconds / 2
    return dataclasses.replace(settings, max_epochs=-(-settings.max_epochs // 2), max_seconds=seconds)


def teach(part: TextPart) -> TaughtTexts:
    """Texts as a trainer takes them, with the original's answers."""
    assert part.original is not None
    return TaughtTexts(part.encoded, part.original, part.labels)


def train_first_heads(context: Context, part: TextPart, exit_layers: tuple[int, ...]) -> dict[int, ExitHead]:
    """Heads to start from, from the store where they were trained before: a checkpoint is of one start only."""
    if not exit_layers:
        return {}
    key: dict[str, object] = {
        "kind": "first exit heads",
        "model": context.digest,
        "texts": part.digest,
        "exits": exit_layers,
        "seed": context.settings.seed,
    }
    arrays = context.store.fetch(key, lambda: _name_arrays(_compute_heads(context, part, exit_layers)))
    heads = {}
    for layer in exit_layers:
        head = ExitHead(
            context.captured.hidden_size, context.captured.num_labels, multi_label=context.task.kind == "multi_label"
        )
        head.load_state_dict({name: torch.from_numpy(arrays[f"{layer}.{name}"]) for name in head.state_dict()})
        heads[layer] = head.eval().requires_grad_(False)
    return heads


def _compute_heads(context: Context, part: TextPart, exit_layers: tuple[int, ...]) -> dict[int, ExitHead]:
    assert context.tokenizer is not None
    assert part.original is not None
    plain = KeepSchedule((), ())
    collector = FeatureCollector(
        context.captured, exit_layers, (), context.backend, context.float_precision, context.tokenizer, context.config
    )
    with context.progress.stage("features for training") as stage:
        features = collector.collect(part.encoded, plain, stage)
    with context.progress.stage("train exit heads") as stage:
        return train_exit_heads(features.pooled, part.original, 2, context.settings.seed, stage, context.task).heads


def _name_arrays(heads: Mapping[int, ExitHead]) -> dict[str, np.ndarray]:
    return {
        f"{layer}.{name}": value.numpy() for layer, head in heads.items() for name, value in head.state_dict().items()
    }
