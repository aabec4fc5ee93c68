"""Predicts seconds of a region on a device: a roofline with wave quantisation.

A kernel takes the longer of its arithmetic and its memory traffic (Williams et al. 2009), the part
of the shorter one that does not overlap, and a launch. Matrix products run as tiles, one per unit
at a time: the last wave of tiles costs as much as a full one, which makes small lengths a staircase.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompile.cost.rates import Rates
from mpcompile.cost.regions import FP32_BYTES, Work


def predict_region(rates: Rates, work: Work, engine_weight_bytes: float) -> Any:
    """Seconds of a region; the shape of the work's arrays.

    Args:
        rates: of the device.
        work: of the region.
        engine_weight_bytes: parameters of the whole engine, fp32: what its calls read again and again.
    """
    total: Any = 0.0
    narrow = rates.activation_bytes / FP32_BYTES
    weight_s = _seconds_per_byte(rates, narrow * engine_weight_bytes)
    for i, kind in enumerate(work.kinds):
        arithmetic_s = _product_seconds(rates, kind, work.products[i]) + work.vector_flops[i] / rates.vector_flops_per_s
        moved = narrow * work.activation_bytes[i]
        memory_s = narrow * work.weight_bytes[i] * weight_s + moved * _seconds_per_byte(rates, moved)
        longer, shorter = np.maximum(arithmetic_s, memory_s), np.minimum(arithmetic_s, memory_s)
        kernel_s = longer + (1.0 - rates.overlap) * shorter
        total = total + work.count[i] * (kernel_s + work.num_launches[i] * rates.launch_s)
    return total


def _seconds_per_byte(rates: Rates, size: Any) -> Any:
    """Seconds to move a byte of something that is used again and again, from the cache as far as it is still there.

    Nearly all of what is much smaller than the cache is, little of what is much larger: a share of
    1 / (1 + (size / cache)^2), half of what is as large as the cache itself, which others use, too.
    """
    cached = 1.0 / (1.0 + (size / rates.cache_bytes) ** 2)
    return cached / rates.cache_bytes_per_s + (1.0 - cached) / rates.memory_bytes_per_s


def _product_seconds(rates: Rates, kind: str, product: tuple[Any, Any, Any, Any]) -> Any:
    """Seconds of a batch of matrix products; of both of an attention's."""
    if isinstance(product[0], int) and product[0] == 0:  # not a product
        return 0.0
    count, rows, inner, columns = product
    calls_s = np.where(count > 1, count, 0) * rates.product_s
    if kind == "attention":
        # A tile is some rows of scores with all their columns; these stay on the unit.
        tile = rates.tiles[-1][0]
        return calls_s + count_waves(count * np.ceil(rows / tile), rates.num_units) * (
            4 * tile * inner * columns * rates.num_units / rates.attention_flops_per_s
        )
    seconds = [
        count_waves(count * np.ceil(rows / height) * np.ceil(columns / width), rates.num_units)
        * (2 * height * width * inner * rates.num_units / (share * rates.matmul_flops_per_s))
        for height, width, share in rates.tiles
    ]
    return calls_s + np.min(np.broadcast_arrays(*seconds), axis=0)


def count_waves(tiles: Any, num_units: int) -> Any:
    """Waves that some tiles take on units that run one at a time each."""
    return np.ceil(tiles / num_units)
