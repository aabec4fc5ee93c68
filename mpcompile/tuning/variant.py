"""Variants: the settings of an artifact that tuning may change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mpcompile.contract.backend import BuildConfig

CUTS = ("front", "point")
SPLIT_SCALES = (0.0, 0.5, 1.0, 2.0, 1e9)
"""Factors on `split_tokens`; the last never splits and, unlike infinity, is JSON."""
PROFILES = ("given", "workload")


@dataclass(frozen=True)
class Variant:
    """One way to build and run an artifact.

    Attributes:
        point: index of the operating point on the artifact's front.
        precision: what matrix products run in.
        num_threads: CPU threads, shared by the streams; None for as many as the backend takes by itself.
        num_streams: lanes that a batch is split over.
        cuts: "front" keeps every exit and prune of the artifact, "point" only those that the point uses, so that
            fewer engines are called; other points of the front that need more are then gone.
        split_scale: factor on the artifact's `split_tokens`, see `Runtime`.
        profile: "given" builds for the artifact's shapes, "workload" to be fastest at those of the workload.
    """

    point: int
    precision: str
    num_threads: int | None = None
    num_streams: int = 1
    cuts: str = "front"
    split_scale: float = 1.0
    profile: str = "given"

    @property
    def config(self) -> BuildConfig:
        """The config that its engines are loaded with."""
        return BuildConfig(self.num_threads, self.num_streams)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Variant:
        """The variant that `to_json` described."""
        return cls(**values)

    def count_changes(self, other: Variant) -> int:
        """Settings in which two variants differ."""
        return sum(value != vars(other)[name] for name, value in vars(self).items())

    def describe(self) -> str:
        """One line for people."""
        split = "never" if self.split_scale == SPLIT_SCALES[-1] else f"{self.split_scale:g}x"
        return (
            f"point {self.point}, {self.precision}, {self.num_threads or 'default'} threads, {self.num_streams} "
            f"streams, cuts of the {self.cuts}, split {split}, profile {self.profile}"
        )
