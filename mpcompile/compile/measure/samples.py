"""Picks sample texts for the report, answers them with the engines, and traces them token by token.

Shapes: N texts to pick from, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcompile.compile.measure.trace import trace_tokens
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task, cosines
from mpcompile.report.records import SampleText, SampleToken
from mpcompile.runtime.predictions import describe_answers
from mpcompile.runtime.runtime import Runner

NUM_SAMPLES = 8
"""Evenly from each exit; a text that the original answers differently may be one more."""
POOL_SIZE = 200
"""Texts that the samples are picked from: enough to meet every exit."""


def trace_samples(
    runtime: Runner, point: OperatingPoint, part: TextPart, id2label: Mapping[int, str]
) -> tuple[SampleText, ...]:
    """Picks texts that show what a point does, and what became of each of their tokens.

    Args:
        runtime: the engines that answer.
        point: of the runtime.
        part: texts that nothing was chosen on, as they were given, with the original's answers.
        id2label: class names by id.
    """
    assert part.examples is not None
    pool = part.take(np.arange(min(POOL_SIZE, len(part.encoded))))
    result = pool.answer(runtime, point)
    answer, original, task = pool.task.answers(result.logits), pool.original_answer, pool.task
    differs = task.differs(answer, original)
    words, original_words = (describe_answers(task, id2label, given) for given in (answer, original))
    scores, samples = _scores(task, result.logits, original), []
    for i in pick_samples(result.exit_layer, pool.lengths, differs):
        exit_layer = int(result.exit_layer[i])
        inputs = pool.pad([i])
        dropped_in = trace_tokens(runtime.segments, result.logits.shape[1], inputs, point, exit_layer)
        pairs = part.examples.text_pairs
        texts = [part.examples.texts[i]] if pairs is None else [part.examples.texts[i], pairs[i]]
        encoding = part.tokenizer.backend.encode(texts[0], texts[1] if len(texts) == 2 else None)
        tokens = describe_tokens(encoding, texts, dropped_in)
        is_truncated = len(encoding.overflowing) > 0
        samples.append(
            SampleText(tokens, is_truncated, exit_layer, words[i], scores[i], original_words[i], not bool(differs[i]))
        )
    return tuple(samples)


def _scores(task: Task, logits: np.ndarray, original: np.ndarray) -> list[float | None]:
    """How sure each answer is: its probability, that of the least sure label, the cosine with the original's vector."""
    if task.kind == "regression":
        return [None] * len(logits)
    if task.kind == "embedding":
        return [float(cosine) for cosine in cosines(logits, original)]
    if task.kind == "multi_label":
        return [float(score) for score in np.exp(-np.logaddexp(0.0, -np.abs(logits).min(1)))]
    return [float(score) for score in np.exp(logits.max(1) - np.logaddexp.reduce(logits, axis=1))]


def pick_samples(exit_layer: np.ndarray, lengths: np.ndarray, differs: np.ndarray) -> list[int]:
    """Positions of texts, as many from each exit and spread over their lengths, by exit.

    One that is answered differently than by the original is among them wherever there is one.

    Args:
        exit_layer: encoder layers that each runs, (N,).
        lengths: tokens of each, (N,).
        differs: whether the original answers otherwise, (N,).
    """
    order = np.lexsort((lengths, exit_layer))
    picked: list[int] = []
    exits = np.unique(exit_layer)
    for rank, layer in enumerate(reversed(exits)):  # deep exits have more to show: what cannot be divided goes to them
        group = order[exit_layer[order] == layer]
        count = min(len(range(rank, NUM_SAMPLES, len(exits))), len(group))
        picked.extend(group[((np.arange(count) + 0.5) * len(group) / max(count, 1)).astype(int)].tolist())
    if differs.any() and not differs[picked].any():
        picked.append(int(np.flatnonzero(differs)[0]))
    return sorted(picked, key=lambda i: (exit_layer[i], lengths[i]))


def describe_tokens(encoding: Any, texts: Sequence[str], dropped_in: np.ndarray) -> tuple[SampleToken, ...]:
    """Tokens with the characters that they stand for.

    Tokens that share characters (the bytes of an emoji) show them once, in the first of them.

    Args:
        encoding: what the tokenizers library says of a text or a pair.
        texts: the text, or the two.
        dropped_in: layer that drops each token, -1 where it is kept.
    """
    ends, tokens = [0] * len(texts), []
    for i, name in enumerate(encoding.tokens):
        layer = None if dropped_in[i] < 0 else int(dropped_in[i])
        which = encoding.sequence_ids[i]
        if which is None or encoding.special_tokens_mask[i]:
            tokens.append(SampleToken(name, "", True, layer))
            continue
        start, end = encoding.offsets[i]
        start = max(start, ends[which])
        end = max(start, end)
        text = texts[which]
        tokens.append(SampleToken(text[start:end], text[ends[which] : start], False, layer))
        ends[which] = end
    return tuple(tokens)
