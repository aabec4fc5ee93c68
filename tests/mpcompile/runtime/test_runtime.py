"""Tests of the runtime: whatever stands in a batch, each example is answered as if it stood there alone.

Shapes: B examples, S tokens, R survivors, L tokens of the longest survivor, K tokens kept.
"""

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpcompile.backends.torch.eager import EagerEngine
from mpcompile.contract.backend import Engine
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.errors import BatchTooLarge, InputError
from mpcompile.graph.segments import partition
from mpcompile.runtime.runtime import RunResult, Runtime
from tests.models import NUM_LABELS, build_head, captured_model, family_model, random_batch
from tests.reference import count_kept, run_reference

Arrays = Mapping[str, np.ndarray]
NUM_LAYERS = 3
EXITS, PRUNES = (0, 1, 2), (0, 1, 2)
MAX_TOKENS = 16
UNSURE = 1e-5
"""Entropies this near to a threshold may fall on either side of it, as the sums of a batch are rounded differently."""
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


@functools.cache
def build_segments() -> tuple[Segment, ...]:
    """Four segments, an exit in front of each layer but the first and one right after the embeddings."""
    captured = captured_model("bert")
    return partition(captured, {layer: build_head(layer) for layer in EXITS}, PRUNES)


class RecordingEngine:
    """Passes on what an engine is given and answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inputs: list[Arrays] = []
        self.outputs: list[Arrays] = []

    def __call__(self, inputs: Arrays) -> Arrays:
        outputs = self.engine(inputs)
        self.inputs.append({name: value.copy() for name, value in inputs.items()})
        self.outputs.append({name: value.copy() for name, value in outputs.items()})
        return outputs


class ForgettingEngine:
    """An engine whose answers are valid until it is called again, and garbage after that."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.last: Arrays = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        for value in self.last.values():
            value.fill(np.nan)
        self.last = {name: value.copy() for name, value in self.engine(inputs).items()}
        return self.last


class SmallEngine(ForgettingEngine):
    """An engine that has room for two examples."""

    room = 2

    def __call__(self, inputs: Arrays) -> Arrays:
        rows = len(inputs.get("rows", inputs.get("input_ids", ())))
        if rows > self.room:
            raise BatchTooLarge(f"room for {self.room}", self.room)
        return super().__call__(inputs)


class FullEngine(SmallEngine):
    """An engine that has room for nobody."""

    room = 0


