"""Tests of the main job on a model that knows its task: what it saves, and what it costs, on texts that nobody saw.

Work stands in for time: the products that torch computes in a call. So "twice as fast" is half the work, exactly.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import mpcompile
from mpcompile.runtime.model import OptimizedModel
from tests.models import build_tokenizer
from tests.mpcompile.counting import count_flops, count_seconds, describe_counting
from tests.taught import NUM_LAYERS, SHIFT, draw_texts, teach_model

TOKENIZER = build_tokenizer()
TEXTS, LABELS = draw_texts(320, seed=1)
NEW_TEXTS, NEW_LABELS = draw_texts(400, seed=2)


class Job:
    """`optimize` of the taught model on 320 texts, with work in place of time."""

    def __init__(self, model: PreTrainedModel, cache_dir: Path) -> None:
        self.model, self._cache_dir = model, cache_dir

    def __call__(self, target_speedup: float, **options: Any) -> OptimizedModel:
        given = {"texts": TEXTS, "batch_size": 16, "backend": "eager", "progress": False, **options}
        return mpcompile.optimize(self.model, target_speedup, tokenizer=TOKENIZER, cache_dir=self._cache_dir, **given)

    def work_ratio(self, optimized: OptimizedModel) -> float:
        """Work of the model over work of what was made of it, on new texts in the same batches."""
        parts = (NEW_TEXTS[start : start + 16] for start in range(0, len(NEW_TEXTS), 16))
        batches = [TOKENIZER(part, padding=True, return_tensors="pt") for part in parts]
        with torch.inference_mode():
            before = sum(count_flops(lambda b=batch: self.model(**b)) for batch in batches)  # type: ignore[misc]
        return before / sum(count_flops(lambda b=batch: optimized(**b)) for batch in batches)  # type: ignore[misc]


@pytest.fixture(scope="module")
def job(capture_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    with pytest.MonkeyPatch.context() as patch:
        # A call computes the same each time: it is counted once.
        patch.setattr("mpcompile.cost.timing._time", functools.cache(count_seconds))
        patch.setattr("mpcompile.cost.calibration.calibrate", describe_counting)
        yield Job(teach_model(), tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def fast(job: Job) -> OptimizedModel:
    """With a target of 3, and labels; shared, so leave its operating point as it is."""
    return job(3.0, labels=LABELS)


@pytest.fixture(scope="module")
def saved(fast: OptimizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an artifact."""
    return fast.save(tmp_path_factory.mktemp("saved") / "artifact")


@pytest.fixture(scope="module")
def pruned(job: Job) -> OptimizedModel:
    """Without exits; shared, too."""
    return job(1.4, exits=False)


def right_answers(optimized: OptimizedModel) -> np.ndarray:
    """Which of the new texts are answered as their authors meant them, (400,)."""
    return optimized.classify(NEW_TEXTS)[0].argmax(1) == np.array(NEW_LABELS)


def new_lengths() -> np.ndarray:
    return np.array([len(TOKENIZER(text)["input_ids"]) for text in NEW_TEXTS])


def test_model_knows_its_task(job: Job) -> None:
    with torch.inference_mode():
        logits = job.model(**TOKENIZER(NEW_TEXTS, padding=True, return_tensors="pt")).logits
    assert (logits.argmax(1).numpy() == np.array(NEW_LABELS)).mean() > 0.98


def test_target_is_reached_and_new_texts_are_answered_right(fast: OptimizedModel) -> None:
    assert fast.report.measured_speedup >= 3.0
    assert right_answers(fast).mean() > 0.95


def test_new_texts_take_as_much_less_work_as_is_said(job: Job, fast: OptimizedModel) -> None:
    """As far as the 64 texts that are timed can tell, although exits were trained on most of those that were given."""
    assert job.work_ratio(fast) == pytest.approx(fast.report.measured_speedup, rel=0.2)


def test_easy_texts_leave_early_and_hard_ones_do_not(fast: OptimizedModel) -> None:
    left_at = np.array([prediction.exit_layer for prediction in fast.predict(NEW_TEXTS)])
    is_hard = np.array([SHIFT in text.split() for text in NEW_TEXTS])
    assert set(left_at) <= set(fast.operating_point.point.exit_layers)
    assert left_at[is_hard].mean() > left_at[~is_hard].mean() + 0.2


def test_points_that_lose_more_are_faster(fast: OptimizedModel) -> None:
    speedups = [point.speedup for point in fast.operating_points]
    drops = [point.drop for point in fast.operating_points]
    assert len(speedups) > 2
    assert speedups == sorted(speedups) and drops == sorted(drops)


def test_slowest_point_answers_new_texts_as_the_model_does(saved: Path) -> None:
    slow = mpcompile.load(saved)
    slow.set_speedup(1.0)
    assert right_answers(slow).mean() > 0.98


def test_accuracy_of_the_report_is_that_of_its_held_out_texts(fast: OptimizedModel) -> None:
    assert fast.report.original_accuracy is not None and fast.report.original_accuracy > 0.97
    assert fast.report.accuracy == pytest.approx(right_answers(fast).mean(), abs=0.04)


def test_saved_artifact_does_the_same_work_for_the_same_answers(job: Job, fast: OptimizedModel, saved: Path) -> None:
    loaded = mpcompile.load(saved)
    assert loaded.predict(NEW_TEXTS) == fast.predict(NEW_TEXTS)
    assert job.work_ratio(loaded) == job.work_ratio(fast)


def test_pruning_alone_saves_work_and_keeps_the_answers(job: Job, pruned: OptimizedModel) -> None:
    assert pruned.report.measured_speedup >= 1.4
    assert job.work_ratio(pruned) > 1.3
    assert right_answers(pruned).mean() > 0.95


def test_pruning_alone_drops_tokens_and_runs_every_layer(pruned: OptimizedModel) -> None:
    inputs = TOKENIZER(NEW_TEXTS, padding=True, return_tensors="np")
    output = pruned(**inputs)
    assert (output.exit_layer == NUM_LAYERS).all()
    assert output.tokens_kept.sum() < 0.8 * new_lengths().sum()


def test_without_pruning_every_token_is_kept(job: Job) -> None:
    output = job(3.0, texts=TEXTS[:96], pruning=False)(**TOKENIZER(NEW_TEXTS, padding=True, return_tensors="np"))
    np.testing.assert_array_equal(output.tokens_kept, new_lengths())
    assert output.exit_layer.min() < NUM_LAYERS


def test_without_pruning_and_texts_the_model_is_left_as_it_is(job: Job) -> None:
    (point,) = job(1.0, texts=None, pruning=False).operating_points
    assert set(point.point.keep_ratios) <= {1.0}


def test_what_is_certified_holds_on_new_texts(job: Job) -> None:
    optimized = job(1.2, labels=LABELS, max_drop=0.08)
    assert optimized.operating_point.certified and optimized.report.measured_speedup >= 1.2
    assert optimized.report.certified_drop <= 0.08
    assert 1.0 - right_answers(optimized).mean() <= 0.08
