"""Tests of the exit before the model, as points are chosen with it.

Shapes: N texts, C classes.
"""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mpcompile.compile.choose.ngrams import MOST_OTHER, NGramExit, teach_ngrams
from mpcompile.compile.job import Job, Model
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.task import Task
from mpcompile.progress import StageProgress
from mpcompile.runtime.tokens import Tokenizer
from tests.mpcompile.compile.texts.test_parts import numbered

TASK = Task("single_label", 3)
RIGHT = {"f32": 0.0}


class Remembering:
    """A store that computes."""

    def fetch(self, _: Mapping[str, Any], compute: Any) -> Any:
        return compute()


@pytest.fixture(scope="module")
def parts(tiny_tokenizer: object) -> Texts:
    """120 texts for choosing and 240 to teach on; what the original answers is a matter of chance."""
    tokenizer = Tokenizer.from_transformers(tiny_tokenizer, 12)  # type: ignore[arg-type]
    every = [make_part(tokenizer, count, start) for count, start in ((120, 0), (240, 120), (40, 360))]
    return Texts(every[0], every[2], teaching=every[1], num_given=400)


def make_part(tokenizer: Tokenizer, count: int, start: int) -> TextPart:
    examples = numbered(count, start)
    logits = 4.0 * np.random.default_rng(start).standard_normal((count, 3)).astype(np.float32)
    return TextPart(tuple(tokenizer.encode(examples.texts)), None, TASK, tokenizer, examples, original=logits)


def teach(
    monkeypatch: pytest.MonkeyPatch, parts: Texts, engines: Mapping[str, float], **options: Any
) -> tuple[NGramExit | None, list[str]]:
    """What is taught by engines that answer a share of the texts otherwise, and which of them were asked to teach."""
    asked: list[str] = []

    def answer(part: TextPart, engine: tuple[str, float], point: object) -> SimpleNamespace:
        asked.append(engine[0])
        assert part.original is not None
        logits = part.original.copy()
        wrong = np.arange(len(logits)) < round(engine[1] * len(logits))
        logits[wrong] = np.roll(logits[wrong], 1, axis=1)
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(TextPart, "answer", answer)
    settings = Settings(2.0, **{"teach_minutes": 3.0, **options})
    job = cast(Job, SimpleNamespace(settings=settings, store=Remembering(), progress=StageProgress(False)))
    captured = SimpleNamespace(num_labels=3)
    model = cast(Model, SimpleNamespace(task=TASK, captured=captured, digest="m", num_layers=2))
    given: Any = {name: (name, share) for name, share in engines.items()}
    return teach_ngrams(job, model, parts, given, np.zeros((0, 3), np.float32)), asked


def agreement(part: TextPart, logits: np.ndarray) -> float:
    assert part.original is not None
    return float((part.original.argmax(1) == logits.argmax(1)).mean())


@pytest.mark.parametrize("has_spare", [True, False])
def test_texts_for_choosing_are_answered_by_what_was_not_taught_on_them(
    monkeypatch: pytest.MonkeyPatch, parts: Texts, has_spare: bool
) -> None:
    parts = parts if has_spare else dataclasses.replace(parts, teaching=None)
    found, _ = teach(monkeypatch, parts, RIGHT)
    assert found is not None
    assert agreement(parts.choosing, found.held_out) < 0.45  # chance: what was learned by heart shows
    taught = parts.teaching or parts.choosing
    inputs = taught.pad(np.arange(len(taught.encoded)))
    assert agreement(taught, found.first_exit(inputs)["logits"]) > 0.5


def test_fastest_engine_that_agrees_with_the_original_teaches(monkeypatch: pytest.MonkeyPatch, parts: Texts) -> None:
    _, asked = teach(monkeypatch, parts, {"int8": 2 * MOST_OTHER, "bf16": MOST_OTHER / 2, "f32": 0.0})
    assert asked == ["int8", "bf16", "bf16"]


@pytest.mark.parametrize("options", [{"exits": False}, {"adapt": "none"}, {"teach_minutes": 0.0}])
def test_nothing_is_taught_where_no_exits_are_wanted(
    monkeypatch: pytest.MonkeyPatch, parts: Texts, options: dict[str, Any]
) -> None:
    assert teach(monkeypatch, parts, RIGHT, **options) == (None, [])
