"""Tunes an artifact on the machine at hand, or on a cluster of such machines: `tune`.

Importing this package imports neither Optuna nor Ray: the processes that measure need neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpcompile.tuning.tuner import tune

__all__ = ["tune"]


def __getattr__(name: str) -> Any:
    if name != "tune":
        raise AttributeError(f"module 'mpcompile.tuning' has no attribute {name!r}")
    from mpcompile.tuning.tuner import tune

    return tune
