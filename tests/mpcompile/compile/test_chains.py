"""Which of several chains of engines is kept: what the clock says of their points."""

from types import SimpleNamespace
from typing import Any

import pytest

from mpcompile.compile import optimize as compiler
from mpcompile.compile.settings import Settings


def rows(*points: tuple[float, float]) -> tuple[Any, ...]:
    """A measured front: speedups and what they lose."""
    return tuple(SimpleNamespace(speedup=speedup, drop=drop) for speedup, drop in points)


@pytest.fixture
def pick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds chains that have a front and nothing else, and names the one that is kept."""

    def pick(max_drop: float | None, **fronts: tuple[Any, ...]) -> Any:
        monkeypatch.setattr(compiler, "_build", lambda context, chosen, length: (None, ()))
        monkeypatch.setattr(compiler, "measure_fronts", lambda chains, part: [fronts[chosen] for _, chosen in chains])
        context: Any = SimpleNamespace(settings=Settings(8.0, max_drop=max_drop))
        chains: Any = list(fronts)
        built, front = compiler._build_best(context, chains, 16, None, lambda runtime: None)  # type: ignore[arg-type,return-value]
        assert front == fronts[str(built.chosen)]
        return built.chosen

    return pick


def test_chain_that_reaches_the_target_is_kept(pick: Any) -> None:
    assert pick(None, prunes=rows((6.0, 0.0)), plain=rows((9.0, 0.02))) == "plain"
    assert pick(None, prunes=rows((9.0, 0.02)), plain=rows((6.0, 0.0))) == "prunes"


def test_chain_that_loses_less_at_the_target_is_kept(pick: Any) -> None:
    assert pick(None, prunes=rows((9.0, 0.01)), plain=rows((20.0, 0.02))) == "prunes"


def test_faster_chain_within_the_drop_is_kept(pick: Any) -> None:
    assert pick(0.02, prunes=rows((9.0, 0.01)), plain=rows((20.0, 0.02), (30.0, 0.03))) == "plain"


def test_one_chain_needs_no_choice(pick: Any) -> None:
    assert pick(None, prunes=rows((2.0, 0.5))) == "prunes"
