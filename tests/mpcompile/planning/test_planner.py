"""Tests of the planner: its search against brute force, in a world where a person can count."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.expected import ExpectedTime, total_seconds
from mpcompile.cost.model import CostModel
from mpcompile.cost.regions import Region
from mpcompile.cost.work import count_region
from mpcompile.errors import TargetUnreachable
from mpcompile.planning.planner import EXIT_SHARES, KEEP_RATIOS, PlannedPoint, Planner, count_activation_bytes
from tests.mpcompile.cost.counted import RATES, B, S, build_work, pointwise

NUM_LAYERS, PRUNES, RAMPS = 6, (1, 2, 3, 4, 5), (1, 2, 4)
LENGTHS = [10, 20, 40]
CALL_S = 5.0
HALF = count_region([pointwise(50 * B * S)])
"""Half a second a token, in front of the place where a layer prunes and behind it."""
WORK = build_work(NUM_LAYERS, attention=HALF, feed_forward=HALF)
COST = CostModel(WORK, dataclasses.replace(RATES, engine_s=CALL_S))
LAUNCHES = CostModel(WORK, dataclasses.replace(RATES, launch_s=1000.0, engine_s=CALL_S))
"""The same where a kernel costs far more than what it computes."""

Key = tuple[float, tuple[int, ...], float]
"""Keep ratio, early exits and the share that leaves at each."""


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(COST, np.array(LENGTHS), 1)


@pytest.fixture(scope="module")
def timed() -> dict[Key, float]:
    """Seconds of everything that may be planned."""
    return {key: seconds_of(key) for key in keys()}


def keys() -> Iterator[Key]:
    for ratio in KEEP_RATIOS:
        yield ratio, (), 0.0
        for size, share in itertools.product((1, 2, 3), EXIT_SHARES):
            yield from ((ratio, early, share) for early in itertools.combinations(RAMPS, size))


def halves(ratio: float, length: float) -> list[float]:
    """Tokens in each half of each layer of a text."""
    tokens = [length]
    for layer in range(NUM_LAYERS):
        kept = max(math.ceil(ratio * tokens[-1] - 1e-9), min(tokens[-1], 4)) if layer in PRUNES else tokens[-1]
        tokens += [tokens[-1], kept] if layer else [kept]
    return tokens


def seconds_of(key: Key) -> float:
    ratio, early, share = key
    total = 0.0
    for index, (first, last) in enumerate(itertools.pairwise((0, *early, NUM_LAYERS))):
        run_s = np.mean([sum(halves(ratio, length)[2 * first : 2 * last]) / 2 for length in LENGTHS])
        total += (1 - share) ** index * (CALL_S + float(run_s))
    return total


def mildness_of(key: Key) -> tuple[float, float]:
    """Least is mildest: what is asked of a layer or an exit, in tenths; then the tokens that half layers do not see."""
    ratio, early, share = key
    mean = round(float(np.mean(LENGTHS)))
    seen = sum(
        (1 - share) ** index * sum(halves(ratio, mean)[2 * first : 2 * last])
        for index, (first, last) in enumerate(itertools.pairwise((0, *early, NUM_LAYERS)))
    )
    return max(round(10 * (1 - ratio)), round(10 * share)), -round(seen, 6)


def key_of(candidate: PlannedPoint) -> Key:
    return min(candidate.point.keep_ratios, default=1.0), candidate.point.exit_layers[:-1], candidate.exit_share


def build_planner(cost: CostModel, lengths: list[int], batch_size: int = 1) -> Planner:
    return Planner(cost, np.array(lengths), batch_size)


# ---------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("target", [1.0, 1.2, 1.5, 2.0, 3.0, 4.0])
def test_plan_is_the_mildest_of_all_that_meet_the_target(
    planner: Planner, timed: dict[Key, float], target: float
) -> None:
    candidate, _ = planner.plan(target)
    unpruned_s = timed[1.0, (), 0.0]
    meeting = [key for key, seconds in timed.items() if unpruned_s / seconds >= target]
    assert mildness_of(key_of(candidate)) == min(map(mildness_of, meeting))


def test_times_of_the_planner_are_those_counted_by_hand(planner: Planner, timed: dict[Key, float]) -> None:
    assert planner.unpruned_s == pytest.approx(CALL_S + NUM_LAYERS * np.mean(LENGTHS))
    assert planner.floor_s == pytest.approx(CALL_S + NUM_LAYERS)
    for target in (1.5, 3.0):
        candidate, _ = planner.plan(target)
        assert candidate.seconds == pytest.approx(timed[key_of(candidate)])


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("target", [1.0, 1.7, 3.1])
def test_plan_meets_the_target_when_it_is_predicted_afresh(target: float, batch_size: int) -> None:
    candidate, _ = build_planner(COST, LENGTHS, batch_size).plan(target)
    expected = ExpectedTime(COST, np.array(LENGTHS), batch_size)
    survival = [(1 - candidate.exit_share) ** index for index in range(len(candidate.point.exit_layers))]
    unpruned_s = total_seconds(expected.predict(OperatingPoint((NUM_LAYERS,)), [1.0]))
    afresh_s = total_seconds(expected.predict(candidate.point, survival))
    assert afresh_s == candidate.seconds
    assert unpruned_s / afresh_s >= target


def test_reachable_speedup_is_that_of_the_fastest(planner: Planner, timed: dict[Key, float]) -> None:
    _, reachable = planner.plan(1.0)
    assert reachable == pytest.approx(max(timed[1.0, (), 0.0] / seconds for seconds in timed.values()))


def test_target_of_one_asks_for_nothing(planner: Planner) -> None:
    candidate, _ = planner.plan(1.0)
    assert candidate.point == OperatingPoint((NUM_LAYERS,))


def test_higher_target_is_never_milder(planner: Planner) -> None:
    demands = [planner.plan(target)[0].demand for target in (1.0, 1.3, 1.8, 2.5, 3.5)]
    assert demands == sorted(demands)


def test_share_of_tokens_and_the_same_share_of_examples_are_equally_mild() -> None:
    # 1 - 0.8 and 0.2 differ in the last bit; flops decide.
    pruned = PlannedPoint(OperatingPoint((6,), (), (1,), (0.8,)), 0.0, (), flops=1.0)
    leaving = PlannedPoint(OperatingPoint((1, 6), (0.0,)), 0.2, (), flops=2.0)
    assert min(pruned, leaving, key=lambda candidate: candidate.demand) is leaving


def test_progress_goes_up_to_one(planner: Planner) -> None:
    steps: list[float] = []
    planner.plan(1.0, steps.append)
    assert steps == sorted(steps) and steps[-1] == 1.0


def test_model_of_one_layer_is_pruned_without_exits() -> None:
    cost = CostModel(build_work(1, attention=HALF, feed_forward=HALF), COST.rates)
    candidate, _ = build_planner(cost, [40]).plan(1.2)
    assert candidate.point.exit_layers == (1,)
    assert candidate.point.prune_layers == (0,)


# ---------------------------------------------------------------------------------- out of reach


@pytest.mark.parametrize(
    ("cost", "batch_size"), [(COST, 1), (COST, 5), (LAUNCHES, 1)], ids=["one", "five", "slow launches"]
)
def test_refusal_names_a_target_that_can_be_met(cost: CostModel, batch_size: int) -> None:
    planner = build_planner(cost, LENGTHS, batch_size)
    with pytest.raises(TargetUnreachable) as error:
        planner.plan(99)
    (asked,) = re.findall(r"ask for at most ([\d.]+)", str(error.value))
    candidate, reachable = planner.plan(float(asked))
    assert planner.unpruned_s / candidate.seconds >= float(asked)
    assert reachable - float(asked) < 0.1


def test_refusal_says_why(planner: Planner) -> None:
    _, reachable = planner.plan(1.0)
    with pytest.raises(TargetUnreachable) as error:
        planner.plan(99)
    message = str(error.value)
    assert message.startswith(
        f"target_speedup=99: the best reachable on counted is {math.floor(10 * reachable) / 10:g}x "
    )
    assert f"of {1e3 * planner.unpruned_s:.3g} ms)" in message
    assert f"deleted {1e3 * planner.floor_s:.3g} ms are left" in message
    assert f"pruning alone ends at {planner.unpruned_s / planner.floor_s:.1f}x" in message


def test_number_that_a_refusal_names_is_not_rounded_up(planner: Planner) -> None:
    _, reachable = planner.plan(1.0)
    with pytest.raises(TargetUnreachable) as error:
        planner.plan(reachable * (1 + 1e-9))
    (best,) = re.findall(r"the best reachable on counted is ([\d.]+)x", str(error.value))
    assert float(best) <= reachable


def test_larger_batch_is_advised_only_where_fixed_costs_are_in_the_way() -> None:
    advice = "take a larger batch, or a device with smaller fixed costs"
    with pytest.raises(TargetUnreachable, match=advice):
        build_planner(LAUNCHES, [40]).plan(99)
    with pytest.raises(TargetUnreachable) as error:
        build_planner(CostModel(WORK, RATES), [400]).plan(99)  # without tokens it would be 400 times faster
    assert advice not in str(error.value)
    assert "what runs before the first exit takes" in str(error.value)


# ---------------------------------------------------------------------------------- floor and fixed share


LENGTHS_OF_TEXTS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS_OF_TEXTS, batch_size=st.integers(1, 12))
def test_floor_does_not_depend_on_the_lengths_and_is_below_every_unpruned_time(
    lengths: list[int], batch_size: int
) -> None:
    planner = build_planner(COST, lengths, batch_size)
    assert planner.floor_s == CALL_S + batch_size * NUM_LAYERS
    assert planner.floor_s <= planner.unpruned_s * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS_OF_TEXTS, batch_size=st.integers(1, 12), call_s=st.sampled_from([0.0, 5.0, 1e4]))
def test_fixed_share_is_a_share(lengths: list[int], batch_size: int, call_s: float) -> None:
    cost = CostModel(WORK, dataclasses.replace(RATES, engine_s=call_s))
    assert 0.0 <= build_planner(cost, lengths, batch_size).fixed_share() <= 1.0


def test_fixed_share_is_that_of_the_call_where_tokens_are_all_that_counts() -> None:
    # 5 s of the 5 + 6 * 40.
    assert build_planner(COST, [40]).fixed_share() == pytest.approx(5 / 245)


def test_fixed_share_is_nearly_one_where_launches_take_the_time() -> None:
    assert build_planner(LAUNCHES, LENGTHS).fixed_share() > 0.9


def test_fixed_share_is_nearly_none_in_a_huge_batch() -> None:
    assert build_planner(COST, LENGTHS, 4096).fixed_share() < 0.01


def test_fixed_share_of_texts_of_one_token_is_one() -> None:
    assert build_planner(COST, [1, 1]).fixed_share() == 1.0


# ---------------------------------------------------------------------------------- memory


def moving(bytes_moved: object) -> Region:
    return count_region([pointwise(0, bytes_moved)])


def test_activations_are_twice_those_of_the_largest_kernel() -> None:
    work = build_work(2, attention=moving(8 * B * S * S), feed_forward=moving(40 * B * S), classifier=moving(4 * B))
    # 8 * 3 * 10 * 10 against 40 * 3 * 10 bytes.
    assert count_activation_bytes(CostModel(work, RATES), OperatingPoint((2,)), 3, 10) == 2 * 2400


def test_activations_are_as_wide_as_the_precision() -> None:
    cost = CostModel(build_work(2, attention=moving(8 * B * S)), dataclasses.replace(RATES, activation_bytes=2))
    assert count_activation_bytes(cost, OperatingPoint((2,)), 1, 10) == 2 * 80 / 2


def test_pruned_tokens_need_no_memory_behind_the_prune() -> None:
    cost = CostModel(build_work(2, feed_forward=moving(8 * B * S)), RATES)
    point = OperatingPoint((1, 2), (0.0,), (0,), (0.5,))
    assert count_activation_bytes(cost, point, 1, 11) == 2 * 8 * 6


def test_kernel_behind_an_exit_sees_the_tokens_that_are_left() -> None:
    cost = CostModel(build_work(2, classifier=moving(8 * B * S), exits=moving(2 * B * S)), RATES)
    point = OperatingPoint((1, 2), (0.0,), (0, 1), (0.5, 0.5))
    assert count_activation_bytes(cost, point, 1, 16) == 2 * 8 * 4
