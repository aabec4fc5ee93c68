"""Tests of finding the encoder in a graph."""

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import PassError, PruneTokens, run_passes
from passes.encoder import ATTENTION, aten, find_layers, find_mask_after, is_hidden, module_path
from passes.ops import prune_tokens
from tests.models import (
    HIDDEN_SIZE,
    HandmadeEncoder,
    HandmadeLayer,
    copy_graph,
    export_graph,
    random_batch,
    run_recorded,
)

LAYER_LISTS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}


class TwoAttentions(HandmadeEncoder):
    """Runs each layer's attention twice."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.register_forward_pre_hook(lambda module, args: (module.attend(*args), args[1]))


class CountsFromTwo(HandmadeEncoder):
    """Leaves out its first two layers, so that the numbers of the others start at 2."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (attention_mask != 0)[:, None, None, :]
        return self.classifier(self.layers[2](self.embedding(input_ids), mask)[:, 0])


class AddsEmbeddings(HandmadeLayer):
    """A layer that adds the embeddings to what it gives."""

    def forward(self, hidden: Tensor, mask: Tensor, embedded: Tensor) -> Tensor:
        return super().forward(hidden, mask) + embedded


class ReadsEmbeddings(HandmadeEncoder):
    """Hands the embeddings to every layer beside the hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AddsEmbeddings("post", causal=False, dropout=0.0) for _ in range(3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = embedded = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, (attention_mask != 0)[:, None, None, :], embedded)
        return self.classifier(hidden[:, 0])


class Feedforward(nn.Module):
    """No Transformer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.layers(input_ids) * attention_mask[:, :, None]).sum(1)


def test_layers_are_found_in_order(family: str, canonical: GraphModule) -> None:
    layers = find_layers(canonical)
    assert [layer.index for layer in layers] == [0, 1, 2]
    assert [layer.path.split("model.", 1)[1] for layer in layers] == [f"{LAYER_LISTS[family]}.{i}" for i in range(3)]


def test_layers_are_found_before_canonicalization(exported: GraphModule) -> None:
    assert len(find_layers(exported)) == 3


def test_each_layer_has_its_own_attention(canonical: GraphModule) -> None:
    layers = find_layers(canonical)
    assert all(layer.attention.target is ATTENTION and layer.attention in layer.nodes for layer in layers)
    assert len({layer.attention for layer in layers}) == 3


def test_no_node_is_in_two_layers(canonical: GraphModule) -> None:
    nodes = [node for layer in find_layers(canonical) for node in layer.nodes]
    assert len(nodes) == len(set(nodes))


def test_each_layer_reads_what_the_one_before_gives(canonical: GraphModule) -> None:
    layers = find_layers(canonical)
    assert [layer.input for layer in layers[1:]] == [layer.output for layer in layers[:-1]]


def test_hidden_states_between_layers_are_those_of_the_model(model: PreTrainedModel, canonical: GraphModule) -> None:
    batch = random_batch(model, [7, 4])
    layers = find_layers(canonical)
    states = run_recorded(canonical, [layers[0].input, *(layer.output for layer in layers)], batch)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).hidden_states
    assert all(torch.equal(found, given) for found, given in zip(states, expected, strict=True))


def test_attention_output_is_the_norm_behind_attention(canonical: GraphModule) -> None:
    for layer in find_layers(canonical):
        norms = [node for node in layer.nodes if node.target is aten.layer_norm.default]
        assert layer.attention_output is norms[0]
        assert layer.output is norms[1]


def test_attention_output_of_a_norm_first_layer_is_the_residual_sum() -> None:
    for layer in find_layers(export_graph(HandmadeEncoder(order="pre"))):
        assert layer.attention_output.target is aten.add.Tensor
        assert layer.attention_output is not layer.output


def test_scale_is_one_over_the_root_of_the_head_size(canonical: GraphModule) -> None:
    assert [layer.scale for layer in find_layers(canonical)] == [pytest.approx((HIDDEN_SIZE / 4) ** -0.5)] * 3


def test_scale_of_the_graph_wins(bert_graph: GraphModule) -> None:
    attention = find_layers(bert_graph)[1].attention
    attention.kwargs = {**attention.kwargs, "scale": 0.25}
    assert find_layers(bert_graph)[1].scale == 0.25


def test_mask_given_by_name_is_found(bert_graph: GraphModule) -> None:
    attention = find_layers(bert_graph)[1].attention
    mask = attention.args[3]
    attention.args, attention.kwargs = attention.args[:3], {"attn_mask": mask}
    assert find_layers(bert_graph)[1].mask is mask


def test_layer_without_a_mask_has_none() -> None:
    assert [layer.mask for layer in find_layers(export_graph(HandmadeEncoder(causal=True)))] == [None] * 3


def test_mask_after_a_layer_is_the_one_it_reads(bert_graph: GraphModule) -> None:
    layer = find_layers(bert_graph)[1]
    assert find_mask_after(bert_graph, layer) is layer.mask


def test_mask_after_a_pruning_layer_is_the_pruned_one(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [PruneTokens(1)])
    layers = find_layers(bert_graph)
    mask = find_mask_after(bert_graph, layers[1])
    assert mask is layers[2].mask
    assert mask is not layers[1].mask


def test_mask_after_a_last_layer_that_prunes_is_made_when_nothing_read_it(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [PruneTokens(2)])
    mask = find_mask_after(bert_graph, find_layers(bert_graph)[2])
    assert mask.target is operator.getitem
    assert mask.args[0].target is prune_tokens
    assert mask.args[1] == 1


def test_module_path_of_a_node_without_metadata_is_empty(bert_graph: GraphModule) -> None:
    assert module_path(next(iter(bert_graph.graph.nodes))) == ""


def test_hidden_states_are_floats_of_three_dimensions(bert_graph: GraphModule) -> None:
    layer = find_layers(bert_graph)[0]
    assert is_hidden(layer.output)
    assert not is_hidden(layer.attention)
    assert not is_hidden(layer.mask)


def test_finding_layers_changes_nothing(bert_graph: GraphModule) -> None:
    before = copy_graph(bert_graph)
    find_layers(bert_graph)
    assert str(bert_graph.graph) == str(before.graph)


def test_graph_without_attention_says_what_was_looked_for() -> None:
    with pytest.raises(PassError, match=r"looked for one scaled_dot_product_attention per layer.*no attention node"):
        find_layers(export_graph(Feedforward()))


def test_two_attentions_in_a_layer_are_refused() -> None:
    with pytest.raises(PassError, match=r"attention is in layers\.0, layers\.1, layers\.2"):
        find_layers(export_graph(TwoAttentions()))


def test_layers_that_do_not_count_from_0_are_refused() -> None:
    with pytest.raises(PassError, match=r"attention is in layers\.2"):
        find_layers(export_graph(CountsFromTwo()))


def test_layer_that_reads_two_hidden_states_is_refused() -> None:
    with pytest.raises(PassError, match=r"layer 1 \(layers\.1\).*found 2 hidden states entering"):
        find_layers(export_graph(ReadsEmbeddings()))


def test_layer_with_attention_beside_feed_forward_has_nowhere_to_prune_but_its_end() -> None:
    layers = find_layers(export_graph(HandmadeEncoder(order="parallel")))
    assert all(layer.attention_output is layer.output for layer in layers)
