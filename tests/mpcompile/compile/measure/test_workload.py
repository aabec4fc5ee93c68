"""Tests of the workload that is timed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.measure.workload import (
    MAX_BATCHES,
    MIN_BATCHES,
    Hardness,
    Workload,
    build_workload,
    count_batches,
    describe_mismatch,
    random_batch,
    weigh_texts,
)
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from tests.models import MAX_POSITIONS


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer.from_transformers(tiny_tokenizer, MAX_POSITIONS)


@pytest.fixture
def encoded(tokenizer: Tokenizer, tiny_texts: list[str]) -> list[TokenIds]:
    return tokenizer.encode(tiny_texts)


def build(tokenizer: Tokenizer, encoded: list[TokenIds], batch_size: int, num_batches: int, seed: int = 0) -> Workload:
    return build_workload(tokenizer, encoded, batch_size, num_batches, np.arange(len(encoded)), seed)


def test_batches_hold_the_texts_that_they_name(tokenizer: Tokenizer, encoded: list[TokenIds]) -> None:
    workload = build(tokenizer, encoded, 4, 5)
    for batch, positions in zip(workload.batches, workload.positions, strict=True):
        expected = tokenizer.pad([encoded[position] for position in positions])
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name], value)


def test_every_batch_is_full(tokenizer: Tokenizer, encoded: list[TokenIds]) -> None:
    assert [len(positions) for positions in build(tokenizer, encoded, 4, 5).positions] == [4] * 5


def test_no_more_batches_than_texts_fill(tokenizer: Tokenizer, encoded: list[TokenIds]) -> None:
    workload = build(tokenizer, encoded, 16, 100)
    assert len(workload.batches) == 2
    assert len(set(np.concatenate(workload.positions))) == 32


def test_fewer_texts_than_a_batch_are_repeated(tokenizer: Tokenizer, encoded: list[TokenIds]) -> None:
    workload = build(tokenizer, encoded[:3], 8, 2)
    assert [len(positions) for positions in workload.positions] == [8]
    assert set(workload.positions[0]) == {0, 1, 2}


def test_texts_are_drawn_evenly_along_their_rank(tokenizer: Tokenizer, encoded: list[TokenIds]) -> None:
    rank = np.array([0] * 10 + [1] * 20 + [2] * 10)
    workload = build_workload(tokenizer, encoded, 2, 4, rank, seed=3)
    drawn = rank[np.concatenate(workload.positions)]
    assert [int((drawn == value).sum()) for value in (0, 1, 2)] == [2, 4, 2]


def test_few_batches_are_padded_as_many_are(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a"] * 31 + ["a " * 20])  # the long text is in one batch of eight
    lengths = [build(tokenizer, encoded, 4, 1, seed).batches[0]["input_ids"].shape[1] for seed in range(20)]
    assert set(lengths) == {3}


def test_order_follows_the_seed(tokenizer: Tokenizer, encoded: list[TokenIds]) -> None:
    first, again, other = (np.concatenate(build(tokenizer, encoded, 2, 10, seed).positions) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()


def test_random_batch_is_one_that_the_model_reads() -> None:
    batch = random_batch(100, 3, 9, seed=1)
    assert {value.shape for value in batch.values()} == {(3, 9)}
    assert batch["attention_mask"].all() and not batch["token_type_ids"].any()
    assert batch["input_ids"].min() >= 0 and batch["input_ids"].max() < 100


def test_random_batch_follows_the_seed() -> None:
    assert (random_batch(100, 2, 5, 1)["input_ids"] == random_batch(100, 2, 5, 1)["input_ids"]).all()
    assert (random_batch(100, 2, 5, 1)["input_ids"] != random_batch(100, 2, 5, 2)["input_ids"]).any()


@pytest.mark.parametrize(("batch_s", "count"), [(0.1, 30), (1.0, MIN_BATCHES), (1e-4, MAX_BATCHES), (0.0, MAX_BATCHES)])
def test_batches_fill_three_seconds_within_bounds(batch_s: float, count: int) -> None:
    assert count_batches(batch_s) == count


def test_texts_are_drawn_as_often_as_their_weights_say() -> None:
    hardness = Hardness(np.array([3.0, 1.0, 2.0, 0.0]), np.array([1.0, 2.0, 0.5, 0.5]))
    index = hardness.resample()
    assert np.bincount(index, minlength=4).tolist() == [4, 8, 2, 2]
    assert (np.diff(hardness.rank[index]) >= 0).all()


def test_exits_have_the_shares_that_they_have_of_all_texts() -> None:
    exit_layer, known = np.array([0, 0, 0, 4]), np.array([0] * 6 + [4] * 6)
    weight = weigh_texts(exit_layer, known)
    assert weight.sum() == pytest.approx(4)
    assert weight[exit_layer == 4].sum() / weight.sum() == pytest.approx(7 / 16)
    assert len(set(weight[:3])) == 1


def test_exit_that_no_text_to_time_leaves_at_changes_nothing_of_the_others() -> None:
    weight = weigh_texts(np.array([0, 4]), np.array([0, 4, 8]))
    assert weight[0] == weight[1]


@given(st.lists(st.sampled_from([0, 2, 4]), min_size=1, max_size=30), st.lists(st.sampled_from([0, 2, 4]), max_size=30))
def test_resampled_texts_leave_as_all_of_them_do(leaves: list[int], known: list[int]) -> None:
    exit_layer = np.array(leaves)
    weight = weigh_texts(exit_layer, np.array(known, int))
    drawn = exit_layer[Hardness(exit_layer.astype(float), weight).resample()]
    both = np.array([layer for layer in leaves + known if layer in leaves])
    for layer in set(leaves):
        assert abs(np.mean(drawn == layer) - np.mean(both == layer)) <= 1 / len(drawn) + 1e-9


def test_engines_that_let_texts_leave_elsewhere_are_noticed() -> None:
    """Of a model whose exit heads lost in bf16: 45% were expected to leave at the embeddings, and 71% did."""
    known = np.repeat([0, 2, 6], [450, 350, 200])
    assert describe_mismatch(np.repeat([0, 2, 6], [90, 70, 40]), known) == ()
    assert describe_mismatch(np.repeat([0, 2, 6], [96, 66, 38]), known) == ()
    (note,) = describe_mismatch(np.repeat([0, 2, 6], [142, 38, 20]), known)
    assert note.startswith("engines let texts leave after 0.98 layers on average, where 1.90 were expected")


def test_texts_that_all_leave_at_one_exit_are_no_mismatch() -> None:
    assert describe_mismatch(np.full(20, 3), np.full(200, 3)) == ()
