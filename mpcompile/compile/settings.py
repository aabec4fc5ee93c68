"""The options of `optimize`, checked before anything slow starts. Imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from mpcompile.backends import BACKENDS
from mpcompile.contract.front import check_target
from mpcompile.contract.options import Options, number, one_of, option, optional, to_path, whole
from mpcompile.cost.forecast import Forecast
from mpcompile.errors import SettingError

ADAPTATIONS = ("none", "frozen", "finetune")
SELECTIONS = ("top", "threshold")
PRECISIONS = ("auto", "f32", "bf16", "f16", "int8")
_MAX_DROP = number(0.0, 1.0, "such as 0.005 for half a point of accuracy")


def _check_max_drop(name: str, value: Any) -> None:
    _MAX_DROP(name, value)
    if value == 0.0:
        raise SettingError(
            "max_drop: 0; no number of texts shows that nothing at all is lost: allow some, such as 0.005, or leave "
            "max_drop out to take the point that loses least"
        )


def _check_plan(name: str, value: Any) -> None:
    if not isinstance(value, Forecast):
        raise SettingError(f"{name}: {value!r}; what mpcompile.plan returned or a file of it is expected")


def _read_plan(value: Any) -> Any:
    return Forecast.load(value) if isinstance(value, str | Path) else value


def _to_str(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Settings(Options):
    """Options of `optimize`; an option is a field.

    Raises:
        SettingError: when a value is not allowed.
    """

    target_speedup: float = option(
        MISSING,
        "measured time of the model as passed in over time of the result, on this machine and workload; 1 to 100. The "
        "point that loses least among those that reach it is taken",
        lambda _, value: check_target(value),
    )
    max_drop: float | None = option(
        None,
        "loss that is allowed, such as 0.005: half of the texts are then held out, and the fastest point of which they "
        "show that it loses no more is returned, up to the target. None allows 2 points of accuracy, or 5 of 100 other "
        "answers where there are no labels, as measured and without a certificate",
        optional(_check_max_drop),
    )
    require_target: bool = option(
        False,
        "whether a target that is not reached within the loss that is allowed is an error",
        flag="--require-target",
        flag_help="end with an error where the target is not reached within the loss that is allowed",
    )
    confidence: float = option(
        0.95,
        "confidence with which held-out texts show that, and of the bound on the loss in the report",
        number(0.5, 0.9999, "such as 0.95"),
    )
    adapt: str = option(
        "frozen",
        "'frozen' trains exit heads, 'finetune' trains a copy of the model with them (slow; three fifths of the texts "
        "go into it), 'none' trains nothing",
        one_of(*ADAPTATIONS),
    )
    batch_size: int = option(
        1, "examples that run together in the timed workload; lengths come from the texts", whole(1, 4096)
    )
    device: str = option("auto", "'auto', 'cpu', or 'cuda' for the backends that run on a GPU")
    backend: str = option("auto", f"'auto' or one of {', '.join(map(repr, BACKENDS))}")
    precision: str = option(
        "auto",
        "'auto', 'f32', 'bf16', 'f16' (on GPUs), or 'int8', which is calibrated on the texts and needs nncf. 'auto' "
        "takes int8 into account where both are there, and picks what is fastest within max_drop; without it, what "
        "loses least at the target",
        one_of(*PRECISIONS),
    )
    max_texts: int = option(4000, "more texts than these are sampled", whole(16, 10**7))
    teach_minutes: float = option(
        0.0,
        "minutes that more texts are answered for, to teach exits on, one before the model among them; 0 for none",
        number(0.0, 600.0, "such as 3"),
    )
    seed: int = option(0, "seed of everything random", whole(0, 2**32 - 1))
    progress: bool = option(
        True, "whether to draw progress bars", flag="--no-progress", flag_help="draw no progress bars"
    )
    cache_dir: Path | None = option(
        None, "where slow results are kept; None is the user's cache directory", convert=to_path
    )
    plan: Forecast | None = option(
        None,
        "what `mpcompile.plan` returned, or a file of it: its keep ratios and exits are tried beside the usual ones",
        optional(_check_plan),
        convert=_read_plan,
        parse=Path,
    )
    show_texts: bool = option(
        True,
        "whether some of the texts are shown, token by token, in report.json and report.html, which are part of the "
        "artifact; turn it off where they are confidential",
        flag="--hide-texts",
        flag_help="keep the texts out of report.json and report.html",
    )
    trials: int = option(
        0,
        "schedules of keep ratios that a seeded search (Optuna) tries beside the usual ones, each a pass over the "
        "texts; Ctrl-C ends the search with what it has",
        whole(0, 10**6),
    )
    storage: str | None = option(
        None,
        "where the search keeps its study, a path of a SQLite file or a URL of an Optuna storage: a killed search "
        "resumes there, and many processes may share it. None keeps it in memory",
        convert=_to_str,
    )
    train_epochs: int = option(
        10, "passes of 'finetune' over its texts; it stops earlier where they bring nothing", whole(1, 1000)
    )
    train_minutes: float | None = option(
        None, "time that 'finetune' may take", optional(number(0.01, 1e5, "or None for no limit"))
    )
    exits: bool = option(
        True, "False leaves exits out, to see what pruning brings alone", flag="--no-exits", flag_help="prune only"
    )
    pruning: bool = option(
        True, "False leaves pruning out, to see what exits bring alone", flag="--no-pruning", flag_help="exit only"
    )
    selection: str = option(
        "top",
        "which tokens a layer keeps: 'top', a share of each text's, those that matter most; or 'threshold', those that "
        "receive enough attention, as in Magic Pyramid: each text decides how many. The thresholds are learned with "
        "adapt='finetune'; otherwise they are quantiles on the texts, so that as many tokens are kept on average as "
        "'top' keeps. Needs texts; without int8, trials or a plan",
        one_of(*SELECTIONS),
    )
    builder: str = option(
        "auto", "builder of TensorRT engines: 'auto' and 'onnx' are ours, 'torch_tensorrt' needs pruning=False"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storage is not None and (not isinstance(self.storage, str) or not self.storage or not self.trials):
            raise SettingError(
                f"storage: {self.storage!r} with trials={self.trials}; a URL of an Optuna storage or a path of a "
                "SQLite file is expected, and at least one trial"
            )
        if self.selection == "threshold":
            self._check_threshold()

    def _check_threshold(self) -> None:
        """Refuses options that pruning by a threshold does not support yet."""
        for name, value, is_allowed, instead in (
            ("precision", self.precision, self.precision != "int8", "'auto', 'f32' or 'bf16'"),
            ("trials", self.trials, self.trials == 0, "0: the search tries keep ratios"),
            ("plan", self.plan, self.plan is None, "None: a plan is of keep ratios"),
            ("pruning", self.pruning, self.pruning, "True, or selection='top'"),
        ):
            if not is_allowed:
                shown = "a plan" if name == "plan" else repr(value)
                raise SettingError(f"{name}: {shown} with selection='threshold'; expected {instead}")
