"""What the inputs and outputs of a segment are called in ONNX. Imports no torch."""

from __future__ import annotations

from mpcompile.contract.segment import CARRIED

NEXT = "next_"
"""Before the names of what a segment hands on: in ONNX an output may not have the name of an input."""


def name_output(name: str) -> str:
    """What an output of a segment is called in its ONNX model."""
    return NEXT + name if name in CARRIED else name
