"""Tests of the main job: a classifier goes in, the same classifier comes out, doing less work."""

import copy
import csv
import dataclasses
import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends.openvino.backend import OpenVinoBackend
from mpcompile.backends.torch.eager import EagerBackend
from mpcompile.compile.choose.candidates import thin
from mpcompile.compile.choose.features import FeatureCollector
from mpcompile.compile.choose.schedules import KeepSchedule, exit_candidates, keep_schedules
from mpcompile.compile.texts.examples import Examples
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.cost.forecast import Forecast, Memory
from mpcompile.errors import BackendError, CaptureError, DataError, SettingError, StudyError, TargetUnreachable
from mpcompile.report.page import render_page
from mpcompile.runtime.model import OptimizedModel
from tests.models import MAX_POSITIONS, build_model, random_batch

pytestmark = pytest.mark.usefixtures("capture_once")
JSON_KEYS = {
    "target_speedup",
    "measured_speedup",
    "speedup_over_unpruned",
    "flops_ratio",
    "accuracy",
    "original_accuracy",
    "agreement",
    "certified_drop",
    "operating_points",
}
"""Keys that the JSON report promises."""


class Job:
    """`optimize` on the tiny BERT with the eager backend, which takes a second or two."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str], cache_dir: Path) -> None:
        self.tokenizer, self.texts = tokenizer, texts
        self.labels = [("positive", "neutral")[i % 2] for i in range(len(texts))]
        self._options = {"tokenizer": tokenizer, "backend": "eager", "progress": False, "cache_dir": cache_dir}

    def __call__(self, model: Any, target_speedup: Any = 1.0, **options: Any) -> OptimizedModel:
        return mpcompile.optimize(model, target_speedup, **{**self._options, **options})


@pytest.fixture(scope="module")
def job(
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_texts: list[str],
    cache_dir: Path,
    capture_once: None,
    few_batches: None,
) -> Job:
    return Job(tiny_tokenizer, tiny_texts, cache_dir)


@pytest.fixture(scope="module")
def without_texts(job: Job, tiny_bert: PreTrainedModel) -> OptimizedModel:
    """The tiny BERT, optimized without texts; shared, so leave its operating point as it is."""
    return job(copy.deepcopy(tiny_bert))


@pytest.fixture(scope="module")
def labelled(job: Job, tiny_bert: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> OptimizedModel:
    """The same with texts and labels of a CSV file, and a `max_drop`; shared, too.

    The model's last layer is wrong about every text, so that no exit is worse, whatever it answers and takes.
    """
    path = tmp_path_factory.mktemp("labelled") / "texts.csv"
    rows = zip(job.texts, opposite(tiny_bert, job.tokenizer, job.texts), strict=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return job(copy.deepcopy(tiny_bert), texts=path, pruning=False, max_drop=0.5)


@pytest.fixture
def model(tiny_bert: PreTrainedModel) -> PreTrainedModel:
    """A copy of the tiny BERT, that a test may change."""
    return copy.deepcopy(tiny_bert)


@pytest.fixture
def loaded(artifact: Path) -> OptimizedModel:
    """The handmade artifact, with three operating points."""
    return mpcompile.load(artifact)


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for temporary files, which must be empty again at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert list(folder.iterdir()) == []


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Logits of the model itself, a text at a time, (N, C) fp32."""
    with torch.no_grad():
        return np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in texts])


def answer_unpruned(optimized: OptimizedModel, texts: list[str]) -> np.ndarray:
    """Logits of its operating point that does all the work, (N, C) fp32."""
    assert optimized.tokenizer is not None
    (whole,) = (row.point for row in optimized.operating_points if row.point.keep_ratios in ((), (1.0, 1.0)))
    return optimized.runtime.run(optimized.tokenizer.pad(optimized.tokenizer.encode(texts)), whole).logits


