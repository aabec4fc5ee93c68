"""Refuses devices that cannot be: a slip of units or of a column in a datasheet. SI units."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mpcompile.cost.device import Device
from mpcompile.errors import SettingError

KINDS = ("gpu", "cpu")
PRECISIONS = ("f32", "tf32", "f16", "bf16", "fp8", "int8")

_Refuse = Callable[[str, object, str], SettingError]
"""Field, value and what is allowed; None for a value that is missing."""

_PEAKS = "peak_flops_per_s"
_TEXTS = ("variant", "kind", "compute_capability")
_WHOLE = ("num_sms", "memory_bytes", "l2_bytes")


class Limit(NamedTuple):
    """The range that a number may be in, why, and how to fix one that is not."""

    low: float
    high: float
    reason: str
    fix: str


class Generation(NamedTuple):
    """What one SM does in a cycle, and the clocks in Hz that its products run at under load."""

    f32_flops: int
    f16_flops: int
    low_hz: float
    high_hz: float
    precisions: tuple[str, ...]


_SECONDS = "write seconds; 5 microseconds are 5e-6"

_LIMITS = {
    "num_sms": Limit(1, 1000, "the largest GPU of 2025 has 208", "count SMs, not CUDA cores; of a CPU count cores"),
    "memory_bytes": Limit(1e9, 1e12, "from a small board to a large server", "write bytes; 24 GB are 24_000_000_000"),
    "l2_bytes": Limit(1e5, 1e9, "from a Jetson Nano's 256 KB to a server CPU's L3", "write bytes; 4 MB are 4_194_304"),
    "peak_bytes_per_s": Limit(
        1e10, 2e13, "from one LPDDR4 channel to twice the HBM of 2025", "write bytes per second; 300 GB/s are 3.0e11"
    ),
    "l2_bytes_per_s": Limit(
        2e10, 1e14, "a cache is faster than the memory behind it", "write bytes per second; 2 TB/s are 2.0e12"
    ),
    "launch_overhead_s": Limit(1e-7, 1e-3, "an empty kernel in a CUDA graph takes 0.6 microseconds", _SECONDS),
    "engine_overhead_s": Limit(1e-7, 1e-3, "one enqueue or infer request takes 5 to 200 microseconds", _SECONDS),
    "sync_overhead_s": Limit(1e-7, 1e-3, "a small copy and a wake-up take 1 to 30 microseconds", _SECONDS),
    "arithmetic_scale": Limit(0.3, 5.0, "the four cards with public tables have 0.7 to 1.6", "check the peaks first"),
    _PEAKS: Limit(
        1e10, 2e16, "from one old core to twice the FP8 of 2025", "write operations per second; 121 TFLOPS are 121e12"
    ),
}

_ALSO_BF16 = ("f32", "tf32", "f16", "bf16", "int8")
_GENERATIONS = {
    "7.5": Generation(128, 1024, 0.5e9, 2.0e9, ("f32", "f16", "int8")),  # Turing: T4 1.59 GHz
    "8.0": Generation(128, 2048, 0.5e9, 1.6e9, _ALSO_BF16),  # A100 1.41 GHz
    "8.6": Generation(256, 1024, 0.7e9, 2.1e9, _ALSO_BF16),  # A10 1.70 GHz, GeForce 30 up to 1.86 GHz
    "8.7": Generation(256, 2048, 0.3e9, 1.4e9, _ALSO_BF16),  # Orin: 1.3 GHz, 306 MHz in the lowest mode
    "8.9": Generation(256, 1024, 1.3e9, 2.7e9, PRECISIONS),  # L4 2.04 GHz, RTX 4090 2.52 GHz
    "9.0": Generation(256, 4096, 0.9e9, 2.1e9, PRECISIONS),  # H100 SXM 1.98 GHz
    "10.0": Generation(256, 8192, 0.9e9, 2.2e9, PRECISIONS),  # B200 1.97 GHz
    "11.0": Generation(256, 8192, 0.3e9, 1.8e9, PRECISIONS),  # Thor 1.575 GHz
    "12.0": Generation(256, 1024, 0.9e9, 2.9e9, PRECISIONS),  # RTX 5090 2.41 GHz, RTX 5080 2.62 GHz
}
"""Flops per SM and cycle, dense: NVIDIA's architecture whitepapers. TensorRT 10 needs 7.5 or newer."""

