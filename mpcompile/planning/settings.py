"""The options of `plan`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpcompile.contract.options import Options, option, to_path, whole


@dataclass(frozen=True)
class PlanSettings(Options):
    """Options of `plan`; an option is a field.

    Raises:
        SettingError: when a value is not allowed.
    """

    seq_len: int | None = option(None, "tokens of every example, instead of texts; 128 without either")
    batch_size: int = option(1, "examples that run together", whole(1, 4096))
    precision: str = option(
        "auto", "f32, f16, bf16, fp8, int8 or auto, which is f16 on a GPU and the fastest float of a CPU"
    )
    devices: Path | None = option(None, "file of devices instead of the packaged one", convert=to_path)
    cache_dir: Path | None = option(
        None,
        "where measured profiles of this machine and facts of models are kept; None is the user's cache directory",
        convert=to_path,
    )
    progress: bool = option(
        True, "whether to draw progress bars", flag="--no-progress", flag_help="draw no progress bars"
    )
