"""Tests of how many texts a certificate takes."""

import math

import numpy as np
import pytest

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.certify.sizes import check_texts, describe_number, least_texts, texts_needed
from mpcompile.errors import DataError, SettingError


@pytest.mark.parametrize("max_drop", [0.001, 0.005, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("labelled", [False, True])
def test_point_without_loss_passes_with_the_least_texts(max_drop: float, confidence: float, labelled: bool) -> None:
    least = least_texts(max_drop, confidence, labelled=labelled)
    won = 0 if labelled else None
    assert Counts(least, 0, won).p_value(max_drop, confidence) <= 1 - confidence
    if least > 1:
        assert Counts(int(least * 0.98), 0, won).p_value(max_drop, confidence) > 1 - confidence


def test_least_texts_without_labels_is_the_rule_of_three() -> None:
    assert least_texts(0.005, 0.95, labelled=False) == math.ceil(math.log(0.05) / math.log(0.995)) == 598


def test_labels_take_few_more_texts() -> None:
    assert 598 < least_texts(0.005, 0.95, labelled=True) < 610


def test_anything_may_be_lost_with_a_drop_of_one() -> None:
    assert least_texts(1.0, 0.95, labelled=True) == 1


@pytest.mark.parametrize("max_drop", [0.0, -0.1])
def test_no_drop_at_all_is_refused(max_drop: float) -> None:
    with pytest.raises(SettingError, match=r"max_drop: .*; no number of texts shows that nothing at all is lost"):
        least_texts(max_drop, 0.95, labelled=False)


@pytest.mark.parametrize(
    ("lost_rate", "won_rate"), [(0.001, None), (0.003, None), (0.003, 0.001), (0.01, 0.01), (0.02, 0.025), (0.001, 0.0)]
)
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_texts_needed_pass_about_as_often_as_not(lost_rate: float, won_rate: float | None, confidence: float) -> None:
    needed = texts_needed(lost_rate, won_rate, 0.005, confidence)
    assert needed is not None
    rates = [lost_rate, won_rate or 0.0, 1 - lost_rate - (won_rate or 0.0)]
    drawn = np.random.default_rng(0).multinomial(needed, rates, 400)
    passed = [
        Counts(needed, int(a), None if won_rate is None else int(b)).p_value(0.005, confidence) <= 1 - confidence
        for a, b, _ in drawn
    ]
    assert 0.42 <= np.mean(passed) <= 0.85


def test_point_without_loss_needs_the_least_texts() -> None:
    assert texts_needed(0.0, None, 0.005, 0.95) == 598


def test_point_that_loses_too_much_is_helped_by_no_number() -> None:
    assert texts_needed(0.005, None, 0.005, 0.95) is None
    assert texts_needed(0.02, 0.01, 0.005, 0.95) is None


def test_millions_of_texts_are_estimated_at_once() -> None:
    needed = texts_needed(0.02, 0.0151, 0.005, 0.95)
    assert needed is not None
    assert needed == pytest.approx(1.645**2 * 0.0351 / 0.0001**2, rel=0.05)


def test_too_few_texts_are_refused_with_the_number_needed() -> None:
    with pytest.raises(DataError) as error:
        check_texts(1000, 500, 0.005, 0.95, labelled=False)
    for part in ("texts: 1000 are used, 500 of them", "at least 598 for the test (1196 in all)", "raise max_texts"):
        assert part in str(error.value)


def test_enough_texts_are_taken() -> None:
    check_texts(1196, 598, 0.005, 0.95, labelled=False)


@pytest.mark.parametrize(
    ("number", "said"), [(7, "7"), (61, "61"), (598, "600"), (2218, "2,300"), (1234567, "1,300,000")]
)
def test_numbers_are_told_with_two_digits(number: int, said: str) -> None:
    assert describe_number(number) == said
