"""Tokenizes texts with the `tokenizers` library, in the same way with and without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpcompile.errors import ArtifactError, DataError, SettingError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenization.json"


class Tokenizer:
    """Tokenizes texts and text pairs, truncated to what the model can read.

    Args:
        tokenizer: its own truncation and padding are replaced.
        max_length: tokens, special ones included.
        pad_id: id that fills up a batch.
        truncation_side: where what is too long is cut off, "right" or "left".
        has_types: whether the second text of a pair has token types of its own; all are 0 otherwise.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        pad_id: int,
        truncation_side: str = "right",
        has_types: bool = True,
    ) -> None:
        self.backend = tokenizer
        self.max_length = max_length
        self.pad_id = pad_id
        self.truncation_side = truncation_side
        self.has_types = has_types
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, strategy="longest_first", direction=truncation_side)

    @classmethod
    def from_transformers(cls, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenizer:
        """Takes over a Hugging Face tokenizer; the shorter of the two maximal lengths counts.

        Raises:
            SettingError: when it is not backed by the tokenizers library.
        """
        import tokenizers

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SettingError(
                f"tokenizer: {type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer "
                "or convert it to a tokenizer.json"
            )
        length = min(max_length, int(tokenizer.model_max_length))
        pad_id = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0
        has_types = "token_type_ids" in tokenizer.model_input_names
        copied = tokenizers.Tokenizer.from_str(backend.to_str())
        return cls(copied, length, pad_id, tokenizer.truncation_side, has_types)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads what `save` wrote."""
        import tokenizers

        settings = json.loads((directory / SETTINGS_FILE).read_text("utf-8"))
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer((directory / TOKENIZER_FILE).read_bytes())
        except Exception as error:  # the tokenizers library raises plain Exception
            raise ArtifactError(f"{directory / TOKENIZER_FILE}: not a tokenizer: {error}") from error
        return cls(
            tokenizer,
            settings["max_length"],
            settings["pad_id"],
            settings.get("truncation_side", "right"),
            settings.get("has_types", True),
        )

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json and tokenization.json."""
        # Not by the library, which takes only names that are Unicode.
        (directory / TOKENIZER_FILE).write_text(self.backend.to_str(pretty=True), "utf-8")
        settings = {
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "truncation_side": self.truncation_side,
            "has_types": self.has_types,
        }
        (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    def encode(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> list[TokenIds]:
        """Token ids and types of each text, unpadded.

        A text without any token, which only tokenizers that add no [CLS] know, is one padding token: its answer is
        the same whatever else is in the batch.

        Raises:
            DataError: when something is not a string.
        """
        for name, values in (("texts", texts), ("text_pairs", text_pairs or ())):
            for i, value in enumerate(values):
                if not isinstance(value, str):
                    raise DataError(f"{name}[{i}]: {type(value).__name__}; a string is expected")
                if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                    raise DataError(f"{name}[{i}]: half a surrogate pair in {value[:40]!r}; valid Unicode is expected")
        given = list(texts) if text_pairs is None else list(zip(texts, text_pairs, strict=True))
        encodings = self.backend.encode_batch(given)
        return [self._to_arrays(encoding.ids, encoding.type_ids) for encoding in encodings]

    def _to_arrays(self, ids: list[int], type_ids: list[int]) -> TokenIds:
        if not ids:
            ids, type_ids = [self.pad_id], [0]
        return TokenIds(np.array(ids, np.int64), np.array(type_ids if self.has_types else [0] * len(ids), np.int64))

    def pad(self, encoded: Sequence[TokenIds]) -> dict[str, np.ndarray]:
        """A batch padded to its longest text: input_ids, attention_mask, token_type_ids, (B, S) int64."""
        shape = (len(encoded), max(len(tokens.ids) for tokens in encoded))
        batch = {
            "input_ids": np.full(shape, self.pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, tokens in enumerate(encoded):
            length = len(tokens.ids)
            batch["input_ids"][row, :length] = tokens.ids
            batch["attention_mask"][row, :length] = 1
            batch["token_type_ids"][row, :length] = tokens.type_ids
        return batch


class TokenIds:
    """Ids and segment types of one text, (S,) int64 each."""

    __slots__ = ("ids", "type_ids")

    def __init__(self, ids: np.ndarray, type_ids: np.ndarray) -> None:
        self.ids = ids
        self.type_ids = type_ids

    def __len__(self) -> int:
        return len(self.ids)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Positions of texts in batches of similar lengths, longest first (the largest buffers come first)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
