"""Tests of which graphs are captured and kept, and of sizes that are rounded up for them."""

from collections.abc import Mapping

import numpy as np
import pytest

from mpcompile.backends.replays import GraphCache
from mpcompile.backends.size_buckets import pad_inputs_maybe, round_length, round_rows
from mpcompile.errors import BackendError


def test_graph_is_captured_when_a_size_comes_for_the_second_time() -> None:
    graphs: GraphCache[str] = GraphCache("segment 0")
    assert [graphs.fetch_maybe(1, lambda: "graph") for _ in range(3)] == [None, "graph", "graph"]


def test_graph_not_used_for_longest_is_forgotten() -> None:
    graphs: GraphCache[int] = GraphCache("segment 0", max_graphs=2)
    for key in (1, 2, 3):
        graphs.fetch_maybe(key, lambda: 0)
    for key in (1, 2, 1, 3):
        graphs.fetch_maybe(key, lambda key=key: key)  # type: ignore[misc]
    assert len(graphs) == 2
    assert [graphs.fetch_maybe(key, lambda: -1) for key in (1, 3, 2)] == [1, 3, -1]


def test_failed_capture_is_the_last_one_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> str:
        raise BackendError("not permitted")

    graphs: GraphCache[str] = GraphCache("segment 3")
    assert [graphs.fetch_maybe(1, fail) for _ in range(3)] == [None] * 3
    assert [record.message for record in caplog.records] == [
        "segment 3: runs without CUDA graphs, since one could not be captured: not permitted"
    ]


@pytest.mark.parametrize(
    ("size", "rows", "length"), [(1, 1, 16), (2, 2, 16), (3, 4, 16), (17, 32, 32), (129, 256, 160)]
)
def test_sizes_are_rounded_up(size: int, rows: int, length: int) -> None:
    assert (round_rows(size), round_length(size)) == (rows, length)


def make_inputs() -> dict[str, np.ndarray]:
    """Three survivors of up to 18 tokens, of which up to 12 and then 9 are kept, out of buffers of (5, 20)."""
    return {
        "hidden": np.zeros((5, 20, 4), np.float32), "mask": np.zeros((5, 1, 1, 20), np.float32),
        "rows": np.array([4, 0, 2]), "positions": np.arange(18),
        "num_kept_2": np.array([12, 3, 4]), "slots_2": np.arange(12),
        "num_kept_3": np.array([9, 3, 4]), "slots_3": np.arange(9),
    }  # fmt: skip


def pad(inputs: dict[str, np.ndarray], max_rows: int = 8, max_length: int = 64) -> Mapping[str, np.ndarray]:
    padded = pad_inputs_maybe(inputs, max_rows, max_length, max_tokens=1000)
    assert padded is not None
    return padded


def test_what_is_added_repeats_the_first_row_and_no_position_that_is_not_there() -> None:
    padded = pad(make_inputs())
    assert padded["rows"].tolist() == [4, 0, 2, 4] and padded["num_kept_2"].tolist() == [12, 3, 4, 12]
    assert len(padded["positions"]) == 20 and len(padded["slots_2"]) == 16 and len(padded["slots_3"]) == 16
    assert padded["hidden"].shape == (5, 20, 4)


def test_no_more_is_kept_than_there_is() -> None:
    inputs = {**make_inputs(), "hidden": np.zeros((5, 18, 4), np.float32), "slots_2": np.arange(17)}
    padded = pad(inputs)
    assert [len(padded[name]) for name in ("positions", "slots_2", "slots_3")] == [18, 18, 16]


def test_sizes_stay_within_what_the_engine_takes() -> None:
    ids = np.ones((3, 20), np.int64)
    padded = pad({"input_ids": ids, "attention_mask": ids}, max_rows=3, max_length=24)
    assert padded["input_ids"].shape == (3, 24) and padded["attention_mask"][:, 20:].sum() == 0


def test_large_calls_stay_as_they_are() -> None:
    assert pad_inputs_maybe(make_inputs(), max_rows=8, max_length=64, max_tokens=79) is None
