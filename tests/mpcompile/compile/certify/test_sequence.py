"""Tests of testing a front in a fixed sequence."""

from collections.abc import Iterator

import numpy as np
import pytest

from mpcompile.compile.certify.drop import p_value
from mpcompile.compile.certify.sequence import Certificate, find_certified

DRAWS = 1000
ALLOWED = 0.05 + 2 * (0.05 * 0.95 / DRAWS) ** 0.5
"""A false-pass rate of 5%, and two standard deviations of what 1,000 draws make of it: 6.4%."""
MAX_DROP = 0.02


def wrong(number: int, texts: int = 400) -> np.ndarray:
    """Losses with `number` errors."""
    return np.arange(texts) < number


def draw_front(generator: np.random.Generator, drops: np.ndarray, texts: int, correlation: float) -> np.ndarray:
    """Losses without labels of points with given true drops, (points, texts): hard texts are hard for all."""
    hard, own = generator.random(texts), generator.random((len(drops), texts))
    shared = generator.random((len(drops), texts)) < correlation
    return np.where(shared, hard, own) < drops[:, None]


def draw_labelled(generator: np.random.Generator, drops: np.ndarray, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """The same beside an original that errs on a tenth, 3 points of which any point mends."""
    loss = draw_front(generator, drops + 0.03, texts, 0.9)
    kind = generator.random(texts)
    original_loss = kind < 0.1
    loss[:, original_loss] = kind[original_loss] >= 0.03
    return loss, original_loss


def test_points_pass_until_the_first_failure() -> None:
    certificate = find_certified([wrong(0), wrong(2), wrong(9), wrong(0)], None, MAX_DROP, 0.95)
    assert certificate.num_certified == 2
    assert [counts.lost for counts in certificate.tested] == [0, 2, 9]
    expected = [p_value(wrong(number), None, MAX_DROP) for number in (0, 2, 9)]
    assert certificate.p_values == pytest.approx(expected)
    assert (certificate.max_drop, certificate.confidence, certificate.texts) == (MAX_DROP, 0.95, 400)


def test_point_whose_p_value_is_the_failure_itself_passes() -> None:
    certificate = find_certified([wrong(0, texts=1)], None, 0.5, 0.5)
    assert certificate.p_values == (0.5,)
    assert certificate.num_certified == 1


def test_points_behind_the_first_failure_are_never_run() -> None:
    ran = []

    def run() -> Iterator[np.ndarray]:
        for number in (0, 1, 30, 0, 0):
            ran.append(number)
            yield wrong(number)

    assert find_certified(run(), None, MAX_DROP, 0.95).num_certified == 2
    assert ran == [0, 1, 30]


def test_no_points_certify_nothing() -> None:
    assert find_certified([], None, MAX_DROP, 0.95) == Certificate(MAX_DROP, 0.95, 0, (), ())
    assert find_certified([], None, MAX_DROP, 0.95).num_certified == 0


def test_original_that_errs_where_the_point_does_not_is_counted() -> None:
    original_loss = np.arange(400) >= 380
    assert find_certified([wrong(6)], None, MAX_DROP, 0.95).num_certified == 0
    assert find_certified([wrong(6)], original_loss, MAX_DROP, 0.95).num_certified == 1


def test_more_confidence_is_harder() -> None:
    assert find_certified([wrong(1)], None, MAX_DROP, 0.95).num_certified == 1
    assert find_certified([wrong(1)], None, MAX_DROP, 0.999).num_certified == 0


def test_failure_is_told_with_the_texts_that_are_missing() -> None:
    said = find_certified([wrong(5)], None, MAX_DROP, 0.95).describe_failure()
    assert "1.25 points are lost on 400 held-out texts, which shows at most 2.61 with 95% confidence" in said
    assert "2 are allowed" in said
    assert "About 580 more held-out texts would pass it as often as not" in said


def test_failure_that_texts_cannot_mend_is_told() -> None:
    said = find_certified([wrong(8)], None, MAX_DROP, 0.95).describe_failure()
    assert "2.00 points are lost" in said
    assert said.endswith("More texts would not help, a larger drop would")


# ---------------------------------------------------------------------------------- false passes


@pytest.mark.parametrize(
    "drops",
    [np.full(12, MAX_DROP), MAX_DROP + np.linspace(0.0, 0.02, 12), np.r_[0.001, 0.004, np.full(10, MAX_DROP)]],
    ids=["all at the boundary", "all above", "two good"],
)
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_false_passes_of_a_front_stay_below_what_is_allowed(drops: np.ndarray, correlation: float) -> None:
    generator, false_passes = np.random.default_rng(7), 0
    for _ in range(DRAWS):
        choosing = draw_front(generator, drops, 400, correlation)
        order = np.argsort(choosing.mean(1), kind="stable")
        testing = draw_front(generator, drops, 400, correlation)
        passed = order[: find_certified((testing[i] for i in order), None, MAX_DROP, 0.95).num_certified]
        false_passes += bool((drops[passed] >= MAX_DROP).any())
    assert false_passes / DRAWS <= ALLOWED


def test_false_passes_of_a_front_with_labels_stay_below_what_is_allowed() -> None:
    generator, false_passes = np.random.default_rng(8), 0
    # A point errs on drops + 3% of the 90% that the original gets right, and mends 3 of the 10% that it gets wrong.
    drops = np.full(8, (MAX_DROP + 0.03) / 0.9 - 0.03)
    for _ in range(DRAWS):
        order = np.argsort(draw_labelled(generator, drops, 400)[0].mean(1), kind="stable")
        loss, original_loss = draw_labelled(generator, drops, 400)
        false_passes += find_certified((loss[i] for i in order), original_loss, MAX_DROP, 0.95).num_certified > 0
    assert 0.005 < false_passes / DRAWS <= ALLOWED


def test_testing_every_point_on_its_own_passes_falsely_more_often() -> None:
    generator, drops, false_passes = np.random.default_rng(9), np.full(12, MAX_DROP), 0
    for _ in range(DRAWS):
        testing = draw_front(generator, drops, 400, 0.0)
        false_passes += bool(min(p_value(loss, None, MAX_DROP) for loss in testing) <= 0.05)
    assert false_passes / DRAWS > 3 * ALLOWED
