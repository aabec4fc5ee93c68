"""Tests of seconds of a region, on work and rates made up so that a person can count."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.cost.rates import GPU_TILES, Rates
from mpcompile.cost.regions import Work
from mpcompile.cost.roofline import count_waves, predict_region
from tests.mpcompile.cost.counted import RATES

NO_PRODUCT = (0, 0, 0, 0)


def work(
    kind: str = "pointwise",
    product: tuple[object, ...] = NO_PRODUCT,
    vector_flops: object = 0.0,
    weight_bytes: object = 0.0,
    activation_bytes: object = 0.0,
    count: int = 1,
    num_launches: int = 1,
) -> Work:
    """One group."""
    return Work((kind,), (count,), (num_launches,), (product,), (vector_flops,), (weight_bytes,), (activation_bytes,))


def seconds(rates: Rates, region: Work, engine_weight_bytes: float = 1e9) -> float:
    return float(predict_region(rates, region, engine_weight_bytes))


def change(**changes: object) -> Rates:
    return dataclasses.replace(RATES, **changes)


# Arithmetic and traffic.


def test_kernel_of_much_arithmetic_takes_the_time_of_its_arithmetic() -> None:
    assert seconds(RATES, work(vector_flops=700.0, activation_bytes=50.0)) == pytest.approx(700 / 100)


def test_kernel_of_much_traffic_takes_the_time_of_its_traffic() -> None:
    assert seconds(RATES, work(vector_flops=70.0, activation_bytes=50.0)) == pytest.approx(50 / 10)


def test_product_runs_at_the_rate_of_products() -> None:
    assert seconds(RATES, work("matmul", (1, 2, 5, 10))) == pytest.approx(2 * 2 * 5 * 10 / 1000)


def test_batch_of_products_runs_at_that_rate_too() -> None:
    assert seconds(RATES, work("matmul", (3, 2, 5, 10))) == pytest.approx(3 * 0.2)


def test_attention_is_two_products_at_its_own_rate() -> None:
    assert seconds(RATES, work("attention", (4, 3, 5, 3))) == pytest.approx(2 * (4 * 2 * 3 * 5 * 3) / 500)


def test_vector_flops_of_a_product_s_kernel_come_behind_it() -> None:
    assert seconds(RATES, work("matmul", (1, 2, 5, 10), vector_flops=30.0)) == pytest.approx(0.2 + 0.3)


@pytest.mark.parametrize(("overlap", "expected"), [(1.0, 7.0), (0.5, 7.0 + 0.5 * 4.0), (0.0, 7.0 + 4.0)])
def test_share_of_the_shorter_hides_behind_the_longer(overlap: float, expected: float) -> None:
    rates = change(overlap=overlap)
    assert seconds(rates, work(vector_flops=700.0, activation_bytes=40.0)) == pytest.approx(expected)
    assert seconds(rates, work(vector_flops=400.0, activation_bytes=70.0)) == pytest.approx(expected)


def test_kernels_do_not_overlap_each_other() -> None:
    both = Work(("pointwise",) * 2, (1, 1), (1, 1), (NO_PRODUCT,) * 2, (700.0, 0.0), (0.0, 0.0), (0.0, 50.0))
    assert seconds(RATES, both) == pytest.approx(7.0 + 5.0)


def test_region_without_groups_takes_no_time() -> None:
    assert seconds(change(launch_s=1.0), Work((), (), (), (), (), (), ())) == 0.0


# Launches.


def test_every_kernel_has_its_launch() -> None:
    assert seconds(change(launch_s=0.25), work(vector_flops=100.0, num_launches=2)) == pytest.approx(1.0 + 2 * 0.25)


def test_groups_that_are_alike_are_each_run_and_launched() -> None:
    assert seconds(change(launch_s=0.25), work(vector_flops=100.0, count=3)) == pytest.approx(3 * (1.0 + 0.25))


def test_launch_hides_behind_nothing() -> None:
    assert seconds(change(launch_s=0.25), work(activation_bytes=50.0)) == pytest.approx(5.0 + 0.25)


# Memory and cache.


@pytest.mark.parametrize(("engine_weight_bytes", "cached"), [(0.0, 1.0), (100.0, 0.5), (300.0, 0.1), (1e9, 0.0)])
def test_weights_of_a_small_engine_stay_in_the_cache(engine_weight_bytes: float, cached: float) -> None:
    # Half of what is as large as the cache, a tenth of what is three times as large.
    taken = seconds(change(cache_bytes=100.0), work(weight_bytes=40.0), engine_weight_bytes)
    assert taken == pytest.approx(40 * (cached / 20 + (1 - cached) / 10))


@pytest.mark.parametrize(("size", "cached"), [(1e-3, 1.0), (100.0, 0.5), (300.0, 0.1), (1e9, 0.0)])
def test_activations_of_a_small_kernel_stay_in_the_cache(size: float, cached: float) -> None:
    taken = seconds(change(cache_bytes=100.0), work(activation_bytes=size))
    assert taken == pytest.approx(size * (cached / 20 + (1 - cached) / 10))


def test_weights_and_activations_share_the_way() -> None:
    assert seconds(RATES, work(weight_bytes=40.0, activation_bytes=30.0)) == pytest.approx((40 + 30) / 10)


@pytest.mark.parametrize(("size", "share"), [(4, 1.0), (2, 0.5), (1, 0.25)])
def test_narrow_elements_move_a_share_of_the_bytes(size: int, share: float) -> None:
    moving = work(weight_bytes=40.0, activation_bytes=40.0)
    assert seconds(change(activation_bytes=size), moving) == pytest.approx(share * 80 / 10)


def test_narrow_activations_fit_a_cache_that_wide_ones_do_not() -> None:
    rates = change(activation_bytes=2, cache_bytes=50.0)
    assert seconds(rates, work(activation_bytes=100.0)) == pytest.approx(50 * (0.5 / 20 + 0.5 / 10))


def test_narrow_weights_fit_a_cache_that_wide_ones_do_not() -> None:
    rates = change(activation_bytes=2, cache_bytes=50.0)
    taken = seconds(rates, work(weight_bytes=100.0), engine_weight_bytes=100.0)
    assert taken == pytest.approx(50 * (0.5 / 20 + 0.5 / 10))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(size=st.floats(1.0, 1e6), more=st.floats(1.0, 3.0), cache_bytes=st.floats(1.0, 1e6))
def test_more_bytes_never_take_less_time(size: float, more: float, cache_bytes: float) -> None:
    rates = change(cache_bytes=cache_bytes)
    few, many = (seconds(rates, work(activation_bytes=each)) for each in (size, size * more))
    assert few <= many * (1 + 1e-12)


# Products in a loop.


def test_each_product_of_a_batch_is_a_call() -> None:
    rates = change(product_s=0.5)
    alone = seconds(RATES, work("attention", (4, 3, 5, 3)))
    assert seconds(rates, work("attention", (4, 3, 5, 3))) == pytest.approx(alone + 4 * 0.5)


def test_single_product_is_no_call_in_a_loop() -> None:
    single = work("matmul", (1, 2, 5, 10))
    assert seconds(change(product_s=0.5), single) == seconds(RATES, single)


def test_pointwise_kernel_calls_no_products() -> None:
    assert seconds(change(product_s=0.5), work(vector_flops=100.0)) == pytest.approx(1.0)


# Waves.

TILED = change(num_units=4, tiles=((2, 2, 1.0),))
"""Four units of 250 flops a second; a tile of a product with 5 inner takes 2 * 2 * 2 * 5 / 250 s."""
WAVE_S = 0.16


@pytest.mark.parametrize(("tiles", "waves"), [(0, 0), (1, 1), (107, 1), (108, 1), (109, 2), (216, 2), (217, 3)])
def test_last_wave_counts_as_a_full_one(tiles: int, waves: int) -> None:
    assert count_waves(tiles, 108) == waves


def test_waves_of_many_lengths_are_counted_at_once() -> None:
    assert count_waves(np.array([1.0, 4.0, 5.0]), 4).tolist() == [1, 1, 2]


@pytest.mark.parametrize(("rows", "waves"), [(1, 1), (2, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_time_of_a_product_is_a_staircase(rows: int, waves: int) -> None:
    assert seconds(TILED, work("matmul", (1, rows, 5, 2))) == pytest.approx(waves * WAVE_S)


def test_one_tile_more_than_units_doubles_the_time() -> None:
    full, over = (seconds(TILED, work("matmul", (1, rows, 5, 2))) for rows in (8, 9))
    assert over == pytest.approx(2 * full)


def test_full_waves_run_at_the_rate_of_the_device() -> None:
    assert seconds(TILED, work("matmul", (1, 16, 5, 2))) == pytest.approx(2 * 16 * 5 * 2 / 1000)


def test_columns_make_tiles_as_rows_do() -> None:
    assert seconds(TILED, work("matmul", (1, 2, 5, 9))) == pytest.approx(2 * WAVE_S)


def test_products_of_a_batch_share_waves() -> None:
    assert seconds(TILED, work("matmul", (4, 2, 5, 2))) == pytest.approx(WAVE_S)
    assert seconds(TILED, work("matmul", (5, 2, 5, 2))) == pytest.approx(2 * WAVE_S)


def test_attention_tiles_are_rows_of_scores() -> None:
    # A tile is 2 rows with all 6 columns, two products: 2 * 2 * 2 * 5 * 6 flops on a unit of 125 a second.
    wave_s = 2 * 2 * 2 * 5 * 6 / 125
    assert seconds(TILED, work("attention", (2, 4, 5, 6))) == pytest.approx(wave_s)
    assert seconds(TILED, work("attention", (2, 5, 5, 6))) == pytest.approx(2 * wave_s)


SEVERAL = change(num_units=4, tiles=((8, 2, 1.0), (2, 2, 0.5)))
"""A wave of the large tile takes 0.64 s; one of the small tile, at half the rate, 0.32 s."""


def test_tile_that_reaches_half_the_rate_takes_twice_the_time() -> None:
    halved = change(num_units=4, tiles=((2, 2, 0.5),))
    assert seconds(halved, work("matmul", (1, 8, 5, 2))) == pytest.approx(2 * WAVE_S)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_few_rows_run_in_the_smallest_tile(rows: int) -> None:
    smallest = dataclasses.replace(SEVERAL, tiles=SEVERAL.tiles[-1:])
    few = work("matmul", (1, rows, 5, 2))
    assert seconds(SEVERAL, few) == seconds(smallest, few) == pytest.approx(0.32)


@pytest.mark.parametrize(("rows", "expected"), [(18, 0.64), (32, 0.64), (34, 1.28), (40, 1.28)])
def test_many_rows_run_in_the_largest_tile(rows: int, expected: float) -> None:
    assert seconds(SEVERAL, work("matmul", (1, rows, 5, 2))) == pytest.approx(expected)


def test_tile_is_the_one_that_takes_least_time() -> None:
    lengths = np.arange(1.0, 200.0)
    products = work("matmul", (1, lengths, 5, 6))
    chosen = predict_region(SEVERAL, products, 0.0)
    single = [predict_region(dataclasses.replace(SEVERAL, tiles=(tile,)), products, 0.0) for tile in SEVERAL.tiles]
    np.testing.assert_array_equal(chosen, np.minimum(*single))


sizes = st.integers(1, 5000).map(float)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=sizes, inner=sizes, columns=sizes, units=st.integers(1, 200), kind=st.sampled_from(["matmul", "attention"]))
def test_more_rows_never_take_less_time(rows: float, inner: float, columns: float, units: int, kind: str) -> None:
    rates = change(num_units=units, tiles=GPU_TILES)
    few, many = (seconds(rates, work(kind, (1, each, inner, columns))) for each in (rows, rows + 1))
    assert few <= many * (1 + 1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=sizes, inner=sizes, columns=sizes, units=st.integers(1, 200))
def test_no_product_beats_the_rate_of_the_device(rows: float, inner: float, columns: float, units: int) -> None:
    taken = seconds(change(num_units=units, tiles=GPU_TILES), work("matmul", (1, rows, inner, columns)))
    assert taken >= 2 * rows * inner * columns / 1000 * (1 - 1e-12)


def test_many_sizes_are_predicted_at_once() -> None:
    rates = change(num_units=4, tiles=GPU_TILES, overlap=0.3, cache_bytes=1e4, launch_s=0.1)
    lengths = np.array([1.0, 40.0, 333.0])
    rows = [work("matmul", (1, s, 64, 96), 7.0 * s, 100.0, 9.0 * s, 2, 2) for s in (*lengths, lengths)]
    *single, together = (predict_region(rates, row, 50.0) for row in rows)
    np.testing.assert_allclose(together, np.array(single, np.float64))
    assert all(math.isfinite(value) for value in single)
