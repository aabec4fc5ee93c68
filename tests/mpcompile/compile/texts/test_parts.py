"""Tests of the parts that texts are split into: nothing that is measured was trained on."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.given import read_given
from mpcompile.compile.job import Job, Model
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.parts import MOST_TIMED, Texts, count_held_out, count_timed, split_texts
from mpcompile.contract.task import Task
from mpcompile.errors import DataError, SettingError
from mpcompile.runtime.tokens import Tokenizer
from tests.models import WORDS

PARTS = ("choosing", "training", "timing", "certifying", "spare")


def numbered(count: int, start: int = 0) -> Examples:
    """Texts that are all different, with labels."""
    words = len(WORDS)
    texts = tuple(
        f"{WORDS[i % words]} {WORDS[i // words % words]} {WORDS[i // words**2]}" for i in range(start, start + count)
    )
    return Examples(texts, labels=tuple(i % 2 for i in range(count)))


@pytest.fixture
def model() -> Model:
    captured = SimpleNamespace(id2label={0: "a", 1: "b"}, max_length=12)
    return cast(Model, SimpleNamespace(task=Task("single_label", 2), captured=captured))


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer.from_transformers(tiny_tokenizer, 12)


def split(model: Model, tokenizer: Tokenizer, given: tuple[Examples, Examples | None], **options: Any) -> Texts:
    job = SimpleNamespace(settings=Settings(2.0, **options), require_tokenizer=lambda name: tokenizer)
    return split_texts(cast(Job, job), model, *given)


def names_of(parts: Texts) -> dict[str, set[str]]:
    found = {}
    for name in PARTS:
        part = getattr(parts, name)
        examples = part if part is None or isinstance(part, Examples) else part.examples
        found[name] = set() if examples is None else set(examples.texts)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"max_drop": 0.1}, {"adapt": "finetune"}, {"max_texts": 200}, {"batch_size": 32}]
)
@pytest.mark.parametrize("held_out", [None, numbered(300, 400)], ids=["texts", "held-out"])
def test_no_text_is_in_two_parts(
    model: Model, tokenizer: Tokenizer, held_out: Examples | None, options: dict[str, Any]
) -> None:
    names = names_of(split(model, tokenizer, (numbered(400), held_out), **options))
    together = [text for name in PARTS for text in names[name]]
    assert len(together) == len(set(together))
    assert names["choosing"] and names["timing"] and names["certifying"]


def test_all_but_training_is_held_out(model: Model, tokenizer: Tokenizer) -> None:
    names = names_of(split(model, tokenizer, (numbered(400), numbered(300, 400)), max_texts=350))
    unseen = set(numbered(300, 400).texts)
    assert names["training"] < set(numbered(400).texts) and len(names["training"]) == 350
    assert names["choosing"] | names["timing"] | names["certifying"] | names["spare"] == unseen


@pytest.mark.parametrize(("max_drop", "count"), [(None, 60), (0.1, 0)])
def test_taught_on_is_what_nothing_else_needs(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, max_drop: float | None, count: int
) -> None:
    """Of 200 texts 100 are used and 40 timed; with a bound the certificate may need the rest."""
    monkeypatch.setattr("mpcompile.compile.texts.parts.MOST_TIMED", 40)
    parts = split(model, tokenizer, (numbered(200), None), max_texts=100, max_drop=max_drop, teach_minutes=3.0)
    taught = set() if parts.teaching is None else set(parts.teaching.examples.texts)  # type: ignore[union-attr]
    assert len(taught) == count
    assert not taught & set.union(*names_of(parts).values())


def test_nothing_is_set_aside_for_teaching_where_there_is_no_time_for_it(model: Model, tokenizer: Tokenizer) -> None:
    assert split(model, tokenizer, (numbered(400), numbered(300, 400)), max_texts=100).teaching is None


def test_texts_to_train_on_are_taught_on_too(model: Model, tokenizer: Tokenizer) -> None:
    parts = split(model, tokenizer, (numbered(400), numbered(300, 400)), max_texts=350, teach_minutes=3.0)
    assert parts.teaching is not None and parts.teaching.examples is not None
    assert set(parts.teaching.examples.texts) == set(numbered(400).texts)


def test_texts_that_nothing_else_needs_are_timed_first(model: Model, tokenizer: Tokenizer) -> None:
    parts = split(model, tokenizer, (numbered(500), None), max_texts=100)
    assert parts.timing is not None and len(parts.timing.encoded) == 400
    assert len(parts.choosing.encoded) + len(parts.certifying.encoded) == 100


def test_what_is_timed_takes_nothing_from_the_certificate(model: Model, tokenizer: Tokenizer) -> None:
    parts = split(model, tokenizer, (numbered(400), None), max_drop=0.1)
    assert parts.timing is not None and len(parts.timing.encoded) == 40
    assert len(parts.certifying.encoded) == count_held_out(Settings(2.0, max_drop=0.1), 400) == 200
    assert parts.timed is parts.timing


def test_few_texts_are_timed_where_they_are_chosen_on(model: Model, tokenizer: Tokenizer) -> None:
    parts = split(model, tokenizer, (numbered(60), None))
    assert parts.timing is None
    assert parts.timed is parts.choosing


@pytest.mark.parametrize(
    ("used", "batch_size", "expected"),
    [
        (63, 1, 0),
        (64, 1, 12),
        (400, 1, 40),
        (4000, 1, 400),
        (400, 32, 80),
        (4000, 32, 400),
        (2000, 32, 384),
        (40_000, 1, MOST_TIMED),
    ],
)
def test_a_tenth_is_timed_or_some_batches(used: int, batch_size: int, expected: int) -> None:
    assert count_timed(Settings(2.0, batch_size=batch_size, max_texts=used), used) == expected


def test_texts_that_are_held_out_do_not_train() -> None:
    given = read_given(Settings(2.0), list(numbered(40).texts), None, None, list(numbered(40, 20).texts))
    assert given.texts is not None and given.texts.texts == numbered(20).texts


def test_pairs_are_told_apart_by_both_texts() -> None:
    pairs = [(text, "ban") for text in numbered(40).texts]
    other = [(text, "del") for text in numbered(40).texts]
    given = read_given(Settings(2.0), pairs, None, None, other)
    assert given.texts is not None and len(given.texts) == 40


@pytest.mark.parametrize(
    ("texts", "held_out", "kind", "message"),
    [
        (None, ["a"] * 20, SettingError, "held_out: cannot be used without texts"),
        (["a b"] * 20, [("a", "b")] * 20, DataError, "held_out: pairs of texts, and texts are single texts"),
        (["a"] * 20, ["a"] * 20, DataError, "held_out: holds 20 of the 20 texts, too, so that 0 are left"),
        (["a"] * 20, [], DataError, "held_out: no examples"),
    ],
)
def test_held_out_texts_that_cannot_be_are_refused(
    texts: Any, held_out: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        read_given(Settings(2.0), texts, None, None, held_out)


def test_few_held_out_texts_are_refused(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="held_out: 10 given; at least 16 are needed"):
        split(model, tokenizer, (numbered(40), numbered(10, 40)))
