"""What the stages of an optimization share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpcompile.capture import CapturedModel
from mpcompile.data import Examples, labels_to_ids
from mpcompile.errors import DataError, SettingError
from mpcompile.progress import StageProgress
from mpcompile.segment import Backend, BuildConfig
from mpcompile.settings import Settings
from mpcompile.source import Original
from mpcompile.store import Store
from mpcompile.text import TextEncoder, TokenIds

MIN_TEXTS = 16


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
        encoder: tokenizes texts, None when no tokenizer is known.
        store: for slow results.
        progress: draws the stages.
        digest: SHA-256 of the model.
    """

    settings: Settings
    original: Original
    captured: CapturedModel
    backend: Backend
    precision: str
    config: BuildConfig
    encoder: TextEncoder | None
    store: Store
    progress: StageProgress
    digest: str


@dataclass(frozen=True)
class Texts:
    """Tokenized texts, in two parts that never mix.

    Attributes:
        choosing: for training heads and choosing points.
        certifying: for the certificate, read once, at the end.
    """

    choosing: TextPart
    certifying: TextPart


@dataclass(frozen=True)
class TextPart:
    """Some of the texts.

    Attributes:
        encoded: tokens of each.
        labels: class ids (N,), None when unknown.
        examples: the texts as they were given.
        original: logits of the original on them (N, C), None until it was asked (`reference.ask_original`).
    """

    encoded: tuple[TokenIds, ...]
    labels: np.ndarray | None
    examples: Examples | None = None
    original: np.ndarray | None = None

    @property
    def original_answer(self) -> np.ndarray:
        """Class ids that the original answers, (N,)."""
        assert self.original is not None
        answer: np.ndarray = self.original.argmax(1)
        return answer

    @property
    def truth(self) -> np.ndarray:
        """What answers are measured against: the labels, or where there are none the original's answers, (N,)."""
        return self.original_answer if self.labels is None else self.labels

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,)."""
        return np.array([len(tokens) for tokens in self.encoded])

    def take(self, index: np.ndarray) -> TextPart:
        """The texts at some positions."""
        labels = None if self.labels is None else self.labels[index]
        examples = None if self.examples is None else self.examples.take(index)
        original = None if self.original is None else self.original[index]
        return TextPart(tuple(self.encoded[i] for i in index), labels, examples, original)


def encode_examples(context: Context, examples: Examples, name: str) -> TextPart:
    """Tokenizes examples and maps their labels to class ids.

    Raises:
        SettingError: when no tokenizer is known.
        DataError: when labels are not the model's.
    """
    if context.encoder is None:
        raise SettingError(
            f"tokenizer: none found beside {context.original.name}, and {name} need one; pass tokenizer=..."
        )
    labels = None
    if examples.labels is not None:
        labels = labels_to_ids(examples.labels, context.captured.id2label, f"labels of {name}")
    return TextPart(tuple(context.encoder.encode(examples.texts, examples.text_pairs)), labels, examples)


def count_held_out(settings: Settings, used: int) -> int:
    """Texts put aside for the certificate: half of them where a point must pass it, a fifth where it only informs."""
    return used // 5 if settings.max_drop is None else used // 2


def split_texts(context: Context, examples: Examples) -> Texts:
    """Draws at most `max_texts`, and puts some aside for the certificate.

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
    return Texts(part.take(np.arange(cut)), part.take(np.arange(cut, len(order))))
