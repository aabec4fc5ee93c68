"""Fakes: a machine whose clock a test sets, and artifacts that exist on paper alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpcompile.tuning.bench import Answers, Bench, Job
from mpcompile.tuning.measurer import MeasureFailed, Reply, attempt
from mpcompile.tuning.space import Space
from mpcompile.tuning.study import TuningStudy
from mpcompile.tuning.trials import Rules
from mpcompile.tuning.variant import SPLIT_SCALES, Variant

SHORT_S = 0.02
START = Variant(0, "f32")
IDENTITY = {"model": "aaa", "mpcompile": "0.1.0", "workload": "w", "machine": "m"}
CHOICES = {
    "point": (0, 1),
    "precision": ("f32", "bf16"),
    "num_threads": (None, 1),
    "num_streams": (1, 2),
    "cuts": ("front", "point"),
    "split_scale": SPLIT_SCALES,
    "profile": ("given", "workload"),
}
CANDIDATES = (
    Variant(0, "f32", num_threads=1),
    Variant(0, "f32", num_streams=2),
    Variant(0, "f32", cuts="point"),
    Variant(0, "f32", split_scale=0.0),
    Variant(0, "f32", split_scale=2.0),
    Variant(1, "f32"),
)
SPACE = Space(START, CHOICES, CANDIDATES)
RULES = Rules(START, "start", 0.995)


class FakeMeasurer:
    """Measures by a table instead of a machine.

    Args:
        seconds: of a variant in a round; rounds count up over all of them, from 0.
        keys: of variants that are not their own.
        differing: answers that differ, of 1000.
        broken: what happens to variants that cannot be measured, by the call that fails.
    """

    name = "fake"

    def __init__(
        self,
        seconds: Callable[[Variant, int], float],
        keys: dict[Variant, str] | None = None,
        differing: dict[Variant, int] | None = None,
        broken: dict[Variant, str] | None = None,
    ) -> None:
        self._seconds = seconds
        self._keys, self._differing, self._broken = keys or {}, differing or {}, broken or {}
        self.variants: Sequence[Variant] = ()
        self.rounds = 0
        self.measured: list[Variant] = []

    def build(self, variants: Sequence[Variant]) -> list[str]:
        self.variants = tuple(variants)
        self._fail("build")
        return [self._keys.get(variant, repr(variant)) for variant in variants]

    def warm_up(self) -> list[Answers]:
        self._fail("warm_up")
        return [Answers(1000, self._differing.get(variant, 0)) for variant in self.variants]

    def measure_round(self) -> list[float]:
        self._fail("measure_round")
        self.rounds += 1
        self.measured.extend(self.variants)
        return [self._seconds(variant, self.rounds - 1) for variant in (START, *self.variants)]

    def close(self) -> None:
        pass

    def _fail(self, method: str) -> None:
        for variant in self.variants:
            if self._broken.get(variant) == method:
                raise MeasureFailed(f"{method} hung")


class InProcess:
    """A bench in the process of the test: as quick as what it measures, and as mortal."""

    name = "this process"

    def __init__(self, job: Job) -> None:
        self._bench = Bench(job)

    def call(self, method: str, arguments: Sequence[Any], _: float) -> Reply:
        return attempt(getattr(self._bench, method), *arguments)

    def close(self) -> None:
        pass


def by_table(seconds: dict[Variant, float], otherwise: float = 1.0) -> Callable[[Variant, int], float]:
    """The same seconds in every round."""
    return lambda variant, _: seconds.get(variant, otherwise)


def open_study(
    folder: Path | None, space: Space = SPACE, identity: dict[str, str] = IDENTITY, seed: int = 0
) -> TuningStudy:
    """A study in a SQLite file of a folder; without a folder it is in memory."""
    url = "sqlite://" if folder is None else f"sqlite:///{folder}/study.db"
    return TuningStudy(url, "study", identity, space, seed)
