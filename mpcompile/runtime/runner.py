"""Loads plans into a runtime, or into several lanes. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from mpcompile.contract.backend import Target
from mpcompile.contract.segment import Segment
from mpcompile.runtime.lanes import Lanes
from mpcompile.runtime.ngrams import FirstExit
from mpcompile.runtime.runtime import Runner, Runtime


def make_runtime(
    target: Target,
    segments: Sequence[Segment],
    plans: Sequence[bytes],
    num_labels: int,
    split_tokens: Sequence[float],
    first_exit: FirstExit | None = None,
) -> Runtime:
    """Loads plans into a runtime of one lane. Raises BackendError."""
    load, config = target.backend.load, target.config
    engines = [load(plan, segment, config) for plan, segment in zip(plans, segments, strict=True)]
    return Runtime(segments, engines, num_labels, split_tokens, first_exit)


def make_runner(
    target: Target,
    segments: Sequence[Segment],
    plans: Sequence[bytes],
    num_labels: int,
    split_tokens: Sequence[float],
    first_exit: FirstExit | None = None,
) -> Runner:
    """Loads plans into as many lanes as the config has streams. Raises BackendError."""
    if target.config.num_streams == 1:
        return make_runtime(target, segments, plans, num_labels, split_tokens, first_exit)
    load, config = target.backend.load_streams, target.config
    streams = [load(plan, segment, config) for plan, segment in zip(plans, segments, strict=True)]
    chains = zip(*streams, strict=True)
    return Lanes([Runtime(segments, engines, num_labels, split_tokens, first_exit) for engines in chains])
