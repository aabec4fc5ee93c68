"""Tests of the described devices: the shipped numbers against each other, and bad numbers refused by name."""

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mpcompile.cost import devices as module
from mpcompile.cost.device import Device
from mpcompile.cost.device_checks import check_device
from mpcompile.cost.devices import find_device, load_devices
from mpcompile.errors import SettingError

SHIPPED = Path(module.__file__).with_name("devices.toml")
DEVICES = load_devices()
TABLES = tomllib.loads(SHIPPED.read_text("utf-8"))
GPUS = [name for name, device in DEVICES.items() if device.kind == "gpu"]
JETSONS = [name for name in DEVICES if name.startswith("jetson")]
NUMBERS = [
    "num_sms",
    "memory_bytes",
    "l2_bytes",
    "peak_bytes_per_s",
    "l2_bytes_per_s",
    "launch_overhead_s",
    "engine_overhead_s",
    "sync_overhead_s",
]
PEAK = "peak_flops_per_s"
GONE = object()


def to_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)


def write(tmp_path: Path, device: str = "l4", /, **changes: object) -> Path:
    """A file with one device, changed; a double underscore steps into a table, GONE removes."""
    table = copy.deepcopy(TABLES[device])
    for key, value in changes.items():
        *parents, field = key.split("__")
        inner: dict[str, Any] = table
        for parent in parents:
            inner = inner[parent]
        if value is GONE:
            del inner[field]
        else:
            inner[field] = value
    path = tmp_path / "mine.toml"
    lines = [f"{json.dumps(key)} = {to_toml(value)}" for key, value in table.items()]
    path.write_text(f"[{device}]\n" + "\n".join(lines) + "\n", "utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SettingError) as caught:
        load_devices(path)
    return str(caught.value)


def test_devices_are_the_ones_that_are_promised() -> None:
    assert set(DEVICES) == {
        "h200", "h100", "a100", "l4", "t4", "l40s", "rtx-4090", "rtx-5090",
        "jetson-agx-orin", "jetson-orin-nx", "jetson-orin-nano", "jetson-agx-thor", "cpu",
    }  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_shipped_device_passes(name: str) -> None:
    check_device(DEVICES[name])
    assert find_device(name) == DEVICES[name]
    assert DEVICES[name].name == name


@pytest.mark.parametrize("name", DEVICES)
def test_sources_cover_every_field(name: str) -> None:
    device = DEVICES[name]
    fields = {field.name for field in dataclasses.fields(Device)} - {"name", "sources", PEAK}
    assert set(device.sources) == fields | {f"{PEAK}.{precision}" for precision in device.peak_flops_per_s}


@pytest.mark.parametrize("name", GPUS)
def test_source_of_a_gpu_is_an_address_or_an_estimate(name: str) -> None:
    for field, source in DEVICES[name].sources.items():
        assert "https://" in source or source.startswith("estimate: "), field


@pytest.mark.parametrize("name", DEVICES)
def test_overheads_are_marked_as_estimates(name: str) -> None:
    for field in ("launch_overhead_s", "engine_overhead_s", "sync_overhead_s", "l2_bytes_per_s"):
        assert DEVICES[name].sources[field].startswith("estimate: "), field


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("h100", "f16", 1979e12 / 2),
        ("h200", "int8", 3958e12 / 2),
        ("a100", "f16", 312e12),
        ("a100", "f32", 19.5e12),
        ("l4", "f16", 242e12 / 2),
        ("l4", "int8", 485e12 / 2),
        ("t4", "f16", 65e12),
        ("t4", "int8", 130e12),
        ("l40s", "f16", 362e12),
        ("l40s", "fp8", 733e12),
        ("rtx-4090", "f16", 165.2e12),
        ("rtx-5090", "f16", 209.5e12),
        ("jetson-agx-orin", "int8", 170e12 / 2),
        ("jetson-agx-thor", "fp8", 2070e12 / 4),
    ],
)
def test_peak_is_the_dense_one_of_the_datasheet(name: str, precision: str, peak: float) -> None:
    assert DEVICES[name].peak_flops_per_s[precision] == pytest.approx(peak, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "bandwidth", "memory", "num_sms"),
    [
        ("h200", 4.8e12, 141e9, 132),
        ("h100", 3.35e12, 80e9, 132),
        ("a100", 1.555e12, 40e9, 108),
        ("l4", 300e9, 24e9, 58),
        ("t4", 320e9, 16e9, 40),
        ("l40s", 864e9, 48e9, 142),
        ("rtx-4090", 1008e9, 24e9, 128),
        ("rtx-5090", 1792e9, 32e9, 170),
        ("jetson-agx-orin", 204.8e9, 64e9, 16),
        ("jetson-orin-nx", 102.4e9, 16e9, 8),
        ("jetson-orin-nano", 102e9, 8e9, 8),
        ("jetson-agx-thor", 273e9, 128e9, 20),
    ],
)
def test_memory_and_sms_are_those_of_the_datasheet(name: str, bandwidth: float, memory: float, num_sms: int) -> None:
    device = DEVICES[name]
    assert (device.peak_bytes_per_s, device.memory_bytes, device.num_sms) == (bandwidth, memory, num_sms)


