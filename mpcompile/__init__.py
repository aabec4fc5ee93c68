"""mpcompile: the same classifier, doing less work per input, measured on the clock.

`optimize` compiles a fine-tuned Hugging Face encoder, `load` reads what was saved. Importing this package
imports neither torch nor an inference engine.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mpcompile.contract import version
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
    from pathlib import Path

    from mpcompile.compile.optimize import optimize
    from mpcompile.planning.plan import plan
    from mpcompile.runtime.model import OptimizedModel

__version__ = version.VERSION

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
    "__version__",
    "load",
    "optimize",
    "plan",
]

_LAZY = {
    "optimize": "mpcompile.compile.optimize",
    "OptimizedModel": "mpcompile.runtime.model",
    "plan": "mpcompile.planning.plan",
}


def load(directory: str | Path, num_threads: int | None = None, cache_dir: str | Path | None = None) -> OptimizedModel:
    """Reads an artifact.

    With the OpenVINO backend this imports neither torch nor transformers, unless an engine is stale (built by another
    version or for another machine) and has to be built again.

    Args:
        directory: what `OptimizedModel.save` or `mpcompile optimize --out` wrote.
        num_threads: CPU threads, instead of those that the artifact was tuned to; None for those, or all cores.
        cache_dir: where rebuilt engines are kept; None is the user's cache directory.

    Raises:
        ArtifactError: when it is damaged, foreign or of a newer format.
        BackendError: when its backend is missing here.
        SettingError: when num_threads is less than 1.
    """
    from mpcompile.runtime.load import load_artifact

    can_rebuild = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    return load_artifact(directory, num_threads, cache_dir, _rebuild if can_rebuild else None)


def _rebuild(*arguments: Any) -> Any:
    """Imported when it is called: it needs torch."""
    from mpcompile.compile.rebuild import rebuild_chain

    return rebuild_chain(*arguments)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mpcompile' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
