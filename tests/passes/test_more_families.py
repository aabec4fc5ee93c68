"""Tests of encoders that are unlike BERT: shared layers, relative positions, windows, attention written out."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import (
    Canonicalize,
    FuseAttention,
    InsertExit,
    PassError,
    PruneTokens,
    find_layers,
    run_passes,
    split_segments,
    verify,
)
from passes.encoder import ATTENTION
from passes.ops import keep_positions, number_tokens, relative_bias, window_mask
from tests.models import (
    MORE_FAMILIES,
    HandmadeEncoder,
    LogitsOnly,
    build_head,
    build_model,
    canonical_graph,
    copy_graph,
    count_ops,
    export_graph,
    family_model,
    prune_inputs,
    random_batch,
)
from tests.reference import run_reference

LENGTHS = [14, 6, 1, 11]
POINTS = ({0: 0.5}, {2: 0.4}, {0: 0.8, 1: 0.6}, {0: 0.9, 1: 0.7, 2: 0.4})
POSITIONAL = ("mpnet", "modernbert", "deberta")


@pytest.fixture(scope="module", params=MORE_FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> PreTrainedModel:
    return family_model(name)


@pytest.fixture
def graph(name: str) -> GraphModule:
    return canonical_graph(name)


def examples(batch: dict[str, Tensor], lengths: list[int]) -> list[dict[str, list[int]]]:
    """Each example without its padding, as the reference reads it."""
    return [
        {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("lengths", [LENGTHS, [38, 2], [1]], ids=str)
def test_canonical_graph_answers_as_the_model(model: PreTrainedModel, graph: GraphModule, lengths: list[int]) -> None:
    batch = random_batch(model, lengths)
    with torch.no_grad():
        torch.testing.assert_close(graph(**batch)["logits"], model(**batch).logits, atol=1e-5, rtol=1e-5)


def test_there_is_one_attention_node_a_layer(graph: GraphModule) -> None:
    assert count_ops(graph, ATTENTION) == 3 == len(find_layers(graph))


def test_keeping_every_token_is_bitwise_equal(model: PreTrainedModel, graph: GraphModule) -> None:
    batch, ratios = random_batch(model, LENGTHS), {0: 1.0, 1: 1.0, 2: 1.0}
    with torch.no_grad():
        expected = graph(**batch)["logits"]
        run_passes(graph, [PruneTokens(layer) for layer in ratios])
        assert torch.equal(graph(**batch, **prune_inputs(LENGTHS, ratios))["logits"], expected)


@pytest.mark.parametrize("keep_ratios", POINTS, ids=str)
def test_pruned_logits_equal_the_reference(
    model: PreTrainedModel, graph: GraphModule, keep_ratios: dict[int, float]
) -> None:
    run_passes(graph, [PruneTokens(layer) for layer in keep_ratios])
    batch = random_batch(model, LENGTHS)
    with torch.no_grad():
        logits = graph(**batch, **prune_inputs(LENGTHS, keep_ratios))["logits"]
    for row, example in enumerate(examples(batch, LENGTHS)):
        expected = run_reference(model, **example, keep_ratios=keep_ratios).logits
        np.testing.assert_allclose(logits[row], expected, atol=1e-4)


def test_exits_of_the_split_chain_equal_the_reference(model: PreTrainedModel, graph: GraphModule) -> None:
    ratios, heads = {0: 0.7, 2: 0.5}, {layer: build_head(layer) for layer in (0, 1, 2)}
    run_passes(graph, [*(InsertExit(layer, head) for layer, head in heads.items()), PruneTokens(0), PruneTokens(2)])
    batch, rows, before = random_batch(model, LENGTHS), torch.tensor([3, 1, 0]), None
    given = {**batch, **prune_inputs(LENGTHS, ratios)}
    traces = [run_reference(model, **e, keep_ratios=ratios, heads=heads) for e in examples(batch, LENGTHS)]
    alive = list(range(len(LENGTHS)))
    for index, segment in enumerate(split_segments(graph)):
        if before is not None:  # an example leaves at the first exit
            taken = rows if index == 1 else torch.arange(len(alive))
            alive = [alive[row] for row in taken]
            left = [len(traces[i].hidden[index - 1]) for i in alive]
            given = {**before, "rows": taken, "positions": torch.arange(max(left))}
            given |= prune_inputs([LENGTHS[i] for i in alive], ratios)
        names = [node.target for node in segment.graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            before = segment(**{name: given[name] for name in names})
        for row, example in enumerate(alive):
            expected = traces[example].exits[index][0] if index in heads else traces[example].logits
            np.testing.assert_allclose(before["logits"][row], expected, atol=1e-4)


def test_gradients_reach_every_weight(model: PreTrainedModel, graph: GraphModule) -> None:
    run_passes(graph, [PruneTokens(0), PruneTokens(1)])
    batch = random_batch(model, LENGTHS)
    loss = graph(**batch, **prune_inputs(LENGTHS, {0: 0.7, 1: 0.7}))["logits"].square().sum()
    parameters = dict(graph.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    assert [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None] == []


def test_canonicalizing_twice_changes_nothing(graph: GraphModule) -> None:
    before = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    run_passes(graph, [FuseAttention(), Canonicalize()])
    assert sorted(map(str, before)) == sorted(str(n.target) for n in graph.graph.nodes if n.op == "call_function")


def test_graph_lints_and_verifies(graph: GraphModule) -> None:
    run_passes(graph, [PruneTokens(1)])
    graph.graph.lint()
    verify(graph)


def test_token_positions_cross_a_cut_where_layers_read_them(name: str, graph: GraphModule) -> None:
    run_passes(graph, [InsertExit(1, build_head(1)), PruneTokens(0)])
    first, second = split_segments(graph)
    carried = ["token_positions"] if name in POSITIONAL else []
    assert list(first.graph.output_node().args[0]) == ["hidden", "mask", *carried, "logits", "entropy"]
    inputs = [node.target for node in second.graph.nodes if node.op == "placeholder"]
    assert inputs == ["hidden", "mask", *carried, "rows", "positions"]


def test_positions_behind_a_prune_are_those_of_the_kept_tokens(name: str, graph: GraphModule) -> None:
    run_passes(graph, [PruneTokens(0)])
    reads = [layer.positions for layer in find_layers(graph)]
    if name in POSITIONAL:
        assert [node.target for node in reads] == [number_tokens, keep_positions, keep_positions]
    else:
        assert reads == [None] * 3


def test_bias_of_every_mpnet_layer_is_looked_up_by_position() -> None:
    assert count_ops(canonical_graph("mpnet"), relative_bias) == 3


def test_local_layers_of_modernbert_have_a_window() -> None:
    windows = [layer.added for layer in find_layers(canonical_graph("modernbert"))]
    assert [node.target is window_mask for node in windows] == [False, True, True]
    assert [node.args[2] for node in windows[1:]] == [4, 4]


def test_albert_with_several_groups_of_layers_equals_the_reference() -> None:
    model = build_model("albert", num_layers=4, num_hidden_groups=2)
    gm = run_passes(export_graph(LogitsOnly(model), has_types=True), [Canonicalize(), PruneTokens(1)])
    batch = random_batch(model, [12, 7])
    with torch.no_grad():
        logits = gm(**batch, **prune_inputs([12, 7], {1: 0.5}))["logits"]
    for row, example in enumerate(examples(batch, [12, 7])):
        np.testing.assert_allclose(logits[row], run_reference(model, **example, keep_ratios={1: 0.5}).logits, atol=1e-4)


@pytest.mark.parametrize("window", [1, 4, 6, 20])
def test_handmade_window_stays_bitwise_equal(window: int) -> None:
    encoder = HandmadeEncoder(window=window)
    gm = copy_graph(run_passes(export_graph(encoder), [Canonicalize(), PruneTokens(0)]))
    batch = random_batch(family_model("distilbert"), [12, 5])
    with torch.no_grad():
        assert torch.equal(gm(**batch, **prune_inputs([12, 5], {0: 1.0}))["logits"], encoder(**batch))


def test_fusing_leaves_attention_that_is_a_node_already(bert_graph: GraphModule) -> None:
    before = str(bert_graph.graph)
    assert FuseAttention()(bert_graph) is False
    assert str(bert_graph.graph) == before


def test_deberta_with_a_convolution_is_refused() -> None:
    model = build_model("deberta", conv_kernel_size=3, conv_act="gelu")
    with pytest.raises(PassError, match="layer 1 does not read the hidden state that layer 0 gives"):
        run_passes(export_graph(LogitsOnly(model)), [FuseAttention(), Canonicalize()])
