"""Precisions by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ELEMENT_BYTES = {"f32": 4, "tf32": 4, "f16": 2, "bf16": 2, "int8": 1, "fp8": 1}


def fastest_float(precisions: Sequence[str]) -> str:
    """The least exact precision of a backend that needs no calibration."""
    return [precision for precision in precisions if precision != "int8"][-1]


def encode_floats(value: np.ndarray, precision: str) -> np.ndarray:
    """Numbers as a precision stores them; bf16, which NumPy lacks, as uint16, rounded to the nearest even."""
    if precision == "f16":
        return value.astype(np.float16)
    single = value.astype(np.float32)
    if precision != "bf16":
        return single
    bits = single.view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
