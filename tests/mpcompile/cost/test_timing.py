"""Tests of the timing primitive, with a clock that the tests turn."""

from collections.abc import Callable

import numpy as np
import pytest

from mpcompile.cost.timing import Timing, measure_interleaved, measure_noise


class Clock:
    """Stands still until a call says how long it took."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes these seconds in turn, and then the last of them for ever."""
        taken = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += taken.pop(0) if len(taken) > 1 else taken[0]

        return call


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_is_the_median_over_runs(clock: Clock) -> None:
    timing = measure_interleaved({"a": [clock.work("a", 1, 5, 2)]}, runs=3, warm_up=0, clock=clock)["a"]
    assert timing.median_s == 2.0
    assert timing.runs == 3


def test_run_is_the_mean_of_its_calls(clock: Clock) -> None:
    calls = [clock.work("short", 1.0), clock.work("long", 4.0)]
    assert measure_interleaved({"a": calls}, runs=3, clock=clock)["a"].median_s == 2.5


def test_percentiles_are_those_of_single_calls(clock: Clock) -> None:
    calls = [clock.work(str(i), float(i)) for i in range(1, 12)]
    timing = measure_interleaved({"a": calls}, runs=2, clock=clock)["a"]
    expected = tuple(np.percentile(list(range(1, 12)) * 2, (10, 50, 90)))
    assert (timing.p10_s, timing.p50_s, timing.p90_s) == pytest.approx(expected)


def test_runs_go_on_until_ratios_are_known(clock: Clock) -> None:
    steady = {"a": [clock.work("a", 2.0)], "b": [clock.work("b", 1.0)]}
    assert measure_interleaved(steady, runs=3, clock=clock, most_runs=9)["b"].runs == 3
    restless = {"a": [clock.work("a", 2.0)], "b": [clock.work("b", *[1.0, 1.5] * 20)]}
    assert measure_interleaved(restless, runs=3, clock=clock, most_runs=9)["b"].runs == 9
    settling = {"a": [clock.work("a", 2.0)], "b": [clock.work("b", 1.0, 1.5, 1.2, 1.0)]}
    assert 3 < measure_interleaved(settling, runs=3, warm_up=0, clock=clock, most_runs=9)["b"].runs < 9


def test_busy_machine_is_not_waited_for_without_end(clock: Clock) -> None:
    """After three rounds of some 32 s each."""
    restless = {"a": [clock.work("a", 20.0)], "b": [clock.work("b", *[10.0, 15.0] * 20)]}
    assert measure_interleaved(restless, runs=3, clock=clock, most_runs=9)["b"].runs == 3


def test_median_call_is_not_the_median_run(clock: Clock) -> None:
    # Runs of 1 + 1 + 10 s: a call takes 4 s on average, and half of the calls no longer than 1 s.
    calls = [clock.work("short", 1.0), clock.work("short", 1.0), clock.work("long", 10.0)]
    timing = measure_interleaved({"a": calls}, runs=3, clock=clock)["a"]
    assert (timing.median_s, timing.p50_s) == (4.0, 1.0)


def test_disturbed_call_does_not_move_the_median_call(clock: Clock) -> None:
    calls = [clock.work("a", 1.0)] * 4 + [clock.work("b", 100.0, 1.0)]
    timing = measure_interleaved({"a": calls}, runs=2, warm_up=0, clock=clock)["a"]
    assert timing.p50_s == 1.0 and timing.median_s > 5.0


def test_warm_up_is_not_timed(clock: Clock) -> None:
    timing = measure_interleaved({"a": [clock.work("a", 50, 50, 1)]}, runs=3, warm_up=2, clock=clock)["a"]
    assert (timing.median_s, timing.p90_s) == (1.0, 1.0)


def test_every_system_warms_up_before_any_is_timed(clock: Clock) -> None:
    systems = {"a": [clock.work("a", 1)], "b": [clock.work("b", 1)]}
    measure_interleaved(systems, runs=1, warm_up=2, clock=clock)
    assert clock.log == ["a", "a", "b", "b", "a", "b"]


def test_runs_are_interleaved_and_calls_of_a_run_are_not(clock: Clock) -> None:
    systems = {"a": [clock.work("a1", 1), clock.work("a2", 1)], "b": [clock.work("b", 1)]}
    measure_interleaved(systems, runs=2, warm_up=0, clock=clock)
    assert clock.log == ["a1", "a2", "b", "a1", "a2", "b"]


def test_systems_are_told_apart(clock: Clock) -> None:
    timings = measure_interleaved({"a": [clock.work("a", 1)], "b": [clock.work("b", 3)]}, runs=2, clock=clock)
    assert {name: timing.median_s for name, timing in timings.items()} == {"a": 1.0, "b": 3.0}


def test_progress_is_told_after_every_round(clock: Clock) -> None:
    shares: list[float] = []
    measure_interleaved({"a": [clock.work("a", 1)]}, runs=4, clock=clock, on_run=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_real_clock_is_the_default() -> None:
    timing = measure_interleaved({"a": [lambda: sum(range(1000))]}, runs=2)["a"]
    assert 0.0 < timing.median_s < 1.0


def test_noise_is_half_the_distance_of_the_quartiles_of_the_ratios_over_their_median() -> None:
    slower = Timing(10.0, 0, 0, 0, (8.0, 9.0, 10.0, 11.0, 12.0))
    assert measure_noise(slower, Timing(1.0, 0, 0, 0, (1.0,) * 5)) == pytest.approx(0.1)


def test_noise_does_not_see_what_slows_both() -> None:
    slower, faster = Timing(8.0, 0, 0, 0, (8.0, 80.0, 16.0)), Timing(1.0, 0, 0, 0, (1.0, 10.0, 2.0))
    assert measure_noise(slower, faster) == 0.0
