"""Classifiers without a transformer, on the tokens of its tokenizer: what a user might do with the labels alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline
from systems import System
from transformers import AutoModel, AutoTokenizer

from mpcompile.runtime.tokens import TokenIds

TFIDF, STATIC = "TF-IDF, logistic regression", "static embeddings, logistic regression"
PENALTIES = (1.0, 10.0, 100.0)
"""Inverse strengths of the penalty, of which a quarter of the texts takes one."""
STATIC_DIM, SIF = 256, 1e-4
"""As in model2vec (github.com/MinishLab/model2vec): dimensions, and a in the weight a / (a + p) of a token that makes
up the share p of a corpus (Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings")."""


@dataclass(frozen=True)
class Labelled:
    """Texts with labels, to be trained on.

    Attributes:
        encoded: tokens of each.
        labels: class ids, (N,).
        num_labels: classes.
    """

    encoded: Sequence[TokenIds]
    labels: np.ndarray
    num_labels: int


def tfidf(train: Labelled) -> System:
    """Logistic regression on TF-IDF of tokens and pairs of neighbouring ones."""
    vectorizer = TfidfVectorizer(analyzer=_list_grams, min_df=2, sublinear_tf=True)
    fitted = make_pipeline(vectorizer, _regression()).fit([tokens.ids for tokens in train.encoded], train.labels)
    return System(TFIDF, _rows, lambda rows: _score(fitted, rows, train.num_labels))


def static_embeddings(model: str, train: Labelled) -> System:
    """Logistic regression on the weighted mean of vectors of tokens: what the encoder answers to each token alone."""
    table = _embed_vocabulary(model)
    counts = np.bincount(np.concatenate([tokens.ids for tokens in train.encoded]), minlength=len(table))
    table = table * (SIF / (SIF + counts / counts.sum()))[:, None]
    embed = functools.partial(_embed, table)
    fitted = _regression().fit(embed([tokens.ids for tokens in train.encoded]), train.labels)
    return System(STATIC, _rows, lambda rows: _score(fitted, embed(rows), train.num_labels))


def _regression() -> GridSearchCV:
    quarter = ShuffleSplit(1, test_size=0.25, random_state=0)
    return GridSearchCV(LogisticRegression(max_iter=200), {"C": PENALTIES}, cv=quarter)


def _list_grams(ids: np.ndarray) -> Iterable[Any]:
    plain = ids.tolist()
    return [*zip(plain, strict=True), *itertools.pairwise(plain)]


def _rows(batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Token ids of each text of a batch, without padding."""
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[mask > 0] for ids, mask in pairs]


def _score(fitted: Any, inputs: Any, num_labels: int) -> np.ndarray:
    """Log-probabilities of all classes, (B, C): minus infinity for those that no text was of."""
    logits = np.full((len(inputs), num_labels), -np.inf)
    logits[:, fitted.classes_] = fitted.predict_log_proba(inputs)
    return logits


def _embed(table: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    means = np.stack([table[ids].mean(0) for ids in rows])
    norms: np.ndarray = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.maximum(norms, 1e-12)


def _embed_vocabulary(model: str) -> np.ndarray:
    """Vectors of all tokens, (V, `STATIC_DIM` at most): the mean of what the encoder answers to each alone, after PCA.

    Each stands between the tokens that begin and end a text: without them an encoder says the same of all.
    """
    encoder = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    begin, end = AutoTokenizer.from_pretrained(model)("")["input_ids"]
    texts = torch.tensor([[begin, token, end] for token in range(encoder.config.vocab_size)])
    with torch.inference_mode():
        vectors = torch.cat([encoder(input_ids=part).last_hidden_state.mean(1) for part in texts.split(512)]).numpy()
    return PCA(min(STATIC_DIM, *vectors.shape)).fit_transform(vectors)
