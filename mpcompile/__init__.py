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
    from mpcompile.compile.optimize import optimize
    from mpcompile.planning.plan import plan
    from mpcompile.runtime.load import load
    from mpcompile.runtime.model import OptimizedModel

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
    "load": "mpcompile.runtime.load",
    "optimize": "mpcompile.compile.optimize",
    "OptimizedModel": "mpcompile.runtime.model",
    "plan": "mpcompile.planning.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mpcompile' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
