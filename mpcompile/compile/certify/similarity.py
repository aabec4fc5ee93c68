"""Similarity of answers that are not right or wrong: correlations of scores, cosines of vectors.

Shapes: N texts, C scores, D dimensions of a vector.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from mpcompile.contract.task import Task, cosines


def measure_similarity(
    task: Task, answers: np.ndarray, original: np.ndarray, labels: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """Measures how similar scores or vectors are to the original's; reported beside the agreement.

    Args:
        task: of the model.
        answers: see `Task.answers`.
        original: answers of the original.
        labels: scores, None when unknown.

    Returns:
        Of a regression, `pearson` and `spearman` (which sees the order alone, all that a reranker is used for)
        `with_original` and, with labels, `with_labels` beside `original_with_labels`; of several scores the mean; one
        that is not defined, as scores are all alike, is left out. Of vectors, `mean_cosine` and `lowest_cosine`
        `with_original`. Of classes nothing.
    """
    if task.kind == "embedding":
        cosine = cosines(answers, original)
        return {"with_original": {"mean_cosine": float(cosine.mean()), "lowest_cosine": float(cosine.min())}}
    if task.kind != "regression":
        return {}
    compared = {"with_original": (answers, original)}
    if labels is not None:
        compared |= {"with_labels": (answers, labels), "original_with_labels": (original, labels)}
    return {name: correlate(*scores) for name, scores in compared.items()}


def correlate(scores: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation of scores, (N,) or (N, C): the mean over C."""
    columns, other_columns = (values.reshape(len(values), -1).astype(np.float64) for values in (scores, others))
    if len(columns) < 2 or not (columns.std(0) * other_columns.std(0)).all():
        return {}
    ranks, other_ranks = rankdata(columns, axis=0), rankdata(other_columns, axis=0)
    return {"pearson": _pearson(columns, other_columns), "spearman": _pearson(ranks, other_ranks)}


def _pearson(columns: np.ndarray, others: np.ndarray) -> float:
    pairs = zip(columns.T, others.T, strict=True)
    return float(np.mean([np.corrcoef(column, other)[0, 1] for column, other in pairs]))
