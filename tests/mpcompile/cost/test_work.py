"""Tests of counted work: against torch's own counter on real runs, and against numbers that a person can count."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpcompile.contract.operating_point import OperatingPoint, count_kept
from mpcompile.contract.segment import Segment
from mpcompile.contract.task import Task
from mpcompile.cost.fusion import FP32_BYTES, Group
from mpcompile.cost.regions import GraphWork, Part
from mpcompile.cost.tracing import BATCH, LENGTH, kept_symbol
from mpcompile.cost.work import HEAD_WIDTH, count_region, estimate_segment, estimate_work
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition
from passes import ExitHead
from tests.models import (
    HIDDEN_SIZE,
    MAX_POSITIONS,
    NUM_LABELS,
    VOCAB_SIZE,
    build_model,
    canonical_graph,
    family_model,
    prune_inputs,
    random_batch,
)
from tests.mpcompile.cost.counted import B, S, linear, pointwise
from tests.mpcompile.cost.counted import attention as attention_group

D, INNER, HEADS, NUM_LAYERS = HIDDEN_SIZE, 48, 4, 3
FULL = OperatingPoint((NUM_LAYERS,))


def count_products(parts: Iterable[Part], batch_size: int) -> float:
    """Flops of matrix products alone: what torch's counter counts."""
    total = 0.0
    for part in parts:
        work = part.region.evaluate(np.float64(batch_size), part.seq_len, kept_by(part))
        for kind, count, product in zip(work.kinds, work.count, work.products, strict=True):
            total += count * (2 if kind == "attention" else 1) * 2 * float(np.prod(product))
    return total


def kept_by(part: Part) -> np.ndarray:
    return count_kept(part.keep_ratio, part.seq_len)


def count_flops(parts: Iterable[Part], batch_size: int) -> float:
    return float(sum(p.region.count_flops(np.float64(batch_size), p.seq_len, kept_by(p)) for p in parts))


