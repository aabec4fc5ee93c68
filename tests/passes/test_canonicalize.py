"""Tests of the canonical form."""

import pytest
import torch
from torch.fx import GraphModule
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from passes import Canonicalize, PassError, PruneTokens, find_layers, run_passes, verify
from passes.encoder import SIZE, aten
from passes.ops import additive_mask
from tests.models import (
    HandmadeEncoder,
    LogitsOnly,
    build_model,
    copy_graph,
    count_ops,
    export_graph,
    family_model,
    prune_inputs,
    random_batch,
)
from tests.reference import run_reference

SHAPES = ([9, 5, 7], [1], [2, 2], [38])


@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_logits_stay_bitwise_equal(model: PreTrainedModel, canonical: GraphModule, lengths: list[int]) -> None:
    batch = random_batch(model, lengths)
    with torch.no_grad():
        assert torch.equal(canonical(**batch)["logits"], model(**batch).logits)


def test_logits_equal_the_reference(model: PreTrainedModel, canonical: GraphModule) -> None:
    lengths = [9, 4, 1]
    batch = random_batch(model, lengths)
    with torch.no_grad():
        logits = canonical(**batch)["logits"].double()
    for row, length in enumerate(lengths):
        example = {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        expected = torch.from_numpy(run_reference(model, **example).logits)
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


def test_there_is_one_additive_mask_and_every_layer_reads_it(canonical: GraphModule) -> None:
    assert count_ops(canonical, additive_mask) == 1
    masks = {layer.mask for layer in find_layers(canonical)}
    assert [mask.target for mask in masks] == [additive_mask]


def test_no_other_mask_is_left(exported: GraphModule) -> None:
    masks = {layer.mask for layer in find_layers(exported)}
    names = {mask.name for mask in masks}
    run_passes(exported, [Canonicalize()])
    assert names.isdisjoint(node.name for node in exported.graph.nodes)


def test_attention_and_linear_maps_are_as_many_as_before(exported: GraphModule) -> None:
    kinds = (aten.scaled_dot_product_attention.default, aten.linear.default, aten.layer_norm.default)
    before = [count_ops(exported, kind) for kind in kinds]
    run_passes(exported, [Canonicalize()])
    assert [count_ops(exported, kind) for kind in kinds] == before


def test_dropout_and_checks_are_gone(exported: GraphModule) -> None:
    assert count_ops(exported, aten.dropout.default) > 0
    run_passes(exported, [Canonicalize()])
    assert count_ops(exported, aten.dropout.default) == 0
    assert not any(node.op == "call_module" for node in exported.graph.nodes)


def test_each_layer_reads_sizes_from_its_own_input(canonical: GraphModule) -> None:
    for layer in find_layers(canonical):
        sizes = {arg for node in layer.nodes for arg in node.all_input_nodes if arg.target is SIZE}
        assert sizes
        assert all(size.args[0] is layer.input or size.args[0] in layer.nodes for size in sizes)


def test_logits_are_the_one_named_output(canonical: GraphModule) -> None:
    assert list(canonical.graph.output_node().args[0]) == ["logits"]


def test_inputs_keep_their_names_and_order(exported: GraphModule) -> None:
    before = [node.target for node in exported.graph.nodes if node.op == "placeholder"]
    run_passes(exported, [Canonicalize()])
    assert [node.target for node in exported.graph.nodes if node.op == "placeholder"] == before


def test_canonical_graph_lints_and_verifies(canonical: GraphModule) -> None:
    canonical.graph.lint()
    verify(canonical)


def test_canonical_graph_can_be_rewritten_in_place() -> None:
    model = family_model("bert")
    gm = export_graph(LogitsOnly(model), has_types=True)
    run_passes(gm, [Canonicalize(), PruneTokens(1)])
    gm(**random_batch(model, [9, 5]), **prune_inputs([9, 5], {1: 0.5}))


def test_canonicalizing_twice_changes_nothing(model: PreTrainedModel, canonical: GraphModule) -> None:
    nodes = len(canonical.graph.nodes)
    batch = random_batch(model, [9, 5])
    run_passes(canonical, [Canonicalize()])
    assert len(canonical.graph.nodes) == nodes
    with torch.no_grad():
        assert torch.equal(canonical(**batch)["logits"], model(**batch).logits)


def test_weights_are_shared_not_copied(exported: GraphModule) -> None:
    before = {name: parameter.data_ptr() for name, parameter in exported.named_parameters()}
    run_passes(exported, [Canonicalize()])
    assert {name: parameter.data_ptr() for name, parameter in exported.named_parameters()} == before


def test_norm_first_encoder_stays_bitwise_equal() -> None:
    encoder = HandmadeEncoder(order="pre")
    gm = copy_graph(run_passes(export_graph(encoder), [Canonicalize()]))
    batch = random_batch(family_model("distilbert"), [8, 5])
    with torch.no_grad():
        assert torch.equal(gm(**batch)["logits"], encoder(**batch))


def test_decoder_is_refused() -> None:
    decoder = build_model("bert", is_decoder=True)
    with pytest.raises(PassError, match="masked by more than padding"):
        run_passes(export_graph(LogitsOnly(decoder)), [Canonicalize()])


def test_causal_flag_is_refused() -> None:
    with pytest.raises(PassError, match="layer 0: attention has is_causal=True"):
        run_passes(export_graph(HandmadeEncoder(causal=True)), [Canonicalize()])


def test_dropout_inside_attention_is_refused() -> None:
    with pytest.raises(PassError, match=r"layer 0: attention has is_causal=False, dropout_p=0\.1"):
        run_passes(export_graph(HandmadeEncoder(dropout=0.1)), [Canonicalize()])


def test_training_mode_is_refused() -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    training = LogitsOnly(BertForSequenceClassification(config).train())
    with pytest.raises(PassError, match=r"training mode: call model\.eval\(\) first"):
        run_passes(export_graph(training), [Canonicalize()])


def test_several_outputs_are_refused(bert_graph: GraphModule) -> None:
    output = bert_graph.graph.output_node()
    output.args = ((output.args[0]["logits"], find_layers(bert_graph)[0].output),)
    with pytest.raises(PassError, match="returns 2 values, expected the logits alone"):
        run_passes(bert_graph, [Canonicalize()])


def test_embeddings_added_in_front_of_every_layer_are_refused() -> None:
    with pytest.raises(PassError, match="layer 1 does not read the hidden state that layer 0 gives"):
        run_passes(export_graph(HandmadeEncoder(skip=True)), [Canonicalize()])
