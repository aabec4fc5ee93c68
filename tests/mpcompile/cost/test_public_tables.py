"""Tests of the cost model against public measurements of cards that are not at hand.

Average latencies of TensorRT BERT-base in ms, INT8/FP16, from the demo/BERT READMEs of NVIDIA/TensorRT: release 8.4 for
T4, 10.5 for L4, 10.16 for A100 (40 GB) and L40S. One scalar per card is fitted to them: `Device.arithmetic_scale`.
"""

import dataclasses

import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification

from mpcompile.cost.devices import find_device
from mpcompile.cost.model import CostModel
from mpcompile.cost.rates import declare_rates
from mpcompile.cost.regions import GraphWork
from mpcompile.cost.work import estimate_work
from mpcompile.graph.capture import capture

CARDS = ("t4", "l4", "a100", "l40s")
TABLE = """
128   1   1.69/1.95     0.60/1.00    0.54/0.62   0.34/0.48
128   8   4.66/9.09     1.90/3.63    0.95/1.31   0.67/1.25
128  32  18.93/36.63    6.13/13.72   2.23/3.85   1.81/3.93
128 128  73.15/144.20  27.84/69.25   8.02/15.15  7.20/17.13
384   1   2.52/4.04     1.27/2.07    1.14/1.26   0.73/1.03
384   8  14.56/27.81    5.42/11.32   2.20/3.31   1.69/3.46
384  32  58.41/114.90  22.63/50.14   7.64/12.79  6.09/13.25
"""
"""Length, batch size, and a column for each card."""
NUM_LAYERS = 12


@pytest.fixture(scope="module")
def bert_base() -> GraphWork:
    """BERT-base as TensorRT runs it: layers are alike, so one stands for all; of a vocabulary rows alone are read."""
    model = BertForSequenceClassification(BertConfig(vocab_size=100, num_hidden_layers=1)).eval()
    work = estimate_work(capture(model), "TensorRT")
    layered = {name: getattr(work, name) * NUM_LAYERS for name in ("attention", "prune", "feed_forward", "exits")}
    return dataclasses.replace(work, **layered)


def read_table(card: str) -> list[tuple[str, int, int, float]]:
    """Precision, length, batch size and measured seconds."""
    rows = []
    for line in TABLE.strip().splitlines():
        length, batch_size, *cells = line.split()
        for precision, milliseconds in zip(("int8", "f16"), cells[CARDS.index(card)].split("/"), strict=True):
            rows.append((precision, int(length), int(batch_size), float(milliseconds) / 1e3))
    return rows


def ratios(work: GraphWork, card: str, scale: float) -> np.ndarray:
    """Predicted over measured seconds of a card's rows, with a scalar for its arithmetic."""
    device = dataclasses.replace(find_device(card), arithmetic_scale=float(scale))
    costs = {
        precision: CostModel(work, declare_rates(device, precision), max_length=384) for precision in ("int8", "f16")
    }
    return np.array([
        float(costs[precision].predict_unpruned(batch_size, np.float64(length))) / measured_s
        for precision, length, batch_size, measured_s in read_table(card)
    ])  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_median_error_is_at_most_a_quarter(bert_base: GraphWork, card: str) -> None:
    errors = np.abs(ratios(bert_base, card, find_device(card).arithmetic_scale) - 1)
    assert np.median(errors) <= 0.25


@pytest.mark.parametrize("card", CARDS)
def test_scalar_of_a_card_is_the_one_that_fits_best(bert_base: GraphWork, card: str) -> None:
    kept = find_device(card).arithmetic_scale
    scales = kept * np.geomspace(0.8, 1.25, 31)
    misfits = [np.abs(np.log(ratios(bert_base, card, scale))).mean() for scale in scales]
    assert scales[np.argmin(misfits)] == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("card", CARDS)
def test_no_row_is_off_by_a_factor_of_two(bert_base: GraphWork, card: str) -> None:
    off = ratios(bert_base, card, find_device(card).arithmetic_scale)
    assert off.min() > 0.5 and off.max() < 2.0


@pytest.mark.parametrize("card", CARDS)
def test_longer_and_larger_batches_are_predicted_to_take_longer_as_measured(bert_base: GraphWork, card: str) -> None:
    rows = read_table(card)
    measured = np.array([measured_s for *_, measured_s in rows])
    predicted = measured * ratios(bert_base, card, find_device(card).arithmetic_scale)
    ranks = (np.argsort(np.argsort(values)) for values in (measured, predicted))
    assert np.corrcoef(*ranks)[0, 1] > 0.95