_DENSE = "look for dense peaks with FP32 accumulation; datasheets print those with sparsity, which are twice as high"

_GPU_RATIOS = {
    ("bf16", "f16"): Limit(1, 1, "tensor cores run both alike", _DENSE),
    ("tf32", "f16"): Limit(0.45, 0.55, "TF32 runs at half the rate of FP16 with FP32 accumulation", _DENSE),
    ("int8", "f16"): Limit(1, 4.01, "twice FP16, and 4 times where GeForce halves FP32 accumulation", _DENSE),
    ("fp8", "f16"): Limit(1, 2.1, "twice FP16 where both accumulate in FP32", _DENSE),
    ("f32", "f16"): Limit(0.001, 0.99, "tensor cores beat CUDA cores", "f32 is plain FP32, f16 that of tensor cores"),
}
_CPU_RATIOS = {
    ("bf16", "f32"): Limit(1, 32, "twice by AVX-512, 16 times by AMX", "count flops per cycle of both"),
    ("int8", "f32"): Limit(1, 64, "4 times by VNNI, 32 times by AMX", "count operations per cycle of both"),
}
_GPU_RIDGE = Limit(50, 1200, "RTX 5090 has 117, H100 295, Thor 947 flops per byte", f"check both units; {_DENSE}")
_CPU_RIDGE = Limit(0.5, 100, "2 cores have 6, a server 40 flops per byte", "check the units of both")
_CPU_CORE = Limit(4e9, 5e11, "one FMA of 128 bits at 0.5 GHz to four of 512 at 4", "multiply cores, clock and flops")
_F16_CLOCK = Limit(0.45, 1.1, "FP16 gives the clock that FP32 gives, or half of it on GeForce", _DENSE)


def check_device(device: Device, file: str = "") -> None:
    """Refuses values that no device has.

    Args:
        device: declared or measured.
        file: where it was read, for the message.

    Raises:
        SettingError: naming file, device, field, value, what is allowed and the fix.
    """

    def refuse(field: str, value: object, allowed: str) -> SettingError:
        where = f"{file}: " if file else ""
        shown = "missing" if value is None else repr(value)
        return SettingError(f"{where}{device.name}.{field}: {shown}; {allowed}")

    _check_values(device, refuse)
    _check_sources(device, refuse)
    _check_ratios(device, refuse)
    if device.kind == "gpu":
        _check_generation(device, _GENERATIONS[device.compute_capability], refuse)
    # NOTE: last, as its message can only blame the bandwidth or the peak, and those above know which peak.
    _check_bandwidth(device, refuse)


def _numbers(device: Device) -> dict[str, Any]:
    """Every number by its field."""
    plain = {field: getattr(device, field) for field in _LIMITS if field != _PEAKS}
    return plain | {f"{_PEAKS}.{precision}": peak for precision, peak in device.peak_flops_per_s.items()}


def _check_values(device: Device, refuse: _Refuse) -> None:
    for field in _TEXTS:
        if not isinstance(getattr(device, field), str):
            raise refuse(field, getattr(device, field), 'a text in quotes is expected, such as "9.0"')
    if not device.variant.strip():
        raise refuse("variant", device.variant, "say which product of this name and at which clocks")
    if device.kind not in KINDS:
        raise refuse("kind", device.kind, f"expected one of {', '.join(map(repr, KINDS))}")
    known = tuple(_GENERATIONS) if device.kind == "gpu" else ("",)
    if device.compute_capability not in known:
        allowed = f"a {device.kind} has one of {', '.join(map(repr, known))}; newer ones need a row in _GENERATIONS"
        raise refuse("compute_capability", device.compute_capability, allowed)
    for precision, peak in device.peak_flops_per_s.items():
        if precision not in PRECISIONS:
            raise refuse(f"{_PEAKS}.{precision}", peak, f"known precisions are {', '.join(PRECISIONS)}: rename it")
    for precision in ("f32", "f16") if device.kind == "gpu" else ("f32",):
        if precision not in device.peak_flops_per_s:
            raise refuse(f"{_PEAKS}.{precision}", None, f"every {device.kind} has it: add it")
    for field, value in _numbers(device).items():
        number = "a whole number" if field in _WHOLE else "a number"
        if isinstance(value, bool) or not isinstance(value, int if field in _WHOLE else int | float):
            raise refuse(field, value, f"{number} above 0 is expected, without quotes")
        if not math.isfinite(value) or value <= 0:
            raise refuse(field, value, f"{number} above 0 is expected")
        _check_limit(field, value, value, _LIMITS[field.split(".")[0]], refuse)


