"""Tests of what each step of training sees."""

import numpy as np
import pytest

from mpcompile.compile.adapt.schedules import count_slots, draw_batches, draw_keep_ratios
from mpcompile.compile.choose.schedules import keep_schedules

LENGTHS = [3 + (17 * i) % 60 for i in range(203)]


def test_every_text_is_in_one_batch_of_an_epoch() -> None:
    batches = draw_batches(LENGTHS, 16, seed=0, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(203))
    assert sorted(len(batch) for batch in batches) == [11] + [16] * 12


def test_texts_of_a_batch_are_of_alike_lengths() -> None:
    spread = [np.ptp(np.array(LENGTHS)[batch]) for batch in draw_batches(LENGTHS, 16, seed=0, epoch=0)]
    assert max(spread) <= 8  # of 59 in all


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}])
def test_order_is_that_of_seed_and_epoch(other: dict[str, int]) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return list(np.concatenate(draw_batches(LENGTHS, 16, seed, epoch)))

    assert order(0, 0) == order(0, 0) != order(**other)


def test_keep_ratios_cover_what_is_deployed() -> None:
    layers, schedules = keep_schedules(12)
    drawn = np.cumprod([draw_keep_ratios(len(layers), 0.25, 0.05, 0, step) for step in range(4000)], axis=1)
    for schedule in schedules:
        left = np.maximum(np.cumprod(schedule.keep_ratios), 0.05)
        assert np.abs(np.log(drawn / left)).max(1).min() < 0.3, schedule  # a draw within 35% behind every layer


def test_keep_ratios_stay_in_range() -> None:
    drawn = np.array([draw_keep_ratios(6, 0.25, 0.05, 0, step) for step in range(2000)])
    assert drawn.min() > 0.0 and drawn.max() <= 1.0
    assert drawn.prod(1).min() >= 0.05 - 1e-9 and drawn.prod(1).min() < 0.06


def test_share_of_steps_that_keep_every_token() -> None:
    unpruned = [min(draw_keep_ratios(6, 0.25, 0.05, 0, step)) == 1.0 for step in range(4000)]
    assert np.mean(unpruned) == pytest.approx(0.25, abs=0.02)


def test_model_without_prunes_keeps_every_token() -> None:
    assert draw_keep_ratios(0, 0.0, 0.05, 0, 3) == ()


def test_slots_hold_what_each_example_keeps() -> None:
    inputs = count_slots(np.array([50, 21]), 64, {1: 0.5, 3: 0.5})
    assert inputs["num_kept_1"].tolist() == [25, 11] and inputs["num_kept_3"].tolist() == [13, 6]
    assert len(inputs["slots_1"]) == 32 and len(inputs["slots_3"]) == 16  # 25 and 13, rounded up to eights


def test_slots_are_never_more_than_tokens() -> None:
    inputs = count_slots(np.array([10, 3]), 10, {0: 1.0, 1: 0.95})
    assert len(inputs["slots_0"]) == len(inputs["slots_1"]) == 10
