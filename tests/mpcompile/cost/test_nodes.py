"""Tests of counted work: against torch's own counter, and against numbers that a person can count."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from mpcompile.capture import CapturedModel, capture
from mpcompile.cost.nodes import GraphWork, NodeWork, estimate_work
from tests.models import HIDDEN_SIZE, NUM_LABELS, family_model, random_batch

D, INNER, HEADS = HIDDEN_SIZE, 48, 4
FP32 = 4


@pytest.fixture(scope="module")
def work(captured: CapturedModel) -> GraphWork:
    return estimate_work(captured.graph_module, captured.num_labels)


def flops(nodes: tuple[NodeWork, ...], batch: int, length: int) -> float:
    return float(sum(node.count * node.flops(batch, length) for node in nodes))


def bytes_moved(nodes: tuple[NodeWork, ...], batch: int, length: int) -> float:
    return float(sum(node.count * node.bytes_moved(batch, length) for node in nodes))


def all_nodes(work: GraphWork) -> tuple[NodeWork, ...]:
    return (*work.embeddings, *(n for layer in (*work.attention, *work.feed_forward) for n in layer), *work.classifier)


def norm_flops(model: PreTrainedModel, batch: int, length: int) -> int:
    """Layer norms, which torch's counter leaves out: 5 flops an element."""
    sizes = [m.normalized_shape[0] for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    return sum(5 * batch * length * size for size in sizes)


@pytest.mark.parametrize(("batch", "length"), [(1, 9), (4, 21)])
def test_flops_are_those_of_torch_s_counter(family: str, batch: int, length: int) -> None:
    model = copy.deepcopy(family_model(family))
    # The counter knows the batched products that eager attention is made of.
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**random_batch(model, [length] * batch))
    captured = capture(family_model(family))
    counted = flops(all_nodes(estimate_work(captured.graph_module, captured.num_labels)), batch, length)
    assert counted - norm_flops(model, batch, length) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_attention_half_of_a_layer_is_four_products_attention_and_a_norm(work: GraphWork) -> None:
    b, s = 2, 10
    products = 4 * 2 * b * s * D * D
    attention = 2 * 2 * b * s * s * D
    assert flops(work.attention[0], b, s) == products + attention + 5 * b * s * D


def test_feed_forward_half_of_a_layer_is_two_products_and_a_norm(work: GraphWork) -> None:
    b, s = 3, 7
    assert flops(work.feed_forward[2], b, s) == 2 * 2 * b * s * D * INNER + 5 * b * s * D


def test_embeddings_are_three_look_ups_and_a_norm(work: GraphWork) -> None:
    assert flops(work.embeddings, 2, 10) == 5 * 2 * 10 * D


def test_classifier_reads_one_token_of_each_example(work: GraphWork) -> None:
    assert flops(work.classifier, 5, 30) == 2 * 5 * D * D + 2 * 5 * D * NUM_LABELS


def test_bytes_of_a_product_are_its_input_weights_bias_and_output(work: GraphWork) -> None:
    b, s = 2, 10
    up = b * s * D + D * INNER + INNER + b * s * INNER
    down = b * s * INNER + INNER * D + D + b * s * D
    norm = 2 * b * s * D
    assert bytes_moved(work.feed_forward[0], b, s) == FP32 * (up + down + norm)


def test_every_layer_of_a_model_is_alike(work: GraphWork) -> None:
    assert work.num_layers == 3
    assert len({flops(layer, 4, 12) for layer in work.attention}) == 1
    assert len({bytes_moved(layer, 4, 12) for layer in work.feed_forward}) == 1


def test_sizes_of_the_model_are_kept(work: GraphWork) -> None:
    assert (work.hidden_size, work.num_labels) == (D, NUM_LABELS)


def test_work_is_counted_for_many_lengths_at_once(work: GraphWork) -> None:
    lengths = np.array([5.0, 10.0, 20.0])
    for node in all_nodes(work):
        expected = [float(node.flops(1, length)) for length in lengths]
        np.testing.assert_allclose(np.broadcast_to(node.flops(np.ones(3), lengths), 3), expected)


def test_large_counts_do_not_overflow(work: GraphWork) -> None:
    assert flops(work.attention[0], 4096, 2**20) > 4 * 4096 * float(2**40) * D
