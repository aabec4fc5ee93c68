"""Compares tokenization as it will be deployed with that of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpcompile.compile.texts.examples import Examples
from mpcompile.errors import SettingError
from mpcompile.runtime.tokens import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_COMPARED = 32
"""Of the first texts, and of the longest."""
ANY_TEXTS = ("", "One sentence, and 2 numbers: 3.5?")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer with tokens that the model has no embedding of.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the table of embeddings.

    Raises:
        SettingError: when it has.
    """
    beyond = {i: token for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items() if i >= vocab_size}
    if beyond:
        first = min(beyond)
        raise SettingError(
            f"tokenizer: {beyond[first]!r} is token {first}, and the model has {vocab_size} embeddings, 0 to "
            f"{vocab_size - 1}: {len(beyond)} tokens of the tokenizer lie beyond. Give the tokenizer that the model "
            f"was trained with, or train it after model.resize_token_embeddings({max(beyond) + 1})"
        )


def check_tokenization(tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase, examples: Examples | None) -> None:
    """Refuses a tokenizer that transformers runs otherwise than the tokenizers library alone.

    Compared are ids and token types of the first and of the longest texts or pairs, and of empty and overlong ones.

    Raises:
        SettingError: when a text is tokenized otherwise.
    """
    texts, pairs = _choose(examples, tokenizer.max_length)
    expected = theirs(texts, pairs, truncation=True, max_length=tokenizer.max_length)
    expected_types = expected.get("token_type_ids") or [[0] * len(ids) for ids in expected["input_ids"]]
    for text, tokens, ids, types in zip(
        texts, tokenizer.encode(texts, pairs), expected["input_ids"], expected_types, strict=True
    ):
        if tokens.ids.tolist() != (ids or [tokenizer.pad_id]) or tokens.type_ids.tolist() != (types or [0]):
            ours, our_types = _shorten(tokens.ids.tolist()), _shorten(tokens.type_ids.tolist())
            raise SettingError(
                f"tokenizer: {type(theirs).__name__} does more than its tokenizer.json says. To transformers "
                f"{text[:60]!r} is {_shorten(ids)}, of types {_shorten(types)}; by tokenizer.json it is {ours}, of "
                f"types {our_types}. Set in tokenizer.json what differs"
            )


def _choose(examples: Examples | None, max_length: int) -> tuple[list[str], list[str] | None]:
    """Texts to compare, and what stands beside them."""
    examples = examples or Examples(ANY_TEXTS)
    pairs = examples.text_pairs
    lengths = [len(text) + (len(pairs[i]) if pairs is not None else 0) for i, text in enumerate(examples.texts)]
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:NUM_COMPARED]
    chosen = list(dict.fromkeys((*range(min(NUM_COMPARED, len(lengths))), *longest)))
    texts = [examples.texts[i] for i in chosen]
    joined = " ".join(texts[:NUM_COMPARED]) + " "
    overlong = joined * (1 + 10 * max_length // len(joined))
    if pairs is None:
        return [*texts, *ANY_TEXTS, overlong], None
    beside = [pairs[i] for i in chosen]
    return [*texts, "", overlong, texts[0], overlong], [*beside, beside[0], beside[0], overlong, overlong]


def _shorten(values: Sequence[int]) -> str:
    return str(list(values)) if len(values) <= 12 else f"{list(values[:12])} and {len(values) - 12} more"
