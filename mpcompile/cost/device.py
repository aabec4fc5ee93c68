"""What a device can do: peaks and overheads, measured or declared. SI units."""

from __future__ import annotations

import operator
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Graph, GraphModule

from mpcompile.segment import Backend, BuildConfig, Engine, OptimizationProfile, Range, Segment
from mpcompile.timing import measure_interleaved

_WIDTH = 768
"""Width of the matrix products that the peak is measured with: BERT-base's hidden size."""


@dataclass(frozen=True)
class Device:
    """Peaks of a device in one precision, through one backend.

    Attributes:
        name: what was measured.
        peak_flops_per_s: of large matrix products.
        peak_bytes_per_s: of main memory, read plus written.
        node_overhead_s: fixed time of one matrix product, norm or attention.
        engine_overhead_s: fixed time of one call of an engine.
        activation_bytes: bytes of an element that moves.
    """

    name: str
    peak_flops_per_s: float
    peak_bytes_per_s: float
    node_overhead_s: float
    engine_overhead_s: float
    activation_bytes: int = 4


def measure_device(backend: Backend, precision: str, config: BuildConfig) -> Device:
    """Measures the present machine through a backend; takes some seconds.

    Matrix products of 2048 x 768 x 768 give the peak, a chain of them on one token the overhead
    of a node, one of them on one token that of a call, and a copy of 256 MiB the bandwidth.
    """
    one, chain = (_linear_engine(backend, precision, config, depth) for depth in (1, 9))
    token = np.zeros((1, 2, _WIDTH), np.float32)
    many = np.random.default_rng(0).standard_normal((1, 2048, _WIDTH), np.float32)
    timings = measure_interleaved(
        {
            "call": [lambda: one({"hidden": token})],
            "chain": [lambda: chain({"hidden": token})],
            "product": [lambda: chain({"hidden": many})],
        },
        runs=15,
    )
    call_s, chain_s = timings["call"].median_s, timings["chain"].median_s
    node_s = max((chain_s - call_s) / 8, 1e-7)
    flops = 9 * 2 * 2048 * _WIDTH * _WIDTH
    return Device(
        name=f"{backend.name} {precision} on this machine",
        peak_flops_per_s=flops / timings["product"].median_s,
        peak_bytes_per_s=_measure_copy(),
        node_overhead_s=node_s,
        engine_overhead_s=max(call_s - node_s, 1e-6),
        activation_bytes=4 if precision == "f32" else 2,
    )


def _linear_engine(backend: Backend, precision: str, config: BuildConfig, depth: int) -> Engine:
    root, graph = torch.nn.Module(), Graph()
    value = graph.placeholder("hidden")
    for i in range(depth):
        root.add_module(f"linear_{i}", torch.nn.Linear(_WIDTH, _WIDTH, bias=False).requires_grad_(False))
        value = graph.call_module(f"linear_{i}", (value,))
        value = graph.call_function(operator.mul, (value, 0.5))
    graph.output({"hidden": value})
    segment = Segment(0, 0, (), _WIDTH, ("hidden",), ("hidden",), precision, GraphModule(root, graph))
    profile = OptimizationProfile(Range(1, 1, 1), Range(2, 2048, 2048))
    return backend.load(backend.build(segment, profile, config), segment, config)


def _measure_copy(num_bytes: int = 2**28) -> float:
    source = np.zeros(num_bytes // 8)
    target = np.ones_like(source)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - start)
    return 2 * num_bytes / min(taken)
