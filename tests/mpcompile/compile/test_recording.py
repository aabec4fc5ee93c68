"""Tests of what int8 engines are calibrated on."""

from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerFast

from mpcompile.backends.torch.eager import EagerBackend
from mpcompile.compile.recording import KEEP_RATIOS, MAX_TOKENS, NUM_SAMPLES, CalibrationTexts, record_inputs
from mpcompile.contract.backend import BuildConfig, Engine
from mpcompile.contract.segment import Segment
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import partition
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from tests.models import HIDDEN_SIZE, MAX_POSITIONS, build_head
from tests.reference import count_kept


def text(length: int) -> TokenIds:
    ids = np.arange(5, 5 + length)
    return TokenIds(ids, ids * 0)


def chain(captured: CapturedModel) -> tuple[tuple[Segment, ...], list[Engine]]:
    segments = partition(captured, {1: build_head(1)}, (0, 2), precision="int8")
    return segments, [EagerBackend().load(b"", segment, BuildConfig()) for segment in segments[:-1]]


def tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer.from_transformers(tokenizer, MAX_POSITIONS)


def record(captured: CapturedModel, batches: list[dict[str, np.ndarray]]) -> tuple[list[dict[str, np.ndarray]], ...]:
    return record_inputs(*chain(captured), batches)


def test_every_segment_sees_every_text(captured: CapturedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    batches = [tokenizer(tiny_tokenizer).pad([text(length)]) for length in (9, 4, 7)]
    segments, engines = chain(captured)
    recorded = record_inputs(segments, engines, batches)
    assert [len(samples) for samples in recorded] == [3, 3]
    for segment, samples in zip(segments, recorded, strict=True):
        assert all(set(sample) == set(segment.input_names) for sample in samples)


def test_samples_take_turns_with_the_keep_ratios(
    captured: CapturedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    _, later = record(captured, [tokenizer(tiny_tokenizer).pad([text(10)])] * 2)
    assert [sample["hidden"].shape for sample in later] == [
        (1, count_kept(ratio, 10), HIDDEN_SIZE) for ratio in KEEP_RATIOS
    ]


def test_samples_are_copies_of_buffers_that_engines_use_again(
    captured: CapturedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    segments, (engine,) = chain(captured)
    buffers: dict[tuple[object, ...], np.ndarray] = {}

    def reuse(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = engine(inputs)
        for name, value in outputs.items():
            buffers.setdefault((name, value.shape), value.copy())[...] = value
        return {name: buffers[name, value.shape] for name, value in outputs.items()}

    one, other = (tokenizer(tiny_tokenizer).pad([TokenIds(np.arange(n, n + 6), np.zeros(6, int))]) for n in (5, 20))
    _, later = record_inputs(segments, [reuse], [one, one, other])
    assert not np.array_equal(later[0]["hidden"], later[2]["hidden"])


def test_a_chain_of_one_needs_no_engine(captured: CapturedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (segment,) = partition(captured, {}, precision="int8")
    (samples,) = record_inputs([segment], [], [tokenizer(tiny_tokenizer).pad([text(5)])])
    np.testing.assert_array_equal(samples[0]["input_ids"], [np.arange(5, 10)])


def test_texts_are_drawn_one_by_one_without_padding(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    drawn = CalibrationTexts.draw(tokenizer(tiny_tokenizer), [text(3), text(9)])
    assert [batch["input_ids"].shape for batch in drawn.batches] == [(1, 3), (1, 9)]
    assert all(batch["attention_mask"].all() for batch in drawn.batches)


def test_texts_are_limited_in_number_and_in_tokens(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer(tiny_tokenizer)
    assert len(CalibrationTexts.draw(tokens, [text(3)] * (NUM_SAMPLES + 5)).batches) == NUM_SAMPLES
    long = CalibrationTexts.draw(tokens, [text(MAX_TOKENS // 4 + 1)] * 8)
    assert len(long.batches) == 3
    assert len(CalibrationTexts.draw(tokens, [text(MAX_TOKENS + 1)]).batches) == 1


def test_digest_changes_with_the_texts(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer(tiny_tokenizer)
    one, same, other = (CalibrationTexts.draw(tokens, [text(3), text(n)]).digest for n in (4, 4, 5))
    assert one == same != other
