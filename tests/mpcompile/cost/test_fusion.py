"""Tests of fused groups: counted by hand, on a real layer, and against what OpenVINO executes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph

from mpcompile.cost.fusion import FUSIONS, Fusion, Group, Product, fuse, kind_of
from mpcompile.cost.tracing import BATCH, LENGTH, Array, Operator
from mpcompile.cost.work import estimate_segment
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import partition
from passes import find_layers
from tests.models import HIDDEN_SIZE, build_head
from tests.mpcompile.cost.graphs import build_graph, traced

B, S = BATCH, LENGTH
T = B * S
NODE = Graph().placeholder("anything")
EAGER, OPENVINO, TENSORRT = FUSIONS["per operator"], FUSIONS["OpenVINO"], FUSIONS["TensorRT"]

every_fusion = pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS)
every_graph = pytest.mark.parametrize("kind", ["captured", "rewritten", "segment 0", "segment 1"])


def array(key: int, *shape: object, is_weight: bool = False) -> Array:
    return Array(key, tuple(map(sympy.sympify, shape)), is_weight)


def operator(name: str, inputs: Sequence[Array], *outputs: Array) -> Operator:
    return Operator(name, tuple(inputs), outputs, NODE)


def groups_of(operators: Sequence[Operator], fusion: Fusion) -> list[Group]:
    return [group for _, group in fuse(operators, fusion)]


def names_of(operators: Sequence[Operator], fusion: Fusion) -> list[tuple[str, ...]]:
    return [group.operators for group in groups_of(operators, fusion)]


def linear(read: Array, weight_key: int, written: Array, inner: int, columns: int) -> Operator:
    """`addmm` with a weight and a bias."""
    weight = array(weight_key, inner, columns, is_weight=True)
    bias = array(weight_key + 1, columns, is_weight=True)
    return operator("addmm", [bias, read, weight], written)


def tokens(key: int, size: int = 4) -> Array:
    """Vectors of a size, one for each token."""
    return array(key, T, size)


X = tokens(0)
LINEAR_GELU = [linear(X, 10, tokens(1, 6), 4, 6), operator("gelu", [tokens(1, 6)], tokens(2, 6))]
ADD_NORM = [
    operator("add", [X, tokens(1)], tokens(2)),
    operator(
        "native_layer_norm",
        [tokens(2), array(10, 4, is_weight=True), array(11, 4, is_weight=True)],
        tokens(3),
        array(4, T, 1),
        array(5, T, 1),
    ),
]
QKV = [linear(X, 10 * i, tokens(i), 4, 4) for i in (1, 2, 3)]
RESIDUAL = [linear(X, 10, tokens(1), 4, 4), operator("add", [tokens(1), X], tokens(2))]


# Numbers of a group.


def test_linear_is_a_product_of_tokens_and_weight() -> None:
    (group,) = groups_of(LINEAR_GELU[:1], OPENVINO)
    assert (group.kind, group.product) == ("matmul", Product(sympy.Integer(1), T, sympy.Integer(4), sympy.Integer(6)))
    assert group.matmul_flops == 48 * T
    assert group.vector_flops == 0


def test_linear_and_gelu_move_what_crosses_their_border() -> None:
    (group,) = groups_of(LINEAR_GELU, OPENVINO)
    assert group.operators == ("addmm", "gelu")
    assert group.weight_bytes == 4 * (4 * 6 + 6)
    assert group.activation_bytes == 4 * (4 + 6) * T
    assert (group.matmul_flops, group.vector_flops) == (48 * T, 15 * 6 * T)


def test_linear_and_gelu_apart_move_what_is_between_them_too() -> None:
    first, second = groups_of(LINEAR_GELU, EAGER)
    assert first.activation_bytes == 4 * (4 + 6) * T
    assert second.activation_bytes == 4 * (6 + 6) * T
    assert second.weight_bytes == 0


def test_residual_reads_two_states_and_writes_one() -> None:
    add, _ = groups_of(ADD_NORM, OPENVINO)
    assert add.activation_bytes == 4 * 3 * 4 * T
    assert add.vector_flops == 4 * T


def test_norm_writes_its_result_and_not_its_statistics() -> None:
    _, norm = groups_of(ADD_NORM, OPENVINO)
    assert (norm.kind, norm.weight_bytes) == ("norm", 4 * (4 + 4))
    assert norm.activation_bytes == 4 * 2 * 4 * T
    assert norm.vector_flops == 8 * 4 * T


def test_embedding_reads_its_rows_and_not_its_table() -> None:
    table = array(1, 1000, 8, is_weight=True)
    (group,) = groups_of([operator("embedding", [table, array(2, B, S)], array(3, B, S, 8))], EAGER)
    assert (group.kind, group.weight_bytes) == ("lookup", 0)
    assert group.activation_bytes == 4 * (1 + 8 + 8) * T
    assert group.matmul_flops == group.vector_flops == 0


def test_attention_is_two_products_and_a_softmax() -> None:
    heads = [array(key, B, 2, S, 8) for key in range(4)]
    attend = operator("_scaled_dot_product_attention", heads[:3], heads[3], array(4, B, 2, S))
    (group,) = groups_of([attend], OPENVINO)
    assert (group.kind, group.product) == ("attention", Product(2 * B, S, sympy.Integer(8), S))
    assert group.matmul_flops == 2 * (2 * B * 2 * S * S * 8)
    assert group.vector_flops == 11 * B * 2 * S * S
    assert group.activation_bytes == 4 * 4 * (2 * 8) * T


def test_attention_to_fewer_tokens_has_fewer_columns() -> None:
    kept = sympy.Symbol("K_0")
    query, key = array(0, B, 2, S, 8), array(1, B, 2, kept, 8)
    (group,) = groups_of([operator("attention", [query, key, key], array(2, B, 2, S, 8))], EAGER)
    assert (group.product.rows, group.product.columns) == (S, kept)


def test_batched_product_has_its_batch_as_count() -> None:
    product = operator("bmm", [array(0, B, S, 8), array(1, B, 8, 5)], array(2, B, S, 5))
    (group,) = groups_of([product], TENSORRT)
    assert group.product == Product(B, S, sympy.Integer(8), sympy.Integer(5))


def test_value_read_twice_in_a_group_moves_once() -> None:
    square = operator("mul", [X, X], tokens(1))
    (group,) = groups_of([square], EAGER)
    assert group.activation_bytes == 4 * (4 + 4) * T


def test_value_read_by_two_groups_is_written_once() -> None:
    readers = [operator("native_layer_norm", [tokens(1)], tokens(key)) for key in (2, 3)]
    first, *_ = groups_of([operator("gelu", [X], tokens(1)), *readers], OPENVINO)
    assert first.activation_bytes == 4 * (4 + 4) * T


def test_weight_of_pointwise_operators_counts_as_one() -> None:
    scaled = operator("mul", [X, array(1, 4, is_weight=True)], tokens(2))
    (group,) = groups_of([scaled], EAGER)
    assert (group.weight_bytes, group.activation_bytes) == (16, 4 * 8 * T)


def test_scalar_constants_are_no_kernels() -> None:
    assert groups_of([operator("scalar_tensor", [], array(1))], EAGER) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("addmm", "matmul"),
        ("bmm", "matmul"),
        ("_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("native_layer_norm", "norm"),
        ("embedding", "lookup"),
        ("index_select", "lookup"),
        ("topk", "sort"),
        ("cat", "concat"),
        ("_softmax", "pointwise"),
        ("anything", "pointwise"),
    ],
)
def test_kind_is_what_an_operator_is_limited_by(name: str, kind: str) -> None:
    assert kind_of(operator(name, [X], tokens(1))) == kind


# What goes together.


def test_eager_runs_every_operator_alone() -> None:
    assert names_of(LINEAR_GELU + ADD_NORM, EAGER) == [("addmm",), ("gelu",), ("add",), ("native_layer_norm",)]


def test_openvino_keeps_residuals_apart() -> None:
    assert names_of(RESIDUAL, OPENVINO) == [("addmm",), ("add",)]


def test_tensorrt_adds_a_residual_in_the_product_before_it() -> None:
    assert names_of(RESIDUAL, TENSORRT) == [("addmm", "add")]


def test_openvino_adds_a_mask_in_the_kernel_before_it() -> None:
    scores = [
        operator("mul", [array(0, B, 4, S)], array(1, B, 4, S)),
        operator("add", [array(1, B, 4, S), array(2, B, 1, S)], array(3, B, 4, S)),
    ]
    assert names_of(scores, OPENVINO) == [("mul", "add")]


def test_openvino_leaves_out_what_reads_a_value_that_others_read() -> None:
    shared = [*LINEAR_GELU, operator("cat", [tokens(1, 6), tokens(2, 6)], tokens(3, 12))]
    assert names_of(shared, OPENVINO) == [("addmm",), ("gelu",), ("cat",)]


def test_tensorrt_takes_in_what_reads_a_value_that_others_read() -> None:
    shared = [*LINEAR_GELU, operator("cat", [tokens(1, 6), tokens(2, 6)], tokens(3, 12))]
    assert names_of(shared, TENSORRT) == [("addmm", "gelu"), ("cat",)]


def test_value_that_others_read_is_written_though_a_group_took_in_its_reader() -> None:
    shared = [*LINEAR_GELU, operator("cat", [tokens(1, 6), tokens(2, 6)], tokens(3, 12))]
    first, _ = groups_of(shared, TENSORRT)
    assert first.activation_bytes == 4 * (4 + 6 + 6) * T


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [(OPENVINO, [("exp",), ("sum",)]), (TENSORRT, [("exp", "sum")])],
    ids=["openvino", "tensorrt"],
)
def test_reduction_joins_where_the_backend_fuses_it(fusion: Fusion, expected: list[tuple[str, ...]]) -> None:
    reduced = [operator("exp", [X], tokens(1)), operator("sum", [tokens(1)], array(2, T))]
    assert names_of(reduced, fusion) == expected


def test_tensorrt_makes_query_key_and_value_one_product() -> None:
    (group,) = groups_of(QKV, TENSORRT)
    assert group.product == Product(sympy.Integer(1), T, sympy.Integer(4), sympy.Integer(12))
    assert group.weight_bytes == 3 * 4 * (4 * 4 + 4)
    assert group.activation_bytes == 4 * (4 + 3 * 4) * T


def test_openvino_runs_query_key_and_value_apart() -> None:
    assert names_of(QKV, OPENVINO) == [("addmm",)] * 3


def test_products_of_unlike_operands_stay_apart() -> None:
    other = linear(tokens(7), 20, tokens(8), 4, 4)
    assert names_of([QKV[0], other], TENSORRT) == [("addmm",)] * 2


def test_products_without_a_weight_stay_apart() -> None:
    left = array(0, B, S, 8)
    products = [operator("bmm", [left, array(i, B, 8, S)], array(i + 2, B, S, S)) for i in (1, 2)]
    assert names_of(products, TENSORRT) == [("bmm",)] * 2


@pytest.mark.parametrize("name", ["native_layer_norm", "embedding", "topk", "cat", "bmm"])
@every_fusion
def test_only_pointwise_operators_join_the_kernel_before(fusion: Fusion, name: str) -> None:
    before = operator("gelu", [array(0, B, S, S)], array(1, B, S, S))
    after = operator(name, [array(1, B, S, S), array(2, B, S, S)], array(3, B, S, S))
    assert names_of([before, after], fusion) == [("gelu",), (name,)]


@pytest.mark.parametrize("fusion", [OPENVINO, TENSORRT], ids=["openvino", "tensorrt"])
def test_operators_in_unlike_places_share_no_group(fusion: Fusion) -> None:
    placed = fuse(LINEAR_GELU, fusion, lambda operator: operator.name)
    assert [(place, group.operators) for place, group in placed] == [("addmm", ("addmm",)), ("gelu", ("gelu",))]


def test_products_in_unlike_places_share_no_group() -> None:
    placed = fuse(QKV[:2], TENSORRT, lambda operator: operator.outputs[0].key)
    assert [(place, group.operators) for place, group in placed] == [(1, ("addmm",)), (2, ("addmm",))]


def test_products_of_unlike_rows_of_one_memory_stay_apart() -> None:
    first_tokens = linear(array(X.key, B, 4), 20, array(2, B, 4), 4, 4)
    assert sum(group.matmul_flops for group in groups_of([QKV[0], first_tokens], TENSORRT)) == 2 * 4 * 4 * (T + B)


def test_operator_joins_the_latest_group_that_it_reads_from() -> None:
    chain = [
        operator("exp", [array(0, S)], array(1, S)),
        operator("log", [X], tokens(2)),
        operator("where", [tokens(2), array(1, S)], tokens(3)),
    ]
    assert names_of(chain, OPENVINO) == [("exp",), ("log", "where")]


def test_norm_is_two_launches_in_openvino_and_one_elsewhere() -> None:
    launches = {name: [group.num_launches for group in groups_of(ADD_NORM, FUSIONS[name])] for name in FUSIONS}
    assert launches == {"per operator": [1, 1], "Inductor": [1, 1], "OpenVINO": [1, 2], "TensorRT": [1, 1]}


# A real layer.


@pytest.mark.parametrize(
    ("fusion", "kinds"),
    [
        ("per operator", {"matmul": 6, "attention": 1, "norm": 2, "pointwise": 3}),
        ("OpenVINO", {"matmul": 6, "attention": 1, "norm": 2, "pointwise": 2}),
        ("TensorRT", {"matmul": 4, "attention": 1, "norm": 2}),
    ],
)
def test_layer_of_bert_is_so_many_kernels(fusion: str, kinds: dict[str, int]) -> None:
    assert Counter(group.kind for group in layer_groups(fusion)) == kinds


def test_layer_of_bert_in_openvino_has_its_gelu_in_a_product() -> None:
    assert [group.operators for group in layer_groups("OpenVINO")] == [
        ("addmm",),
        ("addmm",),
        ("addmm",),
        ("_scaled_dot_product_flash_attention_for_cpu",),
        ("addmm",),
        ("add",),
        ("native_layer_norm",),
        ("addmm", "gelu"),
        ("addmm",),
        ("add",),
        ("native_layer_norm",),
    ]


def test_layer_of_bert_in_tensorrt_has_its_residuals_in_products() -> None:
    assert [group.operators for group in layer_groups("TensorRT")] == [
        ("addmm", "addmm", "addmm"),
        ("_scaled_dot_product_flash_attention_for_cpu",),
        ("addmm", "add"),
        ("native_layer_norm",),
        ("addmm", "gelu"),
        ("addmm", "add"),
        ("native_layer_norm",),
    ]


def layer_groups(fusion: str) -> list[Group]:
    """The groups of the second layer of the tiny BERT."""
    inside = set(find_layers(build_graph("bert", "captured"))[1].nodes)
    placed = fuse(traced("bert", "captured"), FUSIONS[fusion], lambda operator: operator.node in inside)
    return [group for is_inside, group in placed if is_inside]


@every_graph
def test_fusion_changes_no_flops_and_no_weights(kind: str) -> None:
    totals = {
        (
            sympy.expand(sum(group.matmul_flops for group in groups)),
            sympy.expand(sum(group.vector_flops for group in groups)),
            sum(group.weight_bytes for group in groups),
        )
        for groups in (groups_of(traced("bert", kind), fusion) for fusion in FUSIONS.values())
    }
    assert len(totals) == 1


@every_graph
def test_fusion_saves_traffic_and_launches(kind: str) -> None:
    sizes = dict.fromkeys(sympy.symbols("B S K_0 K_2", integer=True, positive=True), 20)
    groups = (groups_of(traced("bert", kind), fusion) for fusion in (EAGER, OPENVINO, TENSORRT))
    eager, openvino, tensorrt = ([group for group in made if group.kind != "copy"] for made in groups)
    moved = [sum(group.activation_bytes for group in groups).xreplace(sizes) for groups in (eager, openvino, tensorrt)]
    assert moved[0] > moved[1] > moved[2]
    assert len(eager) > len(openvino) > len(tensorrt)


def test_prune_has_queries_keys_and_values_copied_into_its_order() -> None:
    copies = [group for group in groups_of(traced("bert", "segment 1"), OPENVINO) if group.kind == "copy"]
    hidden = [group for group in copies if group.activation_bytes == 2 * 4 * B * S * HIDDEN_SIZE]
    assert len(hidden) == 3 and all(group.operators == ("transpose",) for group in copies)


def test_attention_alone_copies_nothing() -> None:
    assert not [group for group in groups_of(traced("bert", "captured"), OPENVINO) if group.kind == "copy"]


# Order.


class Tagged(str):
    """A name that knows which operator it is of: groups list names alone."""

    position: int

    @classmethod
    def of(cls, name: str, position: int) -> "Tagged":
        tagged = cls(name)
        tagged.position = position
        return tagged


def check_order(operators: Sequence[Operator], fusion: Fusion) -> None:
    """Every operator is in one group, in order, and reads what its group or an earlier one wrote."""
    tagged = [dataclasses.replace(op, name=Tagged.of(op.name, i)) for i, op in enumerate(operators)]
    groups = [group for group in groups_of(tagged, fusion) if group.kind != "copy"]  # nobody called those
    seen = [name.position for group in groups for name in group.operators]
    kernels = {i for i, op in enumerate(operators) if any(written.shape for written in op.outputs)}
    assert len(seen) == len(set(seen)) and set(seen) == kernels
    computed = {written.key for i in kernels for written in operators[i].outputs}
    made: set[int] = set()
    for position in seen:
        needed = {read.key for read in operators[position].inputs} & computed
        assert needed <= made
        made |= {written.key for written in operators[position].outputs}


names = st.sampled_from(["addmm", "add", "mul", "gelu", "sum", "_softmax", "native_layer_norm", "cat", "topk", "sort"])


@st.composite
def operator_lists(draw: st.DrawFn) -> list[Operator]:
    """Operators that read what any operators before them wrote."""
    operators: list[Operator] = []
    for key in range(1, draw(st.integers(1, 12)) + 1):
        name = draw(names)
        read = [tokens(draw(st.integers(0, key - 1))) for _ in range(draw(st.integers(1, 2)))]
        operators.append(
            linear(read[0], 100 * key, tokens(key), 4, 4) if name == "addmm" else operator(name, read, tokens(key))
        )
    return operators


@every_fusion
@settings(max_examples=150, deadline=None, derandomize=True)
@given(operators=operator_lists())
def test_groups_of_any_operators_are_in_an_order_that_can_run(fusion: Fusion, operators: list[Operator]) -> None:
    check_order(operators, fusion)


@every_graph
@every_fusion
def test_groups_of_a_real_graph_are_in_an_order_that_can_run(fusion: Fusion, kind: str) -> None:
    check_order(traced("bert", kind), fusion)


# OpenVINO itself.


@pytest.fixture(scope="module")
def executed(captured: CapturedModel) -> tuple[list[Group], list[tuple[str, str]]]:
    """The groups of two layers, one of which prunes, with an exit; and what OpenVINO runs, by type and origin."""
    openvino = pytest.importorskip("openvino")
    from mpcompile.backends.openvino.convert import convert

    (segment,) = partition(captured, {2: build_head(2)}, (1,), last_exit=2)
    compiled = openvino.Core().compile_model(convert(segment), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    nodes = [(fact["layerType"].astype(str), fact["originalLayersNames"].astype(str)) for fact in facts]
    return estimate_segment(segment, "OpenVINO"), nodes


Executed = tuple[list[Group], list[tuple[str, str]]]


def test_openvino_runs_as_many_products_as_there_are_groups(executed: Executed) -> None:
    groups, nodes = executed
    products = [kind for kind, _ in nodes if kind in ("FullyConnected", "MatMul")]
    assert len(products) == sum(group.kind == "matmul" for group in groups) == 2 * 6 + 2


def test_openvino_runs_as_many_attentions_as_there_are_groups(executed: Executed) -> None:
    groups, nodes = executed
    attentions = [layers for _, layers in nodes if "ScaledDotProductAttention" in layers]
    assert len(attentions) == sum(group.kind == "attention" for group in groups) == 2


def test_openvino_runs_as_many_norms_as_there_are_groups(executed: Executed) -> None:
    groups, nodes = executed
    assert sum(kind == "MVN" for kind, _ in nodes) == sum(group.kind == "norm" for group in groups)


def test_openvino_computes_gelu_in_the_product_before_it(executed: Executed) -> None:
    groups, nodes = executed
    with_gelu = [kind for kind, layers in nodes if "Gelu" in layers]
    assert with_gelu == ["FullyConnected"] * sum("gelu" in group.operators for group in groups)
    assert not any(group.operators == ("gelu",) for group in groups)


def test_openvino_sorts_as_often_as_there_are_groups(executed: Executed) -> None:
    groups, nodes = executed
    assert sum(kind == "TopK" for kind, _ in nodes) == sum(group.kind == "sort" for group in groups)
