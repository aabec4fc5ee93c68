"""The exit before the model: a linear classifier on the n-grams of token ids, in microseconds on the host.

Four of five news items name their subject: single tokens, pairs and triples of neighbours, weighted by how rare they
are, say what the whole model would answer. Imports no torch.

Shapes: B texts, S tokens, G = 3S - 3 grams of a text, F grams that are known, C classes.
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
        """Logits (B, C) fp32 of input_ids and attention_mask, (B, S) int64."""
        rows = self._row_of[hash_grams(inputs["input_ids"], inputs["attention_mask"])]
        total = self._table[rows].sum(axis=1)
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


def hash_grams(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Hashes of the tokens, the pairs and the triples of neighbours of each text, (B, G) int64 below 2^`BITS`.

    Grams that reach into padding are `NO_GRAM`.

    Args:
        input_ids, attention_mask: (B, S) integers.
    """
    one = input_ids.astype(np.uint64) * _MIX[0]
    two = one[:, :-1] * _MIX[1] + one[:, 1:]
    three = two[:, :-1] * _MIX[2] + one[:, 2:]
    hashes = (np.concatenate([one, two, three], axis=1) >> _SHIFT).astype(np.int64)
    is_real = attention_mask != 0
    if not is_real.all():
        pairs = is_real[:, :-1] & is_real[:, 1:]
        triples = pairs[:, :-1] & is_real[:, 2:]
        hashes[~np.concatenate([is_real, pairs, triples], axis=1)] = NO_GRAM
    return hashes
