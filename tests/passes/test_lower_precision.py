"""Tests of lower precision and spelled-out attention: the same answers, and the casts where they belong."""

import copy

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from mpcompile.graph.segments import partition
from passes import LowerPrecision, SpellOutAttention, run_passes
from passes.encoder import ATTENTION
from tests.models import build_head, captured_model, count_ops, family_model, random_batch, run_recorded

aten = torch.ops.aten
LENGTHS = [12, 5, 1, 9]
LOW = (torch.float16, torch.bfloat16)


def first_segment(family: str) -> GraphModule:
    """Embeddings and two layers, the second of which prunes, with an exit behind them."""
    graph = partition(captured_model(family), {2: build_head(2)}, (1,))[0].graph_module
    assert graph is not None
    return graph


def inputs(family: str) -> dict[str, Tensor]:
    """A batch of which everything is kept."""
    return {
        **random_batch(family_model(family), LENGTHS),
        "num_kept_1": torch.tensor(LENGTHS),
        "slots_1": torch.arange(max(LENGTHS)),
    }


@torch.no_grad()
def run(graph: GraphModule, family: str) -> dict[str, Tensor]:
    names = {node.target for node in graph.graph.nodes if node.op == "placeholder"}
    result: dict[str, Tensor] = graph(**{name: value for name, value in inputs(family).items() if name in names})
    return result


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "modernbert", "deberta"])
def test_lower_precision_answers_nearly_the_same(family: str, dtype: torch.dtype) -> None:
    graph = first_segment(family)
    expected = run(graph, family)
    found = run(run_passes(copy.deepcopy(graph), [LowerPrecision(dtype)]), family)
    real = expected["mask"][:, 0, 0, :, None] >= 0
    for name, share in (("hidden", real), ("logits", 1.0)):
        error = ((found[name].float() - expected[name]) * share).norm()
        assert error < (0.005 if dtype == torch.float16 else 0.05) * (expected[name] * share).norm()


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_only_the_hidden_state_leaves_in_the_low_precision(dtype: torch.dtype) -> None:
    outputs = run(run_passes(first_segment("bert"), [LowerPrecision(dtype)]), "bert")
    assert {name: value.dtype for name, value in outputs.items()} == {
        "hidden": dtype, "mask": torch.float32, "logits": torch.float32, "entropy": torch.float32,
    }  # fmt: skip


def test_a_value_is_cast_once_for_all_who_read_it() -> None:
    graph = run_passes(first_segment("bert"), [LowerPrecision(torch.float16)])
    casts = [node.args for node in graph.graph.nodes if node.target is aten.to.dtype]
    assert len(casts) == len(set(casts)) > 0


def test_norms_and_the_sums_that_they_read_are_in_fp32() -> None:
    graph = run_passes(first_segment("bert"), [LowerPrecision(torch.float16)])
    norms = [node for node in graph.graph.nodes if node.target is aten.layer_norm.default]
    sums = [node.args[0] for node in norms]
    assert {node.target for node in sums} == {aten.add.Tensor}
    values = run_recorded(graph, [*norms, *sums, *(arg for node in sums for arg in node.args)], inputs("bert"))
    assert {value.dtype for value in values} == {torch.float32}


def test_activations_between_products_stay_in_the_low_precision() -> None:
    graph = run_passes(first_segment("bert"), [LowerPrecision(torch.float16)])
    activations = [
        node for node in graph.graph.nodes if node.target is aten.gelu.default and ".layer." in str(node.meta)
    ]
    values = run_recorded(graph, activations, inputs("bert"))
    assert [value.dtype for value in values] == [torch.float16] * 2


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "deberta"])
def test_spelled_out_attention_answers_the_same(family: str) -> None:
    graph = first_segment(family)
    expected = run(graph, family)
    spelled = run_passes(graph, [SpellOutAttention(torch.float32)])
    assert count_ops(spelled, ATTENTION) == 0
    torch.testing.assert_close(run(spelled, family)["logits"], expected["logits"], atol=1e-5, rtol=1e-5)
