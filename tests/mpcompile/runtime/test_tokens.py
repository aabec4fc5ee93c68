"""Tests of text encoding: the same ids as transformers, with and without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mpcompile.errors import ArtifactError, DataError, SettingError
from mpcompile.runtime.tokens import Tokenizer, batches_by_length
from tests.models import MAX_POSITIONS, WORDS, build_tokenizer


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer.from_transformers(tiny_tokenizer, MAX_POSITIONS)


def test_ids_are_those_of_transformers(
    tokenizer: Tokenizer, tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str]
) -> None:
    for text, tokens in zip(tiny_texts, tokenizer.encode(tiny_texts), strict=True):
        assert tokens.ids.tolist() == tiny_tokenizer(text)["input_ids"]


def test_ids_of_pairs_are_those_of_transformers(tokenizer: Tokenizer, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (tokens,) = tokenizer.encode(["ban del"], ["fip gos"])
    expected = tiny_tokenizer("ban del", "fip gos")
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.type_ids.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize("second", [None, " ".join(WORDS[:60])])
def test_long_texts_are_truncated_as_transformers_does(
    tokenizer: Tokenizer, tiny_tokenizer: PreTrainedTokenizerFast, second: str | None
) -> None:
    first = " ".join(WORDS[10:80])
    (tokens,) = tokenizer.encode([first], None if second is None else [second])
    assert tokens.ids.tolist() == tiny_tokenizer(first, second, truncation=True)["input_ids"]
    assert len(tokens) == MAX_POSITIONS


def test_unknown_words_are_encoded(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["zebra"])[0].ids.tolist() == [2, 1, 3]


def test_empty_string_is_encoded_as_the_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""])[0].ids.tolist() == [2, 3]


def test_shorter_of_the_two_lengths_counts(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert Tokenizer.from_transformers(tiny_tokenizer, 12).max_length == 12
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = int(1e30)
    assert Tokenizer.from_transformers(tokenizer, 12).max_length == 12
    tokenizer.model_max_length = 8
    assert Tokenizer.from_transformers(tokenizer, 12).max_length == 8


def test_tokenizer_passed_in_is_left_as_it_is() -> None:
    tokenizer = build_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    Tokenizer.from_transformers(tokenizer, 5).encode(["ban del fip gos hur jan"])
    assert tokenizer.backend_tokenizer.to_str() == before


def test_slow_tokenizer_is_refused() -> None:
    with pytest.raises(SettingError, match="tokenizer: object is not a fast tokenizer; load it with AutoTokenizer"):
        Tokenizer.from_transformers(object(), 12)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "pairs", "message"),
    [
        (["ban", 7], None, r"texts\[1\]: int; a string is expected"),
        (["ban"], [None], r"text_pairs\[0\]: NoneType; a string is expected"),
        (["half of a pair: \ud83d"], None, r"texts\[0\]"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer: Tokenizer, texts: Any, pairs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tokenizer.encode(texts, pairs)


def test_batch_is_padded_on_the_right(tokenizer: Tokenizer) -> None:
    batch = tokenizer.pad(tokenizer.encode(["ban", "ban bel bip"]))
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0, 0], [2, 5, 6, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int64)}


def test_padding_is_the_tokenizer_s() -> None:
    given = build_tokenizer()
    given.pad_token = "[MASK]"
    tokenizer = Tokenizer.from_transformers(given, 12)
    assert tokenizer.pad(tokenizer.encode(["ban", "ban bel"]))["input_ids"][0, -1] == 4


def test_types_of_pairs_are_in_the_batch(tokenizer: Tokenizer) -> None:
    batch = tokenizer.pad(tokenizer.encode(["ban", "ban"], ["bel bip", "bel"]))
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]


def test_saved_tokenizer_encodes_alike(tokenizer: Tokenizer, tiny_texts: list[str], tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.max_length, loaded.pad_id) == (tokenizer.max_length, tokenizer.pad_id)
    long = " ".join(WORDS)
    for mine, other in zip(tokenizer.encode([*tiny_texts, long]), loaded.encode([*tiny_texts, long]), strict=True):
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_array_equal(mine.type_ids, other.type_ids)


def test_saved_tokenizer_keeps_its_side_and_its_types(tmp_path: Path) -> None:
    given = build_tokenizer()
    given.truncation_side, given.model_input_names = "left", ["input_ids", "attention_mask"]
    texts, pairs = [" ".join(WORDS[:30])], ["fip gos"]
    (expected,) = Tokenizer.from_transformers(given, 12).encode(texts, pairs)
    Tokenizer.from_transformers(given, 12).save(tmp_path)
    (found,) = Tokenizer.load(tmp_path).encode(texts, pairs)
    theirs = given(texts[0], pairs[0], truncation=True, max_length=12)
    assert found.ids.tolist() == expected.ids.tolist() == theirs["input_ids"]
    assert found.type_ids.tolist() == [0] * 12


def test_damaged_tokenizer_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_padding_and_truncation_set_before_are_replaced() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.enable_padding(length=50)
    words.enable_truncation(2)
    encoded = Tokenizer(words, 4, 0).encode(["a a a a a a", "a"])
    assert [len(tokens) for tokens in encoded] == [4, 1]


def test_batches_hold_every_text_once_longest_first() -> None:
    batches = batches_by_length([3, 9, 3, 5, 7], 2)
    assert [batch.tolist() for batch in batches] == [[1, 4], [3, 0], [2]]
