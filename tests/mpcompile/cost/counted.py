"""Work and rates made up so that a person can count."""

import sympy

from mpcompile.cost.fusion import FP32_BYTES, Group, Product
from mpcompile.cost.rates import Rates
from mpcompile.cost.regions import GraphWork, Region
from mpcompile.cost.tracing import BATCH, LENGTH
from mpcompile.cost.work import KEPT, count_region

B, S, K = BATCH, LENGTH, KEPT
NOTHING = count_region(())

RATES = Rates(
    "counted",
    matmul_flops_per_s=1000.0,
    attention_flops_per_s=500.0,
    vector_flops_per_s=100.0,
    memory_bytes_per_s=10.0,
    cache_bytes_per_s=20.0,
    cache_bytes=1e-6,
    launch_s=0.0,
    engine_s=0.0,
)
"""One unit, perfect overlap, and nothing fits the cache."""


def pointwise(flops: object = 0, moved: object = 0) -> Group:
    """A kernel that is no matrix product.

    Args:
        flops: its flops, in symbols.
        moved: bytes that it reads and writes, in symbols.
    """
    return Group("pointwise", ("add",), None, sympy.sympify(flops), sympy.Integer(0), sympy.sympify(moved), 1)


def weights(size: int) -> Group:
    """A kernel that does nothing but read weights, in bytes."""
    zero = sympy.Integer(0)
    return Group("pointwise", ("mul",), None, zero, sympy.Integer(size), zero, 1)


def linear(inner: int, columns: int) -> Group:
    """A linear layer for all tokens, with a bias."""
    return Group(
        kind="matmul",
        operators=("addmm",),
        product=Product(sympy.Integer(1), B * S, sympy.Integer(inner), sympy.Integer(columns)),
        vector_flops=sympy.Integer(0),
        weight_bytes=sympy.Integer(FP32_BYTES * (inner + 1) * columns),
        activation_bytes=FP32_BYTES * B * S * (inner + columns),
        num_launches=1,
    )


def attention(num_heads: int, head_size: int) -> Group:
    """Attention of all tokens to all tokens; its softmax costs nothing."""
    size = num_heads * head_size
    product = Product(B * num_heads, S, sympy.Integer(head_size), S)
    zero = sympy.Integer(0)
    return Group("attention", ("attention",), product, zero, zero, FP32_BYTES * 4 * B * S * size, 1)


def build_work(num_layers: int, **regions: Region) -> GraphWork:
    """Work of a model whose layers are alike.

    Args:
        regions: by name, of a layer where there is one for each; nothing where it is not given.
    """
    layered = {name: (regions.get(name, NOTHING),) * num_layers for name in _LAYERED}
    return GraphWork(**{name: regions.get(name, NOTHING) for name in _SINGLE}, **layered)


_LAYERED = ("attention", "prune", "feed_forward", "exits")
_SINGLE = ("entry", "embeddings", "classifier")
