"""Rates: what a device does per second in one precision, through one backend. SI units.

Declared numbers are what a datasheet promises times the share of it that kernels get; measured ones
(`calibration`) replace them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mpcompile.contract.precision import ELEMENT_BYTES
from mpcompile.cost.device import Device
from mpcompile.cost.regions import FP32_BYTES
from mpcompile.errors import SettingError

MATMUL_SHARE, ATTENTION_SHARE, VECTOR_SHARE = 0.6, 0.35, 0.4
MEMORY_SHARE, CACHE_SHARE = 0.8, 0.6
"""Shares of the declared peaks that kernels of an encoder get. They were set once, to round numbers, before
the model was compared with NVIDIA's tables; `Device.arithmetic_scale` is what the comparison then fits."""

GPU_TILES = ((256, 128, 1.0), (128, 128, 1.0), (128, 64, 0.67), (64, 64, 0.5), (32, 32, 0.25))
"""Rows and columns of the output tiles that CUTLASS and cuBLAS kernels come in, largest first, and the share of a
unit's rate that each reaches. Operands are read once per tile, so traffic per flop goes with 1/rows + 1/columns; a
tile of 128 x 128 is the smallest that runs at full rate (CUTLASS, "Efficient GEMM in CUDA"; NVIDIA, "Matrix
Multiplication Background User's Guide", tile quantisation and wave quantisation)."""
CPU_PRODUCT_S = 5e-7
"""A small product in a batch of them is a call of a kernel in a loop, about half a microsecond."""
FITTED = (
    "matmul_flops_per_s",
    "attention_flops_per_s",
    "vector_flops_per_s",
    "memory_bytes_per_s",
    "cache_bytes_per_s",
    "cache_bytes",
    "launch_s",
    "engine_s",
    "product_s",
)
"""What is fitted, where it is declared as more than 0; the rest of the rates stays as declared."""


@dataclass(frozen=True)
class Rates:
    """Rates of a device.

    Attributes:
        name: device, backend and precision.
        matmul_flops_per_s: rate of large matrix products, all units together.
        attention_flops_per_s: rate of the products inside fused attention.
        vector_flops_per_s: rate of all other arithmetic.
        memory_bytes_per_s: bandwidth of main memory.
        cache_bytes_per_s: bandwidth of the last-level cache.
        cache_bytes: size of that cache; what an engine reads again is there if it fits.
        launch_s: fixed time of a kernel.
        engine_s: fixed time of a call of an engine.
        sync_s: time in which the host reads an off-ramp's result; 0 where engines answer into host memory.
        reshape_s: additional time of a kernel when sizes differ from those of the call before.
        product_s: fixed time of each product in a batch of products (one per example and head), called in a loop.
        num_units: tiles that run at the same time.
        tiles: (rows, columns, share of the full rate) of the tiles that products run as, largest first.
        overlap: share of the shorter of arithmetic and traffic that hides behind the longer, [0, 1].
        activation_bytes: bytes of an element that moves.
    """

    name: str
    matmul_flops_per_s: float
    attention_flops_per_s: float
    vector_flops_per_s: float
    memory_bytes_per_s: float
    cache_bytes_per_s: float
    cache_bytes: float
    launch_s: float
    engine_s: float
    sync_s: float = 0.0
    product_s: float = 0.0
    reshape_s: float = 0.0
    num_units: int = 1
    tiles: tuple[tuple[int, int, float], ...] = ((1, 1, 1.0),)
    overlap: float = 1.0
    activation_bytes: int = FP32_BYTES


@dataclass(frozen=True)
class Profile:
    """A measured machine.

    Attributes:
        rates: fitted.
        median_error, p95_error: of |predicted / measured - 1| over the samples.
        num_samples: engines and sizes that were timed.
    """

    rates: Rates
    median_error: float
    p95_error: float
    num_samples: int

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "rates": dataclasses.asdict(self.rates)}


def declare_rates(device: Device, precision: str) -> Rates:
    """Rates of a device that was not measured.

    Args:
        device: its peaks.
        precision: of matrix products and of what moves. Where that is int8 or fp8, attention runs in f16 on a GPU;
            on a CPU attention and what moves are of its fastest float, as in OpenVINO's graphs.

    Raises:
        SettingError: when the device has no such precision.
    """
    peaks = {name: peak / device.arithmetic_scale for name, peak in device.peak_flops_per_s.items()}
    if precision not in peaks:
        raise SettingError(f"precision: {precision!r}; {device.name} has {', '.join(peaks)}: choose one of these")
    is_gpu = device.kind == "gpu"
    attention = moved = precision
    if is_gpu and precision in ("int8", "fp8"):
        attention = "f16"
    elif not is_gpu and precision == "int8":
        attention = moved = "bf16" if "bf16" in peaks else "f32"
    return Rates(
        name=f"{device.name} {precision}",
        matmul_flops_per_s=MATMUL_SHARE * peaks[precision],
        attention_flops_per_s=ATTENTION_SHARE * peaks[attention],
        vector_flops_per_s=VECTOR_SHARE * peaks["f32"],
        memory_bytes_per_s=MEMORY_SHARE * device.peak_bytes_per_s,
        # HBM3e comes close to the L2 in front of it, and a cache is never slower than its memory.
        cache_bytes_per_s=max(CACHE_SHARE * device.l2_bytes_per_s, MEMORY_SHARE * device.peak_bytes_per_s),
        cache_bytes=device.l2_bytes,
        launch_s=device.launch_overhead_s,
        engine_s=device.engine_overhead_s,
        sync_s=device.sync_overhead_s if is_gpu else 0.0,
        product_s=0.0 if is_gpu else CPU_PRODUCT_S,
        num_units=device.num_sms if is_gpu else 1,
        tiles=GPU_TILES if is_gpu else ((1, 1, 1.0),),
        # A core waits for the weights of a small product; thousands of threads hide that.
        overlap=1.0 if is_gpu else 0.0,
        activation_bytes=ELEMENT_BYTES[moved],
    )
