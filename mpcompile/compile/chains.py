"""Builds chains of engines for the candidates of a front, and keeps the better chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.choose.points import Chosen
from mpcompile.compile.choose.precision import Offer, pick_offer
from mpcompile.compile.job import Job, Model
from mpcompile.contract.backend import Target
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.graph.segments import partition
from mpcompile.runtime.runner import make_runtime
from mpcompile.runtime.runtime import Runtime
from mpcompile.store.results import digest_arrays
from passes import ExitHead

Front = tuple[MeasuredPoint, ...]


@dataclass(frozen=True)
class Built:
    """A chain of engines.

    Attributes:
        target: what the engines were built for.
        chosen: candidates that the chain serves, and their exit heads.
        runtime: the engines, loaded.
        plans: one per segment.
    """

    target: Target
    chosen: Chosen
    runtime: Runtime
    plans: tuple[bytes, ...]


def build_chains(job: Job, model: Model, offer: Offer, length: int) -> list[Built]:
    """Builds the engines of every chain of an offer. Slow.

    Args:
        job: settings, store and progress.
        model: the model that is deployed.
        offer: chains to build, and what for.
        length: tokens to be fastest at.
    """
    return [_build(job, model, offer.target, chosen, length) for chosen in offer.chains]


def keep_best(
    built: Sequence[Built], fronts: Sequence[Front], target_speedup: float, max_drop: float | None
) -> tuple[Built, Front]:
    """The chain whose measured front has the best point, see `pick_offer`, and its front."""
    best = pick_offer(fronts, target_speedup, max_drop)
    return built[best], fronts[best]


def _build(job: Job, model: Model, target: Target, chosen: Chosen, length: int) -> Built:
    settings, captured = job.settings, model.captured
    segments = partition(
        captured, chosen.heads, chosen.prune_layers, chosen.last_exit, target.precision, settings.selection
    )
    weights = {name: value.numpy() for name, value in head_weights(chosen.heads).items()}
    digest = f"{model.digest} {digest_arrays(weights)} {chosen.prune_layers} {chosen.last_exit}"
    digest += "" if settings.selection == "top" else f" {settings.selection}"
    size = settings.batch_size
    profile = OptimizationProfile(Range(1, size, max(size, 32)), Range(2, length, captured.max_length))
    with job.progress.stage("build engines") as stage:
        plans = build_plans(target, Blueprint(segments, profile, digest, job.calibration), job.store, stage)
    exits = tuple(segment.exit_layer for segment in segments)
    split_tokens = chosen.cost.split_tokens(exits, length, chosen.prune_layers)
    first_exit = None if chosen.ngrams is None else chosen.ngrams.first_exit
    runtime = make_runtime(target, segments, plans, captured.num_labels, split_tokens, first_exit)
    return Built(target, chosen, runtime, tuple(plans))


def head_weights(heads: Mapping[int, ExitHead]) -> dict[str, Tensor]:
    """Weights of exit heads as `LAYER.hidden.weight` and so on."""
    return {f"{layer}.{name}": value for layer, head in heads.items() for name, value in head.state_dict().items()}
