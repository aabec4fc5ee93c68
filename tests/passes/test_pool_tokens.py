"""Tests of PoolTokens: one vector per text, from the tokens that are left."""

import pytest
import torch
from torch.fx import GraphModule

from passes import Canonicalize, PassError, PoolTokens, PruneTokens, run_passes, verify
from passes.ops import pool_tokens
from tests.models import FAMILIES, canonical_graph, count_ops, family_model, prune_inputs, random_batch
from tests.models import export_graph as export
from tests.reference import run_reference

LENGTHS = [9, 1, 6]
RATIOS = {0: 0.7, 2: 0.5}


class LastHidden(torch.nn.Module):
    """The encoder of a classifier with its hidden state as the only output."""

    def __init__(self, family: str) -> None:
        super().__init__()
        model = family_model(family)
        self.encoder = getattr(model, model.base_model_prefix)
        self.has_types = getattr(model.config, "type_vocab_size", 0) > 1

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state


@pytest.fixture(params=FAMILIES)
def named_graph(request: pytest.FixtureRequest) -> tuple[str, GraphModule]:
    module = LastHidden(request.param)
    return request.param, run_passes(export(module, has_types=module.has_types), [Canonicalize()])


def test_pooling_is_one_node_and_the_graph_stays_canonical(named_graph: tuple[str, GraphModule]) -> None:
    graph = run_passes(named_graph[1], [PoolTokens(False)])
    assert count_ops(graph, pool_tokens) == 1
    assert list(graph.graph.output_node().args[0]) == ["logits"]
    verify(graph)


@pytest.mark.parametrize("normalise", [False, True])
def test_vector_is_the_mean_over_kept_tokens_of_the_reference(
    named_graph: tuple[str, GraphModule], normalise: bool
) -> None:
    name, graph = named_graph
    model = family_model(name)
    run_passes(graph, [PoolTokens(normalise), *(PruneTokens(layer) for layer in RATIOS)])
    batch = random_batch(model, LENGTHS)
    with torch.no_grad():
        vectors = graph(**batch, **prune_inputs(LENGTHS, RATIOS))["logits"]
    for row, length in enumerate(LENGTHS):
        types = batch["token_type_ids"][row, :length].tolist() if "token_type_ids" in batch else None
        hidden = run_reference(model, batch["input_ids"][row, :length].tolist(), types, RATIOS).hidden[-1]
        expected = torch.from_numpy(hidden).mean(0).float()
        expected = expected / expected.norm() if normalise else expected
        torch.testing.assert_close(vectors[row], expected, atol=1e-4, rtol=1e-4)


def test_pooling_behind_a_prune_reads_the_mask_of_the_prune() -> None:
    graph = run_passes(export(LastHidden("roberta")), [Canonicalize(), PruneTokens(2), PoolTokens(False)])
    batch = random_batch(family_model("roberta"), LENGTHS)
    before = run_passes(export(LastHidden("roberta")), [Canonicalize(), PoolTokens(False), PruneTokens(2)])
    inputs = {**batch, **prune_inputs(LENGTHS, {2: 0.5})}
    with torch.no_grad():
        assert torch.equal(graph(**inputs)["logits"], before(**inputs)["logits"])


def test_graph_of_a_classifier_is_refused() -> None:
    with pytest.raises(PassError, match="PoolTokens: the graph does not return a hidden state"):
        run_passes(canonical_graph("bert"), [PoolTokens(False)])
