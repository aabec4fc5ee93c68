"""Tests of selection="threshold" from end to end: each text decides how many tokens it keeps."""

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends import find_backend
from mpcompile.compile.adapt.quantiles import find_token_thresholds
from mpcompile.compile.choose.features import FeatureCollector
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.settings import Settings
from mpcompile.contract.backend import BuildConfig, Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.errors import InputError, SettingError
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import partition, tap
from mpcompile.runtime.runtime import RunResult, Runtime
from mpcompile.runtime.tokens import Tokenizer
from tests.models import MAX_POSITIONS, NUM_LABELS, build_head, captured_model, family_model, random_batch
from tests.reference import run_reference

pytestmark = pytest.mark.usefixtures("few_batches")
PRUNES = (0, 1, 2)
LENGTHS = [12, 5, 2, 9]
POINT = OperatingPoint((1, 3), (0.9,), PRUNES, (0.8, 0.7, 0.6), token_thresholds=(0.06, 0.1, 0.12))


@functools.cache
def build(backend_name: str, selection: str) -> Runtime:
    captured, backend = captured_model("bert"), find_backend(backend_name)
    segments = partition(captured, {1: build_head(1)}, PRUNES, selection=selection)
    plans = [backend.build(segment, default_profile(MAX_POSITIONS), BuildConfig()) for segment in segments]
    engines = [backend.load(plan, segment, BuildConfig()) for plan, segment in zip(plans, segments, strict=True)]
    return Runtime(segments, engines, NUM_LABELS, (8.0, 8.0))


def run(
    backend_name: str, point: OperatingPoint, batch: dict[str, np.ndarray], selection: str = "threshold"
) -> RunResult:
    return build(backend_name, selection).run(batch, point)


def make_batch(lengths: list[int]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in random_batch(family_model("bert"), lengths).items()}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer.from_transformers(tiny_tokenizer, MAX_POSITIONS)


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [7]], ids=str)
@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_runtime_answers_as_the_reference(backend: str, lengths: list[int]) -> None:
    batch = make_batch(lengths)
    result = run(backend, POINT, batch)
    thresholds = dict(zip(PRUNES, POINT.token_thresholds, strict=True))
    for row, length in enumerate(lengths):
        ids, types = (batch[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        heads = {1: build_head(1)}
        trace = run_reference(family_model("bert"), ids, types, heads=heads, token_thresholds=thresholds)
        logits, exit_layer = trace.answer({1: 0.9})
        assert result.exit_layer[row] == exit_layer
        assert result.tokens_kept[row] == len(trace.hidden[exit_layer])
        np.testing.assert_allclose(result.logits[row], logits, atol=2e-3)


@pytest.mark.parametrize("selection", ["top", "threshold"])
def test_point_of_the_other_selection_is_refused(selection: str) -> None:
    point = dataclasses.replace(POINT, token_thresholds=()) if selection == "threshold" else POINT
    with pytest.raises(InputError, match="the engines prune by"):
        run("eager", point, make_batch([5]), selection)


def test_quantiles_keep_as_many_tokens_as_the_schedule_says(
    captured: CapturedModel, tokenizer: Tokenizer, tiny_texts: list[str]
) -> None:
    encoded, schedule = tokenizer.encode(tiny_texts), KeepSchedule((0, 2), (0.8, 0.5))
    thresholds = find_token_thresholds(captured, tokenizer, encoded, schedule)
    segment = tap(captured, (), (0, 2), "f32", "threshold")
    collector = FeatureCollector(segment, Target(find_backend("eager"), "f32"), captured.max_length, tokenizer)
    found = dataclasses.replace(schedule, token_thresholds=thresholds)
    lengths = np.array([len(text) for text in encoded])
    measured = found.measured(collector.collect(encoded, found, lambda _: None).kept, lengths)
    # [CLS] stays whatever it receives: a little more is kept than the quantile says.
    np.testing.assert_allclose(measured.keep_ratios, (0.8, 0.5), atol=0.12)
    assert min(np.array(measured.keep_ratios) - (0.8, 0.5)) > -0.01


@pytest.fixture(scope="module", params=["frozen", "finetune"])
def optimized(
    request: pytest.FixtureRequest, tiny_bert: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_texts: list[str], cache_dir: Path,
) -> mpcompile.OptimizedModel:  # fmt: skip
    return mpcompile.optimize(
        copy.deepcopy(tiny_bert), 8.0, tokenizer=tiny_tokenizer, texts=tiny_texts, adapt=request.param,
        selection="threshold", train_epochs=4, exits=False, backend="eager", progress=False, cache_dir=cache_dir,
    )  # fmt: skip


def test_points_of_the_front_have_thresholds_where_they_prune(optimized: mpcompile.OptimizedModel) -> None:
    points = [row.point for row in optimized.operating_points]
    assert all(len(point.token_thresholds) == len(point.prune_layers) for point in points)


def test_artifact_answers_as_before_it_was_saved(
    optimized: mpcompile.OptimizedModel, tiny_texts: list[str], tmp_path: Path
) -> None:
    optimized.save(tmp_path / "artifact")
    loaded = mpcompile.load(tmp_path / "artifact")
    for row in optimized.operating_points:
        assert any(row.point == other.point for other in loaded.operating_points)
    scores = [[prediction.score for prediction in model.predict(tiny_texts[:5])] for model in (optimized, loaded)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_points_of_earlier_versions_are_read() -> None:
    values = dataclasses.replace(POINT, token_thresholds=()).to_json()
    assert "token_thresholds" not in values
    assert OperatingPoint.from_json(values).token_thresholds == ()
    assert OperatingPoint.from_json(POINT.to_json()) == POINT


@pytest.mark.parametrize("thresholds", [(0.1,), (0.1, 1.2), (-0.1, 0.1), (float("nan"), 0.1)], ids=str)
def test_thresholds_out_of_range_or_number_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="token_thresholds"):
        OperatingPoint((3,), (), (0, 2), (1.0, 1.0), token_thresholds=thresholds)


@pytest.mark.parametrize(
    ("name", "value"), [("precision", "int8"), ("trials", 3), ("pruning", False), ("selection", "best")]
)
def test_what_cannot_go_with_thresholds_is_refused(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"^{name}: "):
        Settings(2.0, **{"selection": "threshold", name: value})


def test_thresholds_need_texts(tiny_bert: PreTrainedModel) -> None:
    with pytest.raises(SettingError, match="selection: 'threshold' needs texts"):
        mpcompile.optimize(tiny_bert, 2.0, selection="threshold", progress=False)
