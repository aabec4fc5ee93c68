"""What the stages of `optimize` share: the job that the user gave, and the model that is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from mpcompile.backends import find_backend
from mpcompile.compile.original import Original
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.settings import Settings
from mpcompile.contract.backend import Target
from mpcompile.contract.precision import fastest_float
from mpcompile.contract.task import Task
from mpcompile.errors import SettingError
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.progress import StageProgress
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store, digest
from mpcompile.store.source import digest_source


@dataclass(frozen=True)
class Job:
    """What the user gave, and the tools of a run.

    Attributes:
        settings: options of `optimize`.
        original: model as passed in.
        tokenizer: tokenizer of the original, None when none is known; with texts there is one.
        store: for slow results.
        progress: draws the stages.
        calibration: texts that int8 engines are calibrated on, None without texts.
    """

    settings: Settings
    original: Original
    tokenizer: Tokenizer | None
    store: Store
    progress: StageProgress
    calibration: CalibrationTexts | None = None

    def require_tokenizer(self, needed_by: str) -> Tokenizer:
        """The tokenizer.

        Raises:
            SettingError: when none is known.
        """
        if self.tokenizer is None:
            raise SettingError(
                f"tokenizer: none found beside {self.original.name} ({self.original.missing}), and {needed_by} need "
                "one; pass tokenizer=... or save it there with tokenizer.save_pretrained"
            )
        return self.tokenizer


@dataclass(frozen=True)
class Model:
    """A model as it is compiled: the original at first, a fine-tuned copy of it once one was trained.

    Attributes:
        captured: the graph of the model, with weights.
        digest: SHA-256 of everything that decides what the graph computes.
        task: what the logits are; for a regression with the tolerance that the texts for choosing give.
        token_thresholds: thresholds learned with the weights, by layer that prunes; None where none were.
    """

    captured: CapturedModel
    digest: str
    task: Task
    token_thresholds: Mapping[int, float] | None = None

    @property
    def num_layers(self) -> int:
        """Encoder layers."""
        return self.captured.num_layers


def open_job(
    settings: Settings, original: Original, progress: StageProgress, has_pairs: bool = False
) -> tuple[Job, Model, Target]:
    """Captures a model and finds what to run it with.

    Args:
        settings: options of `optimize`.
        original: the model.
        progress: draws the stages.
        has_pairs: whether the model reads text pairs, whose separators no prune may drop.

    Raises:
        BackendError: when the backend is missing.
        CaptureError: when the model is not an encoder that is understood.
        SettingError: when the backend does not run the precision on this machine.
    """
    target = _find_target(settings)
    separator_id = original.separator_id if has_pairs else None
    with progress.stage("capture"):
        captured = capture(original.model, original.pooling.normalise, separator_id)
        facts = {"graph": captured.graph_module.code, "separator": separator_id, "source": digest_source()}
        tokenizer = None
        if original.tokenizer is not None:
            tokenizer = Tokenizer.from_transformers(original.tokenizer, captured.max_length)
    job = Job(settings, original, tokenizer, Store(settings.cache_dir), progress)
    return job, Model(captured, digest({"original": original.digest(), **facts}), captured.task), target


def _find_target(settings: Settings) -> Target:
    backend = find_backend(settings.backend, settings.device, settings.builder)
    native = backend.precisions()
    precision = fastest_float(native) if settings.precision == "auto" else settings.precision
    if precision not in native:
        raise SettingError(
            f"precision: {precision!r}; backend {backend.name!r} runs {', '.join(native)} natively on this machine"
        )
    return Target(backend, precision)


def in_precision(target: Target, precision: str) -> Target:
    """The same target in another precision."""
    return dataclasses.replace(target, precision=precision)
