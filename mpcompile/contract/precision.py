"""Precisions by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

ELEMENT_BYTES = {"f32": 4, "tf32": 4, "f16": 2, "bf16": 2, "int8": 1, "fp8": 1}


def fastest_float(precisions: Sequence[str]) -> str:
    """The least exact precision of a backend that needs no calibration."""
    return [precision for precision in precisions if precision != "int8"][-1]
