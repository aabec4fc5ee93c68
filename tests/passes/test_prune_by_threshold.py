"""Tests of pruning by a threshold: each text keeps what receives enough attention, and the tensors get shorter."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import (
    Canonicalize,
    InsertExit,
    PassError,
    PruneByThreshold,
    PruneTokens,
    TruncateAfterExit,
    run_passes,
    split_segments,
    verify,
)
from passes.encoder import ATTENTION, find_layers
from passes.threshold_ops import keep_above, prune_by_threshold, received_attention
from tests.models import (
    LogitsOnly,
    build_head,
    canonical_graph,
    count_ops,
    export_graph,
    exported_graph,
    family_model,
    random_batch,
    run_recorded,
)
from tests.reference import run_reference

LENGTHS = [12, 5, 1, 9]
SEPARATOR = 3
POINTS: tuple[dict[int, float], ...] = ({0: 0.09}, {1: 0.11}, {2: 0.1}, {0: 0.08, 1: 0.12}, {0: 0.07, 1: 0.1, 2: 0.15})


def prune(gm: GraphModule, layers: dict[int, float]) -> GraphModule:
    return run_passes(gm, [PruneByThreshold(layer) for layer in layers])


def threshold_inputs(thresholds: dict[int, float]) -> dict[str, Tensor]:
    return {f"token_threshold_{layer}": torch.tensor([value]) for layer, value in thresholds.items()}


@torch.no_grad()
def run(gm: GraphModule, batch: dict[str, Tensor], thresholds: dict[int, float]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = gm(**batch, **threshold_inputs(thresholds))
    return outputs


def example(batch: dict[str, Tensor], row: int, length: int) -> dict[str, list[int]]:
    return {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}


def test_a_threshold_of_0_is_bitwise_equal(model: PreTrainedModel, canonical: GraphModule) -> None:
    batch = random_batch(model, LENGTHS)
    with torch.no_grad():
        expected = canonical(**batch)["logits"]
    thresholds = {0: 0.0, 1: 0.0, 2: 0.0}
    assert torch.equal(run(prune(canonical, thresholds), batch, thresholds)["logits"], expected)


@pytest.mark.parametrize("thresholds", POINTS, ids=str)
def test_logits_and_tokens_kept_equal_the_reference(
    model: PreTrainedModel, canonical: GraphModule, thresholds: dict[int, float]
) -> None:
    batch = random_batch(model, LENGTHS)
    outputs = run(prune(canonical, thresholds), batch, thresholds)
    dropped = 0
    for row, length in enumerate(LENGTHS):
        trace = run_reference(model, **example(batch, row, length), token_thresholds=thresholds)
        np.testing.assert_allclose(outputs["logits"][row], trace.logits, atol=1e-4)
        assert {layer: int(outputs[f"kept_{layer}"][row]) for layer in thresholds} == {
            layer: len(kept) for layer, kept in trace.kept.items()
        }
        dropped += length - len(trace.hidden[-1])
    assert dropped > 0


def test_exits_of_a_pruning_graph_equal_the_reference(model: PreTrainedModel, canonical: GraphModule) -> None:
    thresholds, heads = {0: 0.08, 1: 0.12}, {layer: build_head(layer) for layer in range(4)}
    run_passes(canonical, [InsertExit(layer, head) for layer, head in heads.items()])
    batch = random_batch(model, LENGTHS)
    outputs = run(prune(canonical, thresholds), batch, thresholds)
    for row, length in enumerate(LENGTHS):
        exits = run_reference(model, **example(batch, row, length), token_thresholds=thresholds, heads=heads).exits
        for layer, (logits, _) in exits.items():
            np.testing.assert_allclose(outputs[f"logits_{layer}"][row], logits, atol=1e-4)


def test_hidden_states_are_as_long_as_the_text_that_keeps_most(
    bert_graph: GraphModule, tiny_bert: PreTrainedModel
) -> None:
    thresholds = {0: 0.09, 1: 0.12}
    batch = random_batch(tiny_bert, LENGTHS)
    prune(bert_graph, thresholds)
    inputs = {**batch, **threshold_inputs(thresholds)}
    found = [value.shape[1] for value in run_recorded(bert_graph, [x.output for x in find_layers(bert_graph)], inputs)]
    traces = [
        run_reference(tiny_bert, **example(batch, row, length), token_thresholds=thresholds)
        for row, length in enumerate(LENGTHS)
    ]
    assert found == [max(len(trace.hidden[layer]) for trace in traces) for layer in (1, 2, 3)]
    assert found[1] < found[0] < max(LENGTHS)


def test_example_is_answered_alike_alone_and_in_a_batch(model: PreTrainedModel, canonical: GraphModule) -> None:
    thresholds = {0: 0.08, 1: 0.12}
    batch = random_batch(model, LENGTHS)
    together = run(prune(canonical, thresholds), batch, thresholds)["logits"]
    for row, length in enumerate(LENGTHS):
        alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
        torch.testing.assert_close(run(canonical, alone, thresholds)["logits"][0], together[row], atol=1e-5, rtol=1e-4)


def test_position_0_alone_is_left_where_nothing_receives_enough(bert_graph: GraphModule) -> None:
    batch = random_batch(family_model("bert"), LENGTHS)
    outputs = run(prune(bert_graph, {1: 1.0}), batch, {1: 1.0})
    assert outputs["kept_1"].tolist() == [1] * len(LENGTHS)


def test_separators_are_never_dropped() -> None:
    exported = export_graph(LogitsOnly(family_model("bert")), has_types=True)
    gm = run_passes(exported, [Canonicalize(SEPARATOR), PruneByThreshold(0), PruneByThreshold(2)])
    batch = random_batch(family_model("bert"), [12, 7])
    batch["input_ids"][:, 1:][batch["input_ids"][:, 1:] == SEPARATOR] = SEPARATOR + 1
    for row, position in ((0, 4), (0, 11), (1, 6)):
        batch["input_ids"][row, position] = SEPARATOR
    outputs = run(gm, batch, {0: 0.1, 2: 1.0})
    assert outputs["kept_2"].tolist() == [3, 2]
    for row, length in enumerate([12, 7]):
        given = example(batch, row, length)
        trace = run_reference(family_model("bert"), **given, separator_id=SEPARATOR, token_thresholds={0: 0.1, 2: 1.0})
        np.testing.assert_allclose(outputs["logits"][row], trace.logits, atol=1e-4)


def test_one_prune_an_input_and_an_output_are_added(bert_graph: GraphModule) -> None:
    attentions = count_ops(bert_graph, ATTENTION)
    inputs = [node.target for node in bert_graph.graph.nodes if node.op == "placeholder"]
    prune(bert_graph, {1: 0.5})
    assert count_ops(bert_graph, prune_by_threshold) == 1
    assert count_ops(bert_graph, ATTENTION) == attentions
    after = [node.target for node in bert_graph.graph.nodes if node.op == "placeholder"]
    assert after == [*inputs, "token_threshold_1"]
    assert list(bert_graph.graph.output_node().args[0]) == ["logits", "kept_1"]


def test_pruned_graph_lints_and_verifies(canonical: GraphModule) -> None:
    prune(canonical, {0: 0.5, 1: 0.5, 2: 0.5})
    canonical.graph.lint()
    verify(canonical)


def test_each_segment_returns_what_its_own_prunes_kept(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [InsertExit(1, build_head(1)), *(PruneByThreshold(layer) for layer in range(3))])
    outputs = [list(segment.graph.output_node().args[0]) for segment in split_segments(bert_graph)]
    assert outputs == [["hidden", "mask", "logits", "entropy", "kept_0"], ["logits", "kept_1", "kept_2"]]


def test_prune_composes_with_truncation_in_either_order() -> None:
    passes = (PruneByThreshold(0), InsertExit(2, build_head(2)), TruncateAfterExit(2))
    batch = random_batch(family_model("bert"), LENGTHS)
    found = [
        run(run_passes(canonical_graph("bert"), order), batch, {0: 0.1}) for order in (passes, (*passes[1:], passes[0]))
    ]
    assert all(set(outputs) == {"logits_2", "entropy_2", "kept_0"} for outputs in found)
    assert torch.equal(found[0]["logits_2"], found[1]["logits_2"])


@pytest.mark.parametrize("second", [PruneByThreshold(1), PruneTokens(1)], ids=["threshold", "top"])
def test_second_prune_of_a_layer_is_refused(bert_graph: GraphModule, second: PruneTokens) -> None:
    with pytest.raises(PassError, match="layer 1 already prunes"):
        run_passes(bert_graph, [PruneByThreshold(1), second])


def test_layer_that_is_not_there_is_refused(bert_graph: GraphModule) -> None:
    with pytest.raises(PassError, match=r"layer 3: the model has 3 encoder layers \(0-2\)"):
        prune(bert_graph, {3: 0.5})


def test_graph_that_is_not_canonical_is_refused() -> None:
    with pytest.raises(PassError):
        prune(exported_graph("bert"), {0: 0.5})


def test_attention_received_sums_to_1_over_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, 7, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., 4:] = -1e4
    received = received_attention(mask, mask, query, key, 0.3)
    torch.testing.assert_close(received.sum(1), torch.ones(2))
    assert (received[1, 4:] == 0).all()


def test_padding_and_holes_are_not_kept() -> None:
    mask = torch.tensor([[0.0, -1e4, 0.0, -1e4]])[:, None, None, :]
    keep = keep_above(torch.ones(1, 4), mask, torch.tensor([0.5]))
    assert keep.tolist() == [[True, False, True, False]]
