"""Tests of the spec that a graph meets between passes."""

import pytest
from torch.fx import GraphModule, Node

from passes import InsertExit, PassError, PruneTokens, TruncateAfterExit, run_passes, verify
from passes.canonicalize import Canonicalize
from passes.encoder import SIZE, aten, find_layers
from tests.models import HandmadeEncoder, build_head, export_graph


def linear_of(gm: GraphModule, index: int) -> Node:
    """The first linear map of a layer."""
    return next(node for node in find_layers(gm)[index].nodes if node.target is aten.linear.default)


def test_canonical_graph_passes(canonical: GraphModule) -> None:
    verify(canonical)


def test_rewritten_graph_passes(canonical: GraphModule) -> None:
    passes = [PruneTokens(0), InsertExit(1, build_head(1)), InsertExit(2, build_head(2)), TruncateAfterExit(2)]
    verify(run_passes(canonical, passes))


def test_graph_before_canonicalization_does_not_pass(exported: GraphModule) -> None:
    with pytest.raises(PassError):
        verify(exported)


def test_layer_that_skips_another_is_named(bert_graph: GraphModule) -> None:
    # Two rows of layers side by side: layer 2 reads layer 0, and so does layer 1, which nothing but the output reads.
    layers = find_layers(bert_graph)
    later = set(layers[2].nodes)
    layers[1].output.replace_all_uses_with(layers[0].output, delete_user_cb=later.__contains__)
    output = bert_graph.graph.output_node()
    output.args = ({**output.args[0], "hidden": layers[1].output},)
    with pytest.raises(PassError, match="layer 2 does not read the hidden state that layer 1 gives"):
        verify(bert_graph)


def test_layer_that_reads_a_length_from_outside_is_named(bert_graph: GraphModule) -> None:
    layers = find_layers(bert_graph)
    with bert_graph.graph.inserting_after(layers[0].input):
        foreign = bert_graph.graph.call_function(SIZE, (layers[0].input, 1))
    view = next(node for node in layers[1].nodes if any(arg.target is SIZE for arg in node.all_input_nodes))
    view.replace_input_with(next(arg for arg in view.all_input_nodes if arg.target is SIZE), foreign)
    with pytest.raises(PassError, match=f"layer 1: .* reads {foreign.name} from outside the layer"):
        verify(bert_graph)


def test_layer_that_reads_an_input_of_the_model_is_named(bert_graph: GraphModule) -> None:
    ids = next(node for node in bert_graph.graph.nodes if node.target == "input_ids")
    norm = find_layers(bert_graph)[2].attention_output
    norm.args = (norm.args[0], norm.args[1], ids, norm.args[3])
    with pytest.raises(PassError, match=r"layer 2: aten\.layer_norm\.default reads input_ids from outside the layer"):
        verify(bert_graph)


def test_layer_with_a_second_hidden_state_is_named(bert_graph: GraphModule) -> None:
    layers = find_layers(bert_graph)
    linear_of(bert_graph, 2).replace_input_with(layers[2].input, layers[0].output)
    with pytest.raises(PassError, match=r"layer 2 .*found 2 hidden states entering"):
        verify(bert_graph)


def test_outputs_without_names_are_refused(bert_graph: GraphModule) -> None:
    output = bert_graph.graph.output_node()
    output.args = (tuple(output.args[0].values()),)
    with pytest.raises(PassError, match="does not return a dict of named outputs"):
        verify(bert_graph)


@pytest.mark.parametrize("reads", ["attention_mask", "input_ids", "token_type_ids"])
def test_classifier_that_reads_an_input_of_the_model_is_refused(reads: str) -> None:
    graph = export_graph(HandmadeEncoder(reads=reads), has_types=reads == "token_type_ids")
    with pytest.raises(PassError, match=reads):
        verify(run_passes(graph, [Canonicalize()]))
