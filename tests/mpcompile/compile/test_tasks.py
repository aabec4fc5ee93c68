"""Tests of every kind of task from `optimize` to the saved artifact, and of what each refuses."""

import csv
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends import find_backend
from mpcompile.commands.cli import main
from mpcompile.compile.original import open_original
from mpcompile.compile.texts.examples import load_examples
from mpcompile.compile.texts.labels import read_labels
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.contract.task import Task
from mpcompile.errors import CaptureError, DataError, SettingError
from mpcompile.graph.capture import capture
from mpcompile.graph.segments import partition
from mpcompile.graph.sentence import Pooling, read_pooling_maybe
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.predictions import MultiLabelPrediction, ScorePrediction, tabulate_predictions
from passes import ExitHead
from tests.models import WORDS, build_model, build_tokenizer, random_batch, randomise

pytestmark = pytest.mark.usefixtures("capture_once", "few_batches")
NAMES = ("sport", "war", "art", "trade")
SCORE = {"num_labels": 1, "id2label": {0: "score"}, "label2id": {"score": 0}}


def named(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }


@functools.cache
def model_of(kind: str) -> PreTrainedModel:
    """A tiny model of two layers; none of the tests changes it."""
    if kind == "multi_label":
        return build_model("bert", 2, problem_type="multi_label_classification", **named(NAMES))
    if kind == "regression":
        return build_model("bert", 2, **SCORE)
    return build_model("bert", 2).bert


