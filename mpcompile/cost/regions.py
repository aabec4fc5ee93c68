"""Regions of a model: how often they compute and move what, as polynomials in the sizes. Imports numpy alone.

All that can be built from a model (every prune, every exit, every cut) is a sequence of regions; see `cost.work` for
how they are counted. Sizes: B examples, S tokens that enter a region, K tokens that a prune keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mpcompile.contract.operating_point import OperatingPoint, count_kept

FP32_BYTES = 4
Size = np.ndarray | np.float64
"""A number of examples or tokens, or an array of them."""
Polynomial = tuple[tuple[float, int, int, int], ...]
"""Terms, each a coefficient and the powers of B, S and K; no terms are 0."""


@dataclass(frozen=True)
class Work:
    """The work of a region's kernels, one row a kernel, in numbers or arrays of the shape asked.

    Attributes:
        kinds: kinds of the kernels; see `cost.fusion.Group`.
        count: how many of each kernel there are.
        num_launches: launches of one such kernel.
        products: (count, rows, inner, columns) of a kernel's matrix product, zeros where it has none.
        vector_flops, weight_bytes, activation_bytes: flops and bytes of one such kernel.
    """

    kinds: tuple[str, ...]
    count: tuple[int, ...]
    num_launches: tuple[int, ...]
    products: tuple[tuple[Any, Any, Any, Any], ...]
    vector_flops: tuple[Any, ...]
    weight_bytes: tuple[Any, ...]
    activation_bytes: tuple[Any, ...]


@dataclass(frozen=True)
class Kernel:
    """Operators that run as one kernel, or as few, counted for any sizes.

    Attributes:
        kind: of its first operator; see `cost.fusion.Group`.
        count: how many of it there are.
        num_launches: launches of one.
        product: number, rows, inner and columns of its matrix products; empty where it has none.
        vector_flops: of everything that is not a matrix product.
        weight_bytes: parameters that it reads, fp32.
        activation_bytes: everything else that it reads and writes, fp32.
    """

    kind: str
    count: int
    num_launches: int
    product: tuple[Polynomial, ...]
    vector_flops: Polynomial
    weight_bytes: Polynomial
    activation_bytes: Polynomial


@dataclass(frozen=True)
class Region:
    """A part of the model that is run as a whole.

    Attributes:
        kernels: distinct kernels, each with how often it occurs.
    """

    kernels: tuple[Kernel, ...]

    def evaluate(self, batch_size: Size, seq_len: Size, num_kept: Size | None = None) -> Work:
        """The work for a batch of examples that all have `seq_len` tokens; arrays of one shape or numbers.

        Args:
            batch_size: B.
            seq_len: S.
            num_kept: K, for a prune; S where there is none.
        """
        kept = seq_len if num_kept is None else num_kept
        sizes = tuple(np.asarray(size, np.float64) for size in (batch_size, seq_len, kept))
        products = [tuple(_evaluate(size, sizes) for size in kernel.product) for kernel in self.kernels]
        return Work(
            kinds=tuple(kernel.kind for kernel in self.kernels),
            count=tuple(kernel.count for kernel in self.kernels),
            num_launches=tuple(kernel.num_launches for kernel in self.kernels),
            products=tuple(product or (0, 0, 0, 0) for product in products),
            vector_flops=tuple(_evaluate(kernel.vector_flops, sizes) for kernel in self.kernels),
            weight_bytes=tuple(_evaluate(kernel.weight_bytes, sizes) for kernel in self.kernels),
            activation_bytes=tuple(_evaluate(kernel.activation_bytes, sizes) for kernel in self.kernels),
        )

    def count_flops(self, batch_size: Size, seq_len: Size, num_kept: Size | None = None) -> np.ndarray:
        """Flops of everything, matrix products and the rest."""
        work = self.evaluate(batch_size, seq_len, num_kept)
        total: Any = 0.0
        for kind, count, product, vector in zip(work.kinds, work.count, work.products, work.vector_flops, strict=True):
            doubled = 2 if kind == "attention" else 1
            total = total + count * (doubled * 2 * product[0] * product[1] * product[2] * product[3] + vector)
        return np.asarray(total)

    @cached_property
    def weight_bytes(self) -> float:
        """Parameters that it reads, fp32."""
        one = (np.float64(1),) * 3
        return float(sum(kernel.count * _evaluate(kernel.weight_bytes, one) for kernel in self.kernels))

    @cached_property
    def num_launches(self) -> int:
        """Kernels that it is run as."""
        return sum(kernel.count * kernel.num_launches for kernel in self.kernels)


def _evaluate(polynomial: Polynomial, sizes: tuple[Any, ...]) -> Any:
    total: Any = 0.0
    for coefficient, *powers in polynomial:
        term: Any = coefficient
        for size, power in zip(sizes, powers, strict=True):
            for _ in range(power):
                term = term * size
        total = total + term
    return total


@dataclass(frozen=True)
class Part:
    """A region as it is run.

    Attributes:
        region: which.
        seq_len: tokens that enter, a number or an array.
        keep_ratio: of a prune, 1 elsewhere.
    """

    region: Region
    seq_len: Size
    keep_ratio: float = 1.0


@dataclass(frozen=True)
class GraphWork:
    """Work of a model and of all that can be inserted into it.

    Attributes:
        entry: gathering the survivors at the start of a segment.
        embeddings: what comes before the first layer.
        attention: by layer, up to where it may prune.
        prune: by layer, what a prune there costs.
        feed_forward: by layer, what follows the prune.
        exits: by layers run, what an off-ramp there costs.
        classifier: what comes after the last layer.
    """

    entry: Region
    embeddings: Region
    attention: tuple[Region, ...]
    prune: tuple[Region, ...]
    feed_forward: tuple[Region, ...]
    exits: tuple[Region, ...]
    classifier: Region

    @property
    def num_layers(self) -> int:
        """Encoder layers."""
        return len(self.attention)

    def list_parts(
        self, is_first: bool, first: int, exit_layer: int, seq_len: Size, point: OperatingPoint
    ) -> Iterator[Part]:
        """Parts of a segment: embeddings or entry, layers `first` to `exit_layer`, the head or classifier there.

        Args:
            is_first: whether it starts from ids; after an exit at layer 0 another segment starts at that layer, too.
            seq_len: tokens that enter.
            point: for what it prunes.
        """
        yield Part(self.embeddings if is_first else self.entry, seq_len)
        length = seq_len
        for layer in range(first, exit_layer):
            yield Part(self.attention[layer], length)
            if layer in point.prune_layers:
                yield Part(self.prune[layer], length, point.keep_ratio_at(layer))
                length = count_kept(point.keep_ratio_at(layer), length)
            yield Part(self.feed_forward[layer], length)
        yield Part(self.classifier if exit_layer == self.num_layers else self.exits[exit_layer], length)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: every distinct region once, since layers are alike, and which region stands where."""
        regions: dict[Region, int] = {}
        places = {
            field.name: _map_regions(lambda region: regions.setdefault(region, len(regions)), getattr(self, field.name))
            for field in dataclasses.fields(self)
        }
        return {"regions": [dataclasses.asdict(region)["kernels"] for region in regions], "places": places}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> GraphWork:
        """The work that `to_json` described."""
        regions = [
            Region(tuple(Kernel(**{name: _to_tuples(value) for name, value in kernel.items()}) for kernel in kernels))
            for kernels in values["regions"]
        ]
        places = values["places"].items()
        return cls(**{name: _map_regions(lambda index: regions[index], place) for name, place in places})


def _map_regions(change: Any, place: Any) -> Any:
    return tuple(map(change, place)) if isinstance(place, list | tuple) else change(place)


def _to_tuples(value: Any) -> Any:
    """A value with tuples for lists, at any depth."""
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value
