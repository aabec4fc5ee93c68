"""Tests of the sample texts: which are shown, and that their tokens are shown as written."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.measure.samples import NUM_SAMPLES, describe_tokens, pick_samples
from mpcompile.report.records import SampleToken
from mpcompile.runtime.model import OptimizedModel

NOBODY = np.zeros(40, bool)


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Knows some words in lower case; writes a [CLS] and two [SEP] around a pair."""
    return tiny_tokenizer.backend_tokenizer


def kept(tokenizer: Tokenizer, *texts: str) -> tuple[SampleToken, ...]:
    encoding = tokenizer.encode(*texts)
    return describe_tokens(encoding, texts, np.full(len(encoding.tokens), -1))


def written(tokens: tuple[SampleToken, ...]) -> str:
    return "".join(token.before + token.text for token in tokens if not token.is_special)


# ---------------------------------------------------------------------------------- picking


def test_each_exit_is_shown_as_often() -> None:
    exit_layer = np.repeat([0, 2, 4, 6], [25, 9, 4, 2])
    picked = pick_samples(exit_layer, np.arange(40), NOBODY)
    assert exit_layer[picked].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def test_deep_exits_are_shown_more_often_where_the_samples_cannot_be_divided() -> None:
    exit_layer = np.repeat([0, 2, 4], [20, 10, 10])
    picked = pick_samples(exit_layer, np.arange(40), NOBODY)
    assert exit_layer[picked].tolist() == [0, 0, 2, 2, 2, 4, 4, 4]


def test_short_and_long_texts_are_shown() -> None:
    lengths = np.arange(40)
    picked = pick_samples(np.zeros(40, int), lengths, NOBODY)
    assert len(picked) == NUM_SAMPLES
    assert lengths[picked].min() < 5 and lengths[picked].max() > 35


def test_no_text_is_shown_twice() -> None:
    picked = pick_samples(np.array([0, 0, 1]), np.array([5, 5, 5]), np.zeros(3, bool))
    assert picked == [0, 1, 2]


def test_a_text_that_is_answered_differently_is_always_shown() -> None:
    differs = NOBODY.copy()
    differs[1] = True
    assert 1 in pick_samples(np.zeros(40, int), np.arange(40), differs)


# ---------------------------------------------------------------------------------- tokens as written


@pytest.mark.parametrize("text", ["Ban DEL  fip", "ban, unknown-word!", "ban\tdel\nfip"])
def test_text_is_shown_as_written(tokenizer: Tokenizer, text: str) -> None:
    assert written(kept(tokenizer, text)) == text


def test_special_tokens_are_marked(tokenizer: Tokenizer) -> None:
    assert [(token.text, token.is_special) for token in kept(tokenizer, "ban zzz")] == [
        ("[CLS]", True),
        ("ban", False),
        ("zzz", False),
        ("[SEP]", True),
    ]


def test_both_texts_of_a_pair_are_shown(tokenizer: Tokenizer) -> None:
    shown = [token.text for token in kept(tokenizer, "ban del", "Fip")]
    assert shown == ["[CLS]", "ban", "del", "[SEP]", "Fip", "[SEP]"]


def test_layer_that_drops_a_token_stands_beside_it(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("ban del")
    tokens = describe_tokens(encoding, ["ban del"], np.array([-1, 2, -1, 0]))
    assert [token.dropped_in for token in tokens] == [None, 2, None, 0]


def test_characters_that_several_tokens_share_are_shown_once() -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = kept(tokenizer, "a 😀b")
    assert len(tokens) == 7
    assert written(tokens) == "a 😀b"


# ---------------------------------------------------------------------------------- what optimize traces


def test_samples_are_texts_as_they_were_given(optimized: OptimizedModel, tiny_texts: list[str]) -> None:
    assert optimized.report.samples
    assert {written(sample.tokens) for sample in optimized.report.samples} <= set(tiny_texts)


def test_samples_are_answered_as_predict_answers(optimized: OptimizedModel) -> None:
    for sample in optimized.report.samples:
        (prediction,) = optimized.predict([written(sample.tokens)])
        assert (sample.answer, sample.exit_layer) == (prediction.label, prediction.exit_layer)
        assert sample.score == pytest.approx(prediction.score, abs=1e-2)


def test_samples_keep_as_many_tokens_as_the_engines(optimized: OptimizedModel) -> None:
    assert optimized.tokenizer is not None
    for sample in optimized.report.samples:
        encoded = optimized.tokenizer.encode([written(sample.tokens)])
        output = optimized(**optimized.tokenizer.pad(encoded))
        assert sum(token.dropped_in is None for token in sample.tokens) == output.tokens_kept[0]