class BusyEngine(ForgettingEngine):
    """The same, refusing to be called by two threads at once."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.busy = threading.Lock()

    def __call__(self, inputs: Arrays) -> Arrays:
        assert self.busy.acquire(blocking=False), "two threads are in one engine"
        try:
            return super().__call__(inputs)
        finally:
            self.busy.release()


def make_runtime(wrap: type = RecordingEngine, split_tokens: float = 8.0) -> Runtime:
    engines = [wrap(EagerEngine(segment)) for segment in build_segments()]
    return Runtime(build_segments(), engines, NUM_LABELS, (split_tokens,) * len(engines))


def make_batch(lengths: Sequence[int], seed: int = 0, seq_len: int | None = None) -> dict[str, np.ndarray]:
    batch = random_batch(family_model("bert"), lengths, seq_len, seed)
    return {name: value.numpy() for name, value in batch.items()}


def take(batch: Arrays, rows: Sequence[int] | np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value[rows][:, :length]) for name, value in batch.items()}


def run_alone(batch: Arrays, point: OperatingPoint) -> tuple[RunResult, dict[int, np.ndarray]]:
    """Answers to each row as a request of its own, and the entropies (B,) met, NaN where it had left before."""
    entropy = {layer: np.full(len(batch["input_ids"]), np.nan) for layer in EXITS}
    results = []
    for row in range(len(batch["input_ids"])):
        runtime = make_runtime()
        extent = int(np.flatnonzero(batch["attention_mask"][row])[-1]) + 1
        results.append(runtime.run(take(batch, [row], extent), point))
        for segment, engine in zip(runtime.segments, runtime.engines, strict=True):
            for outputs in engine.outputs:
                if "entropy" in outputs:
                    entropy[segment.exit_layer][row] = outputs["entropy"][0]
    return join(results), entropy


def join(results: Iterable[RunResult]) -> RunResult:
    rows = list(results)
    return RunResult(
        *(np.concatenate([getattr(row, name) for row in rows]) for name in ("logits", "exit_layer", "tokens_kept"))
    )


def assume_sure(point: OperatingPoint, entropy: Mapping[int, np.ndarray]) -> None:
    """Leaves out the draws in which an example stands on a threshold."""
    for layer, threshold in zip(point.exit_layers, point.exit_thresholds, strict=False):
        assume(not (np.abs(entropy[layer] - threshold) < UNSURE).any())


def assert_same(result: RunResult, expected: RunResult) -> None:
    np.testing.assert_array_equal(result.exit_layer, expected.exit_layer)
    np.testing.assert_array_equal(result.tokens_kept, expected.tokens_kept)
    np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)


@st.composite
def points(draw: st.DrawFn) -> OperatingPoint:
    exits = sorted(draw(st.sets(st.sampled_from((*EXITS, NUM_LAYERS)), min_size=1)))
    prunes = sorted(draw(st.sets(st.sampled_from(PRUNES))))
    thresholds = [draw(st.integers(0, 100)) / 100 for _ in exits[:-1]]
    ratios = [draw(st.integers(1, 100)) / 100 for _ in prunes]
    return OperatingPoint(tuple(exits), tuple(thresholds), tuple(prunes), tuple(ratios))


batches = st.builds(
    lambda lengths, seed, extra: make_batch(lengths, seed, max(lengths) + extra),
    st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=6),
    st.integers(0, 1000),
    st.integers(0, 4),
)


@PROPERTY
@given(batch=batches, point=points())
def test_a_batch_is_answered_as_single_requests(batch: Arrays, point: OperatingPoint) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    assert_same(make_runtime().run(batch, point), expected)


@PROPERTY
@given(batch=batches, point=points(), data=st.data())
def test_order_in_a_batch_does_not_matter(batch: Arrays, point: OperatingPoint, data: st.DataObject) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    order = np.array(data.draw(st.permutations(range(len(batch["input_ids"])))))
    result = make_runtime().run(take(batch, order), point)
    assert_same(result, RunResult(expected.logits[order], expected.exit_layer[order], expected.tokens_kept[order]))


@PROPERTY
@given(batch=batches, point=points(), data=st.data())
def test_split_into_batches_does_not_matter(batch: Arrays, point: OperatingPoint, data: st.DataObject) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    size = len(batch["input_ids"])
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    runtime = make_runtime()
    parts = [runtime.run(take(batch, part), point) for part in np.split(np.arange(size), cuts)]
    assert_same(join(parts), expected)


@PROPERTY
@given(batch=batches, point=points(), split_tokens=st.sampled_from([0.0, 0.5, 3.0, np.inf]))
def test_grouping_by_length_changes_no_answer(batch: Arrays, point: OperatingPoint, split_tokens: float) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    assert_same(make_runtime(split_tokens=split_tokens).run(batch, point), expected)


@PROPERTY
@given(batch=batches, point=points(), split_tokens=st.sampled_from([0.0, 3.0]))
def test_answers_of_an_engine_are_read_before_it_is_called_again(
    batch: Arrays, point: OperatingPoint, split_tokens: float
) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    assert_same(make_runtime(ForgettingEngine, split_tokens).run(batch, point), expected)


@PROPERTY
@given(batch=batches, point=points())
def test_answers_equal_the_reference(batch: Arrays, point: OperatingPoint) -> None:
    result = make_runtime().run(batch, point)
    heads = {layer: build_head(layer) for layer in EXITS}
    ratios = dict(zip(point.prune_layers, point.keep_ratios, strict=True))
    last = point.exit_layers[-1]
    thresholds = dict(zip(point.exit_layers, point.exit_thresholds, strict=False))
    for row, mask in enumerate(batch["attention_mask"]):
        ids, types = (batch[name][row, mask != 0] for name in ("input_ids", "token_type_ids"))
        trace = run_reference(family_model("bert"), ids, types, ratios, heads)
        assume(all(abs(trace.exits[layer][1] - threshold) > UNSURE for layer, threshold in thresholds.items()))
        always = {} if last == NUM_LAYERS else {last: np.inf}
        logits, exit_layer = trace.answer({**thresholds, **always})
        assert result.exit_layer[row] == exit_layer
        np.testing.assert_allclose(result.logits[row], logits, atol=1e-4)


@PROPERTY
@given(batch=batches, point=points(), data=st.data())
def test_masks_with_holes_are_answered_as_single_requests(
    batch: Arrays, point: OperatingPoint, data: st.DataObject
) -> None:
    batch = {**batch, "attention_mask": batch["attention_mask"].copy()}
    for mask in batch["attention_mask"]:
        length = int(mask.sum())
        if length > 1:
            mask[sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))] = 0
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    assert_same(make_runtime().run(batch, point), expected)
    assert_same(make_runtime(split_tokens=0.0).run(batch, point), expected)


def test_mask_with_holes_is_answered_as_by_the_original() -> None:
    batch = make_batch([9, 6, 4])
    batch["attention_mask"][[0, 0, 1], [3, 7, 5]] = 0
    with torch.no_grad():
        expected = family_model("bert")(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits
    result = make_runtime(split_tokens=0.0).run(batch, OperatingPoint((NUM_LAYERS,)))
    np.testing.assert_allclose(result.logits, expected, atol=1e-4)


def test_padding_beyond_the_longest_example_is_not_run() -> None:
    runtime = make_runtime(split_tokens=np.inf)
    runtime.run(make_batch([5, 3], seq_len=12), OperatingPoint((NUM_LAYERS,)))
    assert runtime.engines[0].inputs[0]["input_ids"].shape == (2, 5)


@dataclass(frozen=True)
class Run:
    """A batch of which `staying` survive the exit after layer 1, and what the engine behind it was given and gave."""

    lengths: tuple[int, ...]
    staying: tuple[int, ...]
    inputs: Arrays
    outputs: Arrays


@pytest.fixture(scope="module")
def compacted() -> Run:
    lengths = (14, 9, 12, 5, 7, 3)
    ratios = {0: 0.8, 1: 0.5}
    batch = make_batch(lengths, seed=3)
    undecided = OperatingPoint((1, 3), (0.0,), tuple(ratios), tuple(ratios.values()))
    entropy = run_alone(batch, undecided)[1][1]
    # Between the third and the fourth, so that half of them leave.
    threshold = float(np.sort(entropy)[2:4].mean())
    runtime = make_runtime(split_tokens=np.inf)
    runtime.run(batch, OperatingPoint((1, 3), (threshold,), tuple(ratios), tuple(ratios.values())))
    (inputs,), (outputs,) = runtime.engines[2].inputs, runtime.engines[2].outputs
    return Run(lengths, tuple(np.flatnonzero(entropy >= threshold)), inputs, outputs)


def test_batch_is_compacted_to_the_survivors(compacted: Run) -> None:
    assert tuple(compacted.inputs["rows"]) == compacted.staying
    assert len(compacted.outputs["hidden"]) == 3


def test_batch_is_shortened_to_the_longest_survivor(compacted: Run) -> None:
    longest = max(count_kept(0.8, compacted.lengths[row]) for row in compacted.staying)
    assert longest < count_kept(0.8, max(compacted.lengths))
    np.testing.assert_array_equal(compacted.inputs["positions"], np.arange(longest))


def test_slots_are_as_many_as_the_most_tokens_kept(compacted: Run) -> None:
    kept = [count_kept(0.5, count_kept(0.8, compacted.lengths[row])) for row in compacted.staying]
    np.testing.assert_array_equal(compacted.inputs["num_kept_1"], kept)
    np.testing.assert_array_equal(compacted.inputs["slots_1"], np.arange(max(kept)))


def test_pruning_shortens_the_hidden_state_that_is_handed_on(compacted: Run) -> None:
    kept = max(count_kept(0.5, count_kept(0.8, compacted.lengths[row])) for row in compacted.staying)
    assert compacted.outputs["hidden"].shape[:2] == (3, kept)
    assert compacted.outputs["mask"].shape == (3, 1, 1, kept)


def test_tokens_kept_are_those_left_where_an_example_leaves() -> None:
    point = OperatingPoint((2,), (), (0, 1), (0.5, 0.5))
    result = make_runtime().run(make_batch([22, 11, 1]), point)
    assert result.tokens_kept.tolist() == [6, 4, 1]


def test_threshold_0_lets_nobody_leave() -> None:
    result = make_runtime().run(make_batch([4, 6, 2]), OperatingPoint((0, 1, 3), (0.0, 0.0)))
    assert result.exit_layer.tolist() == [3, 3, 3]


def test_last_exit_takes_everybody() -> None:
    result = make_runtime().run(make_batch([4, 6, 2]), OperatingPoint((0, 2), (0.0,)))
    assert result.exit_layer.tolist() == [2, 2, 2]


@pytest.mark.parametrize("last", EXITS)
def test_engines_behind_the_last_exit_are_not_called(last: int) -> None:
    runtime = make_runtime()
    runtime.run(make_batch([4, 6, 2]), OperatingPoint((last,)))
    assert [bool(engine.inputs) for engine in runtime.engines] == [layer <= last for layer in (*EXITS, NUM_LAYERS)]


class OverflowingEngine(RecordingEngine):
    """An engine whose answer to the first example is NaN."""

    def __call__(self, inputs: Arrays) -> Arrays:
        outputs = {name: value.copy() for name, value in super().__call__(inputs).items()}
        for name in ("logits", "entropy"):
            if name in outputs:
                outputs[name][0] = np.nan
        return outputs


def test_answer_that_is_nan_takes_no_early_exit_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    runtime, point = make_runtime(OverflowingEngine, split_tokens=1e9), OperatingPoint((0, 1, 2, 3), (1.0, 1.0, 1.0))
    results = [runtime.run(make_batch([5, 6, 7]), point) for _ in range(2)]
    for result in results:
        assert result.exit_layer.tolist() == [3, 0, 0]
        assert np.isnan(result.logits).all(1).tolist() == [True, False, False]
    assert runtime.num_nan == 2
    # Torch logs when the segments are first captured.
    (message,) = [record.getMessage() for record in caplog.records if record.name == "mpcompile.runtime.runtime"]
    assert message.startswith("1 of 3 answers are NaN")


def test_engines_behind_an_exit_that_everybody_took_are_not_called() -> None:
    runtime = make_runtime()
    batch = make_batch([4, 6, 2])
    entropy = run_alone(batch, OperatingPoint((0, 3), (0.0,)))[1][0]
    runtime.run(batch, OperatingPoint((0, 3), (float(entropy.max()) + 0.01,)))
    assert [len(engine.inputs) for engine in runtime.engines] == [1, 0, 0, 0]


@PROPERTY
@given(batch=batches, point=points())
def test_batch_that_an_engine_has_no_room_for_is_answered_in_parts(batch: Arrays, point: OperatingPoint) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    assert_same(make_runtime(SmallEngine).run(batch, point), expected)


def test_split_for_want_of_room_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    runtime, point = make_runtime(SmallEngine), OperatingPoint((NUM_LAYERS,))
    for _ in range(2):
        runtime.run(make_batch([5, 4, 3]), point)
    told = [record.message for record in caplog.records if "parts" in record.message]
    assert told == ["room for 2; a batch of 3 runs in parts of at most 2"]


def test_engine_without_room_for_one_example_is_an_error() -> None:
    with pytest.raises(BatchTooLarge, match="room for 0"):
        make_runtime(FullEngine).run(make_batch([5]), OperatingPoint((NUM_LAYERS,)))


def test_exit_that_the_engines_lack_is_refused() -> None:
    with pytest.raises(InputError, match=r"exits \(4,\).*the engines have exits \(0, 1, 2, 3\).*optimize again"):
        make_runtime().run(make_batch([3]), OperatingPoint((4,)))


def test_prune_that_the_engines_lack_is_refused() -> None:
    with pytest.raises(InputError, match=r"prunes \(5,\).*prunes \(0, 1, 2\).*optimize again"):
        make_runtime().run(make_batch([3]), OperatingPoint((3,), (), (5,), (0.5,)))


def test_prune_that_a_point_leaves_out_is_neutral() -> None:
    batch = make_batch([9, 4])
    without = make_runtime().run(batch, OperatingPoint((3,)))
    neutral = make_runtime().run(batch, OperatingPoint((3,), (), PRUNES, (1.0, 1.0, 1.0)))
    np.testing.assert_array_equal(without.logits, neutral.logits)


def test_threads_get_their_own_answers() -> None:
    runtime = make_runtime(BusyEngine, split_tokens=4.0)
    point = OperatingPoint((1, 3), (0.5,), (0,), (0.7,))
    requests = [make_batch([2 + i, 9, 4 + i % 3], seed=i) for i in range(6)]
    expected = [make_runtime().run(request, point) for request in requests]
    results: list[list[RunResult]] = [[] for _ in requests]

    def ask(index: int) -> None:
        for _ in range(10):
            results[index].append(runtime.run(requests[index], point))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, right in zip(results, expected, strict=True):
        assert len(answers) == 10
        for answer in answers:
            assert_same(answer, right)
