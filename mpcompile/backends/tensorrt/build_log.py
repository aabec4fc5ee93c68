"""Reads a builder's log: kernels and memory of an engine, known without a GPU to run it on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_KERNEL = re.compile(r"^Name: (.*?), LayerType: (\w+), Inputs", re.MULTILINE)
_MEMORY = re.compile(r"^(Max Scratch Memory|Total Weights Memory): (\d+) bytes", re.MULTILINE)
_FUSED = "mha"
"""In the name of every kernel that is a whole attention (TensorRT-RTX 1.7: `_gemm_mha_v2`)."""


@dataclass(frozen=True)
class EngineFacts:
    """Facts about an engine that was built.

    Attributes:
        kernels: names in the order they run; empty where the builder does not print them (standard TensorRT, whose
            engine inspector needs a GPU).
        scratch_bytes: activations between kernels at the largest sizes; None where it was not printed.
        weight_bytes: of the weights; None where it was not printed.
        plan_bytes: of the whole plan.
        build_s: seconds that the builder took.
    """

    kernels: tuple[str, ...]
    scratch_bytes: int | None
    weight_bytes: int | None
    plan_bytes: int
    build_s: float

    @property
    def num_fused_attentions(self) -> int:
        """Attentions that are one kernel each."""
        return sum(_FUSED in name for name in self.kernels)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> EngineFacts:
        return EngineFacts(**{**values, "kernels": tuple(values["kernels"])})


def read_log(messages: Sequence[str], plan_bytes: int, build_s: float) -> EngineFacts:
    """Facts from the messages of a VERBOSE logger with DETAILED profiling verbosity."""
    dumps = [message for message in messages if message.startswith("Layers:")]
    memory = dict(_find_memory(messages))
    return EngineFacts(
        kernels=tuple(name for name, _ in _KERNEL.findall(dumps[-1])) if dumps else (),
        scratch_bytes=memory.get("Max Scratch Memory"),
        weight_bytes=memory.get("Total Weights Memory"),
        plan_bytes=plan_bytes,
        build_s=build_s,
    )


def _find_memory(messages: Iterable[str]) -> Iterable[tuple[str, int]]:
    for message in messages:
        for name, value in _MEMORY.findall(message):
            yield name, int(value)
