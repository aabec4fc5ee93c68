"""Tests of teaching the exit before the model: it finds the one minimum that there is.

Shapes: N texts, C classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpcompile.compile.adapt import ngrams
from mpcompile.compile.adapt.ngrams import Grams, train_ngrams
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from tests.mpcompile.runtime.test_ngrams import hash_text


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: object) -> Tokenizer:
    return Tokenizer.from_transformers(tiny_tokenizer, 16)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoded(tokenizer: Tokenizer, tiny_texts: list[str]) -> list[TokenIds]:
    return list(tokenizer.encode(tiny_texts))


def list_grams(tokenizer: Tokenizer, encoded: list[TokenIds]) -> list[list[int]]:
    """The grams of each text in Python's integers."""
    padded = [tokenizer.pad([text]) for text in encoded]
    return [hash_text(row["input_ids"][0].tolist()) for row in padded]


@pytest.mark.parametrize("multi_label", [False, True])
def test_logits_are_those_of_a_dense_logistic_regression(
    tokenizer: Tokenizer, encoded: list[TokenIds], multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngrams, "MAX_STEPS", 2000)
    logits = np.random.default_rng(0).normal(size=(len(encoded), 3)).astype(np.float32) * 3
    classifier = train_ngrams(Grams.count(tokenizer, encoded), logits, multi_label)
    found = np.concatenate([classifier(tokenizer.pad([text])) for text in encoded])
    np.testing.assert_allclose(found, fit_dense(list_grams(tokenizer, encoded), logits, multi_label), atol=0.02)


def fit_dense(texts: list[list[int]], logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """The same regression on a dense table of TF-IDF weights, by torch."""
    known = sorted(gram for gram in set().union(*texts) if sum(gram in text for text in texts) >= 2)
    counts = torch.tensor([[text.count(gram) for gram in known] for text in texts], dtype=torch.float64)
    rareness = torch.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    inputs = counts * rareness / (counts * rareness**2).sum(1, keepdim=True).sqrt()
    teacher = torch.from_numpy(logits).double()
    weight = torch.zeros(len(known), logits.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=3000, tolerance_grad=1e-9, tolerance_change=1e-14)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        ours = inputs @ weight + bias
        if multi_label:
            error = torch.nn.functional.binary_cross_entropy_with_logits(ours, teacher.sigmoid(), reduction="sum")
        else:
            error = torch.nn.functional.cross_entropy(ours, teacher.softmax(1), reduction="sum")
        total = error + ngrams.PENALTY / 2 * (weight**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (inputs @ weight + bias).detach().numpy()


def test_commonest_grams_are_kept_where_they_are_too_many(
    tokenizer: Tokenizer, encoded: list[TokenIds], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngrams, "MOST_WEIGHTS", 3 * 10 + 2)
    logits = np.zeros((len(encoded), 3), np.float32)
    classifier = train_ngrams(Grams.count(tokenizer, encoded), logits, False)
    texts = list_grams(tokenizer, encoded)
    counts = {gram: sum(gram in text for text in texts) for gram in set().union(*texts)}
    kept = set(classifier.slots.tolist())
    assert len(kept) == 10
    assert min(counts[gram] for gram in kept) >= max(count for gram, count in counts.items() if gram not in kept)


def test_grams_of_a_single_text_are_left_out(tokenizer: Tokenizer) -> None:
    encoded = list(tokenizer.encode(["alpha beta", "alpha gamma", "alpha delta"]))
    classifier = train_ngrams(Grams.count(tokenizer, encoded), np.eye(3, dtype=np.float32), multi_label=False)
    texts = [set(text) for text in list_grams(tokenizer, encoded)]
    expected = {gram for gram in set().union(*texts) if sum(gram in text for text in texts) >= 2}
    assert set(classifier.slots.tolist()) == expected
