"""Tests of splitting a graph at its exits."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import (
    Canonicalize,
    InsertExit,
    PassError,
    PruneTokens,
    TruncateAfterExit,
    run_passes,
    split_segments,
)
from passes.encoder import ATTENTION, find_layers
from passes.ops import enter_segment, prune_tokens
from passes.pass_base import Pass
from tests.models import (
    HandmadeEncoder,
    build_head,
    canonical_graph,
    copy_graph,
    count_ops,
    export_graph,
    prune_inputs,
    random_batch,
)

LENGTHS = [12, 5, 1, 9]


def exits(*exit_layers: int) -> list[Pass]:
    return [InsertExit(layer, build_head(layer)) for layer in exit_layers]


def names_of(gm: GraphModule) -> tuple[list[str], list[str]]:
    inputs = [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]
    return inputs, list(gm.graph.output_node().args[0])


@torch.no_grad()
def run_chain(segments: list[GraphModule], inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Runs segments one after another, everybody surviving every exit."""
    results: list[dict[str, Tensor]] = []
    for segment in segments:
        given = dict(inputs)
        if results:
            rows, positions = torch.arange(len(LENGTHS)), torch.arange(results[-1]["hidden"].shape[1])
            given |= {
                "hidden": results[-1]["hidden"],
                "mask": results[-1]["mask"],
                "rows": rows,
                "positions": positions,
            }
        results.append(segment(**{name: given[name] for name in names_of(segment)[0]}))
    return results


def test_graph_without_exits_is_one_segment(model: PreTrainedModel, canonical: GraphModule) -> None:
    batch = random_batch(model, LENGTHS)
    (segment,) = split_segments(canonical)
    with torch.no_grad():
        assert torch.equal(segment(**batch)["logits"], canonical(**batch)["logits"])


@pytest.mark.parametrize("layers", [(0,), (1,), (3,), (1, 2), (0, 1, 2, 3)], ids=str)
def test_chain_is_bitwise_equal_to_the_graph(
    model: PreTrainedModel, canonical: GraphModule, layers: tuple[int, ...]
) -> None:
    run_passes(canonical, [*exits(*layers), PruneTokens(0), PruneTokens(2)])
    inputs = {**random_batch(model, LENGTHS), **prune_inputs(LENGTHS, {0: 0.6, 2: 0.6})}
    with torch.no_grad():
        expected = canonical(**inputs)
    results = run_chain(split_segments(canonical), inputs)
    for layer, result in zip(layers, results, strict=False):
        assert torch.equal(result["logits"], expected[f"logits_{layer}"])
        assert torch.equal(result["entropy"], expected[f"entropy_{layer}"])
    assert torch.equal(results[-1]["logits"], expected["logits"])


def test_inputs_and_outputs_are_those_of_the_contract(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [*exits(1, 2), PruneTokens(0), PruneTokens(2)])
    handed_on = ["hidden", "mask", "logits", "entropy"]
    entered = ["hidden", "mask", "rows", "positions"]
    assert [names_of(segment) for segment in split_segments(bert_graph)] == [
        (["input_ids", "attention_mask", "token_type_ids", "num_kept_0", "slots_0"], handed_on),
        (entered, handed_on),
        ([*entered, "num_kept_2", "slots_2"], ["logits"]),
    ]


def test_truncated_graph_ends_in_the_logits_of_its_exit(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    run_passes(bert_graph, [*exits(1, 2), TruncateAfterExit(2)])
    segments = split_segments(bert_graph)
    assert [names_of(segment)[1] for segment in segments] == [["hidden", "mask", "logits", "entropy"], ["logits"]]
    batch = random_batch(tiny_bert, LENGTHS)
    with torch.no_grad():
        expected = bert_graph(**batch)["logits_2"]
    assert torch.equal(run_chain(segments, batch)[-1]["logits"], expected)


def test_every_layer_is_in_one_segment(canonical: GraphModule) -> None:
    run_passes(canonical, exits(1, 2))
    assert [count_ops(segment, ATTENTION) for segment in split_segments(canonical)] == [1, 1, 1]


def test_prune_goes_with_its_layer(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [*exits(1, 2), PruneTokens(1)])
    assert [count_ops(segment, prune_tokens) for segment in split_segments(bert_graph)] == [0, 1, 0]


def test_every_segment_but_the_first_enters_once(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, exits(1, 2))
    assert [count_ops(segment, enter_segment) for segment in split_segments(bert_graph)] == [0, 1, 1]


def test_every_segment_holds_the_weights_of_its_own_layers_alone(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, exits(1, 2))
    names = [[name for name, _ in segment.named_parameters()] for segment in split_segments(bert_graph)]
    for own in range(3):
        assert {name.split("layer.")[1][0] for name in names[own] if "layer." in name} == {str(own)}
    assert [any("embeddings" in name for name in part) for part in names] == [True, False, False]
    assert [any("exits" in name for name in part) for part in names] == [True, True, False]


def test_weights_are_shared_with_the_graph(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, exits(1))
    whole = dict(bert_graph.named_parameters())
    for segment in split_segments(bert_graph):
        assert all(parameter is whole[name] for name, parameter in segment.named_parameters())


def test_splitting_leaves_the_graph_as_it_was(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, exits(1, 2))
    before = str(bert_graph.graph)
    split_segments(bert_graph)
    assert str(bert_graph.graph) == before


def test_survivors_are_answered_as_in_the_whole_batch(model: PreTrainedModel, canonical: GraphModule) -> None:
    run_passes(canonical, [*exits(1), PruneTokens(2)])
    batch, ratios = random_batch(model, LENGTHS), {2: 0.5}
    first, second = split_segments(canonical)
    rows = [3, 1]
    left = [LENGTHS[row] for row in rows]
    with torch.no_grad():
        expected = canonical(**batch, **prune_inputs(LENGTHS, ratios))["logits"][rows]
        handed_on = first(**batch)
        survivors = {"rows": torch.tensor(rows), "positions": torch.arange(max(left))}
        logits = second(handed_on["hidden"], handed_on["mask"], **survivors, **prune_inputs(left, ratios))["logits"]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_layers_are_found_in_a_first_segment(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, exits(2))
    assert len(find_layers(split_segments(bert_graph)[0])) == 2


@pytest.mark.parametrize("reads", ["input_ids", "attention_mask", "token_type_ids"])
def test_input_that_is_read_behind_an_exit_is_refused(reads: str) -> None:
    gm = export_graph(HandmadeEncoder(reads=reads), has_types=reads == "token_type_ids")
    with pytest.raises(PassError, match=reads):
        split_segments(run_passes(copy_graph(gm), [Canonicalize(), *exits(2)]))


def test_order_of_insertion_does_not_change_the_segments(tiny_bert: PreTrainedModel) -> None:
    inputs = {**random_batch(tiny_bert, LENGTHS), **prune_inputs(LENGTHS, {0: 0.5, 1: 0.5})}
    orders = ([*exits(1, 2), PruneTokens(0), PruneTokens(1)], [PruneTokens(1), *exits(2), PruneTokens(0), *exits(1)])
    first, second = (split_segments(run_passes(canonical_graph("bert"), order)) for order in orders)
    assert [names_of(segment) for segment in first] == [names_of(segment) for segment in second]
    for one, other in zip(run_chain(first, inputs), run_chain(second, inputs), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
