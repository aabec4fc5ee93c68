"""Tests of pruning: tensors really get shorter, and the answers are those of the reference."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import Canonicalize, InsertExit, PassError, PruneTokens, TruncateAfterExit, run_passes, verify
from passes.encoder import ATTENTION, aten, find_layers
from passes.ops import prune_tokens
from tests.models import (
    HandmadeEncoder,
    HandmadeLayer,
    build_head,
    canonical_graph,
    copy_graph,
    count_ops,
    export_graph,
    exported_graph,
    family_model,
    prune_inputs,
    random_batch,
    run_recorded,
)
from tests.reference import count_kept, run_reference

LENGTHS = [12, 5, 1, 9]
POINTS: tuple[dict[int, float], ...] = (
    {0: 0.5},
    {1: 0.3},
    {2: 0.1},
    {0: 0.8, 1: 0.7},
    {0: 0.7, 2: 0.5},
    {0: 0.9, 1: 0.6, 2: 0.4},
)


class ReadsSizes(HandmadeLayer):
    """A layer whose feed-forward part reads batch and length, as a reshape does."""

    def feed_forward(self, hidden: Tensor) -> Tensor:
        batch_size, seq_len, hidden_size = hidden.shape
        heads = super().feed_forward(hidden).reshape(batch_size, seq_len, 4, -1)
        return heads.reshape(batch_size, seq_len, hidden_size)


def prune(gm: GraphModule, layers: Mapping[int, float]) -> GraphModule:
    return run_passes(gm, [PruneTokens(layer) for layer in layers])


@torch.no_grad()
def run(gm: GraphModule, batch: dict[str, Tensor], lengths: list[int], keep_ratios: Mapping[int, float]) -> Tensor:
    return gm(**batch, **prune_inputs(lengths, keep_ratios))["logits"]


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_keeping_every_token_is_bitwise_equal(
    model: PreTrainedModel, canonical: GraphModule, layers: tuple[int, ...]
) -> None:
    batch = random_batch(model, LENGTHS)
    with torch.no_grad():
        expected = canonical(**batch)["logits"]
    ratios = dict.fromkeys(layers, 1.0)
    assert torch.equal(run(prune(canonical, ratios), batch, LENGTHS, ratios), expected)


@pytest.mark.parametrize("keep_ratios", POINTS, ids=str)
def test_logits_equal_the_reference(
    model: PreTrainedModel, canonical: GraphModule, keep_ratios: dict[int, float]
) -> None:
    batch = random_batch(model, LENGTHS)
    logits = run(prune(canonical, keep_ratios), batch, LENGTHS, keep_ratios)
    for row, length in enumerate(LENGTHS):
        example = {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        expected = run_reference(model, **example, keep_ratios=keep_ratios).logits
        np.testing.assert_allclose(logits[row], expected, atol=1e-4)


def test_pruning_changes_the_logits(model: PreTrainedModel, canonical: GraphModule) -> None:
    batch = random_batch(model, [12])
    with torch.no_grad():
        unpruned = canonical(**batch)["logits"]
    assert (run(prune(canonical, {0: 0.2}), batch, [12], {0: 0.2}) - unpruned).abs().max() > 1e-2


def test_kept_positions_equal_the_reference(model: PreTrainedModel, canonical: GraphModule) -> None:
    batch = random_batch(model, LENGTHS)
    prune(canonical, {0: 0.5})
    node = next(node for node in canonical.graph.nodes if node.target is prune_tokens)
    inputs = {**batch, **prune_inputs(LENGTHS, {0: 0.5})}
    ((_, _, kept_index),) = run_recorded(canonical, [node], inputs)
    for row, length in enumerate(LENGTHS):
        example = {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        kept = run_reference(model, **example, keep_ratios={0: 0.5}).kept[0]
        assert kept_index[row, : len(kept)].tolist() == kept.tolist()


@pytest.mark.parametrize("keep_ratios", POINTS, ids=str)
def test_hidden_states_get_shorter_after_each_prune(
    model: PreTrainedModel, canonical: GraphModule, keep_ratios: dict[int, float]
) -> None:
    prune(canonical, keep_ratios)
    inputs = {**random_batch(model, LENGTHS), **prune_inputs(LENGTHS, keep_ratios)}
    outputs = run_recorded(canonical, [layer.output for layer in find_layers(canonical)], inputs)
    expected, longest = [], max(LENGTHS)
    for layer in range(3):
        longest = count_kept(keep_ratios.get(layer, 1.0), longest)
        expected.append((len(LENGTHS), longest, model.config.hidden_size))
    assert [tuple(output.shape) for output in outputs] == expected


def test_feed_forward_and_later_attention_work_on_the_kept_tokens_alone(canonical: GraphModule, family: str) -> None:
    prune(canonical, {0: 0.25})
    inputs = {**random_batch(family_model(family), [20, 12]), **prune_inputs([20, 12], {0: 0.25})}
    first, second, _ = find_layers(canonical)
    nodes = [node for node in (*first.nodes, *second.nodes) if isinstance(node.meta.get("val"), Tensor)]
    values = dict(zip(nodes, run_recorded(canonical, nodes, inputs), strict=True))
    # (B, S, .) before the prune, (B, K, .) after it; heads are (B, H, S, .) or (B, S, H, .).
    pruned = next(node for node in first.nodes if node.target is prune_tokens)
    assert all(20 in values[node].shape for node in nodes if node < pruned)
    assert all(20 not in values[node].shape and 5 in values[node].shape for node in nodes if node > pruned)


def test_example_is_answered_alike_alone_and_in_a_batch(model: PreTrainedModel, canonical: GraphModule) -> None:
    ratios = {0: 0.6, 1: 0.6}
    batch = random_batch(model, LENGTHS)
    prune(canonical, ratios)
    together = run(canonical, batch, LENGTHS, ratios)
    for row, length in enumerate(LENGTHS):
        alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
        torch.testing.assert_close(run(canonical, alone, [length], ratios)[0], together[row], atol=1e-5, rtol=1e-4)


def test_padding_beyond_the_longest_example_changes_nothing(model: PreTrainedModel, canonical: GraphModule) -> None:
    ratios = {0: 0.6, 2: 0.6}
    prune(canonical, ratios)
    tight = random_batch(model, LENGTHS)
    wide = {
        name: torch.nn.functional.pad(value, (0, 9), value=model.config.pad_token_id if name == "input_ids" else 0)
        for name, value in tight.items()
    }
    expected = run(canonical, tight, LENGTHS, ratios)
    torch.testing.assert_close(run(canonical, wide, LENGTHS, ratios), expected, atol=1e-5, rtol=1e-4)


def test_another_keep_ratio_needs_no_other_graph(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    prune(bert_graph, {1: 1.0})
    batch = random_batch(tiny_bert, LENGTHS)
    for ratio in (0.9, 0.5, 0.1):
        run(bert_graph, batch, LENGTHS, {1: ratio})


def test_one_prune_and_its_inputs_are_added_and_no_attention(bert_graph: GraphModule) -> None:
    kinds = (ATTENTION, aten.linear.default, aten.layer_norm.default)
    before = [count_ops(bert_graph, kind) for kind in kinds]
    inputs = [node.target for node in bert_graph.graph.nodes if node.op == "placeholder"]
    prune(bert_graph, {1: 0.5})
    assert count_ops(bert_graph, prune_tokens) == 1
    assert [count_ops(bert_graph, kind) for kind in kinds] == before
    after = [node.target for node in bert_graph.graph.nodes if node.op == "placeholder"]
    assert after == [*inputs, "num_kept_1", "slots_1"]


def test_prune_stands_between_attention_and_feed_forward(canonical: GraphModule) -> None:
    site = find_layers(canonical)[1].attention_output
    prune(canonical, {1: 0.5})
    node = next(node for node in canonical.graph.nodes if node.target is prune_tokens)
    assert node.args[0] is site
    assert list(site.users) == [node]


def test_prune_scores_by_the_attention_of_its_own_layer(canonical: GraphModule) -> None:
    prune(canonical, {1: 0.5})
    layer = find_layers(canonical)[1]
    node = next(node for node in layer.nodes if node.target is prune_tokens)
    assert node.args[2] == (*layer.attention.args[:3], layer.scale)
    assert node.args[1] is layer.mask


def test_layers_before_a_prune_keep_the_whole_mask(bert_graph: GraphModule) -> None:
    whole = find_layers(bert_graph)[0].mask
    prune(bert_graph, {1: 0.5})
    masks = [layer.mask for layer in find_layers(bert_graph)]
    assert masks[:2] == [whole, whole]
    assert masks[2] is not whole


def test_gradients_reach_every_weight(model: PreTrainedModel, canonical: GraphModule) -> None:
    prune(canonical, {0: 0.7, 1: 0.7})
    batch = random_batch(model, LENGTHS)
    loss = canonical(**batch, **prune_inputs(LENGTHS, {0: 0.7, 1: 0.7}))["logits"].square().sum()
    parameters = dict(canonical.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    assert [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None] == []


def test_pruned_graph_lints_and_verifies(canonical: GraphModule) -> None:
    prune(canonical, {0: 0.5, 1: 0.5, 2: 0.5})
    canonical.graph.lint()
    verify(canonical)


def test_norm_first_encoder_prunes_bitwise_equal_when_all_is_kept() -> None:
    encoder = HandmadeEncoder(order="pre")
    gm = prune(copy_graph(run_passes(export_graph(encoder), [Canonicalize()])), {0: 1.0, 1: 1.0})
    batch = random_batch(family_model("distilbert"), LENGTHS)
    with torch.no_grad():
        assert torch.equal(run(gm, batch, LENGTHS, {0: 1.0, 1: 1.0}), encoder(**batch))


def test_sizes_read_behind_the_prune_are_those_of_the_kept_tokens() -> None:
    encoder = HandmadeEncoder()
    plain = prune(copy_graph(run_passes(export_graph(encoder), [Canonicalize()])), {1: 0.5})
    for layer in encoder.layers:
        layer.__class__ = ReadsSizes
    sized = prune(copy_graph(run_passes(export_graph(encoder), [Canonicalize()])), {1: 0.5})
    batch = random_batch(family_model("distilbert"), LENGTHS)
    assert torch.equal(run(sized, batch, LENGTHS, {1: 0.5}), run(plain, batch, LENGTHS, {1: 0.5}))


@pytest.mark.parametrize("layer", [-1, 3, 14])
def test_layer_that_is_not_there_is_refused(bert_graph: GraphModule, layer: int) -> None:
    with pytest.raises(PassError, match=rf"layer {layer}: the model has 3 encoder layers \(0-2\)"):
        prune(bert_graph, {layer: 0.5})


@pytest.mark.parametrize("layer", [0, 2])
def test_second_prune_of_a_layer_is_refused(bert_graph: GraphModule, layer: int) -> None:
    with pytest.raises(PassError, match=f"layer {layer} already prunes"):
        run_passes(bert_graph, [PruneTokens(layer), PruneTokens(layer)])


def test_refused_prune_leaves_the_graph_as_it_was(bert_graph: GraphModule) -> None:
    before = str(bert_graph.graph)
    with pytest.raises(PassError):
        prune(bert_graph, {3: 0.5})
    assert str(bert_graph.graph) == before


def test_graph_that_is_not_canonical_is_refused() -> None:
    with pytest.raises(PassError):
        prune(exported_graph("bert"), {0: 0.5})


def test_graph_without_a_mask_is_refused() -> None:
    with pytest.raises(PassError):
        prune(export_graph(HandmadeEncoder(causal=True)), {0: 0.5})


def test_attention_beside_feed_forward_is_refused() -> None:
    gm = copy_graph(run_passes(export_graph(HandmadeEncoder(order="parallel")), [Canonicalize()]))
    with pytest.raises(PassError, match="no hidden state separates its attention from its feed-forward"):
        prune(gm, {1: 0.5})


def test_classifier_that_reads_the_attention_mask_is_refused() -> None:
    gm = export_graph(HandmadeEncoder(reads="attention_mask"))
    with pytest.raises(PassError, match="attention_mask"):
        run_passes(gm, [Canonicalize(), PruneTokens(1)])


def passes_of(names: tuple[str, ...]) -> list[InsertExit | PruneTokens]:
    return [
        PruneTokens(int(name[1:])) if name[0] == "p" else InsertExit(int(name[1:]), build_head(int(name[1:])))
        for name in names
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(("p0", "p2", "e1", "e3"))), ids="-".join)
def test_order_of_prunes_and_exits_does_not_matter(
    bert_graph: GraphModule, tiny_bert: PreTrainedModel, order: tuple[str, ...]
) -> None:
    inputs = {**random_batch(tiny_bert, LENGTHS), **prune_inputs(LENGTHS, {0: 0.6, 2: 0.5})}
    expected_graph = run_passes(canonical_graph("bert"), passes_of(("e1", "e3", "p0", "p2")))
    with torch.no_grad():
        expected = expected_graph(**inputs)
        found = run_passes(bert_graph, passes_of(order))(**inputs)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2))), ids=str)
def test_order_of_prunes_does_not_matter(
    bert_graph: GraphModule, tiny_bert: PreTrainedModel, order: tuple[int, ...]
) -> None:
    ratios = {0: 0.8, 1: 0.7, 2: 0.6}
    batch = random_batch(tiny_bert, LENGTHS)
    expected = run(prune(canonical_graph("bert"), ratios), batch, LENGTHS, ratios)
    run_passes(bert_graph, [PruneTokens(layer) for layer in order])
    assert torch.equal(run(bert_graph, batch, LENGTHS, ratios), expected)


def test_exits_of_a_pruning_graph_equal_the_reference(model: PreTrainedModel, canonical: GraphModule) -> None:
    ratios = {0: 0.7, 1: 0.5}
    heads = {layer: build_head(layer) for layer in range(4)}
    run_passes(canonical, [*(InsertExit(layer, head) for layer, head in heads.items()), PruneTokens(0), PruneTokens(1)])
    batch = random_batch(model, LENGTHS)
    with torch.no_grad():
        outputs = canonical(**batch, **prune_inputs(LENGTHS, ratios))
    for row, length in enumerate(LENGTHS):
        example = {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        exits = run_reference(model, **example, keep_ratios=ratios, heads=heads).exits
        for layer, (logits, entropy) in exits.items():
            np.testing.assert_allclose(outputs[f"logits_{layer}"][row], logits, atol=1e-4)
            assert outputs[f"entropy_{layer}"][row].item() == pytest.approx(entropy, abs=1e-4)


def test_prune_composes_with_truncation(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    head = build_head(2)
    run_passes(bert_graph, [PruneTokens(0), InsertExit(2, head), PruneTokens(1), TruncateAfterExit(2)])
    batch = random_batch(tiny_bert, LENGTHS)
    with torch.no_grad():
        logits = bert_graph(**batch, **prune_inputs(LENGTHS, {0: 0.5, 1: 0.5}))["logits_2"]
    types, ids = batch["token_type_ids"][0].tolist(), batch["input_ids"][0].tolist()
    trace = run_reference(tiny_bert, ids, types, keep_ratios={0: 0.5, 1: 0.5}, heads={2: head})
    np.testing.assert_allclose(logits[0], trace.exits[2][0], atol=1e-4)
