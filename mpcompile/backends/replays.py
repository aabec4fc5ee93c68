"""Replays: CUDA graphs by the sizes that they were captured at. Imports neither torch nor CUDA."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mpcompile.errors import BackendError

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Graphs that an engine keeps. Sizes are rounded: batches of 1 to 8 up to 256 tokens come in 48."""
_MAX_SEEN = 4096

Graph = TypeVar("Graph")


class GraphCache(Generic[Graph]):
    """Captures a graph when a size comes for the second time, and forgets the one not used for longest.

    A size seen only once is not captured: a capture costs many plain calls. Where capturing fails, calls are
    launched kernel by kernel from then on, and a warning says so.

    Args:
        name: of the engine, for people.
        max_graphs: graphs that are kept.
    """

    def __init__(self, name: str, max_graphs: int = MAX_GRAPHS) -> None:
        self._name, self._max_graphs = name, max_graphs
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._works = True

    def __len__(self) -> int:
        return len(self._graphs)

    def fetch_maybe(self, key: Hashable, capture: Callable[[], Graph]) -> Graph | None:
        """The graph of a size, or None where the call is to be launched as it is.

        Args:
            key: everything that is fixed in a graph: sizes and addresses.
            capture: captures a graph. After a BackendError of it, nothing is captured any more.
        """
        if not self._works:
            return None
        if key not in self._graphs:
            if key not in self._seen:
                if len(self._seen) >= _MAX_SEEN:
                    self._seen.clear()
                self._seen.add(key)
                return None
            try:
                self._graphs[key] = capture()
            except BackendError as error:
                logger.warning("%s: runs without CUDA graphs, since one could not be captured: %s", self._name, error)
                self._works = False
                return None
            if len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]
