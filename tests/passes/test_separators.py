"""Tests of separators: no prune drops one, and where none is known nothing is different."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

from passes import Canonicalize, InsertExit, PruneTokens, run_passes, split_segments
from passes.ops import MASKED, PROTECTED, additive_mask, keep_tokens, prune_tokens
from tests.models import (
    LogitsOnly,
    build_head,
    canonical_graph,
    copy_graph,
    export_graph,
    family_model,
    prune_inputs,
    random_batch,
    run_recorded,
)
from tests.reference import run_reference

SEPARATOR = 3
LENGTHS = [14, 9, 6, 11]


@functools.cache
def _graph() -> GraphModule:
    exported = export_graph(LogitsOnly(family_model("bert")), has_types=True)
    gm = run_passes(exported, [Canonicalize(SEPARATOR), *(PruneTokens(layer) for layer in range(3))])
    return run_passes(gm, [InsertExit(1, build_head(1)), InsertExit(2, build_head(2))])


def pairs(lengths: list[int], cuts: list[float], seed: int = 0) -> dict[str, Tensor]:
    """[CLS] first [SEP] second [SEP], the first text that share of the tokens."""
    batch = random_batch(family_model("bert"), lengths, seed=seed)
    for row, (length, cut) in enumerate(zip(lengths, cuts, strict=True)):
        batch["input_ids"][row, 1 + int(cut * (length - 2))] = SEPARATOR
        batch["input_ids"][row, length - 1] = SEPARATOR
    return batch


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(3, 38), min_size=1, max_size=5),
    cut=st.floats(0, 0.99),
    ratios=st.tuples(*[st.integers(1, 100)] * 3),
    seed=st.integers(0, 99),
)
def test_every_separator_survives_every_prune(
    lengths: list[int], cut: float, ratios: tuple[int, ...], seed: int
) -> None:
    gm, batch = _graph(), pairs(lengths, [cut] * len(lengths), seed)
    prunes = [node for node in gm.graph.nodes if node.target is prune_tokens]
    inputs = {**batch, **prune_inputs(lengths, {layer: ratio / 100 for layer, ratio in enumerate(ratios)})}
    expected = [int((row[:length] == SEPARATOR).sum()) for row, length in zip(batch["input_ids"], lengths, strict=True)]
    for _, mask, _ in run_recorded(gm, prunes, inputs):
        assert (mask[:, 0, 0] > 0).sum(1).tolist() == expected


def test_pruned_pairs_equal_the_reference() -> None:
    ratios, batch = {0: 0.4, 1: 0.5, 2: 0.9}, pairs(LENGTHS, [0.3, 0.6, 0.5, 0.8])
    with torch.no_grad():
        logits = _graph()(**batch, **prune_inputs(LENGTHS, ratios))["logits"]
    for row, length in enumerate(LENGTHS):
        ids, types = (batch[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        expected = run_reference(family_model("bert"), ids, types, keep_ratios=ratios, separator_id=SEPARATOR).logits
        np.testing.assert_allclose(logits[row], expected, atol=1e-4)


def test_separators_change_what_is_kept() -> None:
    ratios, batch = {0: 0.4, 1: 0.5}, pairs(LENGTHS, [0.3, 0.6, 0.5, 0.8])
    plain = run_passes(canonical_graph("bert"), [PruneTokens(0), PruneTokens(1)])
    told = run_passes(copy_graph(_told()), [PruneTokens(0), PruneTokens(1)])
    inputs = {**batch, **prune_inputs(LENGTHS, ratios)}
    with torch.no_grad():
        assert (told(**inputs)["logits"] - plain(**inputs)["logits"]).abs().max() > 1e-3


@functools.cache
def _told() -> GraphModule:
    return run_passes(export_graph(LogitsOnly(family_model("bert")), has_types=True), [Canonicalize(SEPARATOR)])


def test_keeping_every_token_is_bitwise_equal_to_the_model() -> None:
    batch, model = pairs(LENGTHS, [0.5] * 4), family_model("bert")
    with torch.no_grad():
        logits = _graph()(**batch, **prune_inputs(LENGTHS, {0: 1.0, 1: 1.0, 2: 1.0}))["logits"]
        assert torch.equal(logits, model(**batch).logits)


def test_protection_crosses_cuts() -> None:
    first, second, _ = split_segments(_graph())
    batch = pairs(LENGTHS, [0.3, 0.6, 0.5, 0.8])
    prunes = prune_inputs(LENGTHS, {0: 0.4, 1: 0.4, 2: 0.4})
    inputs = {**batch, **prunes, "rows": torch.tensor([2, 0]), "positions": torch.arange(6)}
    with torch.no_grad():
        inputs |= first(**{name: inputs[name] for name in (*batch, "num_kept_0", "slots_0")})
        inputs["num_kept_1"], inputs["slots_1"] = torch.tensor([4, 4]), torch.arange(4)
        names = [node.target for node in second.graph.nodes if node.op == "placeholder"]
        mask = second(**{name: inputs[name] for name in names})["mask"]
    assert (mask[:, 0, 0] > 0).sum(1).tolist() == [2, 2]


def test_graph_without_a_separator_gathers_no_mask() -> None:
    gm = run_passes(canonical_graph("bert"), [PruneTokens(1)])
    node = next(node for node in gm.graph.nodes if node.target is prune_tokens)
    assert node.kwargs == {}


def test_mask_protects_separators_and_no_padding() -> None:
    mask = additive_mask(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[2, 7, 3, 3]]), 3)
    assert mask[0, 0, 0].tolist() == pytest.approx([0.0, 0.0, PROTECTED, MASKED], rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_protection_changes_no_score(dtype: torch.dtype) -> None:
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(scores + torch.tensor(PROTECTED, dtype=dtype), scores)
    assert torch.tensor(PROTECTED, dtype=dtype) > 0


def test_position_0_is_kept_before_separators() -> None:
    mask = torch.full((1, 1, 1, 6), PROTECTED)
    kept = keep_tokens(torch.ones(1, 6), mask, torch.tensor([2]), torch.arange(2), separated=True)
    assert kept[0, 0] == 0
