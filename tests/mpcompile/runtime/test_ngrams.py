"""Tests of the exit before the model: every text is answered by its own grams, whatever stands in a batch with it.

Shapes: B texts, S tokens, C classes.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.errors import InputError
from mpcompile.runtime.ngrams import BITS, NO_GRAM, FirstExit, NGramClassifier, hash_grams
from mpcompile.runtime.runtime import Runtime
from tests.models import NUM_LABELS
from tests.mpcompile.runtime.test_runtime import NUM_LAYERS, ForgettingEngine, build_segments, make_batch
from tests.mpcompile.runtime.test_runtime import make_runtime as make_whole

IDS = st.lists(st.integers(0, 50_000), min_size=1, max_size=12)
FEW_IDS = st.lists(st.integers(0, 12), min_size=1, max_size=8)
MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


def hash_text(ids: list[int]) -> list[int]:
    """The grams of one text in Python's integers: tokens, pairs, triples."""
    one = [token * MIX[0] for token in ids]
    two = [a * MIX[1] + b for a, b in itertools.pairwise(one)]
    three = [a * MIX[2] + b for a, b in zip(two, one[2:], strict=False)]
    return [(gram % 2**64) >> (64 - BITS) for gram in (*one, *two, *three)]


def hash_pair(first: list[int], second: list[int]) -> list[int]:
    """The grams of a pair in Python's integers: those of all its tokens, and of what the two share."""
    places = [(token, 1 if token in second else 2) for token in first]
    places += [(token, 3) for token in second if token not in first]
    shares = (
        (100 + 10 * sum(token in second for token in first) // len(first)),
        (200 + 10 * sum(token in first for token in second) // len(second)),
    )
    overlap = [(token * MIX[0] + place) * MIX[1] for token, place in places]
    overlap += [share * MIX[2] for share in shares for _ in range(8)]
    return hash_text(first + second) + [(gram % 2**64) >> (64 - BITS) for gram in overlap]


def pad_pairs(pairs: list[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """A batch of pairs, and of texts alone where the second is empty."""
    batch = pad([first + second for first, second in pairs])
    types = np.zeros_like(batch["input_ids"])
    for row, (first, second) in zip(types, pairs, strict=True):
        row[len(first) : len(first) + len(second)] = 1
    return {**batch, "token_type_ids": types}


def pad(texts: list[list[int]]) -> dict[str, np.ndarray]:
    length = max(map(len, texts))
    ids = np.array([text + [0] * (length - len(text)) for text in texts])
    mask = np.array([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def make_classifier(num_classes: int = 3, seed: int = 0, num_grams: int = 200_000) -> NGramClassifier:
    generator = np.random.default_rng(seed)
    slots = np.sort(generator.choice(NO_GRAM, num_grams, replace=False)).astype(np.int32)
    weight = generator.normal(size=(num_grams, num_classes)).astype(np.float32)
    rareness = generator.uniform(1, 5, num_grams).astype(np.float32)
    return NGramClassifier(slots, weight, rareness, generator.normal(size=num_classes).astype(np.float32))


def answer_alone(classifier: NGramClassifier, ids: list[int]) -> np.ndarray:
    """Logits of one text, gram by gram."""
    rows = {int(slot): row for row, slot in enumerate(classifier.slots)}
    known = [rows[gram] for gram in hash_text(ids) if gram in rows]
    if not known:
        return classifier.bias
    length = np.sqrt(sum(float(classifier.rareness[row]) ** 2 for row in known))
    return np.sum([classifier.weight[row] for row in known], axis=0) / length + classifier.bias


@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(IDS, min_size=1, max_size=5))
def test_grams_are_those_of_each_text_alone(texts: list[list[int]]) -> None:
    hashes = hash_grams(pad(texts))
    for row, text in zip(hashes, texts, strict=True):
        assert sorted(row[row != NO_GRAM].tolist()) == sorted(hash_text(text))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pairs=st.lists(st.tuples(FEW_IDS, st.one_of(st.just([]), FEW_IDS)), min_size=1, max_size=5))
def test_grams_of_a_pair_say_what_the_two_share(pairs: list[tuple[list[int], list[int]]]) -> None:
    hashes = hash_grams(pad_pairs(pairs))
    for row, (first, second) in zip(hashes, pairs, strict=True):
        expected = hash_pair(first, second) if second else hash_text(first)
        assert sorted(row[row != NO_GRAM].tolist()) == sorted(expected)


def test_order_of_tokens_makes_other_grams() -> None:
    assert set(hash_text([5, 9])) != set(hash_text([9, 5]))


def test_grams_across_a_gap_in_the_mask_are_none() -> None:
    hashes = hash_grams({"input_ids": np.array([[7, 8, 9, 10]]), "attention_mask": np.array([[1, 0, 1, 1]])})[0]
    assert sorted(hashes[hashes != NO_GRAM].tolist()) == sorted([*hash_text([7]), *hash_text([9, 10])])


CLASSIFIER = make_classifier()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(IDS, min_size=1, max_size=5))
def test_logits_are_those_of_each_text_alone(texts: list[list[int]]) -> None:
    expected = [answer_alone(CLASSIFIER, text) for text in texts]
    np.testing.assert_allclose(CLASSIFIER(pad(texts)), expected, rtol=1e-4, atol=1e-4)


def test_text_without_a_known_gram_is_answered_by_the_bias() -> None:
    classifier = make_classifier(num_grams=1)
    np.testing.assert_array_equal(classifier(pad([[1, 2, 3]])), classifier.bias[None])


def test_saved_classifier_answers_as_before(tmp_path: Path) -> None:
    CLASSIFIER.save(tmp_path)
    texts = pad([[1, 2, 3], [40, 50, 60, 70]])
    np.testing.assert_allclose(NGramClassifier.load(tmp_path)(texts), CLASSIFIER(texts), atol=5e-3)


def make_runtime() -> Runtime:
    whole = make_whole(ForgettingEngine)
    first_exit = FirstExit(make_classifier(NUM_LABELS), Task("single_label", NUM_LABELS))
    return Runtime(whole.segments, whole.engines, NUM_LABELS, whole.split_tokens, first_exit)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    share=st.floats(0, 1),
    last=st.integers(0, NUM_LAYERS),
)
def test_sure_texts_leave_before_and_the_others_are_answered_as_without(
    lengths: list[int], share: float, last: int
) -> None:
    batch, runtime = make_batch(lengths), make_runtime()
    assert runtime.first_exit is not None
    before = runtime.first_exit(batch)
    threshold = float(np.quantile(before["entropy"], share))
    found = runtime.run(batch, OperatingPoint((BEFORE, last), (min(threshold, 1.0),)))
    without = runtime.run(batch, OperatingPoint((last,)))
    leaving = before["entropy"] < threshold
    np.testing.assert_array_equal(found.exit_layer, np.where(leaving, BEFORE, last))
    np.testing.assert_array_equal(found.logits[leaving], before["logits"][leaving])
    np.testing.assert_allclose(found.logits[~leaving], without.logits[~leaving], atol=1e-5)


def test_no_engine_runs_where_all_leave_before() -> None:
    class Refusing:
        def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise AssertionError(f"an engine was called with {list(inputs)}")

    runtime = make_runtime()
    runtime.engines = tuple(Refusing() for _ in runtime.engines)
    result = runtime.run(make_batch([4, 7]), OperatingPoint((BEFORE,)))
    assert result.exit_layer.tolist() == [BEFORE, BEFORE]


def test_point_with_an_exit_that_is_not_there_is_refused() -> None:
    engines = make_whole(ForgettingEngine).engines
    runtime = Runtime(build_segments(), engines, NUM_LABELS, (8.0,) * len(engines))
    with pytest.raises(InputError, match="exits"):
        runtime.run(make_batch([3]), OperatingPoint((BEFORE, 3), (0.5,)))
