"""Tests of lanes: whatever is split over them, answers are those of one runtime."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import InputError
from mpcompile.runtime.lanes import Lanes, deal
from mpcompile.runtime.runtime import RunResult
from tests.mpcompile.runtime.test_runtime import (
    PROPERTY,
    Arrays,
    BusyEngine,
    RecordingEngine,
    assert_same,
    assume_sure,
    batches,
    make_batch,
    make_runtime,
    points,
    run_alone,
)

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


def make_lanes(count: int, wrap: type = RecordingEngine, split_tokens: float = 8.0) -> Lanes:
    return Lanes([make_runtime(wrap, split_tokens) for _ in range(count)])


@PROPERTY
@given(batch=batches, point=points(), count=st.integers(1, 4), split_tokens=st.sampled_from([0.0, 8.0, np.inf]))
def test_lanes_answer_as_one_runtime(batch: Arrays, point: OperatingPoint, count: int, split_tokens: float) -> None:
    expected, entropy = run_alone(batch, point)
    assume_sure(point, entropy)
    assert_same(make_lanes(count, split_tokens=split_tokens).run(batch, point), expected)


@PROPERTY
@given(batch=batches, point=points())
def test_one_lane_is_the_runtime_to_the_bit(batch: Arrays, point: OperatingPoint) -> None:
    order = np.argsort(batch["attention_mask"].sum(1), kind="stable")
    batch = {name: value[order] for name, value in batch.items()}
    expected, result = make_runtime().run(batch, point), make_lanes(1).run(batch, point)
    np.testing.assert_array_equal(result.logits, expected.logits)
    np.testing.assert_array_equal(result.exit_layer, expected.exit_layer)


@PROPERTY
@given(length=LENGTHS.map(np.array), num_lanes=st.integers(1, 6))
def test_every_example_is_in_one_lane(length: np.ndarray, num_lanes: int) -> None:
    parts = deal(length, num_lanes)
    assert len(parts) <= num_lanes and all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(length)))


@PROPERTY
@given(length=LENGTHS.map(np.array), num_lanes=st.integers(1, 6))
def test_lanes_get_about_as_many_tokens(length: np.ndarray, num_lanes: int) -> None:
    for part in deal(length, num_lanes):
        assert length[part].sum() <= length.sum() / num_lanes + length.max()


@PROPERTY
@given(length=LENGTHS.map(np.array), num_lanes=st.integers(1, 6))
def test_lanes_are_sorted_by_length(length: np.ndarray, num_lanes: int) -> None:
    parts = deal(length, num_lanes)
    assume(len(parts) > 1)
    for shorter, longer in itertools.pairwise(parts):
        assert length[shorter].max() <= length[longer].min()


def test_lanes_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=60.0)

    class MeetingEngine(RecordingEngine):
        def __call__(self, inputs: Arrays) -> Arrays:
            meeting.wait()
            return super().__call__(inputs)

    lanes = make_lanes(2, MeetingEngine, np.inf)
    assert len(lanes.run(make_batch([5, 5, 5, 5]), OperatingPoint((0,))).logits) == 4


def test_single_requests_take_turns() -> None:
    lanes, batch = make_lanes(2), make_batch([5])
    for _ in range(4):
        lanes.run(batch, OperatingPoint((0,)))
    assert [len(runtime.engines[0].inputs) for runtime in lanes.runtimes] == [2, 2]


def test_error_of_a_lane_is_raised() -> None:
    lanes = make_lanes(2)
    with pytest.raises(InputError, match=r"exits \(4,\)"):
        lanes.run(make_batch([3, 4, 5]), OperatingPoint((4,)))
    assert len(lanes.run(make_batch([3, 4, 5]), OperatingPoint((3,))).logits) == 3


def test_lanes_have_the_segments_of_their_runtimes() -> None:
    lanes = make_lanes(2, split_tokens=4.0)
    assert lanes.segments == lanes.runtimes[0].segments and lanes.split_tokens == (4.0,) * 4


def test_threads_share_lanes() -> None:
    lanes, point = make_lanes(2, BusyEngine, 4.0), OperatingPoint((1, 3), (0.5,), (0,), (0.7,))
    requests = [make_batch([2 + i, 9, 4 + i % 3], seed=i) for i in range(6)]
    expected = [make_runtime().run(request, point) for request in requests]
    results: list[list[RunResult]] = [[] for _ in requests]

    def ask(index: int) -> None:
        for _ in range(10):
            results[index].append(lanes.run(requests[index], point))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, right in zip(results, expected, strict=True):
        assert len(answers) == 10
        for answer in answers:
            assert_same(answer, right)
