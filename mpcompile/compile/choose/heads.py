"""Exit heads that are trained on a frozen backbone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.finetune import train_first_heads
from mpcompile.compile.adapt.frozen import TrainedHeads, name_head_weights, read_heads, train_exit_heads
from mpcompile.compile.choose.collector import Collector
from mpcompile.compile.choose.exits import find_exits
from mpcompile.compile.choose.features import FeatureCollector, Features, join_features
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.job import Job, Model
from mpcompile.compile.reference import ask_original
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.backend import Target
from mpcompile.graph.segments import tap

Heads = TrainedHeads | ElasticHeads
TEACH_SHARE = 0.5
"""Share of `teach_minutes` that goes into heads; the rest teaches the exit before the model, faster."""
MOST_TAUGHT = 16_384
"""Texts that heads are taught on at most, as their features are all kept in memory."""
CHUNK = 1024
"""Texts between two looks at the clock."""


@dataclass(frozen=True)
class Taught:
    """Exit heads, and what was answered to teach them.

    Attributes:
        heads: None where exits are not wanted, or nothing is trained.
        logits: answers to the first of the texts that nothing else needs, see `Texts.teaching`, (N, C); N may be 0.
    """

    heads: Heads | None
    logits: np.ndarray


def train_heads(job: Job, model: Model, target: Target, parts: Texts) -> Taught:
    """Exit heads, trained on what the unpruned model computes in floating point.

    On texts that nothing else needs, where they are more than those for choosing; otherwise on texts for training, or
    by cross-fitting on those for choosing. All precisions share them.
    """
    exits, nothing = find_exits(job.settings, model), np.zeros((0, model.captured.num_labels), np.float32)
    if not exits or not job.settings.exits or job.settings.adapt != "frozen":
        return Taught(None, nothing)
    least, part, minutes = len(parts.choosing.encoded), parts.teaching, job.settings.teach_minutes
    if part is not None and len(part.encoded) >= least and minutes:
        key: dict[str, object] = {
            "kind": "taught exit heads",
            "model": model.digest,
            "texts": part.digest,
            "least": least,
            "minutes": minutes,
            "exits": exits,
            "seed": job.settings.seed,
        }
        arrays = dict(job.store.fetch(key, lambda: _teach(job, model, target, part, exits, least)))
        nothing = arrays.pop("logits")
        if arrays:
            heads = read_heads(arrays, exits, model.captured.hidden_size, model.task)
            return Taught(ElasticHeads(heads), nothing)
    if parts.training is not None:
        training = ask_original(job, model, target, parts.training, "training")
        return Taught(ElasticHeads(train_first_heads(job, model, target, training)), nothing)
    return Taught(_cross_fit(job, model, target, parts.choosing, exits), nothing)


def _teach(
    job: Job, model: Model, target: Target, part: TextPart, exits: Sequence[int], least: int
) -> dict[str, np.ndarray]:
    """Weights of heads that are trained on as many of the texts as there is time for, and the model's logits of these.

    Args:
        job: settings and progress.
        model: the model.
        target: computes features, in floating point.
        part: the texts.
        exits: of the heads.
        least: texts that are needed; of fewer no heads are trained.
    """
    found, started, captured = list[Features](), time.monotonic(), model.captured
    segment = tap(captured, tuple(exits), (), target.float_precision)
    collector = FeatureCollector(segment, target, captured.max_length, part.tokenizer)
    seconds, most = 60.0 * job.settings.teach_minutes * TEACH_SHARE, min(MOST_TAUGHT, len(part.encoded))
    with job.progress.stage("features to teach on") as stage:
        for start in range(0, most, CHUNK):
            end = min(start + CHUNK, most)
            found.append(collector.collect(part.encoded[start:end], KeepSchedule((), ()), lambda _: None))
            elapsed = time.monotonic() - started
            stage(max(end / most, min(elapsed / seconds, 1.0)))
            if elapsed >= seconds:
                break
    features = join_features(found)
    if len(features.logits) < least:
        return {"logits": features.logits}
    with job.progress.stage("train exit heads") as stage:
        trained = train_exit_heads(features.pooled, features.logits, 0, job.settings.seed, stage, model.task)
    return {**name_head_weights(trained.heads), "logits": features.logits}


def _cross_fit(job: Job, model: Model, target: Target, part: TextPart, exits: tuple[int, ...]) -> TrainedHeads:
    in_float = dataclasses.replace(target, precision=target.float_precision)
    collector = Collector(job, model, in_float, exits, part)
    features = collector.collect(collector.unpruned)
    num_folds = 4 if len(features.logits) >= 64 else 2
    with job.progress.stage("train exit heads") as stage:
        return train_exit_heads(features.pooled, features.logits, num_folds, job.settings.seed, stage, model.task)
