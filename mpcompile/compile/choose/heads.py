"""Exit heads that are trained on a frozen backbone."""

from __future__ import annotations

import dataclasses

from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.finetune import train_first_heads
from mpcompile.compile.adapt.frozen import TrainedHeads, train_exit_heads
from mpcompile.compile.choose.collector import Collector
from mpcompile.compile.choose.exits import find_exits
from mpcompile.compile.job import Job, Model
from mpcompile.compile.texts.parts import Texts
from mpcompile.contract.backend import Target

Heads = TrainedHeads | ElasticHeads


def train_heads(job: Job, model: Model, target: Target, parts: Texts) -> Heads | None:
    """Exit heads, trained on what the unpruned model computes in floating point.

    By cross-fitting on the texts for choosing, where there are none for training. All precisions share them. None where
    exits are not wanted, or nothing is trained.
    """
    exits = find_exits(job.settings, model)
    if not exits or not job.settings.exits or job.settings.adapt != "frozen":
        return None
    if parts.training is not None:
        return ElasticHeads(train_first_heads(job, model, target, parts.training))
    in_float = dataclasses.replace(target, precision=target.float_precision)
    collector = Collector(job, model, in_float, exits, parts.choosing)
    features = collector.collect(collector.unpruned)
    num_folds = 4 if len(features.logits) >= 64 else 2
    with job.progress.stage("train exit heads") as stage:
        return train_exit_heads(features.pooled, features.logits, num_folds, job.settings.seed, stage, model.task)
