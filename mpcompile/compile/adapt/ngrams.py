"""Trains the exit before the model: logistic regression on the grams of texts, taught by the model's own answers.

Shapes: N texts, F grams that are known, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from mpcompile.runtime.ngrams import NO_GRAM, NGramClassifier, hash_grams
from mpcompile.runtime.tokens import TokenIds, Tokenizer

PENALTY = 1.0 / 20.0
"""Half of it times the squared weights is added to the summed loss: scikit-learn's C = 20."""
MAX_STEPS = 60
"""Of L-BFGS."""
LEAST_TEXTS = 2
"""Texts that a gram must occur in: what one text alone has tells nothing of others."""
MOST_WEIGHTS = 2**23
"""Grams times classes; of more, the grams are left out that the fewest texts have."""
BATCH_SIZE = 1024


@dataclass(frozen=True)
class Grams:
    """How often each gram occurs in each text.

    Attributes:
        counts: (N, 2^BITS) sparse.
    """

    counts: scipy.sparse.csr_matrix

    @classmethod
    def count(cls, tokenizer: Tokenizer, encoded: Sequence[TokenIds]) -> Grams:
        """Counts the grams of N texts."""
        rows, columns = [], []
        for start in range(0, len(encoded), BATCH_SIZE):
            padded = tokenizer.pad(encoded[start : start + BATCH_SIZE])
            hashes = hash_grams(padded)
            row, column = np.nonzero(hashes != NO_GRAM)
            rows.append(row + start)
            columns.append(hashes[row, column])
        where = np.concatenate(rows), np.concatenate(columns)
        ones = np.ones(len(where[0]), np.float32)
        return cls(scipy.sparse.csr_matrix((ones, where), shape=(len(encoded), NO_GRAM)))

    def take(self, index: np.ndarray) -> Grams:
        """The texts at some positions."""
        return Grams(self.counts[index])


def train_ngrams(
    grams: Grams, teacher_logits: np.ndarray, multi_label: bool, on_step: Callable[[float], None] = lambda _: None
) -> NGramClassifier:
    """Distils a model's answers into a linear classifier.

    A text is the vector of the rareness of its grams (inverse document frequency, smoothed as scikit-learn's
    `TfidfTransformer` does), each as often as it occurs, over the length of that vector without regard to repetition.

    Args:
        grams: of N texts.
        teacher_logits: of the model, (N, C).
        multi_label: whether each label holds by itself.
        on_step: called after each step with the share done, (0, 1].

    Returns:
        Weights that are fp16 numbers, as they are saved.
    """
    in_texts = np.bincount(grams.counts.indices, minlength=NO_GRAM)
    slots = np.flatnonzero(in_texts >= min(LEAST_TEXTS, len(teacher_logits)))
    commonest = np.argsort(-in_texts[slots], kind="stable")[: MOST_WEIGHTS // teacher_logits.shape[1]]
    slots = slots[np.sort(commonest)]
    counts = grams.counts[:, slots]
    rareness = np.log((1.0 + counts.shape[0]) / (1.0 + in_texts[slots])) + 1.0
    length = np.sqrt(np.maximum(counts @ rareness**2, 1e-12))
    inputs = scipy.sparse.diags(1.0 / length) @ counts @ scipy.sparse.diags(rareness)
    weight, bias = _fit(inputs.tocsr().astype(np.float32), teacher_logits, multi_label, on_step)
    weight, rareness = (
        values.astype(np.float16).astype(np.float32) for values in (weight * rareness[:, None], rareness)
    )
    return NGramClassifier(slots.astype(np.int32), weight, rareness, bias.astype(np.float32))


def _fit(
    inputs: scipy.sparse.csr_matrix, teacher_logits: np.ndarray, multi_label: bool, on_step: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (F, C) and biases (C,) that minimise the cross-entropy with the teacher's probabilities."""
    num_classes, num_grams = teacher_logits.shape[1], inputs.shape[1]
    targets = expit(teacher_logits) if multi_label else softmax(teacher_logits, axis=1)
    back, steps = inputs.T.tocsr(), 0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        values = flat.reshape(num_grams + 1, num_classes)
        logits = inputs @ values[:-1].astype(np.float32) + values[-1]
        if multi_label:
            total, error = (np.logaddexp(0.0, logits) - targets * logits).sum(), expit(logits) - targets
        else:
            log_p = log_softmax(logits, axis=1)
            total, error = -(targets * log_p).sum(), np.exp(log_p) - targets
        gradient = np.concatenate([back @ error.astype(np.float32), error.sum(0, keepdims=True)])
        gradient[:-1] += PENALTY * values[:-1]
        return float(total + PENALTY / 2 * (values[:-1] ** 2).sum()), gradient.ravel().astype(np.float64)

    def count_step(_: np.ndarray) -> None:
        nonlocal steps
        steps += 1
        on_step(steps / MAX_STEPS)

    start = np.zeros((num_grams + 1) * num_classes)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS, "maxcor": 5}, callback=count_step
    )
    on_step(1.0)
    values = found.x.reshape(num_grams + 1, num_classes)
    return values[:-1], values[-1]
