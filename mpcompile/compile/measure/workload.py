"""The workload that is timed: batches of real texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.texts.parts import TIMED_BATCHES, TextPart
from mpcompile.runtime.tokens import TokenIds, Tokenizer

BLOCK_S = 3.0
"""Seconds that the original needs for the batches of a run: enough to average over texts."""
MIN_BATCHES, MAX_BATCHES = TIMED_BATCHES, 256
"""Of six batches of 32, which texts share one decides a tenth of the time."""
NUM_DRAWS = 100
DOUBTED_ERRORS, DOUBTED_SHARE = 4.0, 0.1
"""Standard errors, and share of the layers, that texts to time and texts for choosing may differ by."""
RESAMPLED = 4
"""Times as many texts as there are, that are drawn from: so exactly are they as many as their weights say."""


@dataclass(frozen=True)
class Workload:
    """Batches to run one after another.

    Attributes:
        batches: input_ids, attention_mask, token_type_ids of each, (B, S).
        positions: which of the given texts each holds.
    """

    batches: tuple[dict[str, np.ndarray], ...]
    positions: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Traffic:
    """The source of batches to time: the user's texts, or random ids where none were given.

    Attributes:
        part: texts that nothing was trained on, None for random ids.
        length: tokens that are typical, or of all random ids.
        batch_size: examples in a batch.
        vocab_size: random ids are below it.
        seed: of the draws.
    """

    part: TextPart | None
    length: int
    batch_size: int
    vocab_size: int
    seed: int

    def draw(self, num_batches: int, hardness: Hardness | None = None) -> Workload:
        """At most this many batches; four of them without texts.

        Args:
            num_batches: at most this many.
            hardness: of the texts; None ranks them by length.
        """
        if self.part is None:
            batches = tuple(random_batch(self.vocab_size, self.batch_size, self.length, seed) for seed in range(4))
            return Workload(batches, tuple(np.arange(self.batch_size) for _ in batches))
        hardness = hardness or Hardness(self.part.lengths, np.ones(len(self.part.encoded)))
        index = hardness.resample()
        encoded, rank = [self.part.encoded[i] for i in index], hardness.rank[index]
        drawn = build_workload(self.part.tokenizer, encoded, self.batch_size, num_batches, rank, self.seed)
        return Workload(drawn.batches, tuple(index[positions] for positions in drawn.positions))


@dataclass(frozen=True)
class Hardness:
    """What texts are drawn by.

    Attributes:
        rank: how hard each is, (N,): texts are drawn evenly along it.
        weight: how many texts each stands for, (N,).
    """

    rank: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, exit_layer: np.ndarray, lengths: np.ndarray, known: np.ndarray) -> Hardness:
        """By where texts leave, (N,), and then by length, (N,).

        Args:
            exit_layer, lengths: of the texts.
            known: where texts for choosing leave, (M,): the share that leaves at each exit is known better from both.
        """
        return cls(rank_texts(exit_layer, lengths), weigh_texts(exit_layer, known))

    def resample(self) -> np.ndarray:
        """Positions of `RESAMPLED` times as many texts, each as often as its weight says; in order of rank."""
        order = np.argsort(self.rank, kind="stable")
        total = np.cumsum(self.weight[order])
        count = RESAMPLED * len(order)
        return np.asarray(order[np.searchsorted(total, (np.arange(count) + 0.5) * (total[-1] / count))])


def weigh_texts(exit_layer: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How many texts each stands for, (N,), so that each exit gets the share that it has of all texts, known ones too.

    Args:
        exit_layer: where each text leaves, (N,).
        known: where other texts leave, (M,).
    """
    both = np.concatenate([exit_layer, known])
    share = {layer: np.mean(both == layer) / np.mean(exit_layer == layer) for layer in np.unique(exit_layer)}
    return np.array([share[layer] for layer in exit_layer])


def describe_mismatch(exit_layer: np.ndarray, known: np.ndarray) -> tuple[str, ...]:
    """A note where engines let texts leave elsewhere than they were chosen to, by more than texts differ from texts.

    Args:
        exit_layer: where texts leave engines, (N,).
        known: where texts for choosing leave by the answers that points were chosen by, (M,).
    """
    ours, expected = float(exit_layer.mean()), float(known.mean())
    spread = np.sqrt(exit_layer.var() / len(exit_layer) + known.var() / len(known))
    if abs(ours - expected) <= max(DOUBTED_ERRORS * spread, DOUBTED_SHARE * max(expected, 1.0)):
        return ()
    return (
        f"engines let texts leave after {ours:.2f} layers on average, where {expected:.2f} were expected of the texts "
        "that points were chosen on: thresholds do not fit these engines as they should",
    )


def rank_texts(exit_layer: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How hard texts are, (N,): by the layer that each leaves after, and among those that leave there by length."""
    return np.asarray(exit_layer + lengths / (lengths.max() + 1.0))


def build_workload(
    tokenizer: Tokenizer, encoded: Sequence[TokenIds], batch_size: int, num_batches: int, rank: np.ndarray, seed: int
) -> Workload:
    """Draws batches that stand for all texts.

    A few batches hold one very long text or none, which decides how much is padded. So it is drawn many times, and
    the draw is taken that is padded to as many tokens as they are on average.

    Args:
        encoded: the texts.
        batch_size: examples in a batch.
        num_batches: at most this many.
        rank: texts are drawn evenly along it, (N,): how hard they are, so that the drawn ones
            leave at the exits as all of them do.
        seed: of the draws.
    """
    count = min(num_batches * batch_size, max(len(encoded) // batch_size, 1) * batch_size)
    ranked, generator = np.argsort(rank, kind="stable"), np.random.default_rng(seed)
    lengths = np.array([len(tokens) for tokens in encoded])
    draws = [_draw(ranked, count, generator).reshape(-1, batch_size) for _ in range(NUM_DRAWS)]
    padded = np.array([lengths[draw].max(1).sum() for draw in draws])
    positions = tuple(draws[int(np.abs(padded - padded.mean()).argmin())])
    return Workload(tuple(tokenizer.pad([encoded[i] for i in batch]) for batch in positions), positions)


def _draw(ranked: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Texts at even distances along the ranked ones, in random order, (count,)."""
    places = (np.arange(count) + generator.random()) * (len(ranked) / count)
    return generator.permutation(ranked[places.astype(int)])


def random_batch(vocab_size: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
    """Random ids without padding, for timing where there are no texts."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (batch_size, seq_len))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def count_batches(batch_s: float, block_s: float = BLOCK_S) -> int:
    """Batches of a run of so many seconds, from the time that one takes."""
    return int(np.clip(block_s / max(batch_s, 1e-6), MIN_BATCHES, MAX_BATCHES))
