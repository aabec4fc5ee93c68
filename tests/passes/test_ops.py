"""Tests of the operations that rewritten graphs are made of."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from passes.ops import (
    MASKED,
    additive_mask,
    enter_segment,
    keep_tokens,
    normalised_entropy,
    pool_features,
    prune_tokens,
    take_tokens,
    token_importance,
)
from tests import reference

SCALE = 0.5


@dataclass(frozen=True)
class PruneCase:
    """Arguments of a prune: B examples of S tokens, right-padded, that keep up to K."""

    lengths: list[int]
    num_kept: list[int]
    seq_len: int
    seed: int

    @property
    def mask(self) -> Tensor:
        return padding_mask(self.lengths, self.seq_len)

    @property
    def importance(self) -> Tensor:
        # Few values, so that ties and zeros come up.
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, 4, (len(self.lengths), self.seq_len), generator=generator) / 3

    def keep(self) -> Tensor:
        return keep_tokens(self.importance, self.mask, torch.tensor(self.num_kept), torch.arange(max(self.num_kept)))


@st.composite
def prune_cases(draw: st.DrawFn) -> PruneCase:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    num_kept = [draw(st.integers(1, length)) for length in lengths]
    seq_len = max(lengths) + draw(st.integers(0, 3))
    return PruneCase(lengths, num_kept, seq_len, draw(st.integers(0, 2**20)))


def padding_mask(lengths: list[int], seq_len: int) -> Tensor:
    real = torch.arange(seq_len) < torch.tensor(lengths)[:, None]
    return additive_mask(real.long())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_additive_mask_is_zero_at_tokens_and_masked_at_padding() -> None:
    mask = additive_mask(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert mask.tolist() == [[[[0.0, 0.0, MASKED]]], [[[0.0, MASKED, MASKED]]]]


def test_masked_value_leaves_no_probability_and_fits_half_precision() -> None:
    assert math.exp(MASKED) == 0
    assert torch.isfinite(torch.tensor(MASKED, dtype=torch.float16))


def test_pool_features_puts_the_first_token_beside_the_mean_over_real_tokens() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert pool_features(hidden, padding_mask([2], 3)).tolist() == [[1.0, 2.0, 2.0, 4.0]]


def test_pool_features_does_not_read_padding() -> None:
    hidden = random(2, 4, 3)
    other = hidden.clone()
    other[1, 2:] = 1e6
    mask = padding_mask([4, 2], 4)
    assert torch.equal(pool_features(hidden, mask), pool_features(other, mask))


@pytest.mark.parametrize("num_labels", [2, 3, 7])
def test_entropy_of_equal_logits_is_one(num_labels: int) -> None:
    assert normalised_entropy(torch.full((1, num_labels), 4.0)).item() == pytest.approx(1.0)


def test_entropy_of_a_certain_answer_is_zero() -> None:
    assert normalised_entropy(torch.tensor([[200.0, 0.0, -200.0]])).tolist() == [0.0]


def test_entropy_equals_the_reference() -> None:
    logits = 3 * random(8, 5)
    expected = [reference.normalised_entropy(row) for row in logits.double().numpy()]
    np.testing.assert_allclose(normalised_entropy(logits), expected, rtol=1e-5)


def test_take_tokens_takes_rows_and_their_positions() -> None:
    hidden = random(3, 5, 2)
    rows, positions = torch.tensor([[2], [0]]), torch.tensor([[0, 3, 4], [1, 1, 2]])
    assert torch.equal(take_tokens(hidden, rows, positions), hidden[rows, positions])


def test_take_tokens_takes_the_same_positions_of_every_row() -> None:
    hidden = random(3, 5, 2)
    rows, positions = torch.tensor([[1], [2]]), torch.tensor([[0, 2]])
    assert torch.equal(take_tokens(hidden, rows, positions), hidden[1:, [0, 2]])


def test_enter_segment_compacts_to_the_survivors_and_shortens() -> None:
    hidden, mask = random(4, 6, 2), padding_mask([2, 6, 3, 1], 6)
    short, short_mask = enter_segment(hidden, mask, torch.tensor([2, 0]), torch.arange(3))
    assert torch.equal(short, hidden[[2, 0], :3])
    assert torch.equal(short_mask, mask[[2, 0], :, :, :3])


def test_enter_segment_with_all_survivors_changes_nothing() -> None:
    hidden, mask = random(4, 6, 2), padding_mask([2, 6, 3, 1], 6)
    same, same_mask = enter_segment(hidden, mask, torch.arange(4), torch.arange(6))
    assert torch.equal(same, hidden)
    assert torch.equal(same_mask, mask)


def test_importance_equals_the_formula_written_out() -> None:
    query, key, value = (random(1, 2, 5, 4, seed=seed) for seed in range(3))
    expected = np.zeros(5)
    for head in range(2):
        q, k, v = (part[0, head].double().numpy() for part in (query, key, value))
        expected += reference.softmax(q.mean(0) @ k.T * SCALE) * np.sqrt((v**2).sum(-1))
    np.testing.assert_allclose(token_importance(padding_mask([5], 5), query, key, value, SCALE)[0], expected, rtol=1e-5)


def test_importance_of_tokens_does_not_depend_on_padding() -> None:
    parts = [random(1, 2, 5, 4, seed=seed) for seed in range(3)]
    padded = [torch.cat([part, torch.full((1, 2, 3, 4), 50.0)], dim=2) for part in parts]
    alone = token_importance(padding_mask([5], 5), *parts, SCALE)
    torch.testing.assert_close(token_importance(padding_mask([5], 8), *padded, SCALE)[:, :5], alone)


def test_importance_is_never_negative() -> None:
    parts = [random(3, 2, 6, 4, seed=seed) for seed in range(3)]
    assert (token_importance(padding_mask([6, 2, 1], 6), *parts, SCALE) >= 0).all()


@settings(deadline=None)
@given(prune_cases())
def test_padding_is_never_kept(case: PruneCase) -> None:
    kept_index = case.keep()
    for row, length in enumerate(case.lengths):
        positions = kept_index[row, : case.num_kept[row]]
        assert (positions < length).all()


@settings(deadline=None)
@given(prune_cases())
def test_position_0_is_always_kept_and_first(case: PruneCase) -> None:
    assert (case.keep()[:, 0] == 0).all()


@settings(deadline=None)
@given(prune_cases())
def test_kept_positions_ascend_without_repeats(case: PruneCase) -> None:
    for row, count in zip(case.keep().tolist(), case.num_kept, strict=True):
        assert row[:count] == sorted(set(row[:count]))


@settings(deadline=None)
@given(prune_cases())
def test_exactly_num_kept_are_kept_and_the_rest_is_filled_up(case: PruneCase) -> None:
    for row, count in zip(case.keep().tolist(), case.num_kept, strict=True):
        assert all(position < case.seq_len for position in row[:count])
        assert row[count:] == [case.seq_len] * (max(case.num_kept) - count)


@settings(deadline=None)
@given(prune_cases())
def test_no_dropped_token_matters_more_than_a_kept_one(case: PruneCase) -> None:
    importance = case.importance
    for row, positions in enumerate(case.keep().tolist()):
        kept = set(positions[1 : case.num_kept[row]])
        dropped = set(range(1, case.lengths[row])) - kept
        if kept and dropped:
            assert min(importance[row, list(kept)]) >= max(importance[row, list(dropped)])


@settings(deadline=None)
@given(prune_cases())
def test_an_example_keeps_the_same_tokens_alone_as_in_a_batch(case: PruneCase) -> None:
    together = case.keep()
    for row, (length, count) in enumerate(zip(case.lengths, case.num_kept, strict=True)):
        # Distinct values: which of two equal tokens goes is not promised.
        importance = case.importance[row : row + 1] + torch.linspace(0, 0.1, case.seq_len)
        mask = padding_mask([length], case.seq_len)
        alone = keep_tokens(importance, mask, torch.tensor([count]), torch.arange(count))
        batched = keep_tokens(
            case.importance + torch.linspace(0, 0.1, case.seq_len),
            case.mask,
            torch.tensor(case.num_kept),
            torch.arange(together.shape[1]),
        )
        assert torch.equal(alone[0], batched[row, :count])


def test_a_token_without_importance_is_kept_before_padding() -> None:
    importance = torch.tensor([[0.0, 0.0, 0.0, 9.0, 9.0]])
    kept_index = keep_tokens(importance, padding_mask([3], 5), torch.tensor([3]), torch.arange(3))
    assert kept_index.tolist() == [[0, 1, 2]]


def test_holes_in_a_mask_are_not_kept() -> None:
    mask = additive_mask(torch.tensor([[1, 0, 1, 0, 1]]))
    kept_index = keep_tokens(torch.ones(1, 5), mask, torch.tensor([3]), torch.arange(3))
    assert kept_index.tolist() == [[0, 2, 4]]


@settings(deadline=None, max_examples=40)
@given(prune_cases())
def test_prune_hands_on_the_kept_tokens_and_masks_the_rest(case: PruneCase) -> None:
    hidden = random(len(case.lengths), case.seq_len, 3, seed=case.seed)
    parts = [random(len(case.lengths), 2, case.seq_len, 4, seed=case.seed + i) for i in range(3)]
    slots = torch.arange(max(case.num_kept))
    kept, mask, kept_index = prune_tokens(hidden, case.mask, (*parts, SCALE), torch.tensor(case.num_kept), slots)
    assert kept.shape == (len(case.lengths), len(slots), 3)
    assert torch.equal(mask, padding_mask(case.num_kept, len(slots)))
    for row, count in enumerate(case.num_kept):
        assert torch.equal(kept[row, :count], hidden[row, kept_index[row, :count]])


@settings(deadline=None, max_examples=40)
@given(prune_cases())
def test_prune_that_keeps_every_token_is_bitwise_equal(case: PruneCase) -> None:
    width = max(case.lengths)
    hidden = random(len(case.lengths), width, 3, seed=case.seed)
    parts = [random(len(case.lengths), 2, width, 4, seed=case.seed + i) for i in range(3)]
    mask = padding_mask(case.lengths, width)
    kept, kept_mask, _ = prune_tokens(hidden, mask, (*parts, SCALE), torch.tensor(case.lengths), torch.arange(width))
    assert torch.equal(kept_mask, mask)
    real = mask[:, 0, 0, :] == 0
    assert torch.equal(kept[real], hidden[real])


def test_prune_lets_gradients_through_to_the_kept_tokens_alone() -> None:
    hidden = random(1, 5, 3).requires_grad_()
    parts = [random(1, 2, 5, 4, seed=seed) for seed in range(3)]
    num_kept, slots = torch.tensor([2]), torch.arange(2)
    kept, _, kept_index = prune_tokens(hidden, padding_mask([5], 5), (*parts, SCALE), num_kept, slots)
    kept.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[0].any(-1).nonzero().flatten().tolist() == kept_index[0].tolist()
