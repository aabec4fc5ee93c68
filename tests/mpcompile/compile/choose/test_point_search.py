"""Tests of the search for a front of operating points."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.compile.choose.candidates import MAX_POINTS, NEAR, USEFUL_LOSS, Candidate, bridge, pareto_front, thin
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.point_search import AIM, PointSearch
from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.cost.model import CostModel
from mpcompile.cost.work import count_region
from tests.mpcompile.cost.counted import RATES, B, S, build_work, pointwise

NUM_LAYERS, NUM_TEXTS = 4, 400
TASK = Task("single_label", 3)
KERNEL = count_region([pointwise(B * S)])
COST = CostModel(
    build_work(NUM_LAYERS, attention=KERNEL, feed_forward=KERNEL, classifier=KERNEL),
    dataclasses.replace(RATES, engine_s=0.001),
)
"""Nine kernels of 10 ms a token, and calls of 1 ms."""


def candidate(seconds: float, loss: float) -> Candidate:
    return Candidate(OperatingPoint((1,)), seconds, loss, np.ones(1), np.zeros(1))


candidates = st.lists(
    st.builds(candidate, st.integers(1, 30).map(float), st.integers(0, 20).map(lambda n: n / 20)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=candidates)
def test_no_point_of_the_front_is_beaten(rows: list[Candidate]) -> None:
    front = pareto_front(rows)
    for point in front:
        assert not any(
            other.seconds <= point.seconds
            and other.loss <= point.loss
            and (other.seconds, other.loss) != (point.seconds, point.loss)
            for other in rows
        )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=candidates)
def test_every_point_off_the_front_is_matched_by_one_on_it(rows: list[Candidate]) -> None:
    front = pareto_front(rows)
    assert all(any(p.seconds <= row.seconds and p.loss <= row.loss for p in front) for row in rows)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=candidates)
def test_front_is_slowest_first(rows: list[Candidate]) -> None:
    seconds = [point.seconds for point in pareto_front(rows)]
    assert seconds == sorted(set(seconds), reverse=True)


def long_front(count: int, loss_step: float) -> tuple[Candidate, ...]:
    return tuple(candidate(100.0 * 0.9**i, loss_step * i) for i in range(count))


@pytest.mark.parametrize("loss_step", [1e-4, 1e-3, 0.05])
@pytest.mark.parametrize("count", [1, 2, MAX_POINTS, 60])
def test_thinned_front_keeps_both_ends(count: int, loss_step: float) -> None:
    front = long_front(count, loss_step)
    thinned = thin(front)
    assert len(thinned) <= MAX_POINTS
    assert (thinned[0], thinned[-1]) == (front[0], front[-1])


def test_thinned_front_is_in_order() -> None:
    seconds = [point.seconds for point in thin(long_front(60, 1e-3))]
    assert seconds == sorted(seconds, reverse=True)


def test_thinned_front_keeps_most_points_where_little_is_lost() -> None:
    thinned = thin(long_front(60, USEFUL_LOSS / 20))
    assert sum(point.loss <= USEFUL_LOSS for point in thinned) == MAX_POINTS - 3


def test_points_of_unknown_loss_are_all_useful() -> None:
    front = tuple(candidate(10.0 - i, np.nan) for i in range(5))
    assert thin(front) == front


def make_held_out(ratio: float = 1.0, seed: int = 0) -> HeldOut:
    """Logits that are surer and more often right at later exits; pruning makes them a little worse."""
    generator = np.random.default_rng(seed)
    truth = np.arange(NUM_TEXTS) % 3
    noise = generator.standard_normal((NUM_LAYERS + 1, NUM_TEXTS, 3))
    strength = {layer: (1.0 + 2.0 * layer) * ratio for layer in range(NUM_LAYERS + 1)}
    logits = {layer: noise[layer] * 1.5 + strength[layer] * np.eye(3)[truth] for layer in strength}
    return HeldOut.from_logits(KeepSchedule((1, 2), (ratio, ratio)), logits, TASK)


@pytest.fixture(scope="module")
def search() -> PointSearch:
    lengths = np.random.default_rng(1).integers(5, 40, NUM_TEXTS)
    held_out = [make_held_out(1.0), make_held_out(0.7)]
    return PointSearch(held_out, Pricer(np.arange(NUM_TEXTS) % 3, lengths, COST, 1, "f32", TASK))


@pytest.fixture(scope="module")
def found(search: PointSearch) -> tuple[Candidate, ...]:
    return search.search(2.5)


def test_entropies_are_normalised() -> None:
    logits = {0: np.array([[0.0, 0, 0], [100.0, 0, 0], [1e5, -1e5, 0]])}
    held_out = HeldOut.from_logits(KeepSchedule((), ()), logits, TASK)
    np.testing.assert_allclose(held_out.entropy[0], [1.0, 0.0, 0.0], atol=1e-12)
    assert held_out.answer[0].tolist() == [0, 0, 0]


def test_search_gives_a_front(found: tuple[Candidate, ...]) -> None:
    assert len(found) > 2
    assert found == pareto_front(found)


def test_front_reaches_from_the_best_to_the_fastest(found: tuple[Candidate, ...]) -> None:
    assert found[0].loss < found[-1].loss
    assert found[0].seconds > 1.5 * found[-1].seconds


def test_points_share_one_set_of_exits(found: tuple[Candidate, ...]) -> None:
    exits = {layer for row in found for layer in row.point.exit_layers}
    assert len(exits) <= 4 and max(exits) <= NUM_LAYERS


def test_loss_of_a_candidate_is_that_of_its_answers(found: tuple[Candidate, ...]) -> None:
    for row in found:
        assert row.loss == pytest.approx(float((row.answer != np.arange(NUM_TEXTS) % 3).mean()))


def test_candidates_leave_where_their_point_says(found: tuple[Candidate, ...]) -> None:
    by_ratio = {1.0: make_held_out(1.0), 0.7: make_held_out(0.7)}
    for row in found:
        held_out = by_ratio[row.point.keep_ratios[0]]
        for text in range(0, NUM_TEXTS, 17):
            expected = next(
                layer
                for layer in row.point.exit_layers
                if held_out.entropy[layer][text] < row.point.threshold_at(layer)
            )
            assert row.exit_layer[text] == expected
            assert row.answer[text] == held_out.answer[expected][text]


def test_exits_that_a_point_does_not_use_are_not_in_it(found: tuple[Candidate, ...]) -> None:
    for row in found:
        assert all(threshold > 0.0 for threshold in row.point.exit_thresholds)


def test_progress_is_told_up_to_the_end(search: PointSearch) -> None:
    shares: list[float] = []
    search.search(2.5, shares.append)
    assert shares[-1] == 1.0 and shares == sorted(shares)


def test_whole_model_is_the_slow_end_although_an_early_exit_was_right_once_more() -> None:
    truth = np.arange(NUM_TEXTS) % 3
    logits = {layer: 20.0 * np.eye(3)[truth] for layer in range(NUM_LAYERS + 1)}
    logits[NUM_LAYERS][0] = logits[NUM_LAYERS][1]
    held_out = HeldOut.from_logits(KeepSchedule((1,), (1.0,)), logits, TASK)
    slowest, *_ = PointSearch([held_out], Pricer(truth, np.full(NUM_TEXTS, 20), COST, 1, "f32", TASK)).search(2.0)
    assert (slowest.exit_layer == NUM_LAYERS).all()
    assert slowest.loss == pytest.approx(1 / NUM_TEXTS)


@pytest.mark.parametrize(("num_texts", "is_whole"), [(299, True), (301, False)])
def test_few_texts_do_not_show_that_an_early_exit_answers_as_the_whole_model(num_texts: int, is_whole: bool) -> None:
    truth = np.arange(num_texts) % 3
    logits = {layer: 20.0 * np.eye(3)[truth] for layer in range(NUM_LAYERS + 1)}
    held_out = HeldOut.from_logits(KeepSchedule((1,), (1.0,)), logits, TASK)
    slowest, *_ = PointSearch([held_out], Pricer(truth, np.full(num_texts, 20), COST, 1, "f32", TASK)).search(2.0)
    assert (slowest.exit_layer == NUM_LAYERS).all() == is_whole


def test_whole_model_that_plainly_loses_more_is_left_out() -> None:
    truth = np.arange(NUM_TEXTS) % 3
    logits = {layer: 20.0 * np.eye(3)[truth] for layer in range(NUM_LAYERS)}
    logits[NUM_LAYERS] = 20.0 * np.eye(3)[(truth + 1) % 3]
    held_out = HeldOut.from_logits(KeepSchedule((1,), (1.0,)), logits, TASK)
    rows = PointSearch([held_out], Pricer(truth, np.full(NUM_TEXTS, 20), COST, 1, "f32", TASK)).search(2.0)
    assert all(row.loss == 0.0 for row in rows)


def test_model_that_early_exits_know_as_well_is_cut_short() -> None:
    truth = np.arange(NUM_TEXTS) % 3
    logits = {layer: 20.0 * np.eye(3)[truth] for layer in range(NUM_LAYERS + 1)}
    held_out = HeldOut.from_logits(KeepSchedule((1,), (1.0,)), logits, TASK)
    (row,) = PointSearch([held_out], Pricer(truth, np.full(NUM_TEXTS, 20), COST, 1, "f32", TASK)).search(2.0)
    assert (row.point.exit_layers, row.loss) == ((0,), 0.0)


def test_precision_of_the_points_is_the_one_asked_for() -> None:
    pricer = Pricer(np.arange(NUM_TEXTS) % 3, np.full(NUM_TEXTS, 9), COST, 1, "bf16", TASK)
    assert {row.point.precision for row in PointSearch([make_held_out()], pricer).search(2.0)} == {"bf16"}


def test_aim_meets_the_target_and_nothing_that_does_loses_less(search: PointSearch) -> None:
    aims = [search.find_aim(gain).candidate for gain in (2.0, 2.5, 3.0, 4.0)]
    lengths = np.random.default_rng(1).integers(5, 40, NUM_TEXTS)
    full_s = Pricer(np.zeros(NUM_TEXTS), lengths, COST, 1, "f32", TASK).full_s
    assert all(aim.seconds <= full_s / gain for aim, gain in zip(aims, (2.0, 2.5, 3.0, 4.0), strict=True))
    assert [aim.loss for aim in aims] == sorted(aim.loss for aim in aims)


def test_target_that_is_out_of_reach_aims_at_the_fastest(search: PointSearch) -> None:
    fastest = search.find_aim(90.0).candidate
    assert fastest.seconds < search.find_aim(4.0).candidate.seconds
    assert fastest.point.exit_layers == (0,)


@pytest.mark.parametrize("gain", [2.5, 4.0])
def test_front_uses_no_exit_and_no_prune_that_the_aim_does_without(search: PointSearch, gain: float) -> None:
    aim = search.find_aim(gain).candidate
    for row in search.search(gain):
        assert set(row.point.exit_layers) <= {*aim.point.exit_layers, NUM_LAYERS}
        if min(aim.point.keep_ratios) == 1.0:
            assert min(row.point.keep_ratios) == 1.0


@pytest.mark.parametrize("gain", [2.5, 4.0])
def test_front_holds_a_point_as_good_as_the_aim(search: PointSearch, gain: float) -> None:
    aim = search.find_aim(gain).candidate
    assert any(row.loss <= aim.loss + 0.01 and row.seconds <= aim.seconds * AIM for row in search.search(gain))


def test_points_near_a_target_are_kept() -> None:
    front = long_front(200, 1e-4)
    target_s = front[80].seconds
    near = [row for row in thin(front, target_s) if NEAR[0] <= row.seconds / target_s <= NEAR[1]]
    assert len(near) >= MAX_POINTS // 2 - 3
    assert len(thin(front, target_s)) <= MAX_POINTS
    assert (thin(front, target_s)[0], thin(front, target_s)[-1]) == (front[0], front[-1])


def test_gap_of_the_front_is_bridged_by_points_that_are_hardly_beaten() -> None:
    slow, fast = candidate(10.0, 0.0), candidate(2.0, 0.001)
    between = [candidate(4.0, 0.004), candidate(4.05, 0.006), candidate(8.0, 0.002), candidate(6.0, 0.1)]
    everyone = [slow, fast, *between]
    assert bridge(pareto_front(everyone), everyone) == (slow, between[2], between[0], fast)


def test_gap_is_not_bridged_by_the_likes_of_its_ends() -> None:
    slow, fast = candidate(15.0, 0.0), candidate(10.0, 0.001)
    everyone = [slow, fast, candidate(10.0, 0.001), candidate(10.01, 0.001), candidate(12.0, 0.003)]
    assert bridge(pareto_front(everyone), everyone) == (slow, everyone[-1], fast)


def test_front_without_gaps_stays_as_it_is() -> None:
    front = long_front(10, 0.01)
    assert bridge(front, [*front, candidate(95.0, 0.0001)]) == front


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=candidates)
def test_bridged_front_holds_the_front_and_is_slowest_first(rows: list[Candidate]) -> None:
    front = pareto_front(rows)
    bridged = bridge(front, rows)
    assert {id(row) for row in front} <= {id(row) for row in bridged}
    assert [row.seconds for row in bridged] == sorted((row.seconds for row in bridged), reverse=True)
    assert len({id(row) for row in bridged}) == len(bridged)


def test_thinned_front_keeps_the_point_that_was_aimed_at() -> None:
    front = long_front(80, 0.001)
    for aimed in range(5, 40, 7):
        assert front[aimed] in thin(front, 50.0, front[aimed].seconds)
