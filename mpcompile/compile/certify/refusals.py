"""Remembers refused runs: texts that said no are not asked again until they say yes.

A certificate holds for points that were chosen without its texts. Who changes an option because a run was refused has
chosen by them, so that the next run tests on others.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.settings import Settings
from mpcompile.errors import DataError, TargetUnreachable
from mpcompile.store.results import Store, digest

_IDLE = ("cache_dir", "progress", "show_texts", "storage", "require_target")
"""Options that change no answer."""


@dataclass(frozen=True)
class Tested:
    """Texts that refused runs were tested on.

    Attributes:
        count: of them, in the order that texts are drawn in.
        seed: of that order.
    """

    count: int
    seed: int


@dataclass(frozen=True)
class Refusals:
    """Refused runs of one model on the same texts.

    Attributes:
        store: where they are kept.
        key: model and texts.
        runs: digest of the options of each, and how many texts it was tested on.
        seed: that texts were drawn with in all of them, None where there was none.
    """

    store: Store
    key: dict[str, object]
    runs: dict[str, int]
    seed: int | None

    @classmethod
    def read(cls, store: Store, model: str, texts: str) -> Refusals:
        """Those that are known.

        Args:
            store: where they are kept.
            model: digest of the original.
            texts: digest of the texts.
        """
        key: dict[str, object] = {"kind": "refusals", "model": model, "texts": texts}
        return cls(store, key, **(store.find_json_maybe(key) or {"runs": {}, "seed": None}))

    def find_tested(self, settings: Settings) -> Tested:
        """What refused runs before one with these options were tested on.

        A run that was refused itself is to be refused again: it is tested on the same texts as before.
        """
        runs, own = list(self.runs), _identify(settings)
        before = runs[: runs.index(own)] if own in runs else runs
        return Tested(sum(self.runs[run] for run in before), self._find_seed(settings))

    @contextlib.contextmanager
    def recording(self, settings: Settings, tested: int) -> Iterator[None]:
        """Remembers that a run with these options, tested on so many texts, was refused, where the block says so.

        A run that certified a point was refused for its speed: the texts said yes.
        """
        try:
            yield
        except TargetUnreachable as error:
            if settings.max_drop is not None and not any(getattr(point, "certified", None) for point in error.front):
                self.record(settings, tested)
            raise

    def record(self, settings: Settings, tested: int) -> None:
        """Remembers that a run with these options was refused after a test on so many texts."""
        runs = {**self.runs, _identify(settings): tested}
        self.store.keep_json(self.key, {"runs": runs, "seed": self._find_seed(settings)})

    def _find_seed(self, settings: Settings) -> int:
        return settings.seed if self.seed is None else self.seed


def skip_tested(order: np.ndarray, tested: int, held_out: int, name: str) -> np.ndarray:
    """Texts in another order, in which those for the certificate are none that refused runs were tested on.

    A run is tested on texts in a row: the last `held_out` ones of those that it uses, and some behind them.

    Args:
        order: positions of all texts, (N,).
        tested: texts that refused runs were tested on.
        held_out: texts that a run is tested on at least.
        name: what the texts are called.

    Raises:
        DataError: when too few are left.
    """
    if tested and tested + held_out > len(order):
        raise DataError(
            f"{name}: {tested} of these {len(order)} texts were tested on in runs that were refused, and a test on the "
            f"same ones again would promise too much; {held_out} others are needed: give other texts to certify on "
            "(held_out=..., --held-out), or more"
        )
    return np.roll(order, -tested)


def _identify(settings: Settings) -> str:
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return digest({name: str(value) for name, value in values.items() if name not in _IDLE})
