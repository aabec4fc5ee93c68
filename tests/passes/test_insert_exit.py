"""Tests of off-ramps: inserting them and ending the model at one."""

import itertools

import numpy as np
import pytest
import torch
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import (
    Canonicalize,
    ExitHead,
    InsertExit,
    PassError,
    PruneTokens,
    TruncateAfterExit,
    find_exits,
    run_passes,
    verify,
)
from passes.encoder import ATTENTION, aten, find_layers
from passes.ops import normalised_entropy
from tests.models import (
    HIDDEN_SIZE,
    NUM_LABELS,
    LogitsOnly,
    build_head,
    build_model,
    canonical_graph,
    count_ops,
    export_graph,
    exported_graph,
    prune_inputs,
    random_batch,
)
from tests.reference import exit_at, run_reference

LENGTHS = [9, 5, 1, 7]


def insert(*exit_layers: int) -> list[InsertExit]:
    return [InsertExit(layer, build_head(layer)) for layer in exit_layers]


@torch.no_grad()
def run(gm: GraphModule, model: PreTrainedModel, **settings: torch.Tensor) -> dict[str, torch.Tensor]:
    return gm(**random_batch(model, LENGTHS), **settings)


def test_head_equals_the_reference() -> None:
    head = build_head(1)
    hidden = torch.randn(1, 6, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    expected_logits, expected_entropy = exit_at(head, hidden[0].double().numpy())
    with torch.no_grad():
        logits, entropy = head(hidden, torch.zeros(1, 1, 1, 6))
    np.testing.assert_allclose(logits[0], expected_logits, atol=1e-5)
    assert entropy.item() == pytest.approx(expected_entropy, abs=1e-6)


def test_head_classifies_features_as_its_forward_does() -> None:
    head = build_head(1)
    hidden = torch.randn(2, 1, HIDDEN_SIZE)
    features = torch.cat([hidden[:, 0], hidden[:, 0]], dim=1)
    assert torch.equal(head.classify(features), head(hidden, torch.zeros(2, 1, 1, 1))[0])


def test_head_has_the_width_and_classes_asked_for() -> None:
    head = ExitHead(HIDDEN_SIZE, NUM_LABELS, width=7)
    assert head.hidden.weight.shape == (7, 2 * HIDDEN_SIZE)
    assert head.output.weight.shape == (NUM_LABELS, 7)


def test_logits_of_the_model_stay_bitwise_equal(model: PreTrainedModel, canonical: GraphModule) -> None:
    expected = run(canonical, model)["logits"]
    run_passes(canonical, insert(0, 1, 2, 3))
    assert torch.equal(run(canonical, model)["logits"], expected)


def test_exits_equal_the_reference(model: PreTrainedModel, canonical: GraphModule) -> None:
    run_passes(canonical, insert(0, 1, 2, 3))
    outputs = run(canonical, model)
    batch = random_batch(model, LENGTHS)
    for row, length in enumerate(LENGTHS):
        example = {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        trace = run_reference(model, **example, heads={layer: build_head(layer) for layer in range(4)})
        for layer, (logits, entropy) in trace.exits.items():
            np.testing.assert_allclose(outputs[f"logits_{layer}"][row], logits, atol=1e-4)
            assert outputs[f"entropy_{layer}"][row].item() == pytest.approx(entropy, abs=1e-4)


def test_entropy_is_that_of_the_logits_beside_it(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    run_passes(bert_graph, insert(2))
    outputs = run(bert_graph, tiny_bert)
    assert torch.equal(outputs["entropy_2"], normalised_entropy(outputs["logits_2"]))


def test_one_call_of_the_head_is_added_and_no_attention(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, insert(1))
    assert [node.target for node in bert_graph.graph.nodes if node.op == "call_module"] == ["exits.1"]
    assert count_ops(bert_graph, ATTENTION) == 3


def test_head_reads_the_hidden_state_and_mask_of_its_layer(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, insert(1))
    layers = find_layers(bert_graph)
    assert find_exits(bert_graph)[1].args == (layers[0].output, layers[0].mask)


def test_exit_0_reads_the_embeddings(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, insert(0))
    assert find_exits(bert_graph)[0].args[0] is find_layers(bert_graph)[0].input


def test_head_behind_a_prune_reads_the_pruned_mask(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [PruneTokens(0), *insert(1)])
    layers = find_layers(bert_graph)
    assert find_exits(bert_graph)[1].args == (layers[0].output, layers[1].mask)


def test_exit_behind_the_last_layer_that_prunes_reads_the_pruned_mask(
    bert_graph: GraphModule, tiny_bert: PreTrainedModel
) -> None:
    run_passes(bert_graph, [PruneTokens(2), *insert(3)])
    outputs = run(bert_graph, tiny_bert, **prune_inputs(LENGTHS, {2: 0.5}))
    assert outputs["logits_3"].shape == (len(LENGTHS), NUM_LABELS)


@pytest.mark.parametrize("order", list(itertools.permutations((0, 2, 3))), ids=str)
def test_outputs_are_in_order_whatever_the_order_of_insertion(bert_graph: GraphModule, order: tuple[int, ...]) -> None:
    run_passes(bert_graph, insert(*order))
    names = ["logits_0", "entropy_0", "logits_2", "entropy_2", "logits_3", "entropy_3", "logits"]
    assert list(bert_graph.graph.output_node().args[0]) == names


def test_outputs_are_ordered_by_number_beyond_9() -> None:
    gm = export_graph(LogitsOnly(build_model("distilbert", num_layers=10)))
    run_passes(gm, [Canonicalize(), *insert(10, 9)])
    names = ["logits_9", "entropy_9", "logits_10", "entropy_10", "logits"]
    assert list(gm.graph.output_node().args[0]) == names


def test_pass_says_that_it_changed_the_graph(bert_graph: GraphModule) -> None:
    assert InsertExit(1, build_head(1))(bert_graph) is True


def test_two_exits_may_share_a_head(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    head = build_head(0)
    run_passes(bert_graph, [InsertExit(1, head), InsertExit(2, head)])
    outputs = run(bert_graph, tiny_bert)
    assert not torch.equal(outputs["logits_1"], outputs["logits_2"])


def test_gradients_reach_the_head(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    head = build_head(1)
    run_passes(bert_graph, [InsertExit(1, head)])
    loss = bert_graph(**random_batch(tiny_bert, LENGTHS))["logits_1"].sum()
    gradients = torch.autograd.grad(loss, list(head.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_graph_with_exits_lints_and_verifies(canonical: GraphModule) -> None:
    run_passes(canonical, insert(0, 1, 3))
    canonical.graph.lint()
    verify(canonical)


@pytest.mark.parametrize("exit_layer", [-1, 4])
def test_exit_after_a_layer_that_is_not_there_is_refused(bert_graph: GraphModule, exit_layer: int) -> None:
    with pytest.raises(PassError, match=rf"exit_layer {exit_layer}: the model has 3 encoder layers \(exits 0-3\)"):
        run_passes(bert_graph, insert(exit_layer))


def test_second_exit_after_a_layer_is_refused(bert_graph: GraphModule) -> None:
    with pytest.raises(PassError, match="exit_layer 1: there is an exit already"):
        run_passes(bert_graph, insert(1, 1))


def test_exit_in_a_graph_that_is_not_canonical_is_refused() -> None:
    with pytest.raises(PassError, match="Canonicalize"):
        run_passes(exported_graph("bert"), insert(1))


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_truncation_removes_the_layers_behind_the_exit(bert_graph: GraphModule, exit_layer: int) -> None:
    run_passes(bert_graph, [*insert(exit_layer), TruncateAfterExit(exit_layer)])
    assert count_ops(bert_graph, ATTENTION) == exit_layer
    assert count_ops(bert_graph, aten.layer_norm.default) == 1 + 2 * exit_layer


def test_truncation_removes_the_weights_behind_the_exit(canonical: GraphModule) -> None:
    run_passes(canonical, [*insert(2), TruncateAfterExit(2)])
    names = [name for name, _ in canonical.named_parameters()]
    assert any(".layer.1." in name for name in names)
    assert not any(".layer.2." in name or "classifier" in name for name in names)


def test_truncation_leaves_the_exit_bitwise_equal(model: PreTrainedModel, canonical: GraphModule) -> None:
    run_passes(canonical, insert(1, 2))
    before = run(canonical, model)
    run_passes(canonical, [TruncateAfterExit(2)])
    after = run(canonical, model)
    assert list(after) == ["logits_1", "entropy_1", "logits_2", "entropy_2"]
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_truncation_at_the_last_layer_drops_the_model_s_own_classifier(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [*insert(3), TruncateAfterExit(3)])
    assert count_ops(bert_graph, ATTENTION) == 3
    assert not any("classifier" in name for name, _ in bert_graph.named_parameters())


def test_truncation_drops_exits_behind_it(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [*insert(1, 2), TruncateAfterExit(1)])
    assert list(find_exits(bert_graph)) == [1]
    assert not any(name.startswith("exits.2") for name, _ in bert_graph.named_parameters())


def test_truncation_without_that_exit_is_refused(bert_graph: GraphModule) -> None:
    with pytest.raises(PassError, match=r"exit_layer 2: the graph has exits \[1, 3\]"):
        run_passes(bert_graph, [*insert(1, 3), TruncateAfterExit(2)])


def test_prune_after_truncation_equals_truncation_after_prune(
    tiny_bert: PreTrainedModel, bert_graph: GraphModule
) -> None:
    settings = prune_inputs(LENGTHS, {0: 0.6, 1: 0.6})
    cut = [*insert(2), TruncateAfterExit(2)]
    prunes = [PruneTokens(0), PruneTokens(1)]
    first = run(run_passes(bert_graph, [*cut, *prunes]), tiny_bert, **settings)
    second = run(run_passes(canonical_graph("bert"), [*prunes, *cut]), tiny_bert, **settings)
    assert torch.equal(first["logits_2"], second["logits_2"])


def test_prune_of_a_layer_that_truncation_removed_is_refused(bert_graph: GraphModule) -> None:
    with pytest.raises(PassError, match=r"layer 2: the model has 2 encoder layers \(0-1\)"):
        run_passes(bert_graph, [*insert(2), TruncateAfterExit(2), PruneTokens(2)])