def opposite(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    """For each text a class that the model does not answer."""
    return [(int(best) + 1) % 3 for best in answer(model, tokenizer, texts).argmax(1)]


# ---------------------------------------------------------------------------------- called like the model


def test_torch_goes_in_and_torch_comes_out(optimized: OptimizedModel, tiny_bert: PreTrainedModel) -> None:
    output = optimized(**random_batch(tiny_bert, [5, 9, 3]))
    assert isinstance(output.logits, torch.Tensor) and output.logits.shape == (3, 3)
    assert isinstance(output.exit_layer, torch.Tensor) and output.exit_layer.shape == (3,)
    assert isinstance(output.tokens_kept, torch.Tensor) and output.tokens_kept.shape == (3,)


def test_numpy_goes_in_and_numpy_comes_out(optimized: OptimizedModel, tiny_bert: PreTrainedModel) -> None:
    batch = {name: value.numpy() for name, value in random_batch(tiny_bert, [5, 9, 3]).items()}
    output = optimized(**batch)
    assert isinstance(output.logits, np.ndarray) and output.logits.shape == (3, 3)


def test_output_is_read_like_that_of_the_model(loaded: OptimizedModel) -> None:
    output = loaded(input_ids=[[2, 7, 3]])
    assert output["logits"] is output.logits
    assert output[0] is output.logits
    assert list(output.keys()) == ["logits", "exit_layer", "tokens_kept"]


def test_batch_encoding_of_the_tokenizer_is_taken(
    loaded: OptimizedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    batch = tiny_tokenizer(["ban del", "fip"], padding=True, return_tensors="pt")
    assert loaded(**batch).logits.shape == (2, 3)


def test_unpruned_point_without_exits_answers_as_the_model(loaded: OptimizedModel, tiny_bert: PreTrainedModel) -> None:
    loaded.set_speedup(1.0)
    batch = random_batch(tiny_bert, [5, 9, 3])
    with torch.no_grad():
        np.testing.assert_allclose(loaded(**batch).logits, tiny_bert(**batch).logits, atol=1e-4)


def test_answers_of_a_call_stay_after_the_next_call(loaded: OptimizedModel) -> None:
    first = loaded(input_ids=np.array([[2, 7, 3]]))
    before = first.logits.copy()
    loaded(input_ids=np.array([[2, 50, 60, 3]]))
    np.testing.assert_array_equal(first.logits, before)


# ---------------------------------------------------------------------------------- predict


def test_predict_gives_label_score_and_exit_layer(loaded: OptimizedModel, tiny_texts: list[str]) -> None:
    predictions = loaded.predict(tiny_texts)
    assert len(predictions) == len(tiny_texts)
    assert {prediction.label for prediction in predictions} <= {"negative", "neutral", "positive"}
    assert all(1 / 3 <= prediction.score <= 1.0 for prediction in predictions)
    assert {prediction.exit_layer for prediction in predictions} == {1, 3}
    assert predictions[0]["label"] == predictions[0].label


def test_predict_answers_in_the_order_given(loaded: OptimizedModel, tiny_texts: list[str]) -> None:
    together = loaded.predict(tiny_texts, batch_size=7)
    for text, prediction in zip(tiny_texts, together, strict=True):
        (alone,) = loaded.predict([text])
        assert (alone.label, alone.exit_layer) == (prediction.label, prediction.exit_layer)
        assert alone.score == pytest.approx(prediction.score, abs=1e-4)


def test_predict_answers_as_a_call_on_the_tokenizer_s_ids(
    loaded: OptimizedModel, tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str]
) -> None:
    batch = tiny_tokenizer(tiny_texts, padding=True, return_tensors="np")
    best = loaded(**batch).logits.argmax(1)
    assert [prediction.label for prediction in loaded.predict(tiny_texts)] == [loaded.id2label[int(k)] for k in best]


def test_predict_takes_pairs_either_way(loaded: OptimizedModel) -> None:
    as_tuples = loaded.predict([("ban", "del"), ("fip", "gos hur")])
    assert as_tuples == loaded.predict(["ban", "fip"], ["del", "gos hur"])


def test_predict_tells_the_texts_of_a_pair_apart(loaded: OptimizedModel) -> None:
    loaded.set_speedup(1.0)
    logits, _ = loaded.classify([("ban", "del")])
    single, _ = loaded.classify(["ban del"])
    assert np.abs(logits - single).max() > 1e-3


def test_predict_answers_an_empty_string(
    loaded: OptimizedModel, tiny_bert: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded.set_speedup(1.0)
    with torch.no_grad():
        expected = tiny_bert(**tiny_tokenizer([""], return_tensors="pt")).logits
    np.testing.assert_allclose(loaded.classify([""])[0], expected, atol=1e-4)


def test_predict_truncates_what_is_longer_than_the_position_table(loaded: OptimizedModel) -> None:
    long = " ".join(["ban"] * 500)
    fitting = " ".join(["ban"] * (MAX_POSITIONS - 2))
    assert loaded.predict([long]) == loaded.predict([fitting])


@pytest.mark.parametrize(
    ("texts", "pairs", "message"),
    [
        ([], None, "texts: empty; at least one text is expected"),
        ("ban del", None, r"texts: a single string; a list of strings is expected: predict\(\[text\]\)"),
        (["ban", 5], None, r"texts\[1\]: int; a string is expected"),
        ([None], None, r"texts\[0\]: NoneType; a string is expected"),
        (["ban", ("del", "fip")], None, r"texts\[1\]: tuple; a string is expected"),
        (["ban", "del"], ["fip"], "text_pairs: 1 given for 2 texts"),
        (["ban"], [3], r"text_pairs\[0\]: int; a string is expected"),
        (["ban \ud83d"], None, r"texts\[0\]"),
    ],
    ids=["none", "string", "number", "None", "mixed", "too few pairs", "pair of number", "half a surrogate pair"],
)
def test_bad_texts_are_refused_by_predict(loaded: OptimizedModel, texts: Any, pairs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded.predict(texts, pairs)


def test_bad_batch_size_is_refused_by_predict(loaded: OptimizedModel) -> None:
    with pytest.raises(SettingError, match="batch_size: 0; a whole number from 1 is expected"):
        loaded.predict(["ban"], batch_size=0)


# ---------------------------------------------------------------------------------- set_speedup


@pytest.mark.parametrize(("target", "expected"), [(1.0, 1.0), (1.5, 2.0), (2.0, 2.0), (4.0, 4.0)])
def test_set_speedup_takes_the_least_lossy_point_that_is_fast_enough(
    loaded: OptimizedModel, target: float, expected: float
) -> None:
    assert loaded.set_speedup(target).speedup == expected
    assert loaded.operating_point.speedup == expected


def test_set_speedup_builds_nothing(
    loaded: OptimizedModel, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something is built")

    for backend in (OpenVinoBackend, EagerBackend):
        monkeypatch.setattr(backend, "build", refuse)
        monkeypatch.setattr(backend, "load", refuse)
    depths = []
    for target in (1, 2, 4):
        loaded.set_speedup(target)
        depths.append({prediction.exit_layer for prediction in loaded.predict(tiny_texts)})
    assert depths == [{3}, {1, 3}, {1}]


def test_set_speedup_beyond_the_front_takes_the_closest_point_with_a_warning(
    loaded: OptimizedModel, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded.set_speedup(50).speedup == 4.0
    assert "target_speedup=50 is not reached: the fastest point was taken: 4.00x" in caplog.text


def test_set_speedup_warns_of_a_point_that_is_not_certified(
    loaded: OptimizedModel, caplog: pytest.LogCaptureFixture
) -> None:
    points = tuple(dataclasses.replace(point, certified=point.speedup < 4) for point in loaded.report.operating_points)
    loaded.report = dataclasses.replace(loaded.report, operating_points=points, max_drop=0.01)
    loaded.set_speedup(2)
    assert caplog.text == ""
    loaded.set_speedup(4)
    assert "the point of 4.00x is not certified to lose at most 0.01; certified are 1.00x, 2.00x" in caplog.text


@pytest.mark.parametrize("target", [0, -1, float("inf"), float("nan"), 1000, "8", True, None])
def test_set_speedup_refuses_a_bad_target(loaded: OptimizedModel, target: Any) -> None:
    with pytest.raises(SettingError, match=r"target_speedup: .*a number from 1 to 100 is expected"):
        loaded.set_speedup(target)
    assert loaded.operating_point.speedup == 2.0


# ---------------------------------------------------------------------------------- texts and labels


def test_pairs_are_taken_as_texts(job: Job, model: PreTrainedModel) -> None:
    pairs = [(text, "ban del fip " * 8) for text in job.texts]
    report = job(model, texts=pairs).report
    assert report.agreement is not None
    assert report.workload["mean_length"] > 1 + 24 + 1


def test_original_accuracy_is_that_of_the_original_on_the_labels_of_the_csv(labelled: OptimizedModel) -> None:
    assert labelled.report.original_accuracy == 0.0


def test_test_texts_are_what_the_report_is_measured_on(job: Job, model: PreTrainedModel, tiny_tokenizer: Any) -> None:
    test = Examples(tuple(job.texts[:20]), labels=tuple(opposite(model, tiny_tokenizer, job.texts[:20])))
    report = job(model, texts=job.texts, test=test).report
    assert report.original_accuracy == 0.0
    assert report.measured_on == "20 test texts"


def test_without_labels_agreement_is_reported_and_accuracy_is_not(optimized: OptimizedModel) -> None:
    assert optimized.report.accuracy is None
    assert optimized.report.agreement is not None
    assert optimized.report.certified_drop is not None


def test_without_texts_the_unknown_accuracy_is_said_plainly(without_texts: OptimizedModel) -> None:
    text = " ".join(str(without_texts.report).split())
    assert "accuracy unknown: no texts were given, so nothing was checked" in text
    assert "what pruning costs in accuracy is unknown" in text
    assert without_texts.report.agreement is None and without_texts.report.certified_drop is None


def test_without_texts_no_exits_are_made(without_texts: OptimizedModel) -> None:
    assert {point.point.exit_layers for point in without_texts.operating_points} == {(3,)}
    assert len(without_texts.predict(["ban del"])) == 1


def test_without_a_tokenizer_the_model_is_called_on_ids(job: Job, model: PreTrainedModel) -> None:
    optimized = job(model, tokenizer=None)
    assert optimized(input_ids=[[2, 7, 3]]).logits.shape == (1, 3)
    with pytest.raises(SettingError, match="predict: no tokenizer is known"):
        optimized.predict(["ban"])


def test_texts_without_a_tokenizer_are_refused(job: Job, model: PreTrainedModel) -> None:
    with pytest.raises(SettingError, match=r"tokenizer: none found beside .*; pass tokenizer="):
        job(model, texts=job.texts, tokenizer=None)


def test_adapt_none_trains_no_exits(job: Job, model: PreTrainedModel) -> None:
    optimized = job(model, texts=job.texts, adapt="none")
    assert {point.point.exit_layers for point in optimized.operating_points} == {(3,)}


def test_too_few_texts_are_refused(job: Job, model: PreTrainedModel) -> None:
    with pytest.raises(DataError, match=r"texts: 15 given; at least 16 are needed"):
        job(model, texts=job.texts[:15])


def test_label_that_the_model_lacks_is_refused(job: Job, model: PreTrainedModel) -> None:
    labels = ["positive"] * (len(job.texts) - 1) + ["sarcastic"]
    with pytest.raises(DataError, match=r"'sarcastic' is not a class of the model.*'negative', 'neutral', 'positive'"):
        job(model, texts=job.texts, labels=labels)


def test_labels_of_another_count_are_refused(job: Job, model: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="labels: 3 labels for 40 texts"):
        job(model, texts=job.texts, labels=[0, 1, 2])


def test_labels_without_texts_are_refused(job: Job, model: PreTrainedModel) -> None:
    with pytest.raises(SettingError, match="labels: cannot be used without texts"):
        job(model, labels=[0, 1, 2])


def test_point_within_max_drop_is_certified_on_half_of_the_texts(labelled: OptimizedModel) -> None:
    report = labelled.report
    assert labelled.operating_point.certified is True
    assert report.held_out == 20
    assert report.certified_drop is not None and report.certified_drop <= 0.5
    text = " ".join(str(report).split())
    assert "certified: accuracy falls by at most 50 points with 95% confidence, on texts like the 20 tested" in text


def test_without_max_drop_nothing_is_certified(optimized: OptimizedModel) -> None:
    assert {point.certified for point in optimized.operating_points} == {None}
    assert optimized.report.held_out == 8


@pytest.mark.parametrize("has_labels", [False, True], ids=["texts", "labels"])
def test_texts_too_few_for_the_confidence_are_refused_before_anything_slow(
    job: Job, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, has_labels: bool
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model is captured")

    monkeypatch.setattr("mpcompile.compile.job.capture", refuse)
    with pytest.raises(DataError, match=r"texts: 20 are used, 10 of them to test .* takes at least 14 for the test"):
        job(model, texts=job.texts, max_drop=0.2, max_texts=20, labels=job.labels if has_labels else None)


def test_max_drop_without_texts_is_refused(job: Job, model: PreTrainedModel) -> None:
    with pytest.raises(SettingError, match=r"max_drop=0\.01: cannot be used without texts"):
        job(model, max_drop=0.01)


# ---------------------------------------------------------------------------------- targets


def test_required_target_that_is_out_of_reach_shows_the_front(job: Job, model: PreTrainedModel) -> None:
    with pytest.raises(TargetUnreachable, match=r"target_speedup=100 is not reached with max_drop=0\.5") as error:
        job(model, 100, texts=job.texts, max_drop=0.5, require_target=True)
    assert error.value.front
    for point in error.value.front:
        assert isinstance(point, MeasuredPoint)
        assert point.describe() in str(error.value)


def test_target_out_of_reach_within_max_drop_gives_the_fastest_certified_point(
    job: Job, model: PreTrainedModel
) -> None:
    optimized = job(model, 100, texts=job.texts, max_drop=0.5)
    certified = [point for point in optimized.operating_points if point.certified]
    assert optimized.operating_point == max(certified, key=lambda point: point.speedup)
    assert any(
        said.startswith("target_speedup=100 is not reached with max_drop=0.5") for said in optimized.report.warnings
    )
    assert str(optimized.report).startswith("warning: ")
    assert optimized.report.to_json()["warnings"] == list(optimized.report.warnings)


def test_spare_texts_are_held_out_where_the_certificate_needs_them(job: Job, model: PreTrainedModel) -> None:
    texts = [f"{text} {i}" for i in range(4) for text in job.texts]
    report = job(model, texts=texts, max_texts=32, max_drop=0.5, confidence=0.95).report
    assert report.held_out > 16


def test_target_that_is_out_of_reach_gives_the_fastest_point_and_a_warning(
    job: Job, model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    optimized = job(model, 100, texts=job.texts)
    assert "target_speedup=100 is not reached" in caplog.text
    assert "target_speedup=100 is not reached" in str(optimized.report)


@pytest.mark.parametrize("target", [0, -1, float("inf"), float("nan"), 1000, "8", True, None])
def test_bad_target_is_refused_before_the_model_is_looked_at(target: Any) -> None:
    with pytest.raises(SettingError, match=r"target_speedup: .*a number from 1 to 100 is expected"):
        mpcompile.optimize("/no/such/model", target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorflow"}, "backend 'tensorflow': expected 'auto' or one of 'openvino', 'eager'"),
        ({"device": "tpu"}, "device 'tpu': expected 'auto', 'cpu', 'cuda'"),
    ],
    ids=str,
)
def test_unknown_backend_or_device_is_refused(job: Job, model: PreTrainedModel, options: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        job(model, **options)


@pytest.mark.parametrize("precision", ["int4", "fp8", ""])
def test_unknown_precision_is_refused(job: Job, model: PreTrainedModel, precision: str) -> None:
    with pytest.raises(SettingError, match=f"precision: '{precision}'; expected one of 'auto', 'f32', 'bf16'"):
        job(model, precision=precision)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_precision_that_the_backend_lacks_is_refused(job: Job, model: PreTrainedModel, precision: str) -> None:
    with pytest.raises(SettingError, match=f"precision: '{precision}'; backend 'eager' runs f32 natively"):
        job(model, precision=precision)


def test_model_with_another_head_is_refused(job: Job, tiny_bert: PreTrainedModel) -> None:
    with pytest.raises(CaptureError, match=r"BertForMaskedLM: expected a \.\.\.ForSequenceClassification model"):
        job(BertForMaskedLM(tiny_bert.config))


def test_folder_that_is_not_there_is_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="nowhere: no such folder"):
        job(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------- the model as passed in


@pytest.mark.usefixtures("capture_anew")
def test_weights_of_the_model_are_left_as_they_were(job: Job, model: PreTrainedModel) -> None:
    model.bert.embeddings.requires_grad_(False)
    before = copy.deepcopy(model)
    job(model)
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old), name
        assert parameter.requires_grad == old.requires_grad, name


@pytest.mark.usefixtures("capture_anew")
def test_mode_of_the_model_is_left_as_it_was(job: Job, model: PreTrainedModel) -> None:
    model.train()
    model.classifier.eval()
    job(model)
    assert model.training
    assert not model.classifier.training


@pytest.mark.usefixtures("capture_anew")
def test_config_of_the_model_is_left_as_it_was(job: Job) -> None:
    model = build_model("bert")  # a new one: saving a model is what changes its config
    before, attention = copy.deepcopy(model.config.to_dict()), model.config._attn_implementation
    job(model)
    assert model.config.to_dict() == before
    assert model.config._attn_implementation == attention


@pytest.mark.usefixtures("capture_anew")
def test_result_does_not_change_when_the_model_is_trained_on(job: Job, model: PreTrainedModel) -> None:
    optimized = job(model)
    before = optimized.classify(job.texts[:3])[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    np.testing.assert_array_equal(optimized.classify(job.texts[:3])[0], before)


@pytest.mark.usefixtures("capture_anew")
def test_fp16_model_is_taken(job: Job, model: PreTrainedModel) -> None:
    found = answer_unpruned(job(model.half()), job.texts)
    assert next(model.parameters()).dtype == torch.float16
    np.testing.assert_allclose(found, answer(model.float(), job.tokenizer, job.texts), atol=1e-4)


@pytest.mark.usefixtures("capture_anew")
def test_model_is_found_with_its_tokenizer_in_a_folder(
    tiny_model_dir: Path, cache_dir: Path, job: Job, tiny_bert: PreTrainedModel
) -> None:
    optimized = mpcompile.optimize(tiny_model_dir, 1.0, backend="eager", progress=False, cache_dir=cache_dir)
    expected = answer(tiny_bert, job.tokenizer, job.texts)
    np.testing.assert_allclose(answer_unpruned(optimized, job.texts), expected, atol=1e-4)


def test_same_job_again_takes_what_is_slow_from_the_cache(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    model = build_model("bert", seed=11)  # one that no other test has filled the cache for
    job(model, texts=job.texts)
    monkeypatch.setattr("mpcompile.compile.choose.collector.FeatureCollector", refuse)
    monkeypatch.setattr("mpcompile.cost.calibration.calibrate", refuse)
    job(model, texts=job.texts)


def test_search_tries_schedules_and_resumes_without_a_pass(
    job: Job, collecting: type["Collecting"], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    model, storage = build_model("bert", seed=12), tmp_path / "search.db"
    assert job(model, texts=job.texts, trials=4, storage=storage).operating_points
    usual = set(keep_schedules(3)[1])
    assert 1 <= len(set(collecting.schedules) - usual) <= 4
    collecting.schedules.clear()
    job(model, texts=job.texts, trials=4, storage=storage)
    assert collecting.schedules == []
    with pytest.raises(StudyError, match=r"its model is .*, this one is .*; choose another --storage"):
        job(build_model("bert", seed=13), texts=job.texts, trials=4, storage=storage)


def test_cache_knows_models_by_their_weights(job: Job, model: PreTrainedModel) -> None:
    first = job(model).classify(job.texts[:3])[0]
    with torch.no_grad():
        model.classifier.bias.add_(5.0 * torch.arange(3))
    second = job(model).classify(job.texts[:3])[0]
    assert np.abs(first - second).max() > 1.0


# ---------------------------------------------------------------------------------- what is built


def test_layers_behind_the_deepest_exit_are_not_built(labelled: OptimizedModel) -> None:
    deepest = max(point.point.exit_layers[-1] for point in labelled.operating_points)
    assert deepest < 3
    assert labelled.runtime.segments[-1].exit_layer == deepest
    names = [name for segment in labelled.runtime.segments for name, _ in segment.graph_module.named_parameters()]
    layers = {int(name.split(".layer.")[1].split(".")[0]) for name in names if ".layer." in name}
    assert layers == set(range(deepest))
    assert not any("classifier" in name or "pooler" in name for name in names)


def test_every_operating_point_runs_on_the_engines_that_were_built(optimized: OptimizedModel) -> None:
    batch = {"input_ids": np.array([[2, 7, 9, 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    inputs = {**batch, "token_type_ids": np.zeros((1, 4), np.int64)}
    for row in optimized.operating_points:
        assert optimized.runtime.run(inputs, row.point).exit_layer[0] in row.point.exit_layers


def test_exit_before_the_model_is_packed_with_it(
    job: Job, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only exit, so that a point that is four times as fast has it."""
    monkeypatch.setattr("mpcompile.compile.choose.heads.find_exits", lambda *_: ())
    optimized = job(model, 4.0, texts=job.texts, pruning=False, teach_minutes=1.0)
    batch = {"input_ids": np.array([[2, 7, 9, 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    inputs = {**batch, "token_type_ids": np.zeros((1, 4), np.int64)}
    points = [row.point for row in optimized.operating_points if BEFORE in row.point.exit_layers]
    assert points
    loaded = mpcompile.load(optimized.save(tmp_path / "artifact"))
    for point in points:
        found, expected = (each.runtime.run(inputs, point) for each in (loaded, optimized))
        assert found.exit_layer.tolist() == expected.exit_layer.tolist()
        np.testing.assert_array_equal(found.logits, expected.logits)


# ---------------------------------------------------------------------------------- the report


def test_report_has_what_the_design_promises(optimized: OptimizedModel) -> None:
    assert set(optimized.report.to_json()) >= JSON_KEYS


def test_report_is_strict_json(optimized: OptimizedModel) -> None:
    text = json.dumps(optimized.report.to_json(), allow_nan=False)
    assert json.loads(text)["operating_points"]


def test_speedups_of_the_report_are_ratios_of_its_times(optimized: OptimizedModel) -> None:
    report = optimized.report
    assert report.measured_speedup == pytest.approx(report.original_s / report.measured_s)
    assert report.speedup_over_unpruned == pytest.approx(report.unpruned_s / report.measured_s)
    assert np.prod(list(report.gains.values())) == pytest.approx(report.measured_speedup)


def test_chosen_point_of_the_report_is_the_one_in_use(optimized: OptimizedModel) -> None:
    chosen = optimized.report.operating_points[optimized.report.chosen]
    assert optimized.operating_point == chosen
    assert chosen.speedup == pytest.approx(optimized.report.measured_speedup)


def test_every_point_has_a_prediction_and_a_measurement(optimized: OptimizedModel) -> None:
    for point in optimized.operating_points:
        assert point.predicted_s > 0.0 and point.measured_s > 0.0


def test_agreement_of_the_report_is_what_predict_gives(
    job: Job, model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    test = job.texts[:10]
    optimized = job(model, texts=job.texts, test=test)
    answers, original = optimized.classify(test)[0].argmax(1), answer(model, tiny_tokenizer, test).argmax(1)
    assert optimized.report.agreement == pytest.approx((answers == original).mean())


def test_page_of_the_report_is_part_of_the_artifact(optimized: OptimizedModel, tmp_path: Path) -> None:
    folder = optimized.save(tmp_path / "saved")
    assert "report.html" in json.loads((folder / "manifest.json").read_text())["files"]
    assert (folder / "report.html").read_text("utf-8") == render_page(optimized.report)


def test_page_is_left_out_with_a_note_where_plotly_is_missing(
    job: Job, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    optimized = job(model)
    assert any("report.html was left out: plotly" in note for note in optimized.report.notes)
    folder = optimized.save(tmp_path / "saved")
    assert not (folder / "report.html").exists()
    assert "report.html was left out" in (folder / "report.json").read_text("utf-8")


def test_report_without_texts_has_a_pyramid_and_no_samples(without_texts: OptimizedModel) -> None:
    assert [layer.running for layer in without_texts.report.pyramid] == [1.0, 1.0, 1.0]
    assert without_texts.report.samples == ()


def test_samples_of_pairs_show_both_texts(job: Job, model: PreTrainedModel) -> None:
    texts = [(text, job.texts[-1 - i]) for i, text in enumerate(job.texts)]
    for sample in job(model, texts=texts).report.samples:
        assert sum(token.text == "[SEP]" for token in sample.tokens) == 2


# ---------------------------------------------------------------------------------- texts that nobody may see


def private_texts(texts: list[str]) -> list[str]:
    """The texts with a word in each that stands nowhere else; the tokenizer does not know it."""
    return [f"{text} zebrafish{i:02d}" for i, text in enumerate(texts)]


def test_texts_are_shown_in_the_report(job: Job, model: PreTrainedModel, tmp_path: Path) -> None:
    folder = job(model, texts=private_texts(job.texts)).save(tmp_path / "saved")
    for name in ("report.json", "report.html"):
        assert "zebrafish" in (folder / name).read_text("utf-8")


def test_texts_that_are_hidden_stand_nowhere_in_the_artifact(job: Job, model: PreTrainedModel, tmp_path: Path) -> None:
    texts = private_texts(job.texts)
    optimized = job(model, texts=texts, test=texts[:5], show_texts=False)
    folder = optimized.save(tmp_path / "saved")
    assert optimized.report.samples == ()
    assert (folder / "report.html").exists()
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"zebrafish" not in content, path
        assert not any(text.encode() in content for text in job.texts if " " in text), path


# ---------------------------------------------------------------------------------- plans


class Collecting(FeatureCollector):
    """Notes what features are collected of."""

    exits: list[tuple[int, ...]] = []
    schedules: list[KeepSchedule] = []

    def __init__(self, segment: Any, *more: Any) -> None:
        taps = (name for name in segment.output_names if name.startswith("features_"))
        self.exits.append(tuple(int(name.removeprefix("features_")) for name in taps))
        super().__init__(segment, *more)

    def collect(self, encoded: Any, schedule: KeepSchedule, stage: Any) -> Any:
        self.schedules.append(schedule)
        return super().collect(encoded, schedule, stage)


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> type[Collecting]:
    monkeypatch.setattr(Collecting, "exits", [])
    monkeypatch.setattr(Collecting, "schedules", [])
    monkeypatch.setattr("mpcompile.compile.choose.collector.FeatureCollector", Collecting)
    return Collecting


def plan_point(point: OperatingPoint) -> Forecast:
    """A plan of a point; what else it says is made up, as nothing else is read."""
    return Forecast(
        model="tiny",
        device="l4",
        precision="f16",
        batch_size=1,
        mean_length=12.0,
        target_speedup=2.0,
        unpruned_s=0.002,
        floor_s=0.001,
        reachable_speedup=3.0,
        speedup=2.0,
        point=point,
        exit_share=0.5,
        segments=(),
        memory=Memory(1e6, 1e6, 5e8, 24e9),
        fixed_share=0.5,
    )


def test_keep_ratios_of_a_plan_are_tried_beside_the_usual_ones(
    job: Job, model: PreTrainedModel, collecting: type[Collecting]
) -> None:
    job(model, texts=job.texts, plan=plan_point(OperatingPoint((1, 3), (0.0,), (1, 2), (0.35, 0.45))))
    assert KeepSchedule((1, 2), (0.35, 0.45)) in collecting.schedules


def test_exits_of_a_plan_are_trained_beside_the_usual_ones(
    job: Job, collecting: type[Collecting], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_point(OperatingPoint((3, 6), (0.0,))).to_json()))
    job(build_model("bert", num_layers=6), texts=job.texts, plan=path)
    assert 3 not in exit_candidates(6)
    assert {*collecting.exits} == {tuple(sorted((*exit_candidates(6), 3)))}
    assert {*collecting.schedules} == {*keep_schedules(6)[1]}


def test_plan_is_of_use_without_texts(job: Job, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def note(candidates: Any) -> Any:
        tried.extend(candidate.point.keep_ratios for candidate in candidates)
        return thin(candidates)

    monkeypatch.setattr("mpcompile.compile.choose.points.thin", note)
    job(model, plan=plan_point(OperatingPoint((3,), (), (2,), (0.35,))))
    assert (1.0, 0.35) in tried


@pytest.mark.parametrize(
    ("point", "has_texts"),
    [
        (OperatingPoint((5, 12), (0.0,)), True),
        (OperatingPoint((2,)), False),
        (OperatingPoint((3,), (), (0, 2), (0.5, 0.5)), False),
    ],
    ids=["deeper", "shallower", "other layers prune"],
)
def test_plan_of_another_model_is_refused(
    job: Job, model: PreTrainedModel, point: OperatingPoint, has_texts: bool
) -> None:
    with pytest.raises(
        SettingError, match=r"plan: made for tiny with \d+ encoder layers; this model has 3: plan again"
    ):
        job(model, texts=job.texts if has_texts else None, plan=plan_point(point))


@pytest.mark.parametrize("content", [None, "{}", "[]", "\x00"], ids=["missing", "other", "list", "binary"])
def test_file_that_is_no_plan_is_refused_before_the_model_is_looked_at(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError, match=r"plan\.json: .*make one with mpcompile plan --out"):
        mpcompile.optimize("/no/such/model", 2.0, plan=path)


# ---------------------------------------------------------------------------------- nothing is left behind


def test_folder_of_an_unsaved_model_goes_with_it(job: Job, model: PreTrainedModel, no_leftovers: Path) -> None:
    optimized = job(model)
    assert len(list(no_leftovers.iterdir())) == 1
    del optimized


@pytest.mark.parametrize(
    "stage",
    [
        "job.capture",
        "optimize.measure_cost_model",
        "optimize.choose_without_texts",
        "chains.build_plans",
        "optimize.measure_fronts",
        "outcome.measure_pruning",
    ],
)
def test_interruption_of_a_stage_leaves_nothing(
    job: Job, model: PreTrainedModel, no_leftovers: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mpcompile.compile.{stage}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job(model)


def test_interruption_of_the_writing_leaves_nothing(
    job: Job, model: PreTrainedModel, no_leftovers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpcompile.compile.pack.write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job(model)


def test_progress_is_silent_when_it_is_off(job: Job, model: PreTrainedModel, capfd: pytest.CaptureFixture[str]) -> None:
    job(model)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_progress_is_drawn_on_standard_error(
    job: Job, model: PreTrainedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    job(model, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "capture" in err and "build engines" in err