def test_h200_is_h100_with_faster_memory() -> None:
    h200, h100 = DEVICES["h200"], DEVICES["h100"]
    assert h200.peak_flops_per_s == h100.peak_flops_per_s
    assert h200.peak_bytes_per_s / h100.peak_bytes_per_s == pytest.approx(4.8 / 3.35)


@pytest.mark.parametrize(
    ("name", "clock_hz", "f16_per_cycle"),
    [
        ("a100", 1.41e9, 2048),
        ("t4", 1.59e9, 1024),
        ("l4", 2.04e9, 1024),
        ("rtx-4090", 2.52e9, 512),
        ("rtx-5090", 2.407e9, 512),
        ("jetson-agx-orin", 1.3e9, 2048),
        ("jetson-orin-nx", 0.918e9, 2048),
        ("jetson-orin-nano", 1.02e9, 2048),
        ("jetson-agx-thor", 1.575e9, 8192),
    ],
)
def test_f16_peak_is_sms_times_clock_times_flops(name: str, clock_hz: float, f16_per_cycle: int) -> None:
    device = DEVICES[name]
    assert device.peak_flops_per_s["f16"] == pytest.approx(device.num_sms * clock_hz * f16_per_cycle, rel=5e-3)


def test_turing_has_neither_bf16_nor_tf32_nor_fp8() -> None:
    assert set(DEVICES["t4"].peak_flops_per_s) == {"f32", "f16", "int8"}


def test_fp8_begins_with_ada() -> None:
    with_fp8 = {name for name in GPUS if "fp8" in DEVICES[name].peak_flops_per_s}
    assert with_fp8 == {name for name in GPUS if float(DEVICES[name].compute_capability) >= 8.9}


def test_jetson_shares_its_memory_and_calls_cost_more_than_on_a_server() -> None:
    for name in JETSONS:
        assert "shared with the host" in DEVICES[name].variant
        assert DEVICES[name].launch_overhead_s > DEVICES["h100"].launch_overhead_s
        assert DEVICES[name].engine_overhead_s > DEVICES["h100"].engine_overhead_s


def test_cpu_peak_is_two_cores_times_clock_times_flops() -> None:
    cpu = DEVICES["cpu"]
    assert (cpu.num_sms, cpu.compute_capability) == (2, "")
    assert cpu.peak_flops_per_s == {"f32": 2 * 4e9 * 64, "bf16": 2 * 4e9 * 128, "int8": 2 * 4e9 * 256}


def test_ridge_point_is_flops_over_bytes() -> None:
    assert DEVICES["a100"].ridge_point("f16") == pytest.approx(312 / 1.555)
    assert DEVICES["t4"].ridge_point("int8") == pytest.approx(130 / 0.32)


