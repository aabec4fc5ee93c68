"""The exit before the model: a linear classifier on the n-grams of token ids, in microseconds on the host.

Four of five news items name their subject: single tokens, pairs and triples of neighbours, weighted by how rare they
are, say what the whole model would answer. Imports no torch.

Shapes: B texts or pairs, S tokens, G grams of a text (3S - 3, of a pair more), F grams that are known, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mpcompile.contract.task import Task

NGRAMS = "ngrams.safetensors"
BITS = 20
"""Grams are hashed to so many bits; those that share a slot share a weight (Weinberger et al. 2009)."""
NO_GRAM = 2**BITS
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
"""Odd numbers whose bits are spread: a product's high bits depend on all bits of what is multiplied."""
_SHIFT = np.uint64(64 - BITS)
OVERLAP_GRAMS = 16
"""What two texts share is told by so many grams, eight times the same two, lest it drown in the others."""


@dataclass(frozen=True)
class NGramClassifier:
    """Logits of texts from the grams in them: weights of its grams, added up, over the length of their vector.

    Attributes:
        slots: hash of each gram that is known, ascending, (F,) int32.
        weight: by gram and class, times the rareness of the gram, (F, C) fp32.
        rareness: inverse document frequency of each gram, (F,) fp32.
        bias: by class, (C,) fp32.
    """

    slots: np.ndarray
    weight: np.ndarray
    rareness: np.ndarray
    bias: np.ndarray

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits (B, C) fp32 of input_ids, attention_mask and, of pairs, token_type_ids, (B, S) int64."""
        rows = self._row_of.take(hash_grams(inputs))
        # `take` and a product are faster than indexing and a sum.
        total = (np.ones((1, rows.shape[1]), np.float32) @ self._table.take(rows, axis=0))[:, 0]
        logits: np.ndarray = total[:, :-1] / np.sqrt(total[:, -1:]) + self.bias
        return logits

    @functools.cached_property
    def _row_of(self) -> np.ndarray:
        """Row in the table of every hash, 0 of those that no known gram has, (2^BITS + 1,)."""
        rows = np.zeros(NO_GRAM + 1, np.int32)
        rows[self.slots] = np.arange(1, len(self.slots) + 1)
        return rows

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Weights of each known gram, and the square of its rareness, after a row of zeros, (F + 1, C + 1)."""
        known = np.concatenate([self.weight, self.rareness[:, None] ** 2], axis=1)
        nothing = np.zeros((1, known.shape[1]))
        nothing[0, -1] = 1e-12  # a text without any known gram is answered by the bias
        return np.ascontiguousarray(np.concatenate([nothing, known]).astype(np.float32))

    def save(self, directory: Path) -> None:
        """Writes `NGRAMS`: the weights in fp16, which is exact enough for what is added up."""
        weight, rareness = self.weight.astype(np.float16), self.rareness.astype(np.float16)
        values = {"slots": self.slots, "weight": weight, "rareness": rareness, "bias": self.bias}
        save_file(values, directory / NGRAMS)

    @classmethod
    def load(cls, directory: Path) -> NGramClassifier:
        """The classifier that `save` wrote."""
        values = load_file(directory / NGRAMS)
        weight, rareness = values["weight"].astype(np.float32), values["rareness"].astype(np.float32)
        return cls(values["slots"], weight, rareness, values["bias"])


@dataclass(frozen=True)
class FirstExit:
    """An exit before the model.

    Attributes:
        classifier: what answers there.
        task: says how sure an answer is.
    """

    classifier: NGramClassifier
    task: Task

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """ "logits" (B, C) fp32 and "entropy" (B,) fp32, as a segment gives them."""
        logits = self.classifier(inputs)
        return {"logits": logits, "entropy": self.task.entropy(logits).astype(np.float32)}


def hash_grams(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Hashes of the tokens, the pairs and the triples of neighbours of each text, (B, G) int64 below 2^`BITS`.

    Of two texts, told apart by their token types, what they share follows, see `hash_overlap`. Grams that reach into
    padding are `NO_GRAM`.

    Args:
        inputs: input_ids and attention_mask, (B, S) integers, and token_type_ids where there are some.
    """
    input_ids, is_real = inputs["input_ids"], inputs["attention_mask"] != 0
    one = input_ids.astype(np.uint64) * _MIX[0]
    two = one[:, :-1] * _MIX[1] + one[:, 1:]
    three = two[:, :-1] * _MIX[2] + one[:, 2:]
    hashes = (np.concatenate([one, two, three], axis=1) >> _SHIFT).astype(np.int64)
    if not is_real.all():
        pairs = is_real[:, :-1] & is_real[:, 1:]
        triples = pairs[:, :-1] & is_real[:, 2:]
        hashes[~np.concatenate([is_real, pairs, triples], axis=1)] = NO_GRAM
    types = inputs.get("token_type_ids")
    if types is None or not types.any():
        return hashes
    is_second = is_real & (types != 0)
    return np.concatenate([hashes, hash_overlap(input_ids, is_real & ~is_second, is_second)], axis=1)


def hash_overlap(input_ids: np.ndarray, is_first: np.ndarray, is_second: np.ndarray) -> np.ndarray:
    """Hashes of what two texts share, (B, S + `OVERLAP_GRAMS`) int64, and `NO_GRAM` for a text alone.

    A gram for each token that both have, that only the first has and that only the second has; and the shares of
    either's tokens that the other has, in tenths.

    Args:
        input_ids: (B, S) integers.
        is_first, is_second: which tokens are of which text, (B, S) bool.
    """
    is_same = (input_ids[:, :, None] == input_ids[:, None, :]) & is_first[:, :, None] & is_second[:, None, :]
    in_second, in_first = is_same.any(2), is_same.any(1)
    place = np.where(is_first, np.where(in_second, 1, 2), 3).astype(np.uint64)
    tokens = (input_ids.astype(np.uint64) * _MIX[0] + place) * _MIX[1]
    is_gram = (is_first | (is_second & ~in_first)) & is_second.any(1, keepdims=True)
    shares = [
        10 * (found & of).sum(1, keepdims=True) // np.maximum(of.sum(1, keepdims=True), 1)
        for found, of in ((in_second, is_first), (in_first, is_second))
    ]
    told = np.concatenate([shares[0] + 100, shares[1] + 200], axis=1).astype(np.uint64) * _MIX[2]
    hashes = (np.concatenate([tokens, np.repeat(told, OVERLAP_GRAMS // 2, axis=1)], axis=1) >> _SHIFT).astype(np.int64)
    is_told = np.repeat(is_second.any(1, keepdims=True), OVERLAP_GRAMS, axis=1)
    hashes[~np.concatenate([is_gram, is_told], axis=1)] = NO_GRAM
    return hashes
