"""The options of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpcompile.contract.options import Options, number, option, optional, to_path, whole


@dataclass(frozen=True)
class TuneSettings(Options):
    """Options of `tune`; an option is a field.

    Raises:
        SettingError: when a value is not allowed.
    """

    batch_size: int | None = option(
        None, "examples that run together; None for that of the artifact's report", optional(whole(1, 4096))
    )
    max_drop: float | None = option(
        None,
        "loss on held-out texts that an operating point may have; None for that of the chosen one",
        optional(number(0.0, 1.0)),
    )
    budget_s: float = option(
        300.0,
        "seconds after which no further candidate is started; the last comparison comes after that",
        number(0.0, 1e7),
    )
    max_trials: int | None = option(
        None,
        "candidates that the study may settle, those of earlier calls included; None for no limit",
        optional(whole(0, 10**6)),
    )
    storage: str | None = option(
        None, "URL of an Optuna storage, which many machines may share; None is SQLite in `cache_dir`"
    )
    study: str | None = option(
        None, "name of the study there; None for a name of this model, version, workload and machine alone"
    )
    ray: str | None = option(
        None,
        'address of a Ray cluster ("auto", "local", "ray://host:10001") whose nodes measure; None is this machine',
    )
    trial_timeout_s: float = option(
        60.0, "seconds that a candidate may take for a round, and ten times that to be built", number(0.1, 1e6)
    )
    min_agreement: float = option(
        0.995,
        "share of the workload that a candidate must answer as the start does at its operating point",
        number(0.0, 1.0),
    )
    seed: int = option(0, "of everything random", whole(0, 2**31))
    cache_dir: Path | None = option(
        None, "where study and rebuilt engines are kept; None is the user's cache directory", convert=to_path
    )
    progress: bool = option(
        True, "whether to draw progress bars", flag="--no-progress", flag_help="draw no progress bars"
    )
