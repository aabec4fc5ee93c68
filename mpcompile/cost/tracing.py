"""Traces what a graph computes, operator by operator, with its sizes as symbols.

The graph is interpreted once on tensors without data (torch's fake tensors) whose sizes are
symbols, under a dispatch mode that sees every ATen operator: what a pass inserts as one call is
counted by what it really does, and a new pass needs no formula of its own.

Symbols: B examples, S tokens that enter, K_N tokens that layer N keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpcompile.contract.inputs import SLOTS, find_input, list_layers

Shape = tuple[sympy.Expr, ...]
BATCH, LENGTH = sympy.symbols("B S", integer=True, positive=True)

_BATCH_HINT, _LENGTH_HINT = 43, 38
"""Sizes need examples while they are traced: unlike ones, and a prune keeps fewer tokens than it is given."""


@dataclass(frozen=True)
class Array:
    """A tensor that an operator reads or writes.

    Attributes:
        key: of its memory; a view has that of the tensor it looks at.
        shape: sizes, in the module's symbols.
        is_weight: whether it is a parameter or constant of the model.
        is_transposed: whether it looks at its memory in another order of dimensions.
    """

    key: int
    shape: Shape
    is_weight: bool
    is_transposed: bool = False


@dataclass(frozen=True)
class Operator:
    """One ATen operator of a graph.

    Attributes:
        name: such as "addmm".
        inputs: tensors that it reads.
        outputs: tensors that it writes.
        node: node of the graph that called it.
    """

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    node: Node


def kept_symbol(layer: int) -> sympy.Symbol:
    """The symbol of the tokens that a layer keeps."""
    return sympy.Symbol(f"K_{layer}", integer=True, positive=True)


def trace_operators(graph_module: GraphModule, hidden_size: int, max_length: int = _LENGTH_HINT) -> list[Operator]:
    """Lists the operators of a captured, rewritten or split graph in the order they run.

    Args:
        graph_module: its inputs are named as in `mpcompile.contract.segment`; a segment's survivors are
            taken to be the whole batch before it (R = B, L = S).
        hidden_size: D.
        max_length: tokens that the model reads at most.
    """
    names = [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]
    tracer = _Tracer(graph_module, names, min(max_length, _LENGTH_HINT))
    tracer.run(*(tracer.make_input(name, hidden_size) for name in names))
    return tracer.operators()


class _Tracer(Interpreter):
    """Interprets a graph on fake tensors and writes down what is dispatched."""

    def __init__(self, graph_module: GraphModule, input_names: Sequence[str], length_hint: int) -> None:
        super().__init__(graph_module)
        self._environment = ShapeEnv()
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):  # with symbols it costs more than it spares
            self._fake = FakeTensorMode(shape_env=self._environment, allow_non_fake_inputs=True)
        self._recorder = _Recorder()
        pruned = list_layers(input_names, SLOTS)
        kept = {kept_symbol(layer): length_hint - 1 - i for i, layer in enumerate(pruned)}
        self._hints = {BATCH: _BATCH_HINT, LENGTH: length_hint, **kept}
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}

    def make_input(self, name: str, hidden_size: int) -> torch.Tensor:
        """A fake tensor for an input of the graph."""
        shape = _input_shape(name, hidden_size)
        # torch gives sizes with equal examples one symbol (DUCK): equal symbols here, equal sizes there.
        sizes = [self._hints[size] if isinstance(size, sympy.Symbol) else int(size) for size in shape]
        policies = [DimDynamic.DUCK if isinstance(size, sympy.Symbol) else DimDynamic.STATIC for size in shape]
        dtype = torch.int64 if find_input(name)[0].dtype == "int64" else torch.float32
        fake = self._fake.from_tensor(
            torch.zeros(sizes, dtype=dtype), symbolic_context=StatelessSymbolicContext(dynamic_sizes=policies)
        )
        for size, given in zip(fake.shape, shape, strict=True):
            if isinstance(size, torch.SymInt):
                self._symbols[size.node.expr] = given
        self._recorder.keep(fake)
        return fake

    def run_node(self, node: Node) -> Any:
        self._recorder.node = node
        with self._fake, self._recorder:
            return super().run_node(node)

    def operators(self) -> list[Operator]:
        replaced = self._environment.replacements.values()
        assert not any(value.is_number for value in replaced), "a size became a constant while the graph was traced"
        return [
            Operator(name, tuple(map(self._describe, read)), tuple(map(self._describe, written)), node)
            for name, read, written, node in self._recorder.calls
        ]

    def _describe(self, tensor: torch.Tensor) -> Array:
        shape = tuple(self._expression(size) for size in tensor.shape)
        # Of a table of positions the batch reads only as many rows as it has: that moves like an activation.
        is_weight = self._recorder.is_weight(tensor) and not any(size.free_symbols for size in shape)
        return Array(self._recorder.key(tensor), shape, is_weight, self._recorder.is_transposed(tensor))

    def _expression(self, size: int | torch.SymInt) -> sympy.Expr:
        if not isinstance(size, torch.SymInt):
            return sympy.Integer(size)
        return self._environment.simplify(size.node.expr).xreplace(self._symbols)


class _Recorder(TorchDispatchMode):
    """Writes down the operators that are dispatched; views are followed to the memory they look at."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.Tensor], list[torch.Tensor], Node]] = []
        self.node: Node | None = None
        self._base: dict[int, int] = {}
        self._transposed: set[int] = set()
        self._alive: list[torch.Tensor] = []  # ids are unique among tensors that live
        self._computed: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        if not written:  # `prim::device` and the like
            return result
        for tensor in (*read, *written):
            self._alive.append(tensor)
        name = func.overloadpacket.__name__
        if name in VIEWS and read:
            for tensor in written:
                self._base[id(tensor)] = self.key(read[0])
                if name in TRANSPOSES or id(read[0]) in self._transposed:
                    self._transposed.add(id(tensor))
            return result
        self._computed.update(map(id, written))
        assert self.node is not None
        self.calls.append((name, read, written, self.node))
        return result

    def keep(self, tensor: torch.Tensor) -> None:
        """Declares an input of the graph."""
        self._alive.append(tensor)
        self._computed.add(id(tensor))

    def key(self, tensor: torch.Tensor) -> int:
        return self._base.get(id(tensor), id(tensor))

    def is_weight(self, tensor: torch.Tensor) -> bool:
        return self.key(tensor) not in self._computed

    def is_transposed(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._transposed


TRANSPOSES = frozenset(("t", "transpose", "permute"))
VIEWS = TRANSPOSES | frozenset(
    (
        "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "slice",
        "select", "detach", "alias", "lift_fresh", "split", "clone", "as_strided",
    )
)  # fmt: skip
"""Operators that compute nothing: they look at memory in another way. Compilers drop the copy that
`clone` makes of a transposed operand; so it counts as a view."""


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _input_shape(name: str, hidden_size: int) -> Shape:
    row, layer = find_input(name)
    sizes: dict[str, sympy.Expr] = {"batch": BATCH, "rows": BATCH, "seq_len": LENGTH, "positions": LENGTH}
    sizes |= {} if layer is None else {"kept": kept_symbol(layer)}
    return row.shape({**sizes, "hidden_size": sympy.Integer(hidden_size)}, sympy.Integer)