def run_counted(call: Callable[[], object]) -> int:
    """Flops that torch counts in a run whose attention is plain batched products, which it knows."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


# Against torch.


@pytest.fixture(scope="module", params=["bert", "electra", "distilbert"])
def counted_family(request: pytest.FixtureRequest, tiny_work: GraphWork) -> tuple[str, GraphWork]:
    """A family, and the work of its tiny model; ELECTRA has one product more, DistilBERT no token types."""
    if request.param == "bert":
        return "bert", tiny_work
    graph, names = canonical_graph(request.param), ("input_ids", "attention_mask")
    task = Task("single_label", NUM_LABELS)
    captured = CapturedModel(graph, names, NUM_LAYERS, NUM_LABELS, D, MAX_POSITIONS, VOCAB_SIZE, {}, task)
    return request.param, estimate_work(captured, "OpenVINO")


@pytest.mark.parametrize(("batch_size", "seq_len"), [(1, 9), (4, 21)])
def test_products_of_a_whole_model_are_those_that_torch_counts(
    counted_family: tuple[str, GraphWork], batch_size: int, seq_len: int
) -> None:
    family, work = counted_family
    model = family_model(family)
    counted = run_counted(lambda: model(**random_batch(model, [seq_len] * batch_size)))
    parts = work.list_parts(True, 0, NUM_LAYERS, np.float64(seq_len), FULL)
    assert count_products(parts, batch_size) == counted


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("batch_size", "seq_len", "ratio"), [(1, 9, 0.5), (4, 21, 0.3), (2, 30, 1.0)])
def test_products_of_a_pruned_segment_are_those_that_torch_counts(
    tiny_work: GraphWork, cut: dict[str, tuple[Segment, ...]], index: int, batch_size: int, seq_len: int, ratio: float
) -> None:
    segment = cut["one exit, two prunes"][index]
    (layer,) = segment.prune_layers
    counted = run_counted(lambda: segment.graph_module(**make_inputs(segment, batch_size, seq_len, ratio)))
    point = OperatingPoint((segment.exit_layer,), (), (layer,), (ratio,))
    parts = tiny_work.list_parts(index == 0, (0, 1)[index], segment.exit_layer, np.float64(seq_len), point)
    assert count_products(parts, batch_size) == counted


def make_inputs(segment: Segment, batch_size: int, seq_len: int, ratio: float) -> dict[str, torch.Tensor]:
    inputs = {
        **random_batch(family_model("bert"), [seq_len] * batch_size),
        "hidden": torch.zeros(batch_size, seq_len, D),
        "mask": torch.zeros(batch_size, 1, 1, seq_len),
        "rows": torch.arange(batch_size),
        "positions": torch.arange(seq_len),
        **prune_inputs([seq_len] * batch_size, dict.fromkeys(segment.prune_layers, ratio)),
    }
    return {name: inputs[name] for name in segment.input_names}


# Segments composed of regions.

CUTS = {
    "whole": ((), ()),
    "one exit, two prunes": ((1,), (0, 2)),
    "two prunes before an exit": ((2,), (0, 1)),
    "two exits, one prune": ((1, 2), (1,)),
}


@pytest.fixture(scope="module")
def cut(captured: CapturedModel) -> dict[str, tuple[Segment, ...]]:
    """The tiny BERT, cut and pruned in several ways, with heads as wide as those that are counted."""
    return {
        name: partition(captured, {layer: ExitHead(D, NUM_LABELS, HEAD_WIDTH) for layer in exits}, prunes)
        for name, (exits, prunes) in CUTS.items()
    }


@pytest.fixture(scope="module")
def estimated(cut: dict[str, tuple[Segment, ...]]) -> dict[str, list[list[Group]]]:
    """The groups of every segment, traced from its own graph."""
    return {name: [estimate_segment(segment, "OpenVINO") for segment in segments] for name, segments in cut.items()}


@pytest.fixture(scope="module")
def flops_of(estimated: dict[str, list[list[Group]]]) -> dict[str, list[Callable[..., float]]]:
    """Flops of every segment as functions of B, S and the K of its layers."""
    symbols = (BATCH, LENGTH, *map(kept_symbol, range(NUM_LAYERS)))
    return {
        name: [sympy.lambdify(symbols, sum(g.matmul_flops + g.vector_flops for g in groups)) for groups in segments]
        for name, segments in estimated.items()
    }


@pytest.mark.parametrize("name", CUTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch_size=st.integers(1, 64), seq_len=st.integers(1, 512), ratios=st.tuples(*[st.floats(0.01, 1.0)] * 2))
def test_regions_of_a_segment_add_up_to_its_flops(
    tiny_work: GraphWork,
    flops_of: Mapping[str, list[Callable[..., float]]],
    name: str,
    batch_size: int,
    seq_len: int,
    ratios: tuple[float, float],
) -> None:
    exits, prunes = CUTS[name]
    point = OperatingPoint((NUM_LAYERS,), (), prunes, ratios[: len(prunes)])
    ends = (*exits, NUM_LAYERS)
    length = np.float64(seq_len)
    for first, exit_layer, flops in zip((0, *exits), ends, flops_of[name], strict=True):
        kept, left = [], length
        for layer in range(NUM_LAYERS):
            if first <= layer < exit_layer:
                left = np.float64(count_kept(point.keep_ratio_at(layer), left))
            kept.append(float(left))
        parts = tiny_work.list_parts(first == 0, first, exit_layer, length, point)
        assert count_flops(parts, batch_size) == pytest.approx(flops(batch_size, float(length), *kept), rel=1e-12)
        length = left


@pytest.mark.parametrize("name", CUTS)
def test_regions_of_a_segment_add_up_to_its_weights(
    tiny_work: GraphWork, estimated: dict[str, list[list[Group]]], name: str
) -> None:
    exits, prunes = CUTS[name]
    point = OperatingPoint((NUM_LAYERS,), (), prunes, (0.5,) * len(prunes))
    for first, exit_layer, groups in zip((0, *exits), (*exits, NUM_LAYERS), estimated[name], strict=True):
        parts = tiny_work.list_parts(first == 0, first, exit_layer, np.float64(8), point)
        assert sum(part.region.weight_bytes for part in parts) == float(sum(group.weight_bytes for group in groups))


@pytest.mark.parametrize("name", CUTS)
def test_regions_of_a_segment_are_about_as_many_launches(
    tiny_work: GraphWork, estimated: dict[str, list[list[Group]]], name: str
) -> None:
    exits, prunes = CUTS[name]
    point = OperatingPoint((NUM_LAYERS,), (), prunes, (0.5,) * len(prunes))
    for first, exit_layer, groups in zip((0, *exits), (*exits, NUM_LAYERS), estimated[name], strict=True):
        parts = list(tiny_work.list_parts(first == 0, first, exit_layer, np.float64(8), point))
        composed, own = sum(part.region.num_launches for part in parts), sum(group.num_launches for group in groups)
        assert own <= composed <= own + len(parts)  # what two regions read cannot join a kernel of either


def test_weights_of_a_model_are_its_parameters_without_its_tables(tiny_work: GraphWork) -> None:
    model = family_model("bert")
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    expected = sum(FP32_BYTES * p.numel() for p in model.parameters() if id(p) not in tables)
    parts = tiny_work.list_parts(True, 0, NUM_LAYERS, np.float64(8), FULL)
    assert sum(part.region.weight_bytes for part in parts) == expected


# What a segment is composed of.


def kinds_of(work: GraphWork, parts: Iterable[Part]) -> list[str]:
    """Names of the regions that parts are of."""
    regions = {
        "entry": [work.entry],
        "embeddings": [work.embeddings],
        "attention": work.attention,
        "prune": work.prune,
        "feed_forward": work.feed_forward,
        "exit": work.exits,
        "classifier": [work.classifier],
    }
    return [next(kind for kind, of_kind in regions.items() if part.region in of_kind) for part in parts]


def test_whole_model_is_embeddings_layers_and_classifier(tiny_work: GraphWork) -> None:
    parts = tiny_work.list_parts(True, 0, NUM_LAYERS, np.float64(8), FULL)
    assert kinds_of(tiny_work, parts) == ["embeddings", *["attention", "feed_forward"] * 3, "classifier"]


def test_first_segment_ends_with_its_exit(tiny_work: GraphWork) -> None:
    parts = tiny_work.list_parts(True, 0, 1, np.float64(8), FULL)
    assert kinds_of(tiny_work, parts) == ["embeddings", "attention", "feed_forward", "exit"]


def test_later_segment_begins_with_its_entry(tiny_work: GraphWork) -> None:
    parts = tiny_work.list_parts(False, 2, 3, np.float64(8), FULL)
    assert kinds_of(tiny_work, parts) == ["entry", "attention", "feed_forward", "classifier"]


def test_prune_stands_between_attention_and_feed_forward(tiny_work: GraphWork) -> None:
    parts = list(tiny_work.list_parts(False, 1, 3, np.float64(8), OperatingPoint((3,), (), (1,), (0.5,))))
    expected = ["entry", "attention", "prune", "feed_forward", "attention", "feed_forward", "classifier"]
    assert kinds_of(tiny_work, parts) == expected
    assert [float(part.seq_len) for part in parts] == [8, 8, 8, 4, 4, 4, 4]
    assert [part.keep_ratio for part in parts] == [1, 1, 0.5, 1, 1, 1, 1]


def test_tokens_of_many_lengths_are_pruned_at_once(tiny_work: GraphWork) -> None:
    parts = list(tiny_work.list_parts(True, 0, 1, np.array([4.0, 9.0]), OperatingPoint((1,), (), (0,), (0.5,))))
    assert parts[-1].seq_len.tolist() == [4, 5]  # never fewer than 4


# Regions of a real model.


def test_layers_that_are_alike_share_a_region(tiny_work: GraphWork) -> None:
    for regions in (tiny_work.attention, tiny_work.prune, tiny_work.feed_forward, tiny_work.exits):
        assert len(regions) == tiny_work.num_layers == NUM_LAYERS
        assert all(region is regions[0] for region in regions)


def test_attention_half_of_a_layer_is_four_products_and_attention(tiny_work: GraphWork) -> None:
    b, s = 2, 10
    products, attention = 4 * 2 * b * s * D * D, 2 * 2 * b * s * s * D
    assert count_products([Part(tiny_work.attention[0], np.float64(s))], b) == products + attention


def test_feed_forward_half_of_a_layer_is_two_products(tiny_work: GraphWork) -> None:
    b, s = 3, 7
    assert count_products([Part(tiny_work.feed_forward[2], np.float64(s))], b) == 2 * 2 * b * s * D * INNER


def test_flops_beside_products_are_gelu_residual_and_norm(tiny_work: GraphWork) -> None:
    b, s = 3, 7
    vector = b * s * (15 * INNER + D + 8 * D)
    assert count_flops([Part(tiny_work.feed_forward[0], np.float64(s))], b) == 2 * 2 * b * s * D * INNER + vector


def test_bytes_of_a_feed_forward_are_those_of_its_kernels(tiny_work: GraphWork) -> None:
    b, s = 2, 10
    work = tiny_work.feed_forward[0].evaluate(np.float64(b), np.float64(s))
    up_and_gelu, down, residual, norm = (D + INNER), (INNER + D), 3 * D, 2 * D
    assert sum(work.activation_bytes) == FP32_BYTES * b * s * (up_and_gelu + down + residual + norm)
    assert sum(work.weight_bytes) == FP32_BYTES * (2 * D * INNER + INNER + D + 2 * D)


def test_classifier_reads_one_token_of_each_example(tiny_work: GraphWork) -> None:
    assert count_products([Part(tiny_work.classifier, np.float64(30))], 5) == 2 * 5 * (D * D + D * NUM_LABELS)


def test_exit_is_a_head_of_two_products(tiny_work: GraphWork) -> None:
    flops = 2 * 5 * (2 * D * HEAD_WIDTH + HEAD_WIDTH * NUM_LABELS)
    assert count_products([Part(tiny_work.exits[1], np.float64(30))], 5) == flops


def test_prune_and_entry_hold_no_products(tiny_work: GraphWork) -> None:
    assert count_products([Part(tiny_work.prune[0], np.float64(8), 0.5), Part(tiny_work.entry, np.float64(8))], 3) == 0


def test_entry_reads_and_writes_every_token_once(tiny_work: GraphWork) -> None:
    b, s = 2.0, 10.0
    moved = sum(tiny_work.entry.evaluate(np.float64(b), np.float64(s)).activation_bytes)
    states = FP32_BYTES * 2 * b * s * D
    assert states < moved < 1.5 * states  # the rest is the mask and the indices


def test_prune_costs_more_for_more_kept_tokens(tiny_work: GraphWork) -> None:
    few, many = (tiny_work.prune[0].evaluate(np.float64(2), np.float64(20), np.float64(k)) for k in (5, 15))
    assert sum(few.activation_bytes) < sum(many.activation_bytes)


def test_pruned_layer_does_its_feed_forward_on_kept_tokens_alone(tiny_work: GraphWork) -> None:
    parts = tiny_work.list_parts(True, 0, 1, np.float64(20), OperatingPoint((1,), (), (0,), (0.25,)))
    feed_forward = next(part for part in parts if part.region is tiny_work.feed_forward[0])
    assert count_products([feed_forward], 1) == 2 * 2 * 5 * D * INNER


def test_model_of_few_positions_is_counted() -> None:
    captured = capture(build_model("bert", num_layers=1, max_position_embeddings=16))
    assert estimate_work(captured, "per operator").num_layers == 1


# Regions made by hand.


def test_region_of_one_linear_is_counted() -> None:
    work = count_region([linear(4, 6)]).evaluate(np.float64(2), np.float64(5))
    assert (work.kinds, work.count, work.num_launches) == (("matmul",), (1,), (1,))
    assert [tuple(map(float, product)) for product in work.products] == [(1, 10, 4, 6)]
    assert (work.vector_flops, work.weight_bytes) == ((0,), (4 * (4 * 6 + 6),))
    assert work.activation_bytes == (4 * 10 * (4 + 6),)


def test_flops_of_one_linear_are_two_for_each_multiply_add() -> None:
    assert count_region([linear(4, 6)]).count_flops(np.float64(2), np.float64(5)) == 2 * 10 * 4 * 6


def test_flops_of_attention_are_those_of_both_its_products() -> None:
    assert count_region([attention_group(2, 8)]).count_flops(np.float64(3), np.float64(5)) == 2 * (
        2 * 3 * 2 * 5 * 5 * 8
    )


def test_like_groups_of_a_region_are_counted_and_not_repeated() -> None:
    region = count_region([linear(4, 6), pointwise(B * S), linear(4, 6)])
    assert region.evaluate(np.float64(2), np.float64(5)).count == (2, 1)
    assert region.count_flops(np.float64(2), np.float64(5)) == 2 * 480 + 10
    assert region.weight_bytes == 2 * 4 * (4 * 6 + 6)
    assert region.num_launches == 3


def test_work_is_evaluated_for_many_lengths_at_once() -> None:
    region, lengths = count_region([linear(4, 6), pointwise(3 * B * S**2)]), np.array([1.0, 5.0, 20.0])
    expected = [float(region.count_flops(np.float64(2), length)) for length in lengths]
    assert region.count_flops(np.float64(2), lengths).tolist() == expected


def test_kept_tokens_are_all_where_there_is_no_prune() -> None:
    region = count_region([pointwise(sympy.Symbol("K", integer=True, positive=True) + 100 * S)])
    assert region.count_flops(np.float64(1), np.float64(7)) == 707
    assert region.count_flops(np.float64(1), np.float64(7), np.float64(3)) == 703


def test_empty_region_costs_nothing() -> None:
    region = count_region([])
    assert (float(region.count_flops(np.float64(2), np.float64(5))), region.weight_bytes, region.num_launches) == (
        0,
        0,
        0,
    )


def test_large_counts_do_not_overflow(tiny_work: GraphWork) -> None:
    counted = tiny_work.attention[0].count_flops(np.float64(4096), np.float64(2**20))
    assert counted > 4 * 4096 * float(2**40) * D
