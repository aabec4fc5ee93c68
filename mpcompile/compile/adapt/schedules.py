"""Draws what each step of elastic training gets: which texts, and how many tokens each pruning layer keeps.

Everything is drawn from the seed and the number of the step or epoch alone, so that a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpcompile.contract.inputs import NUM_KEPT, SLOTS
from mpcompile.contract.operating_point import count_kept

BATCHES_PER_LENGTH_GROUP = 50
WIDTH_STEP = 16
"""Batches are padded to multiples of this: batches of every width fragment the heap (`scripts/finetune.py`)."""
_ORDER, _RATIOS = 1, 2


def draw_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Shuffles texts into batches of similar length, so that little is padded.

    Args:
        lengths: tokens of each text.
        batch_size: of all batches but one, which may be smaller.
        seed: of the run.
        epoch: another order for each.
    """
    random = np.random.default_rng((seed, _ORDER, epoch))
    rows, length = random.permutation(len(lengths)), np.asarray(lengths)
    batches = []
    for group in _cut(rows, batch_size * BATCHES_PER_LENGTH_GROUP):
        batches += _cut(group[np.argsort(length[group], kind="stable")], batch_size)
    return [batches[i] for i in random.permutation(len(batches))]


def draw_keep_ratios(
    num_prunes: int, unpruned_share: float, min_kept: float, seed: int, step: int
) -> tuple[float, ...]:
    """Keep ratios of one step: LengthDrop (Kim & Cho 2021) with the share left at the end drawn log-uniformly.

    What is dropped is spread over the pruning layers at random (a Dirichlet distribution over the
    logarithm), so that uniform schedules are as likely as those that prune early or late alone.

    Args:
        num_prunes: pruning layers.
        unpruned_share: share of the steps that keep every token.
        min_kept: lowest share of tokens left after the last layer.
        seed: of the run.
        step: another draw for each.
    """
    random = np.random.default_rng((seed, _RATIOS, step))
    if num_prunes == 0 or random.random() < unpruned_share:
        return (1.0,) * num_prunes
    kept = np.exp(random.uniform(np.log(min_kept), 0.0))
    return tuple(float(kept**share) for share in random.dirichlet(np.full(num_prunes, 2.0)))


def count_slots(length: np.ndarray, width: int, keep_ratios: Mapping[int, float]) -> dict[str, np.ndarray]:
    """The inputs of the pruning layers: tokens kept (B,) and slots (K,).

    K is rounded up to a multiple of half of `WIDTH_STEP`; the slots too many are masked like padding.

    Args:
        length: tokens of each example, (B,).
        width: S of the batch.
        keep_ratios: by layer.
    """
    inputs = {}
    for layer, ratio in sorted(keep_ratios.items()):
        length = count_kept(ratio, length)
        width = min(width, round_up(int(length.max()), WIDTH_STEP // 2))
        inputs[NUM_KEPT.of_layer(layer)], inputs[SLOTS.of_layer(layer)] = length, np.arange(width)
    return inputs


def round_up(number: int, step: int) -> int:
    """The next multiple of `step` that is not below `number`."""
    return -(-number // step) * step


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