def test_ridge_point_of_a_missing_precision_lists_the_others() -> None:
    with pytest.raises(SettingError, match=r"precision: 'bf16'; t4 has f32, f16, int8"):
        DEVICES["t4"].ridge_point("bf16")


def test_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(SettingError) as caught:
        find_device("v100")
    assert "device: 'v100' is not known" in str(caught.value)
    assert all(name in str(caught.value) for name in DEVICES)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("rtx4090", "rtx-4090"), ("H100", "h100"), ("jetson_orin_nx", "jetson-orin-nx"), ("l40", "l40s")],
)
def test_misspelt_device_gets_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"did you mean '{meant}'"):
        find_device(name)


def test_other_file_replaces_the_packaged_one(tmp_path: Path) -> None:
    path = write(tmp_path, variant="my own L4")
    assert list(load_devices(path)) == ["l4"]
    assert find_device("l4", path).variant == "my own L4"
    with pytest.raises(SettingError, match=re.escape(f"a file like {path}")):
        find_device("h100", path)


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in refusal(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"[l4\nnum_sms = 58", b"\xff\xfe", b"num_sms = {}{}"])
def test_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert f"{path}: not TOML" in refusal(path)


def test_file_without_devices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("# nothing\n")
    assert "holds no device" in refusal(path)


def test_value_in_place_of_a_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("l4 = 300\n")
    assert f"{path}: l4: 300; a table" in refusal(path)


@pytest.mark.parametrize("field", [*TABLES["l4"]])
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = write(tmp_path, **{field: GONE})
    assert f"{path}: l4.{field}: missing" in refusal(path)


def test_unknown_field_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    path = write(tmp_path, peak_byte_per_s=3e11)
    message = refusal(path)
    assert f"{path}: l4.peak_byte_per_s: unknown" in message and "write peak_bytes_per_s" in message
    assert "l4.colour: unknown" in refusal(write(tmp_path, colour="green"))


@pytest.mark.parametrize("field", [*NUMBERS, f"{PEAK}__f16"])
@pytest.mark.parametrize("value", [True, "58", math.nan, math.inf, -1, 0, [1]], ids=str)
def test_value_that_is_not_a_positive_number_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = write(tmp_path, **{field: value})
    assert f"{path}: l4.{field.replace('__', '.')}: {value!r}; " in refusal(path)


@pytest.mark.parametrize("field", ["num_sms", "memory_bytes", "l2_bytes"])
def test_count_that_is_not_whole_is_refused(tmp_path: Path, field: str) -> None:
    assert "a whole number" in refusal(write(tmp_path, **{field: 58.0}))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("variant", 4, "a text in quotes"),
        ("variant", " ", "say which product"),
        ("kind", "tpu", "expected one of 'gpu', 'cpu'"),
        ("compute_capability", 8.9, "a text in quotes"),
        ("compute_capability", "89", "a gpu has one of '7.5', '8.0'"),
        ("compute_capability", "", "a gpu has one of '7.5', '8.0'"),
        (PEAK, 121e12, "a table is expected"),
        ("sources", "the datasheet", "a table is expected"),
    ],
)
def test_text_or_table_that_is_not_allowed_is_refused(tmp_path: Path, field: str, value: object, allowed: str) -> None:
    message = refusal(write(tmp_path, **{field: value}))
    assert f"l4.{field}: {value!r}; " in message and allowed in message


def test_cpu_has_no_compute_capability(tmp_path: Path) -> None:
    assert "cpu.compute_capability: '9.0'" in refusal(write(tmp_path, "cpu", compute_capability="9.0"))


def test_unknown_precision_is_refused(tmp_path: Path) -> None:
    assert f"l4.{PEAK}.fp16: 121000000000000.0; known precisions are" in refusal(
        write(tmp_path, **{f"{PEAK}__fp16": 121e12})
    )


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_gpu_without_f32_or_f16_is_refused(tmp_path: Path, precision: str) -> None:
    path = write(tmp_path, **{f"{PEAK}__{precision}": GONE})
    assert f"l4.{PEAK}.{precision}: missing; every gpu has it" in refusal(path)


