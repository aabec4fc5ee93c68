"""mpcompile: the same classifier, doing less work per input, measured on the clock.

`optimize` compiles a fine-tuned Hugging Face encoder, `load` reads what was saved. Importing this package
imports neither torch nor an inference engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpcompile.errors import (
    ArtifactError,
    BackendError,
    CaptureError,
    DataError,
    InputError,
    MpcompileError,
    SettingError,
    TargetUnreachable,
)

if TYPE_CHECKING:
    from mpcompile.compiler import optimize
    from mpcompile.loading import load
    from mpcompile.optimized_model import OptimizedModel
    from mpcompile.planning.planning import plan

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendError",
    "CaptureError",
    "DataError",
    "InputError",
    "MpcompileError",
    "OptimizedModel",
    "SettingError",
    "TargetUnreachable",
    "load",
    "optimize",
    "plan",
]

_LAZY = {
    "load": "mpcompile.loading",
    "optimize": "mpcompile.compiler",
    "OptimizedModel": "mpcompile.optimized_model",
    "plan": "mpcompile.planning.planning",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mpcompile' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