def _check_sources(device: Device, refuse: _Refuse) -> None:
    fields = [*_TEXTS, *_numbers(device)]
    for field in fields:
        source = device.sources.get(field)
        if not isinstance(source, str) or not source.strip():
            allowed = "every value needs the datasheet with its address, or 'estimate: ' and the reasoning: add it"
            raise refuse(f"sources.{field}", source, allowed)
    for field in device.sources:
        if field not in fields:
            raise refuse(f"sources.{field}", device.sources[field], "the device has no such value: remove it")


def _check_ratios(device: Device, refuse: _Refuse) -> None:
    """Peaks of the precisions that are plausible alone and not together."""
    peaks = device.peak_flops_per_s
    for (precision, base), limit in (_GPU_RATIOS if device.kind == "gpu" else _CPU_RATIOS).items():
        if precision in peaks:
            field, ratio = f"{_PEAKS}.{precision}", peaks[precision] / peaks[base]
            _check_limit(field, peaks[precision], ratio, limit, refuse, f"times {base}")
    if device.kind == "cpu":
        per_core = peaks["f32"] / device.num_sms
        _check_limit(f"{_PEAKS}.f32", peaks["f32"], per_core, _CPU_CORE, refuse, "flops per core and second")


def _check_generation(device: Device, generation: Generation, refuse: _Refuse) -> None:
    """The clock that the peaks of an SM imply is one that its generation runs at."""
    peaks, capability = device.peak_flops_per_s, device.compute_capability
    for precision in peaks:
        if precision not in generation.precisions:
            allowed = f"compute capability {capability} has {', '.join(generation.precisions)}: remove it"
            raise refuse(f"{_PEAKS}.{precision}", peaks[precision], allowed)
    f32_hz = peaks["f32"] / (device.num_sms * generation.f32_flops)
    f16_hz = peaks["f16"] / (device.num_sms * generation.f16_flops)
    reason = f"{generation.f32_flops} flops per SM and cycle of compute capability {capability}"
    limit = Limit(generation.low_hz, generation.high_hz, reason, "check num_sms, and that the row is of this device")
    _check_limit(f"{_PEAKS}.f32", peaks["f32"], f32_hz, limit, refuse, "Hz")
    _check_limit(f"{_PEAKS}.f16", peaks["f16"], f16_hz / f32_hz, _F16_CLOCK, refuse, "times the clock of f32")


def _check_bandwidth(device: Device, refuse: _Refuse) -> None:
    """Memory is slower than the cache, and fits the peak: the ridge point is one that devices have."""
    bandwidth = device.peak_bytes_per_s
    if device.l2_bytes_per_s <= bandwidth:
        allowed = f"above peak_bytes_per_s ({bandwidth:g}) is allowed, as a cache is faster than memory: check both"
        raise refuse("l2_bytes_per_s", device.l2_bytes_per_s, allowed)
    base, limit = ("f16", _GPU_RIDGE) if device.kind == "gpu" else ("f32", _CPU_RIDGE)
    unit = f"flops of {base} per byte"
    _check_limit("peak_bytes_per_s", bandwidth, device.ridge_point(base), limit, refuse, unit)


def _check_limit(field: str, value: object, measure: float, limit: Limit, refuse: _Refuse, unit: str = "") -> None:
    """Refuses `value` when `measure`, itself or what it implies in `unit`, is out of bounds."""
    if limit.low <= measure <= limit.high or math.isclose(measure, limit.low) or math.isclose(measure, limit.high):
        return
    bounds = f"{limit.low:g}" if limit.low == limit.high else f"{limit.low:g} to {limit.high:g}"
    allowed = f"that is {measure:.4g} {unit}, {bounds} is allowed" if unit else f"{bounds} is allowed"
    raise refuse(field, value, f"{allowed} ({limit.reason}); {limit.fix}")
