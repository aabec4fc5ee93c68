"""The cost model of a model on this machine: fitted to its unpruned engine."""

from __future__ import annotations

import dataclasses

import numpy as np

from mpcompile.compile.job import Job, Model
from mpcompile.compile.measure.workload import random_batch
from mpcompile.compile.reference import unpruned_point
from mpcompile.contract.backend import Target
from mpcompile.cost.model import CostModel
from mpcompile.cost.profiles import find_profile
from mpcompile.cost.timing import measure_interleaved
from mpcompile.cost.work import estimate_work
from mpcompile.runtime.runtime import Runner


def measure_cost_model(job: Job, model: Model, target: Target, unpruned: Runner, length: int) -> CostModel:
    """The cost model of this model on this machine.

    The machine's profile is measured once and kept; one scalar, the median of measured over
    predicted time of the unpruned model at three batch sizes, fits it to the model.

    Args:
        job: store and progress.
        model: the model.
        target: what runs it.
        unpruned: the whole model as one engine.
        length: a typical length of its texts.
    """
    captured = model.captured
    with job.progress.stage("measure this machine") as stage:
        profile = find_profile(target, job.store, stage)
        work = estimate_work(captured, target.backend.fusion, job.store)
        cost = CostModel(work, profile.rates, max_length=captured.max_length)
        point = unpruned_point(model, target.precision)
        ratios = []
        for size in (1, 8, 32):
            inputs = random_batch(captured.vocab_size, size, length, seed=size)
            calls = {"unpruned": [lambda inputs=inputs: unpruned.run(inputs, point)]}
            measured_s = measure_interleaved(calls, runs=5)["unpruned"].median_s
            ratios.append(measured_s / float(cost.predict_unpruned(size, np.float64(length))))
    return dataclasses.replace(cost, scale=float(np.median(ratios)))
