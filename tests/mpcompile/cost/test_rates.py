"""Tests of declared rates: a share of each peak, and what differs between GPUs and CPUs."""

import dataclasses

import pytest

from mpcompile.contract.precision import ELEMENT_BYTES
from mpcompile.cost.device import Device
from mpcompile.cost.devices import load_devices
from mpcompile.cost.rates import CPU_PRODUCT_S, GPU_TILES, Rates, declare_rates
from mpcompile.errors import SettingError

DEVICES = load_devices()
PAIRS = [(name, precision) for name, device in DEVICES.items() for precision in device.peak_flops_per_s]

GPU = Device(
    name="counted",
    variant="made up",
    kind="gpu",
    compute_capability="8.9",
    num_sms=10,
    memory_bytes=10**10,
    l2_bytes=10**6,
    peak_bytes_per_s=1e11,
    l2_bytes_per_s=1e12,
    launch_overhead_s=1e-6,
    engine_overhead_s=2e-6,
    sync_overhead_s=3e-6,
    arithmetic_scale=1.0,
    peak_flops_per_s={"f32": 1e12, "f16": 1e13, "fp8": 2e13, "int8": 2e13},
    sources={},
)
CPU = dataclasses.replace(GPU, kind="cpu", peak_flops_per_s={"f32": 1e12, "bf16": 2e12, "int8": 4e12})

ARITHMETIC = ("matmul_flops_per_s", "attention_flops_per_s", "vector_flops_per_s")

every_pair = pytest.mark.parametrize(("name", "precision"), PAIRS)


def test_rates_are_shares_of_the_peaks() -> None:
    rates = declare_rates(GPU, "f16")
    assert rates.matmul_flops_per_s == pytest.approx(0.6 * 1e13)
    assert rates.attention_flops_per_s == pytest.approx(0.35 * 1e13)
    assert rates.vector_flops_per_s == pytest.approx(0.4 * 1e12)
    assert rates.memory_bytes_per_s == pytest.approx(0.8 * 1e11)
    assert rates.cache_bytes_per_s == pytest.approx(0.6 * 1e12)


def test_scale_of_a_device_stretches_its_arithmetic_and_nothing_else() -> None:
    plain, slow = declare_rates(GPU, "int8"), declare_rates(dataclasses.replace(GPU, arithmetic_scale=2.0), "int8")
    halved = {name: getattr(plain, name) / 2 for name in ARITHMETIC}
    assert slow == dataclasses.replace(plain, **halved)


def test_sizes_and_overheads_are_those_of_the_device() -> None:
    rates = declare_rates(GPU, "f16")
    assert (rates.cache_bytes, rates.num_units) == (10**6, 10)
    assert (rates.launch_s, rates.engine_s, rates.sync_s) == (1e-6, 2e-6, 3e-6)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_attention_of_narrow_products_runs_in_f16(precision: str) -> None:
    rates = declare_rates(GPU, precision)
    assert rates.matmul_flops_per_s == pytest.approx(0.6 * 2e13)
    assert rates.attention_flops_per_s == declare_rates(GPU, "f16").attention_flops_per_s


def test_attention_beside_int8_products_of_a_cpu_runs_in_bf16() -> None:
    rates = declare_rates(CPU, "int8")
    assert rates.matmul_flops_per_s == pytest.approx(0.6 * 4e12)
    assert rates.attention_flops_per_s == pytest.approx(0.35 * 2e12)
    assert rates.activation_bytes == 2


@pytest.mark.parametrize(("precision", "size"), [("f32", 4), ("f16", 2), ("fp8", 1), ("int8", 1)])
def test_narrow_elements_move_fewer_bytes(precision: str, size: int) -> None:
    assert declare_rates(GPU, precision).activation_bytes == size


def test_products_of_a_gpu_run_as_tiles_on_all_its_units() -> None:
    rates = declare_rates(GPU, "f16")
    assert (rates.num_units, rates.tiles) == (10, GPU_TILES)
    assert rates.product_s == 0.0


