"""Tests of refused runs: the next one is tested on other texts, and the same one is refused again."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpcompile.compile.certify.refusals import Refusals, skip_tested
from mpcompile.compile.settings import Settings
from mpcompile.errors import DataError, TargetUnreachable
from mpcompile.store.results import Store

FIRST, SECOND, THIRD = (Settings(2.0, max_drop=drop, seed=3) for drop in (0.005, 0.01, 0.02))


def read(store: Store) -> Refusals:
    return Refusals.read(store, "model", "texts")


def test_nothing_was_tested_at_first(tmp_path: Path) -> None:
    tested = read(Store(tmp_path)).find_tested(FIRST)
    assert (tested.count, tested.seed) == (0, 3)


def test_runs_after_a_refused_one_skip_its_texts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    read(store).record(FIRST, 100)
    assert read(store).find_tested(SECOND).count == 100
    read(store).record(SECOND, 250)
    assert read(store).find_tested(THIRD).count == 350


def test_refused_run_is_tested_on_the_same_texts_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    read(store).record(FIRST, 100)
    read(store).record(SECOND, 100)
    assert [read(store).find_tested(each).count for each in (FIRST, SECOND, THIRD)] == [0, 100, 200]
    read(store).record(FIRST, 100)
    assert [read(store).find_tested(each).count for each in (FIRST, SECOND, THIRD)] == [0, 100, 200]


def test_options_that_change_no_answer_make_no_other_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    read(store).record(FIRST, 100)
    again = Settings(2.0, max_drop=0.005, seed=3, progress=False, cache_dir=tmp_path / "other")
    assert read(store).find_tested(again).count == 0


def test_another_seed_draws_as_before(tmp_path: Path) -> None:
    store = Store(tmp_path)
    read(store).record(FIRST, 100)
    tested = read(store).find_tested(Settings(2.0, max_drop=0.005, seed=4))
    assert (tested.count, tested.seed) == (100, 3)


def test_other_texts_and_models_have_refusals_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    read(store).record(FIRST, 100)
    assert Refusals.read(store, "other", "texts").find_tested(SECOND).count == 0
    assert Refusals.read(store, "model", "other").find_tested(SECOND).count == 0


def test_only_a_refusal_is_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with read(store).recording(FIRST, 100):
        pass
    with pytest.raises(KeyError), read(store).recording(FIRST, 100):
        raise KeyError
    assert read(store).find_tested(SECOND).count == 0
    certified = (SimpleNamespace(certified=True), SimpleNamespace(certified=False))
    with pytest.raises(TargetUnreachable), read(store).recording(FIRST, 100):
        raise TargetUnreachable("too slow", certified)
    with pytest.raises(TargetUnreachable), read(store).recording(Settings(2.0), 100):
        raise TargetUnreachable("too slow")
    assert read(store).find_tested(SECOND).count == 0
    with pytest.raises(TargetUnreachable), read(store).recording(FIRST, 100):
        raise TargetUnreachable("no", certified[1:])
    assert read(store).find_tested(SECOND).count == 100


def test_texts_that_were_tested_on_are_not_tested_on_again() -> None:
    order, used, held_out = np.random.default_rng(0).permutation(100), 40, 20
    seen: set[int] = set()
    for tested in (0, 20, 40, 60, 80):
        drawn = set(skip_tested(order, tested, held_out, "texts")[used - held_out : used].tolist())
        assert not drawn & seen
        seen |= drawn
    assert seen == set(range(100))


def test_run_is_refused_where_all_texts_were_tested_on() -> None:
    with pytest.raises(
        DataError, match=r"texts: 90 of these 100 texts were tested on .* 20 others are needed: give other"
    ):
        skip_tested(np.arange(100), 90, 20, "texts")
