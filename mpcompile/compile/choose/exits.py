"""Off-ramps that exit heads are trained for."""

from __future__ import annotations

from mpcompile.compile.choose.schedules import exit_candidates
from mpcompile.compile.job import Model
from mpcompile.compile.settings import Settings


def find_exits(settings: Settings, model: Model) -> tuple[int, ...]:
    """Off-ramps to train heads for: the usual ones, and those of the user's plan; none without classes."""
    if not model.task.has_exits:
        return ()
    planned = () if settings.plan is None else settings.plan.point.exit_layers[:-1]
    return tuple(sorted({*exit_candidates(model.num_layers), *planned}))
