"""Answers many texts with a runtime, in batches of similar lengths. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.runtime.runtime import Runner, RunResult
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length


def answer_texts(
    runtime: Runner,
    point: OperatingPoint,
    tokenizer: Tokenizer,
    encoded: Sequence[TokenIds],
    batch_size: int = 32,
    on_batch: Callable[[float], None] = lambda _: None,
) -> RunResult:
    """Answers texts in the order given.

    Args:
        point: of the runtime.
        tokenizer: pads the batches.
        encoded: N texts.
        batch_size: examples that run together.
        on_batch: called after each batch with the share of texts done.
    """
    results, order = [], []
    done = 0
    for batch in batches_by_length([len(tokens) for tokens in encoded], batch_size):
        results.append(runtime.run(tokenizer.pad([encoded[i] for i in batch]), point))
        order.append(batch)
        done += len(batch)
        on_batch(done / len(encoded))
    back = np.argsort(np.concatenate(order))
    return RunResult(
        np.concatenate([result.logits for result in results])[back],
        np.concatenate([result.exit_layer for result in results])[back],
        np.concatenate([result.tokens_kept for result in results])[back],
    )
