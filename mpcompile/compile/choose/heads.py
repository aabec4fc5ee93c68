"""Exit heads that are trained on a frozen backbone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.finetune import tap_model, train_first_heads
from mpcompile.compile.adapt.frozen import TrainedHeads, name_head_weights, read_heads, train_exit_heads
from mpcompile.compile.choose.collector import Collector
from mpcompile.compile.choose.exits import find_exits
from mpcompile.compile.choose.features import join_features
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.choose.teaching import chunks_in_time
from mpcompile.compile.job import Job, Model
from mpcompile.compile.reference import ask_original
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.backend import Target

Heads = TrainedHeads | ElasticHeads
TEACH_SHARE = 0.5
"""Share of `teach_minutes` that goes into heads; the rest teaches the exit before the model, faster."""
MOST_TAUGHT = 16_384
"""Texts that heads are taught on at most, as their features are all kept in memory."""


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
    exits, logits = find_exits(job.settings, model), np.zeros((0, model.captured.num_labels), np.float32)
    if not exits or not job.settings.exits or job.settings.adapt != "frozen":
        return Taught(None, logits)
    least, part = len(parts.choosing.encoded), parts.teaching
    if part is not None and len(part.encoded) >= least:
        key: dict[str, object] = {
            "kind": "taught exit heads",
            "model": model.digest,
            "texts": part.digest,
            "least": least,
            "minutes": job.settings.teach_minutes,
            "exits": exits,
            "seed": job.settings.seed,
        }
        arrays = dict(job.store.fetch(key, lambda: _teach(job, model, target, part, exits, least)))
        logits = arrays.pop("logits")
        if arrays:
            heads = read_heads(arrays, exits, model.captured.hidden_size, model.task)
            return Taught(ElasticHeads(heads), logits)
    if parts.training is not None:
        training = ask_original(job, model, target, parts.training, "training")
        return Taught(ElasticHeads(train_first_heads(job, model, target, training)), logits)
    return Taught(_cross_fit(job, model, target, parts.choosing, exits), logits)


def _teach(
    job: Job, model: Model, target: Target, part: TextPart, exits: tuple[int, ...], least: int
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
    collector, keeps_all = tap_model(model, target, exits, part), KeepSchedule((), ())
    seconds, most = 60.0 * job.settings.teach_minutes * TEACH_SHARE, min(MOST_TAUGHT, len(part.encoded))
    with job.progress.stage("features to teach on") as stage:
        chunks = chunks_in_time(0, most, seconds, stage)
        found = [collector.collect([part.encoded[i] for i in chunk], keeps_all, lambda _: None) for chunk in chunks]
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