@pytest.fixture(scope="module", params=["multi_label", "regression", "embedding"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def run(kind: str, cache_dir: Path, texts: tuple[str, ...]) -> OptimizedModel:
    """A model of a kind, optimized; shared, so leave its operating point as it is."""
    options = {"tokenizer": build_tokenizer(), "texts": list(texts), "adapt": "frozen", "backend": "eager"}
    return mpcompile.optimize(model_of(kind), 1.0, progress=False, cache_dir=cache_dir, **options)


@pytest.fixture(scope="module")
def optimized(kind: str, cache_dir: Path, tiny_texts: list[str]) -> OptimizedModel:
    return run(kind, cache_dir, tuple(tiny_texts))


@pytest.fixture(scope="module")
def saved(optimized: OptimizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimized.save(tmp_path_factory.mktemp("tasks") / "saved")


@pytest.fixture
def of_kind(cache_dir: Path, tiny_texts: list[str]) -> Any:
    return lambda kind: run(kind, cache_dir, tuple(tiny_texts))


@torch.no_grad()
def original_answers(kind: str, texts: list[str]) -> np.ndarray:
    """Logits (N, C) of the model itself; of an encoder the mean over its tokens."""
    rows = []
    for text in texts:
        output = model_of(kind)(**build_tokenizer()(text, return_tensors="pt"))
        rows.append(output.last_hidden_state[0].mean(0) if kind == "embedding" else output.logits[0])
    return torch.stack(rows).numpy()


# ---------------------------------------------------------------------------------- every kind


def test_saved_artifact_answers_the_same(optimized: OptimizedModel, saved: Path, tiny_texts: list[str]) -> None:
    loaded = mpcompile.load(saved)
    assert loaded.task == optimized.task
    for before, after in zip(optimized.classify(tiny_texts), loaded.classify(tiny_texts), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)


def test_agreement_of_the_report_is_what_differs_says(
    kind: str, cache_dir: Path, tiny_texts: list[str], optimized: OptimizedModel
) -> None:
    original = original_answers(kind, tiny_texts)
    order = np.random.default_rng(0).permutation(len(tiny_texts))
    held_out = order[len(order) - len(order) // 5 :]
    answers = optimized.classify([tiny_texts[i] for i in held_out])[0]
    task = optimized.task
    expected = 1.0 - task.differs(task.answers(answers), task.answers(original[held_out])).mean()
    assert optimized.report.agreement == pytest.approx(expected)


def test_report_says_what_was_left_out(optimized: OptimizedModel) -> None:
    notes = [note for note in optimized.report.notes if note.startswith("exits were left out")]
    assert len(notes) == (0 if optimized.task.has_exits else 1)
    assert optimized.task.has_exits or {row.point.exit_layers for row in optimized.operating_points} == {(2,)}


def test_report_is_strict_json(optimized: OptimizedModel) -> None:
    values = json.loads(json.dumps(optimized.report.to_json(), allow_nan=False))
    assert values["model"]["task"] == optimized.task.kind
    assert str(optimized.report)


def test_predict_command_writes_a_row_per_text(kind: str, saved: Path, tmp_path: Path, tiny_texts: list[str]) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out.csv"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts))
    assert main(["predict", str(saved), str(texts), "--out", str(out)]) == 0
    header, *rows = csv.reader(out.open())
    columns = {"multi_label": ["label", "score", "exit_layer"], "regression": ["score"]}
    assert header == columns.get(kind, [f"vector_{i}" for i in range(32)])
    assert len(rows) == len(tiny_texts)


@pytest.mark.parametrize("kind", ["regression", "embedding"])
def test_unpruned_point_answers_as_the_original(kind: str, of_kind: Any, tiny_texts: list[str]) -> None:
    optimized = of_kind(kind)
    inputs = optimized.tokenizer.pad(optimized.tokenizer.encode(tiny_texts))
    answers = optimized.runtime.run(inputs, OperatingPoint((2,))).logits
    np.testing.assert_allclose(answers, original_answers(kind, tiny_texts), atol=1e-5)


@pytest.mark.parametrize("kind", ["multi_label", "regression", "embedding"])
def test_openvino_answers_as_the_graph(kind: str) -> None:
    pytest.importorskip("openvino")
    captured = capture(model_of(kind))
    heads = {1: randomise(ExitHead(32, 4, 16, multi_label=True), 1)} if captured.task.has_exits else {}
    (segment, *_) = partition(captured, heads, (0,))
    length = np.array([5, 9, 3])
    batch = {name: value.numpy() for name, value in random_batch(model_of(kind), length.tolist()).items()}
    inputs = {**batch, "num_kept_0": length // 2 + 1, "slots_0": np.arange(5)}
    outputs = []
    for name in ("eager", "openvino"):
        backend = find_backend(name)
        engine = backend.load(backend.build(segment, default_profile(40), BuildConfig()), segment, BuildConfig())
        outputs.append({key: value.copy() for key, value in engine(inputs).items()})
    np.testing.assert_allclose(outputs[1]["logits"], outputs[0]["logits"], atol=1e-4)
    if heads:
        np.testing.assert_allclose(outputs[1]["entropy"], captured.task.entropy(outputs[0]["logits"]), atol=1e-4)


# ---------------------------------------------------------------------------------- several labels


def test_prediction_of_several_labels_names_those_that_hold(of_kind: Any, tiny_texts: list[str]) -> None:
    optimized = of_kind("multi_label")
    logits, exit_layer = optimized.classify(tiny_texts)
    for row, layer, prediction in zip(logits, exit_layer, optimized.predict(tiny_texts), strict=True):
        assert isinstance(prediction, MultiLabelPrediction)
        assert set(prediction.labels) == {NAMES[i] for i in range(4) if row[i] > 0}
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
        assert all(score > 0.5 for score in prediction.scores) and prediction.exit_layer == layer


def test_accuracy_of_several_labels_is_that_of_whole_sets(cache_dir: Path, tiny_texts: list[str]) -> None:
    truth = original_answers("multi_label", tiny_texts) > 0
    labels = [[name for name, holds in zip(NAMES, row, strict=True) if holds] for row in truth]
    options = {"tokenizer": build_tokenizer(), "adapt": "none", "backend": "eager", "progress": False}
    wrong = [[*names, "sport"] if "sport" not in names else names[1:] for names in labels[:10]]
    report = mpcompile.optimize(
        model_of("multi_label"), 1.0, texts=tiny_texts, labels=[*wrong, *labels[10:]], cache_dir=cache_dir, **options
    ).report
    assert report.original_accuracy is not None and report.accuracy is not None
    held_out = np.random.default_rng(0).permutation(40)[32:]
    assert report.original_accuracy == pytest.approx(1.0 - (held_out < 10).mean())


def test_predicted_labels_are_read_back_as_labels(of_kind: Any, tiny_texts: list[str], tmp_path: Path) -> None:
    optimized = of_kind("multi_label")
    rows = tabulate_predictions(optimized.predict(tiny_texts), optimized.id2label)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        texts = [["text", *rows[0]], *([text, *row] for text, row in zip(tiny_texts, rows[1:], strict=True))]
        csv.writer(file).writerows(texts)
    labels = read_labels(load_examples(tmp_path / "a.csv"), optimized.task, optimized.id2label, "labels")
    assert labels is not None and np.array_equal(labels, optimized.classify(tiny_texts)[0] > 0)


# ---------------------------------------------------------------------------------- scores


def test_prediction_of_a_regression_is_its_score(of_kind: Any, tiny_texts: list[str]) -> None:
    optimized = of_kind("regression")
    scores = optimized.classify(tiny_texts)[0][:, 0]
    predictions = optimized.predict(tiny_texts)
    assert all(isinstance(prediction, ScorePrediction) for prediction in predictions)
    assert [prediction.score for prediction in predictions] == pytest.approx(scores.tolist())


def test_regression_reports_correlations_and_no_accuracy(
    cache_dir: Path, tiny_texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = original_answers("regression", tiny_texts)[:, 0]
    path = tmp_path / "scored.csv"
    with path.open("w", newline="") as file:
        rows = [(text, float(score)) for text, score in zip(tiny_texts, scores, strict=True)]
        csv.writer(file).writerows([("text", "label"), *rows])
    model, out = tmp_path / "model", tmp_path / "out"
    model_of("regression").save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    options = ["--backend", "eager", "--no-progress", "--json", "--target-speedup", "1", "--cache-dir", str(cache_dir)]
    assert main(["optimize", str(model), "--texts", str(path), "--out", str(out), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] is None and report["original_accuracy"] is None
    assert report["similarity"]["original_with_labels"] == {
        "pearson": pytest.approx(1.0, abs=1e-4),
        "spearman": pytest.approx(1.0),
    }
    assert set(report["similarity"]) == {"with_original", "with_labels", "original_with_labels"}


def test_regression_keeps_its_tolerance_in_the_artifact(of_kind: Any, tiny_texts: list[str]) -> None:
    choosing = np.random.default_rng(0).permutation(40)[:32]
    scores = original_answers("regression", tiny_texts)[choosing, 0]
    assert of_kind("regression").task.tolerance == (pytest.approx(0.1 * scores.std(), rel=1e-3),)


def test_several_scores_have_a_column_each() -> None:
    rows = tabulate_predictions([ScorePrediction((1.0, 0.5), 2)], {0: "joy", 1: "fear"})
    assert rows == [["score_joy", "score_fear"], ["1.000000", "0.500000"]]


# ---------------------------------------------------------------------------------- vectors


def test_encode_gives_a_vector_per_text(of_kind: Any, tiny_texts: list[str]) -> None:
    assert of_kind("embedding").encode(tiny_texts).shape == (40, 32)


def test_predict_and_encode_name_each_other(of_kind: Any) -> None:
    with pytest.raises(SettingError, match=r"this model gives vectors; call \.encode\(texts\)"):
        of_kind("embedding").predict(["ban"])
    with pytest.raises(SettingError, match=r"encode: this model is a regression; call \.predict\(texts\)"):
        of_kind("regression").encode(["ban"])


def write_sentence_folder(folder: Path, modules: tuple[str, ...], **pooling: bool) -> Path:
    """A folder as sentence-transformers saves it."""
    model_of("embedding").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    rows = [{"idx": i, "path": paths[m], "type": f"sentence_transformers.models.{m}"} for i, m in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    return folder


def test_folder_of_sentence_transformers_keeps_its_length_and_its_norm(
    tmp_path: Path, cache_dir: Path, tiny_texts: list[str]
) -> None:
    folder = write_sentence_folder(tmp_path / "model", ("Transformer", "Pooling", "Normalize"))
    original = open_original(folder, None)
    assert original.pooling.normalise and original.tokenizer is not None and original.tokenizer.model_max_length == 12
    options = {"adapt": "frozen", "backend": "eager", "progress": False, "cache_dir": cache_dir}
    optimized = mpcompile.optimize(folder, 1.0, texts=tiny_texts, **options)
    np.testing.assert_allclose(np.linalg.norm(optimized.encode(tiny_texts), axis=1), 1.0, atol=1e-5)
    saved = optimized.save(tmp_path / "out")
    assert read_pooling_maybe(str(saved / "model")) == Pooling(True, "", 12)
    np.testing.assert_allclose(mpcompile.load(saved).encode(tiny_texts), optimized.encode(tiny_texts), atol=1e-6)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (("Transformer", "Pooling"), {"pooling_mode_cls_token": True}, "pooling by cls_token; only the mean"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "pooling by max_tokens; only the mean"),
        (("Transformer", "Pooling", "Dense"), {}, r"modules\.json lists Transformer, Pooling, Dense; only the mean"),
        (("Transformer",), {}, r"modules\.json lists Transformer; only the mean"),
    ],
    ids=["cls", "max", "dense", "no pooling"],
)
def test_other_pooling_than_the_mean_is_refused(
    tmp_path: Path, modules: tuple[str, ...], pooling: dict[str, bool], message: str
) -> None:
    with pytest.raises(CaptureError, match=message):
        open_original(write_sentence_folder(tmp_path / "model", modules, **pooling), None)


def test_config_decides_between_classifier_and_encoder(tmp_path: Path, tiny_model_dir: Path) -> None:
    model_of("embedding").save_pretrained(tmp_path / "encoder")
    assert type(open_original(tmp_path / "encoder", None).model).__name__ == "BertModel"
    assert type(open_original(tiny_model_dir, None).model).__name__ == "BertForSequenceClassification"


def test_folder_of_another_head_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(CaptureError, match=r"config\.json says BertForMaskedLM; expected a \.\.\.ForSequence"):
        open_original(folder, None)


# ---------------------------------------------------------------------------------- many classes, long documents


def test_150_classes_just_work(cache_dir: Path, tiny_texts: list[str], tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("bert", 2, **named(tuple(f"intent {i}" for i in range(150))))
    options = {"tokenizer": tiny_tokenizer, "backend": "eager", "progress": False, "cache_dir": cache_dir}
    optimized = mpcompile.optimize(model, 1.0, texts=tiny_texts, **options)
    assert optimized.classify(tiny_texts)[0].shape == (40, 150)
    assert optimized.task == Task("single_label", 150)


def test_documents_of_512_tokens_just_work(cache_dir: Path) -> None:
    model, tokenizer = build_model("bert", 2, max_position_embeddings=512), build_tokenizer()
    tokenizer.model_max_length = 512
    texts = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(30 * i)) for i in range(1, 21)]
    options = {"backend": "eager", "progress": False, "cache_dir": cache_dir}
    optimized = mpcompile.optimize(model, 1.0, tokenizer=tokenizer, texts=texts, **options)
    assert optimized.report.workload["max_length"] == 512
    assert len(optimized.predict(texts)) == 20


# ---------------------------------------------------------------------------------- refused before anything slow


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("multi_label", ["peace"] * 40, r"labels\[0\]: 'peace' is not a class of the model"),
        ("multi_label", [["war"]] * 40, r"labels of texts: all 40 are \('war',\); at least two different ones"),
        ("regression", ["good", "bad"] * 20, r"labels\[0\]: 'good' is no score"),
        ("regression", [1.0] * 39, "labels: 39 labels for 40 texts"),
        ("embedding", [1.0, 2.0] * 20, "labels of texts: 40 given; a model of vectors has nothing to compare"),
    ],
)
def test_bad_labels_are_refused_before_anything_slow(
    kind: str, labels: list[Any], message: str, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("captured")

    monkeypatch.setattr("mpcompile.compile.job.capture", refuse)
    with pytest.raises(DataError, match=message):
        mpcompile.optimize(model_of(kind), 1.0, tokenizer=build_tokenizer(), texts=tiny_texts, labels=labels)
