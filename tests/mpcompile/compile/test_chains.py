"""Which of several chains of engines is kept: what the clock says of their points."""

from typing import Any

from mpcompile.compile.chains import keep_best
from mpcompile.compile.choose.precision import Expected


def rows(*points: tuple[float, float]) -> tuple[Any, ...]:
    """A measured front: speedups and what they lose."""
    return tuple(Expected(speedup, drop) for speedup, drop in points)


def pick(max_drop: float | None, **fronts: tuple[Any, ...]) -> str:
    """Names the chain that is kept, of chains that have a front and nothing else."""
    built: Any = list(fronts)
    kept, front = keep_best(built, list(fronts.values()), 8.0, max_drop)
    assert front == fronts[str(kept)]
    return str(kept)


def test_chain_that_reaches_the_target_is_kept() -> None:
    assert pick(None, prunes=rows((6.0, 0.0)), plain=rows((9.0, 0.02))) == "plain"
    assert pick(None, prunes=rows((9.0, 0.02)), plain=rows((6.0, 0.0))) == "prunes"


def test_chain_that_loses_less_at_the_target_is_kept() -> None:
    assert pick(None, prunes=rows((9.0, 0.01)), plain=rows((20.0, 0.02))) == "prunes"


def test_chain_that_reaches_the_target_within_the_drop_is_kept() -> None:
    assert pick(0.02, prunes=rows((7.0, 0.01)), plain=rows((9.0, 0.02), (30.0, 0.03))) == "plain"
    assert pick(0.01, prunes=rows((7.0, 0.01)), plain=rows((9.0, 0.02), (30.0, 0.03))) == "prunes"


def test_one_chain_needs_no_choice() -> None:
    assert pick(None, prunes=rows((2.0, 0.5))) == "prunes"
