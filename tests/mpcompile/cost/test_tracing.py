"""Tests of traced operators: against what torch dispatches when the same graph runs on real tensors."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpcompile.cost.tracing import BATCH, LENGTH, Array, Operator, kept_symbol
from passes.ops import prune_tokens
from tests.models import FAMILIES, HIDDEN_SIZE, VOCAB_SIZE
from tests.mpcompile.cost.graphs import PRUNES, build_graph, traced

B, S, K0, K2 = BATCH, LENGTH, kept_symbol(0), kept_symbol(2)

GRAPHS = [
    *((family, kind) for family in FAMILIES for kind in ("captured", "rewritten")),
    *(("bert", f"segment {index}") for index in (0, 1)),
]
SIZES = [(1, 2, 1, 1), (3, 17, 9, 4), (5, 30, 30, 30), (4, 37, 36, 2)]
"""Batch, length, tokens kept by layers 0 and 2. Every table of positions is longer."""

every_graph = pytest.mark.parametrize(("family", "kind"), GRAPHS)


class Seen(NamedTuple):
    """A tensor that ran: the memory it looks at, its sizes, and whether it is all of a parameter."""

    memory: int
    shape: tuple[int, ...]
    is_weight: bool


class Call(NamedTuple):
    """An operator that ran."""

    name: str
    inputs: list[Seen]
    outputs: list[Seen]


class Recorder(TorchDispatchMode):
    """Writes down what runs on real tensors, but for what only looks at memory that was there before."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weights = {memory_of(tensor): tensor.numel() for tensor in constants(graph_module)}
        self._copied: dict[int, int] = {}
        self._alive: list[Tensor] = []  # memory is not given out twice while its tensors live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = tensors((args, kwargs)), tensors(result)
        self._alive += [*read, *written]
        if func is torch.ops.aten.clone.default:  # a transposed operand, made contiguous: compilers drop it
            self._copied[memory_of(written[0])] = memory_of(read[0])
        elif written and not (read and {memory_of(tensor) for tensor in written} == {memory_of(read[0])}):
            name = func.overloadpacket.__name__
            self.calls.append(Call(name, [self._see(t) for t in read], [self._see(t) for t in written]))
        return result

    def _see(self, tensor: Tensor) -> Seen:
        memory = memory_of(tensor)
        memory = self._copied.get(memory, memory)
        return Seen(memory, tuple(tensor.shape), self._weights.get(memory) == tensor.numel())


def tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def constants(graph_module: GraphModule) -> list[Tensor]:
    return [*graph_module.parameters(), *graph_module.buffers()]


def make_input(name: str, batch_size: int, seq_len: int, kept: Mapping[int, int]) -> Tensor:
    """An input of a graph, without padding."""
    if name.startswith("num_kept_"):
        return torch.full((batch_size,), kept[int(name.removeprefix("num_kept_"))])
    if name.startswith("slots_"):
        return torch.arange(kept[int(name.removeprefix("slots_"))])
    shape = (batch_size, seq_len)
    return {
        "input_ids": torch.arange(batch_size * seq_len).reshape(shape) % (VOCAB_SIZE - 10) + 5,
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        "hidden": torch.randn((*shape, HIDDEN_SIZE), generator=torch.Generator().manual_seed(0)),
        "mask": torch.zeros((batch_size, 1, 1, seq_len)),
        "rows": torch.arange(batch_size),
        "positions": torch.arange(seq_len),
    }[name]


@functools.cache
@torch.no_grad()
def ran(family: str, kind: str, sizes: tuple[int, ...]) -> list[Call]:
    """What torch dispatches when a graph runs."""
    graph_module = build_graph(family, kind)
    batch_size, seq_len, *kept = sizes
    names = [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]
    inputs = {name: make_input(name, batch_size, seq_len, dict(zip(PRUNES, kept, strict=True))) for name in names}
    with Recorder(graph_module) as recorder:
        graph_module(**inputs)
    return recorder.calls


def arrays(operators: tuple[Operator, ...]) -> list[Array]:
    return [array for operator in operators for array in (*operator.inputs, *operator.outputs)]


def all_seen(calls: list[Call]) -> list[Seen]:
    return [seen for call in calls for seen in (*call.inputs, *call.outputs)]


