"""Lanes: a batch split over several chains of engines that run at the same time. Imports no torch.

The threads of one engine wait for each other at the end of every node. Several lanes with few threads each wait less,
which pays where a batch has enough examples for all lanes.

Shapes: B examples asked, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.runtime.ngrams import FirstExit
from mpcompile.runtime.runtime import RunResult, Runtime


class Lanes:
    """Runs the parts of a batch on runtimes of their own; called like a `Runtime`.

    Calls from several threads share the lanes: a request of one example takes one lane.

    Args:
        runtimes: at least one, all of the same segments.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self.runtimes = tuple(runtimes)
        self._next = itertools.count()
        self._pool = ThreadPoolExecutor(len(self.runtimes), thread_name_prefix="mpcompile-lane")

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The chain of segments, which all lanes share."""
        return self.runtimes[0].segments

    @property
    def split_tokens(self) -> tuple[float, ...]:
        """See `Runtime`."""
        return self.runtimes[0].split_tokens

    @property
    def first_exit(self) -> FirstExit | None:
        """See `Runtime`."""
        return self.runtimes[0].first_exit

    def run(self, inputs: Mapping[str, np.ndarray], point: OperatingPoint) -> RunResult:
        """Answers a batch in the order asked.

        Args:
            inputs: input_ids, attention_mask and, where segment 0 reads them, token_type_ids, (B, S) int64.
            point: exits, thresholds and keep ratios.

        Raises:
            InputError: when the engines lack an exit or a prune of the point.
        """
        parts = deal(np.count_nonzero(inputs["attention_mask"], axis=1), len(self.runtimes))
        # The next call starts at the next lane, so that single requests take turns.
        lanes = itertools.islice(itertools.cycle(self.runtimes), next(self._next) % len(self.runtimes), None)
        futures = [
            self._pool.submit(lane.run, {name: value[part] for name, value in inputs.items()}, point)
            for lane, part in zip(lanes, parts, strict=False)
        ]
        results, back = [future.result() for future in futures], np.argsort(np.concatenate(parts))
        return RunResult(
            np.concatenate([result.logits for result in results])[back],
            np.concatenate([result.exit_layer for result in results])[back],
            np.concatenate([result.tokens_kept for result in results])[back],
        )


def deal(length: np.ndarray, num_lanes: int) -> list[np.ndarray]:
    """Deals a batch out to lanes, by length, so that each gets about as many tokens.

    Texts of similar length share a lane, so that padding in one lane costs the others nothing.

    Args:
        length: tokens of each example, (B,), at least 1 each.
        num_lanes: lanes.

    Returns:
        Positions in the batch, one array per lane that has something to do.
    """
    order = np.argsort(length, kind="stable")
    tokens = length[order]
    # An example belongs where the middle of its tokens lies, when all tokens stand in a row.
    lane = ((np.cumsum(tokens) - tokens / 2) * num_lanes / tokens.sum()).astype(int)
    return [order[lane == i] for i in range(num_lanes) if (lane == i).any()]
