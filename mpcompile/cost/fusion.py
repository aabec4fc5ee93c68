"""Fused groups: which operators run as one kernel, and what a kernel computes and moves.

A backend compiles several operators into one kernel; only what crosses the borders of such a
group goes through memory, and only the group has a launch. Which operators go together differs
by backend, see `FUSIONS`.

Symbols: see `tracing`. A multiply-add is 2 flops. Bytes are those of fp32.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from mpcompile.cost.regions import FP32_BYTES
from mpcompile.cost.tracing import Array, Operator

MATMULS = frozenset(("addmm", "mm", "bmm", "baddbmm", "linear", "matmul"))
NORMS = frozenset(("native_layer_norm",))
LOOKUPS = frozenset(("embedding", "index_select", "gather", "index", "take_along_dim"))
SORTS = frozenset(("topk", "sort"))
REDUCTIONS = frozenset(("sum", "mean", "amax", "amin", "_softmax", "_log_softmax"))
VECTOR_FLOPS = {"gelu": 15, "erf": 15, "exp": 8, "log": 8, "tanh": 10, "_softmax": 11, "_log_softmax": 11, "sqrt": 4,
                "native_layer_norm": 8}  # fmt: skip
"""Flops per element of operators that are more than one: polynomials of about seven terms for erf, exp and log."""


@dataclass(frozen=True)
class Product:
    """A batch of matrix products (rows x inner) @ (inner x columns)."""

    count: sympy.Expr
    rows: sympy.Expr
    inner: sympy.Expr
    columns: sympy.Expr

    @property
    def flops(self) -> sympy.Expr:
        """Two for each multiply-add."""
        return 2 * self.count * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Group:
    """Operators that run as one kernel, or as few.

    Attributes:
        kind: "matmul", "attention", "norm", "lookup", "sort", "concat", "copy" or "pointwise": its first operator's.
        operators: names of its operators in order.
        product: of a matmul or of the scores of an attention (those with values are as many), else None.
        vector_flops: of everything that is not a matrix product.
        weight_bytes: parameters that it reads.
        activation_bytes: everything else that it reads from and writes to other groups.
        num_launches: kernels that the backend makes of it.
    """

    kind: str
    operators: tuple[str, ...]
    product: Product | None
    vector_flops: sympy.Expr
    weight_bytes: sympy.Expr
    activation_bytes: sympy.Expr
    num_launches: int

    @property
    def matmul_flops(self) -> sympy.Expr:
        """Of matrix products, those in attention included."""
        if self.product is None:
            return sympy.Integer(0)
        return self.product.flops * (2 if self.kind == "attention" else 1)


@dataclass(frozen=True)
class Fusion:
    """The rules by which a backend fuses operators into kernels.

    Attributes:
        fuses: whether anything is fused at all.
        adds_residual: whether an operator with two large operands joins the kernel before it.
        keeps_both: whether an operator joins although others read what it reads, too.
        fuses_reductions: whether a reduction joins the kernel before it.
        joins_products: whether matrix products of one operand with several weights are one kernel.
        norm_launches: kernels of a layer norm.
        copies_transposed: whether what stands in another order is copied for an operator that is no product.
    """

    fuses: bool = True
    adds_residual: bool = True
    keeps_both: bool = True
    fuses_reductions: bool = True
    joins_products: bool = False
    norm_launches: int = 1
    copies_transposed: bool = False


FUSIONS = {
    "per operator": Fusion(fuses=False),
    # As torch.compile documents it: what is no product joins the kernel before it. Products are calls of libraries, to
    # which it adds nothing on a CPU; that they are counted with what follows them was not measured.
    "Inductor": Fusion(),
    # Read off the executed graph (`get_runtime_model`) of 2026.4 on x86: bias and activation go into the product,
    # residuals stay nodes of their own, a norm is MVN and MulAdd, attention is one subgraph. Attention reads queries,
    # keys and values where the products left them; whatever else reads them gets a Transpose first.
    "OpenVINO": Fusion(
        adds_residual=False, keeps_both=False, fuses_reductions=False, norm_launches=2, copies_transposed=True
    ),
    # Read off the builder's log of TensorRT-RTX: fused attention, residual with norm, q, k and v as one product.
    "TensorRT": Fusion(joins_products=True),
}


@dataclass
class _Draft:
    """A group in the making."""

    place: Hashable
    kind: str
    operators: list[Operator] = field(default_factory=list)


def fuse(
    operators: Sequence[Operator], fusion: Fusion, place: Callable[[Operator], Hashable] = lambda _: None
) -> list[tuple[Hashable, Group]]:
    """Groups operators as a backend does; each group with its place.

    An operator that may join goes to the latest group that it reads from, so that groups in the
    order of their first operators stay an order they can run in.

    Args:
        operators: in the order they run.
        fusion: of the backend.
        place: operators in unlike places never share a group.
    """
    drafts: list[_Draft] = []
    made_by: dict[int, int] = {}
    copied: set[int] = set()
    reads = Counter(array.key for operator in operators for array in operator.inputs)
    for operator in operators:
        if not any(array.shape for array in operator.outputs):  # a scalar constant
            continue
        if fusion.copies_transposed:
            _add_copies(operator, place(operator), drafts, made_by, copied)
        target = _find_group(operator, fusion, place(operator), drafts, made_by)
        if target is not None and not fusion.keeps_both and _shares(operator, drafts[target], reads):
            target = None
        if target is None:
            target = len(drafts)
            drafts.append(_Draft(place(operator), kind_of(operator)))
        drafts[target].operators.append(operator)
        made_by.update((array.key, target) for array in operator.outputs)
    readers = _last_readers(drafts)
    return [(draft.place, _describe(draft, i, fusion, readers)) for i, draft in enumerate(drafts)]


def kind_of(operator: Operator) -> str:
    """The kind of an operator; see `Group`."""
    name = operator.name
    if "attention" in name:
        return "attention"
    if name == "cat":
        return "concat"
    named = ((MATMULS, "matmul"), (NORMS, "norm"), (LOOKUPS, "lookup"), (SORTS, "sort"))
    return next((kind for names, kind in named if name in names), "pointwise")


def _add_copies(
    operator: Operator, place: Hashable, drafts: list[_Draft], made_by: Mapping[int, int], copied: set[int]
) -> None:
    """A group for each hidden state that an operator reads in another order than it has in memory, the first time."""
    if kind_of(operator) in ("matmul", "attention"):
        return
    for array in operator.inputs:
        if array.is_transposed and len(array.shape) > 3 and array.key in made_by and array.key not in copied:
            copied.add(array.key)
            copy = Array(-array.key, array.shape, is_weight=False)
            drafts.append(_Draft(place, "copy", [Operator("transpose", (array,), (copy,), operator.node)]))


def _find_group(
    operator: Operator, fusion: Fusion, place: Hashable, drafts: Sequence[_Draft], made_by: dict[int, int]
) -> int | None:
    sources = [made_by[array.key] for array in operator.inputs if array.key in made_by]
    if not fusion.fuses:
        return None
    if fusion.joins_products and kind_of(operator) == "matmul":
        return _find_sibling(operator, place, drafts)
    if kind_of(operator) != "pointwise" or not sources or drafts[max(sources)].place != place:
        return None
    if operator.name in REDUCTIONS and not fusion.fuses_reductions:
        return None
    # A mask of the batch is cheap to read; what counts is whether two hidden states are.
    large = [array for array in operator.inputs if _size(array) == max(map(_size, operator.inputs), key=_magnitude)]
    if len(large) > 1 and not fusion.adds_residual:
        return None
    return max(sources)


def _shares(operator: Operator, draft: _Draft, reads: Mapping[int, int]) -> bool:
    """Whether other operators read what an operator reads from a group."""
    made = {array.key for member in draft.operators for array in member.outputs}
    return any(array.key in made and reads[array.key] > 1 for array in operator.inputs)


def _find_sibling(operator: Operator, place: Hashable, drafts: Sequence[_Draft]) -> int | None:
    """The group before, when it is a product of the same operand with another weight."""
    if not drafts or drafts[-1].place != place or drafts[-1].kind != "matmul" or len(drafts[-1].operators) > 2:
        return None
    first = drafts[-1].operators[0]
    if not any(array.is_weight for array in operator.inputs) or first.name not in MATMULS:
        return None
    left, right = _operand(first), _operand(operator)
    return len(drafts) - 1 if (left.key, left.shape) == (right.key, right.shape) else None


def _last_readers(drafts: Sequence[_Draft]) -> dict[int, set[int]]:
    readers: dict[int, set[int]] = {}
    for i, draft in enumerate(drafts):
        for operator in draft.operators:
            for array in operator.inputs:
                readers.setdefault(array.key, set()).add(i)
    return readers


def _describe(draft: _Draft, index: int, fusion: Fusion, readers: dict[int, set[int]]) -> Group:
    first = draft.operators[0]
    made = {array.key for operator in draft.operators for array in operator.outputs}
    read = {array.key: array for operator in draft.operators for array in operator.inputs if array.key not in made}
    # What no other group reads leaves the graph, or is a statistic that is not used.
    written = [
        array
        for operator in draft.operators
        for array in operator.outputs[:1]
        if readers.get(array.key, {-1}) - {index}
    ]
    if draft.kind == "lookup":  # reads the rows that it was asked for, not the table
        table = first.inputs[0].key
        read.pop(table, None)
        written = [*written, first.outputs[0]]
    weights = [_size(array) for array in read.values() if array.is_weight]
    moved = [_size(array) for array in read.values() if not array.is_weight] + [_size(array) for array in written]
    return Group(
        kind=draft.kind,
        operators=tuple(operator.name for operator in draft.operators),
        product=_product(draft),
        vector_flops=sum(map(_vector_flops, draft.operators), sympy.Integer(0)),
        weight_bytes=FP32_BYTES * sum(weights, sympy.Integer(0)),
        activation_bytes=FP32_BYTES * sum(moved, sympy.Integer(0)),
        num_launches=fusion.norm_launches if draft.kind == "norm" else 1,
    )


def _product(draft: _Draft) -> Product | None:
    first = draft.operators[0]
    if draft.kind == "attention":
        batch, heads, length, size = first.inputs[0].shape
        return Product(batch * heads, length, size, first.inputs[1].shape[2])
    if draft.kind != "matmul":
        return None
    left, right = _operand(first).shape, _matrices(first)[1].shape
    siblings = sum(operator.name in MATMULS for operator in draft.operators)
    return Product(math.prod(left[:-2], start=sympy.Integer(1)), left[-2], left[-1], right[-1] * siblings)


def _vector_flops(operator: Operator) -> sympy.Expr:
    kind = kind_of(operator)
    if kind == "attention":  # a softmax over every row of scores
        batch, heads, length, _ = operator.inputs[0].shape
        return VECTOR_FLOPS["_softmax"] * batch * heads * length * operator.inputs[1].shape[2]
    if kind in ("matmul", "lookup", "concat") or operator.name == "transpose":
        return sympy.Integer(0)
    arrays = (*operator.inputs, *operator.outputs)
    if kind == "sort":  # a comparison network: each element takes part in about log2(512) comparisons
        return 9 * max(map(_size, operator.inputs), key=_magnitude)
    return VECTOR_FLOPS.get(operator.name, 1) * max(map(_size, arrays), key=_magnitude)


def _operand(operator: Operator) -> Array:
    return _matrices(operator)[0]


def _matrices(operator: Operator) -> tuple[Array, Array]:
    """The two factors; `addmm` and `baddbmm` have what they add first."""
    inputs = [array for array in operator.inputs if len(array.shape) > 1]
    return inputs[-2], inputs[-1]


def _size(array: Array) -> sympy.Expr:
    return math.prod(array.shape, start=sympy.Integer(1))


def _magnitude(size: sympy.Expr) -> float:
    """Orders sizes; any lengths do, as they only break ties between shapes of one graph."""
    return float(size.xreplace({symbol: sympy.Integer(30) for symbol in size.free_symbols}))
