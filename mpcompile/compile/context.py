"""What the stages of an optimization share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.original import Original
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.labels import read_labels
from mpcompile.contract.backend import Backend, BuildConfig
from mpcompile.contract.precision import fastest_float
from mpcompile.contract.task import Task
from mpcompile.errors import DataError, SettingError
from mpcompile.graph.capture import CapturedModel
from mpcompile.progress import StageProgress
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from mpcompile.store.results import Store, digest_arrays

MIN_TEXTS = 16
TRAINING_SHARE = 0.75
"""Of the texts that are not put aside for the certificate, how many train a backbone; the rest choose points."""


@dataclass(frozen=True)
class Context:
    """One optimization: the model, where it will run, and the tools to get there.

    Attributes:
        settings: options.
        original: model as passed in.
        captured: its graph.
        backend: builds engines.
        precision: of the engines.
        config: for the backend.
        tokenizer: tokenizes texts, None when no tokenizer is known.
        store: for slow results.
        progress: draws the stages.
        digest: SHA-256 of the model.
        task: what the model answers; of a regression with the tolerance that the texts for choosing give.
        calibration: texts that int8 engines are calibrated on, None when no texts were given.
        token_thresholds: that were learned with the weights, by layer that prunes; None where none were.
    """

    settings: Settings
    original: Original
    captured: CapturedModel
    backend: Backend
    precision: str
    config: BuildConfig
    tokenizer: Tokenizer | None
    store: Store
    progress: StageProgress
    digest: str
    task: Task
    calibration: CalibrationTexts | None = None
    token_thresholds: Mapping[int, float] | None = None

    @property
    def float_precision(self) -> str:
        """That of the engines, or the fastest float where they are int8."""
        return self.precision if self.precision != "int8" else fastest_float(self.backend.precisions())


@dataclass(frozen=True)
class Texts:
    """Tokenized texts, in parts that never mix.

    Attributes:
        choosing: for training heads on a frozen backbone, and choosing points.
        certifying: for the certificate, read once, at the end.
        training: for training the backbone with its heads; None where it stays frozen.
    """

    choosing: TextPart
    certifying: TextPart
    training: TextPart | None = None


@dataclass(frozen=True)
class TextPart:
    """Some of the texts.

    Attributes:
        encoded: tokens of each.
        labels: as `labels.read_labels` gives them, None when unknown.
        examples: the texts as they were given.
        original: logits of the original on them (N, C), None until it was asked (`reference.ask_original`).
        task: what the logits are: classes, labels, scores or a vector.
    """

    encoded: tuple[TokenIds, ...]
    labels: np.ndarray | None
    task: Task
    examples: Examples | None = None
    original: np.ndarray | None = None

    @property
    def original_answer(self) -> np.ndarray:
        """What the original answers, see `Task.answers`."""
        assert self.original is not None
        return self.task.answers(self.original)

    @property
    def truth(self) -> np.ndarray:
        """What answers are measured against: labels that are classes, else the original's answers."""
        return self.labels if self.labels is not None and self.task.has_classes else self.original_answer

    @property
    def has_accuracy(self) -> bool:
        """Whether labels say which answers are right."""
        return self.labels is not None and self.task.has_classes

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens, which results of the texts are kept under."""
        return digest_arrays({str(i): tokens.ids for i, tokens in enumerate(self.encoded)})

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,)."""
        return np.array([len(tokens) for tokens in self.encoded])

    def take(self, index: np.ndarray) -> TextPart:
        """The texts at some positions."""
        labels = None if self.labels is None else self.labels[index]
        examples = None if self.examples is None else self.examples.take(index)
        original = None if self.original is None else self.original[index]
        return TextPart(tuple(self.encoded[i] for i in index), labels, self.task, examples, original)


def encode_examples(context: Context, examples: Examples, name: str) -> TextPart:
    """Tokenizes examples and reads their labels.

    Raises:
        SettingError: when no tokenizer is known.
        DataError: when labels are not the model's.
    """
    if context.tokenizer is None:
        raise SettingError(
            f"tokenizer: none found beside {context.original.name}, and {name} need one; pass tokenizer=..."
        )
    labels = read_labels(examples, context.task, context.captured.id2label, f"labels of {name}")
    encoded = tuple(context.tokenizer.encode(examples.texts, examples.text_pairs))
    return TextPart(encoded, labels, context.task, examples)


def count_held_out(settings: Settings, used: int) -> int:
    """Texts put aside for the certificate: half of them where a point must pass it, a fifth where it only informs."""
    return used // 5 if settings.max_drop is None else used // 2


def split_texts(context: Context, examples: Examples) -> Texts:
    """Draws at most `max_texts`, and puts some aside for the certificate, and some for training a backbone.

    Raises:
        DataError: when there are fewer than `MIN_TEXTS`.
    """
    if len(examples) < MIN_TEXTS:
        raise DataError(
            f"texts: {len(examples)} given; at least {MIN_TEXTS} are needed to train exits and choose points (some "
            "thousands are better), or none (texts=None) to use what needs no data"
        )
    order = np.random.default_rng(context.settings.seed).permutation(len(examples))[: context.settings.max_texts]
    part = encode_examples(context, examples.take(order), "texts")
    cut = len(order) - count_held_out(context.settings, len(order))
    certifying = part.take(np.arange(cut, len(order)))
    if context.settings.adapt != "finetune":
        return Texts(part.take(np.arange(cut)), certifying)
    start = round(TRAINING_SHARE * cut)
    return Texts(part.take(np.arange(start, cut)), certifying, part.take(np.arange(start)))
