"""Tests of comparing tokenization with that of transformers."""

from typing import Any

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.tokenization import check_tokenization, check_vocabulary
from mpcompile.errors import SettingError
from mpcompile.runtime.tokens import Tokenizer
from tests.models import WORDS, build_tokenizer

TEXTS = ("ban del", " ".join(WORDS), "fip")
EXAMPLES = [None, Examples(TEXTS), Examples(TEXTS, text_pairs=("gos", "hur " * 50, ""))]


class Prompting(PreTrainedTokenizerFast):
    """Does in Python what no tokenizer.json says."""

    def __call__(self, texts: list[str], *others: Any, **options: Any) -> Any:
        return super().__call__([f"fip {text}" for text in texts], *others, **options)


@pytest.mark.parametrize("examples", EXAMPLES, ids=["nothing", "texts", "pairs"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]])
def test_settings_beyond_tokenizer_json_are_taken_over(examples: Examples | None, side: str, names: list[str]) -> None:
    theirs = build_tokenizer()
    theirs.truncation_side, theirs.model_input_names = side, names
    check_tokenization(Tokenizer.from_transformers(theirs, 12), theirs, examples)


@pytest.mark.parametrize("examples", EXAMPLES[1:], ids=["texts", "pairs"])
def test_tokenizer_that_does_more_in_python_is_refused(examples: Examples) -> None:
    theirs = Prompting(tokenizer_object=build_tokenizer().backend_tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(
        SettingError, match=r"Prompting does more than its tokenizer\.json says\. To transformers 'ban del'"
    ):
        check_tokenization(Tokenizer.from_transformers(theirs, 12), theirs, examples)


@pytest.mark.parametrize("texts", [TEXTS, ("ban del", "fip")], ids=["one is cut", "none is cut"])
def test_texts_that_are_cut_are_compared(texts: tuple[str, ...]) -> None:
    theirs = build_tokenizer()
    ours = Tokenizer.from_transformers(theirs, 12)
    theirs.truncation_side = "left"
    with pytest.raises(SettingError, match="does more than its tokenizer"):
        check_tokenization(ours, theirs, Examples(texts))


def test_normalizer_of_the_backend_is_taken_over() -> None:
    theirs = build_tokenizer()
    theirs.backend_tokenizer.normalizer = normalizers.Lowercase()
    check_tokenization(Tokenizer.from_transformers(theirs, 12), theirs, Examples(("BAN Del",)))


def test_token_without_an_embedding_is_refused_with_both_sizes() -> None:
    theirs = build_tokenizer()
    size = len(theirs)
    check_vocabulary(Tokenizer.from_transformers(theirs, 12), size)
    theirs.add_tokens(["<url>", "<user>"])
    with pytest.raises(
        SettingError,
        match=rf"'<url>' is token {size}, and the model has {size} embeddings.*: 2 tokens.*_embeddings\({size + 2}\)",
    ):
        check_vocabulary(Tokenizer.from_transformers(theirs, 12), size)
