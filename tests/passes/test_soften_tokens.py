"""Tests of soft masks: what training sees in place of a prune."""

import pytest
import torch
from torch.fx import GraphModule
from transformers import PreTrainedModel

from passes import InsertExit, PassError, PruneByThreshold, SoftenTokens, run_passes
from passes.encoder import find_layers
from passes.threshold_ops import soften_tokens
from tests.models import build_head, canonical_graph, exported_graph, random_batch, run_recorded

LENGTHS = [12, 5, 1, 9]


@torch.no_grad()
def run(gm: GraphModule, model: PreTrainedModel, threshold: float) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = gm(**random_batch(model, LENGTHS), token_threshold_1=torch.tensor([threshold]))
    return outputs


def test_a_threshold_far_below_changes_nothing(canonical: GraphModule, model: PreTrainedModel) -> None:
    with torch.no_grad():
        expected = canonical(**random_batch(model, LENGTHS))["logits"]
    outputs = run(run_passes(canonical, [SoftenTokens(1, 1e-3)]), model, -1.0)
    assert torch.equal(outputs["logits"], expected)
    assert outputs["soft_kept_1"].tolist() == [1.0] * len(LENGTHS)


def test_a_hard_mask_keeps_what_a_prune_keeps(model: PreTrainedModel, canonical: GraphModule, family: str) -> None:
    soft = run(run_passes(canonical, [SoftenTokens(1, 1e-9)]), model, 0.1)["soft_kept_1"]
    kept = run(run_passes(canonical_graph(family), [PruneByThreshold(1)]), model, 0.1)["kept_1"]
    torch.testing.assert_close(soft * torch.tensor(LENGTHS), kept.float())
    assert kept.sum() < sum(LENGTHS)


def test_faded_tokens_leave_the_layer_as_zeros(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    run_passes(bert_graph, [SoftenTokens(1, 1e-9)])
    inputs = {**random_batch(tiny_bert, [8]), "token_threshold_1": torch.tensor([1.0])}
    (entering,) = run_recorded(bert_graph, [find_layers(bert_graph)[2].input], inputs)
    assert (entering[0, 1:] == 0).all()
    assert (entering[0, 0] != 0).any()


def test_exits_read_what_was_faded(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    run_passes(bert_graph, [InsertExit(2, build_head(2)), SoftenTokens(1, 1e-3)])
    low, high = (run(bert_graph, tiny_bert, threshold)["logits_2"] for threshold in (-1.0, 1.0))
    assert not torch.allclose(low, high)


def test_the_threshold_has_a_gradient(bert_graph: GraphModule, tiny_bert: PreTrainedModel) -> None:
    run_passes(bert_graph, [SoftenTokens(1, 1e-2)])
    threshold = torch.tensor([0.1], requires_grad=True)
    outputs = bert_graph(**random_batch(tiny_bert, LENGTHS), token_threshold_1=threshold)
    (gradient,) = torch.autograd.grad(outputs["soft_kept_1"].mean(), threshold)
    assert gradient.item() < 0  # a higher threshold keeps less


def test_all_layers_may_be_softened(bert_graph: GraphModule) -> None:
    run_passes(bert_graph, [SoftenTokens(layer, 1e-3) for layer in range(3)])
    assert sum(node.target is soften_tokens for node in bert_graph.graph.nodes) == 3


def test_layer_that_is_not_there_is_refused(bert_graph: GraphModule) -> None:
    with pytest.raises(PassError, match=r"layer 7: the model has 3 encoder layers \(0-2\)"):
        run_passes(bert_graph, [SoftenTokens(7, 1e-3)])


def test_graph_that_is_not_canonical_is_refused() -> None:
    with pytest.raises(PassError):
        run_passes(exported_graph("bert"), [SoftenTokens(0, 1e-3)])
