"""Tests of what a run says before it starts."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpcompile.compile.agenda import describe_agenda, estimate_seconds
from mpcompile.compile.measure.front import Pace
from mpcompile.compile.original import Original
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.parts import TextPart, Texts

PACE = Pace(cast(Original, None), 1, 0.1)


def part(count: int) -> TextPart:
    return cast(TextPart, SimpleNamespace(encoded=(None,) * count))


@pytest.fixture
def parts() -> Texts:
    return Texts(part(2800), part(800), timing=part(400), num_given=4000)


def test_agenda_names_the_texts_and_the_time(parts: Texts) -> None:
    said = describe_agenda(Settings(2.0), PACE, parts, part(1000))
    assert said.startswith(
        "2,800 to choose points on, 400 to time, 800 held out, 1,000 to test; the original takes 100.0 ms"
    )
    assert "for a batch of 1; about 7 to 21 minutes, less where an earlier run left results" in said


def test_agenda_without_texts_says_what_is_left_out() -> None:
    assert describe_agenda(Settings(2.0), PACE, None, None).startswith(
        "no texts: prunes tokens, trains no exits; about 1 to 2"
    )


def test_fine_tuning_is_said_to_come_on_top(parts: Texts) -> None:
    assert "minutes and the time to fine-tune," in describe_agenda(Settings(2.0, adapt="finetune"), PACE, parts, None)


def test_a_slow_original_is_timed_longer(parts: Texts) -> None:
    batches = Settings(2.0, batch_size=32)
    seconds = [estimate_seconds(batches, dataclasses.replace(PACE, batch_s=s), parts, None)[0] for s in (0.2, 0.4, 0.8)]
    assert seconds[2] - seconds[1] > 2 * (seconds[1] - seconds[0])


@pytest.mark.parametrize(
    ("slower", "changes"),
    [
        ({}, {"choosing": part(5000)}),
        ({}, {"training": part(5000)}),
        ({"max_drop": 0.01}, {"spare": Examples(("a",) * 5000)}),
    ],
)
def test_more_texts_take_longer(parts: Texts, slower: dict[str, Any], changes: dict[str, Any]) -> None:
    settings = Settings(2.0, **slower)
    before = estimate_seconds(settings, PACE, parts, None)
    after = estimate_seconds(settings, PACE, dataclasses.replace(parts, **changes), None)
    assert after[1] > before[1]


def test_examples_of_a_batch_share_its_time(parts: Texts) -> None:
    assert estimate_seconds(Settings(2.0, batch_size=32), PACE, parts, None)[1] < 200
