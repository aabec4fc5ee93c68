"""Tests of cuts: what a point uses, and what it looks like without the rest."""

import pytest

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.tuning.cuts import Cuts, find_cuts, find_used_cuts, fit_point_maybe, merge_split_tokens

POINT = OperatingPoint((1, 2, 4), (0.3, 0.0), (0, 2, 5), (1.0, 0.5, 0.5))
"""Nobody leaves at 2, nothing is pruned in 0, and 5 is never reached."""


def test_cuts_of_a_chain_are_its_exits_and_prunes() -> None:
    segments = (Segment(0, 2, (0, 1), 8, (), ()), Segment(1, 4, (3,), 8, (), ()))
    assert find_cuts(segments) == Cuts((2, 4), (0, 1, 3))


def test_cuts_that_change_no_answer_are_not_used() -> None:
    assert find_used_cuts(POINT) == Cuts((1, 4), (2,))


def test_point_is_rewritten_for_fewer_cuts() -> None:
    assert fit_point_maybe(POINT, Cuts((1, 4), (2,))) == OperatingPoint((1, 4), (0.3,), (2,), (0.5,))


def test_point_keeps_what_other_cuts_leave_it() -> None:
    assert fit_point_maybe(POINT, Cuts((1, 2, 3, 4), (0, 2))) == OperatingPoint(
        (1, 2, 4), (0.3, 0.0), (0, 2), (1.0, 0.5)
    )


@pytest.mark.parametrize("cuts", [Cuts((4,), (2,)), Cuts((1, 4), ()), Cuts((1,), (2,))])
def test_point_does_not_fit_cuts_that_it_needs_more_of(cuts: Cuts) -> None:
    assert fit_point_maybe(POINT, cuts) is None


def test_precision_stays_with_the_point() -> None:
    point = OperatingPoint((1, 4), (0.3,), precision="bf16")
    fitted = fit_point_maybe(point, Cuts((1, 4), ()))
    assert fitted is not None and fitted.precision == "bf16"


def test_merged_segments_split_at_the_mean_of_their_parts() -> None:
    assert merge_split_tokens(Cuts((1, 2, 4, 6), ()), (10.0, 20.0, 40.0, 80.0), Cuts((2, 4), ())) == (15.0, 40.0)
