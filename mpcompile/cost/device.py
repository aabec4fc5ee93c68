"""A device, as declared. SI units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpcompile.errors import SettingError


@dataclass(frozen=True)
class Device:
    """A device, as declared.

    Attributes:
        name: how the device is asked for.
        variant: which of the products of that name, at which clocks.
        kind: "gpu" or "cpu".
        compute_capability: CUDA's, such as "9.0"; "" for a CPU.
        num_sms: streaming multiprocessors; cores of a CPU.
        memory_bytes: device memory; that of the host where they share it.
        l2_bytes: L2 of a GPU; last-level cache of a CPU.
        peak_bytes_per_s: of device memory.
        l2_bytes_per_s: of that cache, read.
        launch_overhead_s: fixed time of one kernel inside an engine.
        engine_overhead_s: fixed time of one call of an engine from the host.
        sync_overhead_s: fixed time of copying a few bytes to the host and waiting for them.
        arithmetic_scale: time of arithmetic, measured over what the peaks promise: clocks under load, and how well
            kernels fit the card. The one scalar that a device is calibrated with; 1 where nothing is known.
        peak_flops_per_s: by precision, without sparsity: tensor cores, but for "f32" the CUDA cores.
        sources: where each value comes from, by field and by `peak_flops_per_s.<precision>`.
    """

    name: str
    variant: str
    kind: str
    compute_capability: str
    num_sms: int
    memory_bytes: int
    l2_bytes: int
    peak_bytes_per_s: float
    l2_bytes_per_s: float
    launch_overhead_s: float
    engine_overhead_s: float
    sync_overhead_s: float
    arithmetic_scale: float
    peak_flops_per_s: Mapping[str, float]
    sources: Mapping[str, str]

    def ridge_point(self, precision: str) -> float:
        """Flops per byte of device memory at which a node turns from memory-bound to compute-bound.

        Raises:
            SettingError: when the device has no such precision.
        """
        if precision not in self.peak_flops_per_s:
            raise SettingError(
                f"precision: {precision!r}; {self.name} has {', '.join(self.peak_flops_per_s)}: ask for one of these"
            )
        return self.peak_flops_per_s[precision] / self.peak_bytes_per_s
