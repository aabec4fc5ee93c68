"""Reads and checks the user's texts before anything slow starts, and asks the original about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpcompile.compile.certify.front import check_amount
from mpcompile.compile.choose.schedules import check_plan
from mpcompile.compile.job import Job, Model
from mpcompile.compile.original import Original
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.reference import ask_original
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples, Label, load_examples
from mpcompile.compile.texts.labels import check_labels, check_names
from mpcompile.compile.texts.parts import TextPart, Texts, encode_examples, split_texts
from mpcompile.compile.texts.tokenization import check_tokenization, check_vocabulary
from mpcompile.contract.backend import Target
from mpcompile.errors import SettingError
from mpcompile.graph.capture import find_task


@dataclass(frozen=True)
class Given:
    """Texts as they were given.

    Attributes:
        texts: texts of the domain, None without any.
        test: texts that are read for the report alone, None without any.
    """

    texts: Examples | None
    test: Examples | None

    @property
    def has_pairs(self) -> bool:
        """Whether the model reads text pairs."""
        return self.texts is not None and self.texts.text_pairs is not None

    def check(self, settings: Settings, original: Original) -> None:
        """Refuses names of classes that are none, labels that are not the model's, and too few texts for `max_drop`.

        Raises:
            CaptureError: when the model's classes have no names of their own.
            DataError: when labels are not the model's, or texts too few.
        """
        task, names = find_task(original.model), original.model.config.id2label or {}
        id2label = {int(i): str(name) for i, name in names.items()}
        if task.has_classes:
            check_names(id2label, task.num_outputs)
        for name, examples in (("texts", self.texts), ("test", self.test)):
            if examples is not None:
                check_labels(examples, task, id2label, f"labels of {name}")
        if self.texts is not None:
            check_amount(settings, len(self.texts), self.texts.labels is not None and task.has_classes)

    def check_tokenizer(self, job: Job, vocab_size: int) -> None:
        """Refuses a tokenizer that gives tokens that the model does not know, or other ones once it is deployed.

        Raises:
            SettingError: when it does.
        """
        if job.tokenizer is not None and job.original.tokenizer is not None:
            check_vocabulary(job.tokenizer, vocab_size)
            check_tokenization(job.tokenizer, job.original.tokenizer, self.texts)


def read_given(settings: Settings, texts: Any, labels: Sequence[Label] | None, test: Any) -> Given:
    """Reads texts and labels, see `optimize`.

    Raises:
        DataError: when they are malformed.
        SettingError: when something that needs texts is asked for without any.
    """
    if texts is None and settings.selection == "threshold":
        raise SettingError("selection: 'threshold' needs texts to find thresholds on; pass texts=... or use 'top'")
    if texts is None and (labels is not None or settings.max_drop is not None):
        missing = "labels" if labels is not None else f"max_drop={settings.max_drop:g}"
        raise SettingError(f"{missing}: cannot be used without texts; pass texts=... of the model's domain")
    return Given(
        None if texts is None else load_examples(texts, labels),
        None if test is None else load_examples(test, name="test"),
    )


def ask_about_texts(
    job: Job, model: Model, target: Target, given: Given
) -> tuple[Job, Model, Texts | None, TextPart | None]:
    """Splits the texts and asks the original about all of them, before anything is done to its weights.

    Returns:
        The job with texts to calibrate on, the model with the tolerance that its answers give, the parts of the texts
        and the test texts, both with the original's answers.
    """
    if job.settings.plan is not None:
        check_plan(job.settings.plan, model.num_layers)
    parts = None
    if given.texts is not None:
        parts = _ask(job, model, target, split_texts(job, model, given.texts))
        calibration = CalibrationTexts.draw(parts.choosing.tokenizer, parts.choosing.encoded)
        job = dataclasses.replace(job, calibration=calibration)
        model = dataclasses.replace(model, task=parts.choosing.task)
    if given.test is None:
        return job, model, parts, None
    on_test = encode_examples(job.require_tokenizer("test"), model, given.test, "test")
    return job, model, parts, ask_original(job, model, target, on_test, "test texts")


def ask_more(job: Job, model: Model, target: Target, parts: Texts, needed: int) -> Texts:
    """Adds spare texts to those for the certificate: as many as it needs, at most `max_texts`.

    Args:
        job: settings, store and progress.
        model: the original.
        target: for the engine that answers for it.
        parts: the texts.
        needed: texts for the certificate, decided without looking at them.
    """
    missing = needed - len(parts.certifying.encoded)
    if missing <= 0 or parts.spare is None:
        return parts
    spare = parts.spare.take(range(min(missing, len(parts.spare), job.settings.max_texts)))
    more = encode_examples(job.require_tokenizer("texts"), model, spare, "texts")
    more = ask_original(job, model, target, more, "more held-out texts")
    return dataclasses.replace(parts, certifying=parts.certifying.join(more))


def _ask(job: Job, model: Model, target: Target, parts: Texts) -> Texts:
    choosing = ask_original(job, model, target, parts.choosing, "choosing")
    certifying = ask_original(job, model, target, parts.certifying, "held-out texts")
    task = model.task.calibrated(choosing.original_answer)
    training = None if parts.training is None else ask_original(job, model, target, parts.training, "training")
    return dataclasses.replace(
        parts,
        choosing=dataclasses.replace(choosing, task=task),
        certifying=dataclasses.replace(certifying, task=task),
        training=training,
    )
