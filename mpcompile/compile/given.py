"""Reads and checks the user's texts before anything slow starts, and asks the original about them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpcompile.compile.certify.front import check_amount
from mpcompile.compile.certify.refusals import Tested
from mpcompile.compile.choose.schedules import check_plan
from mpcompile.compile.job import Job, Model
from mpcompile.compile.original import Original
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.reference import ask_original
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples, Label, load_examples
from mpcompile.compile.texts.known import list_rows
from mpcompile.compile.texts.labels import check_labels, check_names
from mpcompile.compile.texts.parts import MIN_TEXTS, TextPart, Texts, encode_examples, split_texts
from mpcompile.compile.texts.tokenization import check_tokenization, check_vocabulary
from mpcompile.contract.backend import Target
from mpcompile.errors import DataError, SettingError
from mpcompile.graph.capture import find_task
from mpcompile.store.results import digest


@dataclass(frozen=True)
class Given:
    """Texts as they were given.

    Attributes:
        texts: texts of the domain, None without any.
        test: texts that are read for the report alone, None without any.
        held_out: texts that the model was not fine-tuned on, None without any.
    """

    texts: Examples | None
    test: Examples | None
    held_out: Examples | None = None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the texts that are certified on."""
        examples = self.texts if self.held_out is None else self.held_out
        return digest({"texts": [] if examples is None else list_rows(examples)})

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
        for name, examples in (("texts", self.texts), ("held_out", self.held_out), ("test", self.test)):
            if examples is not None:
                check_labels(examples, task, id2label, f"labels of {name}")
        certifying = self.texts if self.held_out is None else self.held_out
        if certifying is not None:
            check_amount(settings, len(certifying), certifying.labels is not None and task.has_classes)

    def check_tokenizer(self, job: Job, vocab_size: int) -> None:
        """Refuses a tokenizer that gives tokens that the model does not know, or other ones once it is deployed.

        Raises:
            SettingError: when it does.
        """
        if job.tokenizer is not None and job.original.tokenizer is not None:
            check_vocabulary(job.tokenizer, vocab_size)
            check_tokenization(job.tokenizer, job.original.tokenizer, self.texts)
            for examples in (self.held_out, self.test):
                if examples is not None:
                    check_tokenization(job.tokenizer, job.original.tokenizer, examples)


def read_given(
    settings: Settings, texts: Any, labels: Sequence[Label] | None, test: Any, held_out: Any = None
) -> Given:
    """Reads texts and labels, see `optimize`.

    Of `texts` those are left out that stand in `held_out`, too: the heads must not be trained on them.

    Raises:
        DataError: when they are malformed.
        SettingError: when something that needs texts is asked for without any.
    """
    if texts is None and settings.selection == "threshold":
        raise SettingError("selection: 'threshold' needs texts to find thresholds on; pass texts=... or use 'top'")
    if texts is None and (labels is not None or settings.max_drop is not None):
        missing = "labels" if labels is not None else f"max_drop={settings.max_drop:g}"
        raise SettingError(f"{missing}: cannot be used without texts; pass texts=... of the model's domain")
    if texts is None and held_out is not None:
        raise SettingError(
            "held_out: cannot be used without texts, which exits are trained on; pass these texts as texts=..."
        )
    given = None if texts is None else load_examples(texts, labels)
    unseen = None if held_out is None else load_examples(held_out, name="held_out")
    if given is not None and unseen is not None:
        given = _leave_out(given, unseen)
    return Given(given, None if test is None else load_examples(test, name="test"), unseen)


def _leave_out(texts: Examples, held_out: Examples) -> Examples:
    """The texts that do not stand among the held-out ones.

    Raises:
        DataError: when the one are pairs and the other are not, or hardly a text is left.
    """
    if (texts.text_pairs is None) != (held_out.text_pairs is None):
        kinds = ["single texts" if each.text_pairs is None else "pairs of texts" for each in (texts, held_out)]
        raise DataError(f"held_out: {kinds[1]}, and texts are {kinds[0]}. Give both alike.")
    known = set(list_rows(held_out))
    kept = [i for i, row in enumerate(list_rows(texts)) if row not in known]
    if len(kept) < MIN_TEXTS <= len(texts):
        raise DataError(
            f"held_out: holds {len(texts) - len(kept)} of the {len(texts)} texts, too, so that {len(kept)} are left to "
            "train exits on. Give texts that do not stand in texts=..., or no held_out where the model has seen none"
        )
    return texts.take(kept)


def split_given(job: Job, model: Model, given: Given, tested: Tested) -> tuple[Texts | None, TextPart | None]:
    """Tokenizes and splits the texts.

    Args:
        job: settings and tokenizer.
        model: the original.
        given: the texts.
        tested: those that refused runs were tested on.

    Returns:
        The parts of the texts and the test texts, both without the original's answers; None without any.
    """
    if job.settings.plan is not None:
        check_plan(job.settings.plan, model.num_layers)
    parts, on_test = None, None
    if given.texts is not None:
        parts = split_texts(job, model, given.texts, given.held_out, tested)
    if given.test is not None:
        on_test = encode_examples(job.require_tokenizer("test"), model, given.test, "test")
    return parts, on_test


def ask_about_texts(
    job: Job, model: Model, target: Target, parts: Texts | None, on_test: TextPart | None
) -> tuple[Job, Model, Texts | None, TextPart | None]:
    """Asks the original about all of the texts, before anything is done to its weights.

    Args:
        job: settings, store and progress.
        model: the original.
        target: for the engine that answers for it.
        parts, on_test: see `split_given`.

    Returns:
        The job with texts to calibrate on, the model with the tolerance that its answers give, the parts of the texts
        and the test texts, both with the original's answers.
    """
    if parts is not None:
        parts = _ask(job, model, target, parts)
        calibration = CalibrationTexts.draw(parts.choosing.tokenizer, parts.choosing.encoded)
        job = dataclasses.replace(job, calibration=calibration)
        model = dataclasses.replace(model, task=parts.choosing.task)
    if on_test is not None:
        on_test = ask_original(job, model, target, on_test, "test texts")
    return job, model, parts, on_test


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
    training = parts.training
    if training is not None and job.settings.adapt == "finetune":  # heads alone may be taught on other texts
        training = ask_original(job, model, target, training, "training")
    return dataclasses.replace(
        parts,
        choosing=dataclasses.replace(choosing, task=task),
        certifying=dataclasses.replace(certifying, task=task),
        training=training,
    )
