"""Tests of partition: a captured model as a chain of segments."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpcompile.contract.segment import Segment
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.rewrite import rewrite
from mpcompile.graph.segments import partition, tap
from passes import ExitHead, PassError
from passes.encoder import ATTENTION
from tests.models import (
    HIDDEN_SIZE,
    build_head,
    count_ops,
    family_model,
    prune_inputs,
    random_batch,
)
from tests.reference import run_reference

LENGTHS = [12, 5, 1, 9]
HANDED_ON = ("hidden", "mask", "logits", "entropy")
ENTERED = ("hidden", "mask", "rows", "positions")


def heads(*exit_layers: int) -> dict[int, ExitHead]:
    return {layer: build_head(layer) for layer in exit_layers}


def layers_in(segment: Segment) -> set[int]:
    assert segment.graph_module is not None
    names = [name for name, _ in segment.graph_module.named_parameters()]
    return {int(name.split(".layer.")[1].split(".")[0]) for name in names if ".layer." in name}


@torch.no_grad()
def run_chain(segments: tuple[Segment, ...], inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
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
        results.append(segment.graph_module(**{name: given[name] for name in segment.input_names}))
    return results


def test_model_without_exits_is_one_segment(captured: CapturedModel) -> None:
    (segment,) = partition(captured, {})
    assert (segment.index, segment.exit_layer, segment.prune_layers) == (0, 3, ())
    assert segment.input_names == captured.input_names
    assert segment.output_names == ("logits",)


def test_segments_are_described(captured: CapturedModel) -> None:
    first, second, third = partition(captured, heads(1, 2), prune_layers=(0, 2))
    assert [segment.index for segment in (first, second, third)] == [0, 1, 2]
    assert [segment.exit_layer for segment in (first, second, third)] == [1, 2, 3]
    assert [segment.prune_layers for segment in (first, second, third)] == [(0,), (), (2,)]
    assert [segment.hidden_size for segment in (first, second, third)] == [HIDDEN_SIZE] * 3


def test_inputs_and_outputs_are_those_of_the_contract(captured: CapturedModel) -> None:
    first, second, third = partition(captured, heads(1, 2), prune_layers=(0, 2))
    assert first.input_names == (*captured.input_names, "num_kept_0", "slots_0")
    assert second.input_names == ENTERED
    assert third.input_names == (*ENTERED, "num_kept_2", "slots_2")
    assert [segment.output_names for segment in (first, second, third)] == [HANDED_ON, HANDED_ON, ("logits",)]


def test_every_segment_has_the_precision_asked_for(captured: CapturedModel) -> None:
    assert [segment.precision for segment in partition(captured, heads(1), precision="bf16")] == ["bf16", "bf16"]


def test_prune_layers_are_named_in_order_however_they_are_given(captured: CapturedModel) -> None:
    (segment,) = partition(captured, {}, prune_layers=(2, 0))
    assert segment.prune_layers == (0, 2)


def test_exit_0_leaves_the_embeddings_alone_in_the_first_segment(captured: CapturedModel) -> None:
    first, second = partition(captured, heads(0))
    assert (first.exit_layer, layers_in(first), layers_in(second)) == (0, set(), {0, 1, 2})


def test_every_layer_s_weights_are_in_one_segment(captured: CapturedModel) -> None:
    assert [layers_in(segment) for segment in partition(captured, heads(1, 2))] == [{0}, {1}, {2}]


@pytest.mark.parametrize("last_exit", [1, 2])
def test_layers_behind_the_last_exit_are_left_out(captured: CapturedModel, last_exit: int) -> None:
    (segment,) = partition(captured, heads(last_exit), last_exit=last_exit)
    assert layers_in(segment) == set(range(last_exit))
    assert count_ops(segment.graph_module, ATTENTION) == last_exit
    assert not any("classifier" in name for name, _ in segment.graph_module.named_parameters())


def test_layers_behind_the_last_exit_are_left_out_of_the_rewritten_graph(captured: CapturedModel) -> None:
    graph = rewrite(captured.graph_module, heads(1), prune_layers=(), last_exit=1)
    assert count_ops(graph, ATTENTION) == 1
    assert not any(".layer.1." in name or ".layer.2." in name for name, _ in graph.named_parameters())


def test_last_exit_ends_the_chain(captured: CapturedModel) -> None:
    segments = partition(captured, heads(1, 2), last_exit=2)
    assert [segment.exit_layer for segment in segments] == [1, 2]
    assert segments[-1].output_names == ("logits",)


def test_last_exit_allows_prunes_before_it(captured: CapturedModel) -> None:
    segments = partition(captured, heads(1, 2), prune_layers=(0, 1), last_exit=2)
    assert [segment.prune_layers for segment in segments] == [(0,), (1,)]


def test_heads_behind_the_last_exit_are_left_out(captured: CapturedModel) -> None:
    (segment,) = partition(captured, heads(1, 2), last_exit=1)
    assert segment.exit_layer == 1
    assert not any("exits.2" in name for name, _ in segment.graph_module.named_parameters())


def test_last_exit_may_be_0(captured: CapturedModel) -> None:
    (segment,) = partition(captured, heads(0), last_exit=0)
    assert (segment.exit_layer, layers_in(segment), segment.output_names) == (0, set(), ("logits",))


def test_segments_share_weights_with_the_captured_model(captured: CapturedModel) -> None:
    given = dict(captured.graph_module.named_parameters())
    own = heads(1)
    for segment in partition(captured, own, prune_layers=(0,)):
        for name, parameter in segment.graph_module.named_parameters():
            assert parameter is (
                own[1].get_parameter(name.split(".", 2)[2]) if name.startswith("exits.") else given[name]
            )


def test_captured_model_is_left_as_it_is(captured: CapturedModel) -> None:
    before = str(captured.graph_module.graph)
    partition(captured, heads(1, 2), prune_layers=(0, 1), last_exit=2)
    assert str(captured.graph_module.graph) == before
    assert not hasattr(captured.graph_module, "exits")


def test_chain_is_bitwise_equal_to_the_unsplit_graph(family: str) -> None:
    model = family_model(family)
    captured = capture(model)
    own, ratios = heads(1, 2), {0: 0.7, 2: 0.5}
    inputs = {**random_batch(model, LENGTHS), **prune_inputs(LENGTHS, ratios)}
    with torch.no_grad():
        expected = rewrite(captured.graph_module, own, tuple(ratios))(**inputs)
    results = run_chain(partition(captured, own, tuple(ratios)), inputs)
    for layer, result in zip(own, results, strict=False):
        assert torch.equal(result["logits"], expected[f"logits_{layer}"])
        assert torch.equal(result["entropy"], expected[f"entropy_{layer}"])
    assert torch.equal(results[-1]["logits"], expected["logits"])


def test_chain_equals_the_reference(captured: CapturedModel, tiny_bert: PreTrainedModel) -> None:
    own, ratios = heads(1, 2), {0: 0.7, 2: 0.5}
    batch = random_batch(tiny_bert, LENGTHS)
    results = run_chain(partition(captured, own, tuple(ratios)), {**batch, **prune_inputs(LENGTHS, ratios)})
    for row, length in enumerate(LENGTHS):
        ids, types = (batch[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        trace = run_reference(tiny_bert, ids, types, ratios, own)
        np.testing.assert_allclose(results[0]["logits"][row], trace.exits[1][0], atol=1e-4)
        np.testing.assert_allclose(results[1]["entropy"][row], trace.exits[2][1], atol=1e-4)
        np.testing.assert_allclose(results[2]["logits"][row], trace.logits, atol=1e-4)


def test_prune_behind_the_last_exit_is_refused(captured: CapturedModel) -> None:
    with pytest.raises(PassError, match=r"layer 2: the model has 2 encoder layers \(0-1\)"):
        partition(captured, heads(2), prune_layers=(2,), last_exit=2)


def test_last_exit_without_a_head_is_refused(captured: CapturedModel) -> None:
    with pytest.raises(PassError, match=r"exit_layer 2: the graph has exits \[1\]"):
        partition(captured, heads(1), last_exit=2)


def test_tap_returns_the_features_of_every_exit_beside_the_logits(captured: CapturedModel) -> None:
    segment = tap(captured, (0, 2, 3), (1,), "f32")
    assert segment.output_names == ("features_0", "features_2", "features_3", "logits")
    assert (segment.index, segment.exit_layer, segment.prune_layers) == (0, 3, (1,))


def test_heads_classify_tapped_features_as_the_exits_do(captured: CapturedModel, tiny_bert: PreTrainedModel) -> None:
    own, ratios = heads(0, 2, 3), {1: 0.5, 2: 0.5}
    inputs = {**random_batch(tiny_bert, LENGTHS), **prune_inputs(LENGTHS, ratios)}
    with torch.no_grad():
        tapped = tap(captured, tuple(own), tuple(ratios), "f32").graph_module(**inputs)
        exits = rewrite(captured.graph_module, own, tuple(ratios))(**inputs)
        for layer, head in own.items():
            assert torch.equal(head.classify(tapped[f"features_{layer}"]), exits[f"logits_{layer}"])
    assert torch.equal(tapped["logits"], exits["logits"])