@every_graph
def test_every_operator_is_listed_in_the_order_it_runs(family: str, kind: str) -> None:
    assert [operator.name for operator in traced(family, kind)] == [call.name for call in ran(family, kind, SIZES[1])]


@pytest.mark.parametrize("sizes", SIZES)
@every_graph
def test_symbolic_shapes_are_those_of_a_real_run(family: str, kind: str, sizes: tuple[int, ...]) -> None:
    values = dict(zip((B, S, K0, K2), sizes, strict=True))
    shapes = [tuple(int(size.xreplace(values)) for size in array.shape) for array in arrays(traced(family, kind))]
    assert shapes == [seen.shape for seen in all_seen(ran(family, kind, sizes))]


@every_graph
def test_no_size_is_written_without_its_symbols(family: str, kind: str) -> None:
    symbols = set().union(*(size.free_symbols for array in arrays(traced(family, kind)) for size in array.shape))
    prunes = {"captured": set(), "rewritten": {K0, K2}, "segment 0": {K0}, "segment 1": {K2}}[kind]
    assert symbols == {B, S} | prunes


@every_graph
def test_views_keep_the_key_of_their_memory(family: str, kind: str) -> None:
    keys = [array.key for array in arrays(traced(family, kind))]
    memories = [seen.memory for seen in all_seen(ran(family, kind, SIZES[1]))]
    assert len(set(zip(keys, memories, strict=True))) == len(set(keys)) == len(set(memories))


@every_graph
def test_weights_are_recognised(family: str, kind: str) -> None:
    expected = [seen.is_weight for seen in all_seen(ran(family, kind, SIZES[1]))]
    assert [array.is_weight for array in arrays(traced(family, kind))] == expected


def test_operators_of_a_layer_are_those_of_a_transformer() -> None:
    names = [operator.name for operator in traced("bert", "captured")]
    attention = [index for index, name in enumerate(names) if "attention" in name]
    assert len(attention) == 3
    layer = names[attention[0] - 3 : attention[1] - 3]
    assert layer[:3] == ["addmm"] * 3
    assert layer[4:] == ["addmm", "add", "native_layer_norm", "addmm", "gelu", "addmm", "add", "native_layer_norm"]


def test_first_product_of_a_layer_reads_bias_tokens_and_weight() -> None:
    product = next(operator for operator in traced("bert", "captured") if operator.name == "addmm")
    assert [array.shape for array in product.inputs] == [(32,), (B * S, 32), (32, 32)]
    assert [array.is_weight for array in product.inputs] == [True, False, True]


def test_layer_behind_a_prune_reads_the_tokens_kept() -> None:
    lengths = [operator.inputs[0].shape[2] for operator in traced("bert", "rewritten") if "attention" in operator.name]
    assert lengths == [S, K0, K0]


def test_feed_forward_behind_a_prune_runs_on_the_tokens_kept() -> None:
    rows = [operator.inputs[0].shape[1] for operator in traced("bert", "rewritten") if operator.name == "gelu"]
    assert [size for size in rows if size != 16] == [K0, K0, K2]  # the exit head, 16 wide, runs on examples


def test_segment_is_entered_by_the_whole_batch() -> None:
    gathered = next(operator for operator in traced("bert", "segment 1") if operator.outputs[0].shape == (B * S, 32))
    assert gathered.name == "index_select"
    assert [array.shape for array in gathered.inputs] == [(B * S, 32), (B * S,)]


def test_operators_of_an_inserted_call_are_those_of_its_node() -> None:
    nodes = [operator.node for operator in traced("bert", "rewritten") if operator.name == "topk"]
    assert [node.target for node in nodes] == [prune_tokens] * 2
    of_first = [operator for operator in traced("bert", "rewritten") if operator.node is nodes[0]]
    assert len(of_first) > 20


def test_rows_of_a_table_of_positions_are_read_as_tokens_and_not_as_weights() -> None:
    ids = [operator.inputs[1] for operator in traced("bert", "captured") if operator.name == "embedding"]
    assert [array.shape for array in ids] == [(B, S), (B, S), (1, S)]
    assert not any(array.is_weight for array in ids)


def test_symbols_are_whole_and_positive() -> None:
    assert all(symbol.is_integer and symbol.is_positive for symbol in (B, S, K0, K2))
    assert kept_symbol(0) == sympy.Symbol("K_0", integer=True, positive=True) != kept_symbol(1)
