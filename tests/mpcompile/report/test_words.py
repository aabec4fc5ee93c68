"""Tests of the kept words: what the HTML says of every token, without hovering."""

import dataclasses
import re

import pytest

from mpcompile.report.records import SampleText, SampleToken
from mpcompile.report.words import render_sample, render_samples


def rows(sample: SampleText) -> list[str]:
    """The text of each row, tags and all."""
    return re.findall(r'<p dir="auto">(.*?)</p>', render_sample(sample, 3))


def labels(sample: SampleText) -> list[str]:
    found = re.findall(r'<div class="layer">(.*?)</div>', render_sample(sample, 3))
    return [re.sub("<.*?>", "", label) for label in found]


def test_first_row_is_the_text_as_written(sample: SampleText) -> None:
    assert (
        rows(sample)[0] == '<span class="special">[CLS]</span> A rather fine  film <span class="special">[SEP]</span>'
    )


def test_each_layer_that_drops_something_has_a_row(sample: SampleText) -> None:
    assert labels(sample) == ["read 6 tokens", "layer 1 keeps 5 of 6", "layer 3 keeps 3 of 5"]


def test_dropped_words_are_struck_through_and_kept_ones_marked(sample: SampleText) -> None:
    assert "<del>A</del> <mark>rather fine  film</mark>" in rows(sample)[1]


def test_words_that_were_dropped_before_are_a_dot(sample: SampleText) -> None:
    assert "A" not in re.sub("<.*?>", "", rows(sample)[2]).replace("[CLS]", "")
    assert '<span class="special">·</span>' in rows(sample)[2]


def test_special_tokens_are_dim_and_struck_through_when_dropped(sample: SampleText) -> None:
    assert '<span class="special"><del>[SEP]</del></span>' in rows(sample)[2]


def test_text_that_loses_nothing_has_one_row(sample: SampleText) -> None:
    tokens = tuple(dataclasses.replace(token, dropped_in=None) for token in sample.tokens)
    assert labels(dataclasses.replace(sample, tokens=tokens)) == ["read 6 tokens"]


@pytest.mark.parametrize(
    ("exit_layer", "shown"),
    [(0, "exit after the embeddings"), (2, "exit after layer 2 of 3"), (3, "ran all 3 layers")],
)
def test_exit_is_shown(sample: SampleText, exit_layer: int, shown: str) -> None:
    assert shown in render_sample(dataclasses.replace(sample, exit_layer=exit_layer), 3)


def test_answer_of_the_original_is_shown_where_it_differs(sample: SampleText) -> None:
    assert "original: neutral" in render_sample(dataclasses.replace(sample, original_answer="neutral"), 3)


def test_truncated_text_says_so(sample: SampleText) -> None:
    assert "the model reads no further" in rows(dataclasses.replace(sample, is_truncated=True))[0]


def test_pieces_of_a_word_are_joined(sample: SampleText) -> None:
    tokens = (SampleToken("un", "", False, 1), SampleToken("usual", "", False, None))
    assert rows(dataclasses.replace(sample, tokens=tokens))[1] == "<del>un</del><mark>usual</mark>"


@pytest.mark.parametrize("place", ["text", "before", "answer", "original_answer"])
def test_markup_is_shown_as_text(sample: SampleText, place: str) -> None:
    bad = "<script>alert(1)</script>"
    if place in ("text", "before"):
        token = dataclasses.replace(sample.tokens[1], **{place: bad})
        sample = dataclasses.replace(sample, tokens=(token, *sample.tokens[2:]))
    else:
        sample = dataclasses.replace(sample, **{place: bad})
    shown = render_samples([sample], 3)
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