def test_smaller_tiles_reach_a_smaller_share_of_the_rate() -> None:
    areas, shares = [rows * columns for rows, columns, _ in GPU_TILES], [share for *_, share in GPU_TILES]
    assert areas == sorted(areas, reverse=True)
    assert shares == sorted(shares, reverse=True) and shares[0] == 1.0


def test_products_of_a_cpu_are_calls_in_a_loop() -> None:
    rates = declare_rates(CPU, "f32")
    assert (rates.num_units, rates.tiles) == (1, ((1, 1, 1.0),))
    assert rates.product_s == CPU_PRODUCT_S


def test_gpu_hides_traffic_behind_arithmetic_and_a_cpu_does_not() -> None:
    assert (declare_rates(GPU, "f16").overlap, declare_rates(CPU, "f32").overlap) == (1.0, 0.0)


def test_cpu_answers_into_host_memory() -> None:
    assert declare_rates(CPU, "f32").sync_s == 0.0


def test_nothing_is_declared_of_calls_of_other_sizes() -> None:
    assert declare_rates(CPU, "f32").reshape_s == declare_rates(GPU, "f16").reshape_s == 0.0


def test_name_tells_device_and_precision() -> None:
    assert declare_rates(GPU, "f16").name == "counted f16"


def test_precision_that_the_device_has_not_is_refused() -> None:
    with pytest.raises(SettingError, match=r"precision: 'bf16'; counted has f32, f16, fp8, int8: choose one of these"):
        declare_rates(GPU, "bf16")


@every_pair
def test_every_device_has_rates_in_every_precision(name: str, precision: str) -> None:
    rates = declare_rates(DEVICES[name], precision)
    values = [value for value in dataclasses.asdict(rates).values() if isinstance(value, int | float)]
    assert all(value >= 0 for value in values)
    assert min(rates.matmul_flops_per_s, rates.attention_flops_per_s, rates.vector_flops_per_s) > 1e9


@pytest.mark.parametrize("name", DEVICES)
def test_cache_is_no_slower_than_memory(name: str) -> None:
    rates = declare_rates(DEVICES[name], "f32")
    assert rates.cache_bytes_per_s >= rates.memory_bytes_per_s


@every_pair
def test_kernels_stay_below_the_peaks(name: str, precision: str) -> None:
    device, rates = DEVICES[name], declare_rates(DEVICES[name], precision)
    assert rates.matmul_flops_per_s < device.peak_flops_per_s[precision]
    assert rates.attention_flops_per_s < rates.matmul_flops_per_s
    assert rates.memory_bytes_per_s < device.peak_bytes_per_s


@pytest.mark.parametrize(
    ("name", "precisions"),
    [("t4", ("f32", "f16", "int8")), ("h100", ("f32", "tf32", "f16", "fp8")), ("cpu", ("f32", "int8"))],
)
def test_narrower_precision_is_never_slower(name: str, precisions: tuple[str, ...]) -> None:
    rates = [declare_rates(DEVICES[name], precision) for precision in precisions]
    assert [r.matmul_flops_per_s for r in rates] == sorted(r.matmul_flops_per_s for r in rates)
    assert [r.activation_bytes for r in rates] == sorted((r.activation_bytes for r in rates), reverse=True)


def test_every_declared_precision_has_a_size() -> None:
    assert {precision for _, precision in PAIRS} <= set(ELEMENT_BYTES)


def test_rates_have_one_unit_and_whole_overlap_unless_told() -> None:
    plain = Rates("plain", *[1.0] * 8)
    assert (plain.num_units, plain.tiles, plain.overlap) == (1, ((1, 1, 1.0),), 1.0)
    assert (plain.sync_s, plain.product_s, plain.reshape_s) == (0.0, 0.0, 0.0)