@pytest.mark.parametrize("field", [*NUMBERS, "variant", "kind", "compute_capability", f"{PEAK}__f16", f"{PEAK}__fp8"])
@pytest.mark.parametrize("source", [GONE, "", 3], ids=["gone", "empty", "number"])
def test_value_without_a_source_is_refused(tmp_path: Path, field: str, source: object) -> None:
    path = write(tmp_path, **{f"sources__{field}": source})
    assert f"{path}: l4.sources.{field.replace('__', '.')}: " in refusal(path)


def test_source_of_a_value_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "l4.sources.clock_hz: 'a guess'" in refusal(write(tmp_path, sources__clock_hz="a guess"))
    assert f"t4.sources.{PEAK}.bf16: 'no'" in refusal(write(tmp_path, "t4", **{f"sources__{PEAK}__bf16": "no"}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_sms", 7424),  # CUDA cores
        ("memory_bytes", 24),  # GB
        ("memory_bytes", 24_000),  # MB
        ("memory_bytes", 24_000_000_000_000),
        ("l2_bytes", 48),  # MB
        ("l2_bytes", 49_152),  # KB
        ("peak_bytes_per_s", 300),  # GB/s
        ("peak_bytes_per_s", 0.3),  # TB/s
        ("peak_bytes_per_s", 3.0e14),  # 1000 times too high
        ("l2_bytes_per_s", 1700),  # GB/s
        ("launch_overhead_s", 2.5),  # microseconds
        ("engine_overhead_s", 10),  # microseconds
        ("engine_overhead_s", 0.01),  # milliseconds
        ("sync_overhead_s", 1.5e-8),
        (f"{PEAK}__f16", 121),  # TFLOPS
        (f"{PEAK}__f32", 30.3e3),  # GFLOPS
    ],
)
def test_slip_of_units_is_refused(tmp_path: Path, field: str, value: float) -> None:
    message = refusal(write(tmp_path, **{field: value}))
    assert (
        f"l4.{field.replace('__', '.')}: {value!r}; " in message
        and "is allowed (" in message
        and "write" in (message.replace("count", "write"))
    )


@pytest.mark.parametrize("name", DEVICES)
def test_bandwidth_1000_times_too_high_is_refused_for_every_device(tmp_path: Path, name: str) -> None:
    bandwidth = DEVICES[name].peak_bytes_per_s * 1000
    path = write(tmp_path, name, peak_bytes_per_s=bandwidth, l2_bytes_per_s=bandwidth * 2)
    assert f"{name}.peak_bytes_per_s: {bandwidth!r}" in refusal(path)


@pytest.mark.parametrize("name", DEVICES)
def test_bandwidth_in_gigabytes_is_refused_for_every_device(tmp_path: Path, name: str) -> None:
    bandwidth = DEVICES[name].peak_bytes_per_s / 1e9
    assert f"{name}.peak_bytes_per_s: {bandwidth!r}" in refusal(write(tmp_path, name, peak_bytes_per_s=bandwidth))


def test_bandwidth_that_the_peaks_do_not_fit_is_refused(tmp_path: Path) -> None:
    # 121e12 flops: 3e12 B/s leave 40 flops per byte, 3e10 B/s 4033.
    fast = refusal(write(tmp_path, peak_bytes_per_s=3e12, l2_bytes_per_s=1e13))
    assert "l4.peak_bytes_per_s: 3000000000000.0; that is 40.33 flops of f16 per byte, 50 to 1200 is allowed" in fast
    assert "that is 4033 flops of f16 per byte" in refusal(write(tmp_path, peak_bytes_per_s=3e10))
    assert "cpu.peak_bytes_per_s" in refusal(write(tmp_path, "cpu", peak_bytes_per_s=2e12, l2_bytes_per_s=3e12))


