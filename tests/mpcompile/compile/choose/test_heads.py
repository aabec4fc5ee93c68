"""Tests of which texts exit heads are taught on."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.frozen import TrainedHeads
from mpcompile.compile.choose import heads, teaching
from mpcompile.compile.choose.heads import Taught, train_heads


class Enough(Exception):
    """What comes after the heads is not looked at."""


@pytest.fixture
def teach(
    tiny_bert: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str], tmp_path: Path,
    capture_once: None, few_batches: None, monkeypatch: pytest.MonkeyPatch,
) -> Any:  # fmt: skip
    """`optimize` on 40 texts, of which 16 are used, up to the heads that it taught."""
    found: list[Taught] = []

    def note(*given: Any) -> Taught:
        found.append(train_heads(*given))
        raise Enough

    monkeypatch.setattr("mpcompile.compile.choose.precision.train_heads", note)

    def run(**options: Any) -> Taught:
        with contextlib.suppress(Enough):
            mpcompile.optimize(
                tiny_bert, 1.0, tokenizer=tiny_tokenizer, texts=tiny_texts, max_texts=16, backend="eager",
                progress=False, cache_dir=tmp_path, **{"teach_minutes": 3.0, **options},
            )  # fmt: skip
        return found[-1]

    return run


def test_texts_that_nothing_else_needs_teach_heads(teach: Any) -> None:
    taught = teach()
    assert isinstance(taught.heads, ElasticHeads)
    assert len(taught.logits) == 24


def test_heads_are_cross_fitted_where_there_is_no_time_to_teach(teach: Any) -> None:
    taught = teach(teach_minutes=0.0)
    assert isinstance(taught.heads, TrainedHeads)
    assert len(taught.logits) == 0


def test_heads_are_cross_fitted_where_time_was_too_short(teach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "CHUNK", 5)
    seconds = iter(np.arange(0.0, 1e4, 100.0))
    monkeypatch.setattr(teaching, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    taught = teach()
    assert isinstance(taught.heads, TrainedHeads)
    assert len(taught.logits) == 5


def test_heads_that_were_taught_are_taken_from_the_cache(teach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = teach()

    def refuse(*_: object) -> None:
        raise AssertionError("taught again")

    monkeypatch.setattr(heads, "_teach", refuse)
    again = teach()
    np.testing.assert_array_equal(again.logits, first.logits)
    for layer, head in first.heads.heads.items():
        for name, value in head.state_dict().items():
            np.testing.assert_array_equal(again.heads.heads[layer].state_dict()[name], value)
