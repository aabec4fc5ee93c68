"""The parts that texts are split into: tokenized, with labels and the original's answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.certify.refusals import Tested, skip_tested
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

TIMED_SHARE, TIMED_BATCHES, MOST_TIMED = 0.1, 12, 1000
"""Texts put aside for timing: a tenth, or so many batches where that is more, but no fifth of all; at most 1,000."""
FEW_TEXTS = 64
"""Of fewer texts none are put aside for timing."""

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
        choosing: for choosing points, and where there is no other part for it, for training heads by cross-fitting.
        certifying: for the certificate, read once, at the end.
        training: for training heads, and the backbone where it is fine-tuned; None where the texts for choosing do.
        timing: to be timed, without the original's answers: on texts that heads were trained on more leave early than
            on others. None where there are too few texts.
        num_given: texts that they were drawn from.
        teaching: for teaching exits in `teach_minutes`, without the original's answers. None without any.
        spare: texts beyond `max_texts`, from which the certificate takes what it lacks.
        has_unseen: whether all but those for training are texts that the original was not fine-tuned on, as the user
            says.
    """

    choosing: TextPart
    certifying: TextPart
    training: TextPart | None = None
    timing: TextPart | None = None
    num_given: int = 0
    teaching: TextPart | None = None
    spare: Examples | None = None
    has_unseen: bool = False

    @property
    def taught(self) -> Examples:
        """The texts that exits are taught on."""
        parts = (self.training or self.choosing, self.teaching)
        every = [part.examples for part in parts if part is not None and part.examples is not None]
        return functools.reduce(Examples.join, every)

    @property
    def timed(self) -> TextPart:
        """The texts to time."""
        return self.choosing if self.timing is None else self.timing


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


def count_timed(settings: Settings, used: int) -> int:
    """Texts put aside for timing; 0 where there are few."""
    if used < FEW_TEXTS:
        return 0
    enough = min(TIMED_BATCHES * settings.batch_size, used // 5)
    return min(max(round(TIMED_SHARE * used), enough), MOST_TIMED)


def split_texts(
    job: Job, model: Model, examples: Examples, held_out: Examples | None = None, tested: Tested | None = None
) -> Texts:
    """Draws at most `max_texts`, and puts some aside for timing and for the certificate, and some for training.

    Args:
        job: settings and tokenizer.
        model: the original.
        examples: texts of the domain.
        held_out: those that the original was not fine-tuned on, where it was on `examples`: these train heads then, and
            all else is done on `held_out`.
        tested: texts that refused runs were tested on, which the certificate must not come from.

    Raises:
        DataError: when there are fewer than `MIN_TEXTS`, or labels are not the model's.
        SettingError: when no tokenizer is known.
    """
    settings, tokenizer = job.settings, job.require_tokenizer("texts")
    source, name = (examples, "texts") if held_out is None else (held_out, "held_out")
    order, rest = _draw(settings, source, name, tested)
    part = encode_examples(tokenizer, model, source.take(order), name)
    cut = len(order) - count_held_out(settings, len(order))
    certifying = part.take(np.arange(cut, len(order)))
    num_timed = count_timed(settings, len(order))
    timing = None
    if 0 < num_timed <= len(rest):  # texts that nothing else needs
        rest, timed = np.split(rest, [max(len(rest) - MOST_TIMED, 0)])
        timing = encode_examples(tokenizer, model, source.take(timed), name)
    elif num_timed:
        cut -= num_timed
        timing = part.take(np.arange(cut, cut + num_timed))
    training, start = None, 0
    teaching = Examples(())
    if settings.teach_minutes:  # what the certificate may need stays
        rest, more = np.split(rest, [min(len(rest), 0 if settings.max_drop is None else settings.max_texts)])
        teaching = source.take(more)
    if held_out is not None:
        learned, others = _draw(settings, examples, "texts")
        training = encode_examples(tokenizer, model, examples.take(learned), "texts")
        if settings.teach_minutes:
            teaching = examples.take(np.concatenate([others, learned]))
    elif settings.adapt == "finetune":
        start = round(TRAINING_SHARE * cut)
        training = part.take(np.arange(start))
    return Texts(
        choosing=part.take(np.arange(start, cut)),
        certifying=certifying,
        training=training,
        timing=timing,
        teaching=encode_examples(tokenizer, model, teaching, "texts") if len(teaching) else None,
        num_given=len(source),
        spare=source.take(rest) if len(rest) else None,
        has_unseen=held_out is not None,
    )


def _draw(
    settings: Settings, examples: Examples, name: str, tested: Tested | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the texts that are used, those for the certificate last, and of the others; in random order."""
    if len(examples) < MIN_TEXTS:
        raise DataError(
            f"{name}: {len(examples)} given; at least {MIN_TEXTS} are needed to train exits and choose points (some "
            f"thousands are better), or none ({name}=None) to use what needs no data"
        )
    seed, used = settings.seed if tested is None else tested.seed, min(settings.max_texts, len(examples))
    shuffled = np.random.default_rng(seed).permutation(len(examples))
    if tested is not None and settings.max_drop is not None:
        shuffled = skip_tested(shuffled, tested.count, count_held_out(settings, used), name)
    order, rest = np.split(shuffled, [used])
    return order, rest