def test_cache_slower_than_memory_is_refused(tmp_path: Path) -> None:
    assert "l4.l2_bytes_per_s: 300000000000.0; above peak" in refusal(write(tmp_path, l2_bytes_per_s=3.0e11))


@pytest.mark.parametrize(
    ("precision", "peak", "times"),
    [
        ("bf16", 242e12, "2 times f16, 1 is allowed"),
        ("bf16", 60e12, "times f16"),
        ("tf32", 120e12, "times f16, 0.45 to 0.55 is allowed"),
        ("int8", 970e12, "times f16, 1 to 4.01 is allowed"),
        ("int8", 60e12, "times f16"),
        ("fp8", 485e12, "times f16, 1 to 2.1 is allowed"),
        ("f32", 121e12, "1 times f16, 0.001 to 0.99 is allowed"),
    ],
)
def test_peaks_that_do_not_fit_each_other_are_refused(tmp_path: Path, precision: str, peak: float, times: str) -> None:
    message = refusal(write(tmp_path, **{f"{PEAK}__{precision}": peak}))
    assert f"l4.{PEAK}.{precision}: {peak!r}; that is " in message and times in message


@pytest.mark.parametrize("name", GPUS)
def test_peaks_with_sparsity_are_refused_for_every_gpu(tmp_path: Path, name: str) -> None:
    peaks = DEVICES[name].peak_flops_per_s
    sparse = {f"{PEAK}__{precision}": 2 * peak for precision, peak in peaks.items() if precision != "f32"}
    if name.startswith("rtx"):
        # Twice the rate with FP32 accumulation is the one with FP16 accumulation, which the ratio to TF32 tells.
        sparse = {field: peak for field, peak in sparse.items() if not field.endswith("tf32")}
    assert f"{name}.{PEAK}." in refusal(write(tmp_path, name, **sparse))


@pytest.mark.parametrize(
    ("name", "other"), [("l4", "l40s"), ("l4", "a100"), ("h100", "a100"), ("jetson-orin-nx", "t4")]
)
def test_peaks_of_another_card_are_refused(tmp_path: Path, name: str, other: str) -> None:
    peaks = TABLES[other][PEAK]
    changes = {PEAK: peaks, f"sources__{PEAK}": dict.fromkeys(peaks, "copied")}
    assert f"{name}.{PEAK}." in refusal(write(tmp_path, name, **changes))


def test_precision_that_the_generation_lacks_is_refused(tmp_path: Path) -> None:
    changes = {f"{PEAK}__bf16": 65e12, f"sources__{PEAK}__bf16": "a hope"}
    assert f"t4.{PEAK}.bf16: 65000000000000.0; compute capability 7.5 has f32, f16, int8" in refusal(
        write(tmp_path, "t4", **changes)
    )


def test_clock_that_no_core_of_a_cpu_has_is_refused(tmp_path: Path) -> None:
    peaks = {f"{PEAK}__f32": 2e12, f"{PEAK}__bf16": 4e12, f"{PEAK}__int8": 8e12}
    assert f"cpu.{PEAK}.f32: 2000000000000.0; that is 1e+12 flops per core" in refusal(write(tmp_path, "cpu", **peaks))


def test_measured_device_is_checked_without_a_file() -> None:
    device = dataclasses.replace(DEVICES["l4"], peak_bytes_per_s=300.0)
    with pytest.raises(SettingError, match=r"^l4\.peak_bytes_per_s: 300\.0; 1e\+10 to 2e\+13 is allowed"):
        check_device(device)


def test_devices_need_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, mpcompile\nbefore = set(sys.modules)\nfrom mpcompile.cost.devices import load_devices\n"
        "load_devices()\nnew = set(sys.modules) - before\nassert not new & {'torch', 'numpy'}, new"
    )
    subprocess.run([sys.executable, "-c", program], cwd=SHIPPED.parents[2], check=True)
