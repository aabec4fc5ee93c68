"""The parts that texts are split into: tokenized, with labels and the original's answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.job import Job, Model
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.labels import read_labels
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.errors import DataError
from mpcompile.runtime.answer import answer_texts
from mpcompile.runtime.runtime import Runner, RunResult
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from mpcompile.store.results import digest_arrays

MIN_TEXTS = 16
TRAINING_SHARE = 0.75
"""Share of the texts not put aside for the certificate that trains a backbone; the rest chooses points."""

USUAL_DROP = 0.02
"""Accuracy that may be lost where no `max_drop` says otherwise: two points."""
USUAL_DISAGREEMENT = 0.05
"""Share of answers that may be other ones than the original's, where labels do not say which of the two is right: on
each of the five tasks of `bench/results/tasks_amd-epyc-2-cores_2026-11-22.md` accuracy of mpcompile's points fell by
less than half of the share of answers that differ."""


@dataclass(frozen=True)
class Texts:
    """Tokenized texts, in parts that never mix.

    Attributes:
        choosing: for training heads on a frozen backbone, and choosing points.
        certifying: for the certificate, read once, at the end.
        training: for training the backbone with its heads; None where it stays frozen.
        num_given: texts that they were drawn from.
        spare: texts beyond `max_texts`, from which the certificate takes what it lacks.
    """

    choosing: TextPart
    certifying: TextPart
    training: TextPart | None = None
    num_given: int = 0
    spare: Examples | None = None


@dataclass(frozen=True)
class TextPart:
    """Some of the texts.

    Attributes:
        encoded: tokens of each.
        labels: as `labels.read_labels` gives them, None when unknown.
        examples: the texts as they were given.
        original: logits of the original on them (N, C), None until it was asked (`reference.ask_original`).
        task: what the logits are: classes, labels, scores or a vector.
        tokenizer: pads batches of the texts.
    """

    encoded: tuple[TokenIds, ...]
    labels: np.ndarray | None
    task: Task
    tokenizer: Tokenizer
    examples: Examples | None = None
    original: np.ndarray | None = None

    @property
    def original_answer(self) -> np.ndarray:
        """Answers of the original, see `Task.answers`."""
        assert self.original is not None
        return self.task.answers(self.original)

    @property
    def truth(self) -> np.ndarray:
        """The right answers: labels that are classes, else the original's answers."""
        return self.labels if self.labels is not None and self.task.has_classes else self.original_answer

    @property
    def original_loss(self) -> np.ndarray:
        """Whether the original errs, (N,) bool: nowhere where it is its own measure."""
        return self.task.differs(self.original_answer, self.truth)

    @property
    def has_accuracy(self) -> bool:
        """Whether labels say which answers are right."""
        return self.labels is not None and self.task.has_classes

    def allowed_drop(self, settings: Settings) -> float:
        """Loss up to which points are taken: `max_drop`, or what goes without saying."""
        if settings.max_drop is not None:
            return settings.max_drop
        return USUAL_DROP if self.has_accuracy else USUAL_DISAGREEMENT

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
        encoded = tuple(self.encoded[i] for i in index)
        return TextPart(encoded, labels, self.task, self.tokenizer, examples, original)

    def join(self, other: TextPart) -> TextPart:
        """These texts and other ones, both with labels or both without, and with the original's answers."""
        assert self.original is not None
        assert other.original is not None
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = np.concatenate([self.labels, other.labels])
        examples = None
        if self.examples is not None and other.examples is not None:
            examples = self.examples.join(other.examples)
        return dataclasses.replace(
            self,
            encoded=(*self.encoded, *other.encoded),
            labels=labels,
            examples=examples,
            original=np.concatenate([self.original, other.original]),
        )

    def pad(self, index: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """A batch of the texts at some positions, padded to the longest of them, see `Tokenizer.pad`."""
        return self.tokenizer.pad([self.encoded[i] for i in index])

    def answer(
        self, runtime: Runner, point: OperatingPoint, on_batch: Callable[[float], None] = lambda _: None
    ) -> RunResult:
        """Answers of engines to all of the texts at a point, see `runtime.answer.answer_texts`."""
        return answer_texts(runtime, point, self.tokenizer, self.encoded, on_batch=on_batch)


def encode_examples(tokenizer: Tokenizer, model: Model, examples: Examples, name: str) -> TextPart:
    """Tokenizes examples and reads their labels.

    Raises:
        DataError: when labels are not the model's.
    """
    labels = read_labels(examples, model.task, model.captured.id2label, f"labels of {name}")
    encoded = tuple(tokenizer.encode(examples.texts, examples.text_pairs))
    return TextPart(encoded, labels, model.task, tokenizer, examples)


def count_held_out(settings: Settings, used: int) -> int:
    """Texts put aside for the certificate: half of them where a point must pass it, a fifth where it only informs."""
    return used // 5 if settings.max_drop is None else used // 2


def split_texts(job: Job, model: Model, examples: Examples) -> Texts:
    """Draws at most `max_texts`, and puts some aside for the certificate, and some for training a backbone.

    Raises:
        DataError: when there are fewer than `MIN_TEXTS`, or labels are not the model's.
        SettingError: when no tokenizer is known.
    """
    if len(examples) < MIN_TEXTS:
        raise DataError(
            f"texts: {len(examples)} given; at least {MIN_TEXTS} are needed to train exits and choose points (some "
            "thousands are better), or none (texts=None) to use what needs no data"
        )
    shuffled = np.random.default_rng(job.settings.seed).permutation(len(examples))
    order, rest = np.split(shuffled, [job.settings.max_texts])
    spare = examples.take(rest) if len(rest) else None
    part = encode_examples(job.require_tokenizer("texts"), model, examples.take(order), "texts")
    cut = len(order) - count_held_out(job.settings, len(order))
    certifying = part.take(np.arange(cut, len(order)))
    if job.settings.adapt != "finetune":
        return Texts(part.take(np.arange(cut)), certifying, None, len(examples), spare)
    start = round(TRAINING_SHARE * cut)
    training = part.take(np.arange(start))
    return Texts(part.take(np.arange(start, cut)), certifying, training, len(examples), spare)
