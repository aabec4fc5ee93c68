"""Tests of the main job in int8: engines, front, report and an artifact that needs neither torch nor nncf."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile import load
from mpcompile.backends import find_backend
from mpcompile.compile.chains import build_chains
from mpcompile.compile.choose.collector import Collector
from mpcompile.compile.choose.deployed import Chain, choose_on_segments
from mpcompile.compile.choose.points import Chosen, Question
from mpcompile.compile.choose.precision import Offer
from mpcompile.compile.exit_log import LoggingRuntime
from mpcompile.compile.job import Job, Model
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.errors import SettingError
from mpcompile.runtime.artifact import read_manifest, write_manifest
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.runtime import Runtime
from mpcompile.tuning.builder import VariantBuilder
from mpcompile.tuning.variant import Variant

pytest.importorskip("nncf")
pytest.importorskip("openvino")

if "int8" not in find_backend("openvino").precisions():
    pytest.skip("this CPU does not run int8", allow_module_level=True)

READ_WITHOUT_TORCH = """
import json, sys
import mpcompile
model = mpcompile.load(sys.argv[1])
answers = [prediction.label for prediction in model.predict(json.loads(sys.argv[2]))]
loaded = [name for name in ("torch", "nncf", "transformers") if name in sys.modules]
print(json.dumps([answers, loaded]))
"""


@pytest.fixture(scope="module")
def quantised(
    tiny_bert: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_texts: list[str],
    cache_dir: Path,
    few_batches: None,
) -> OptimizedModel:
    """The tiny BERT in int8; shared, so leave its operating point as it is."""
    return mpcompile.optimize(
        tiny_bert, 1.0, tokenizer=tiny_tokenizer, texts=tiny_texts, precision="int8", progress=False,
        cache_dir=cache_dir,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(quantised: OptimizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised.save(tmp_path_factory.mktemp("int8") / "artifact")


def test_everything_is_in_int8(quantised: OptimizedModel) -> None:
    assert {segment.precision for segment in quantised.runtime.segments} == {"int8"}
    assert {row.point.precision for row in quantised.operating_points} == {"int8"}
    assert quantised.report.machine["precision"] == "int8"


def test_answers_are_mostly_those_of_the_original(quantised: OptimizedModel) -> None:
    slowest = quantised.operating_points[0]
    assert slowest.agreement is not None and slowest.agreement >= 0.75


def test_texts_leave_where_points_were_chosen_to_let_them(
    tiny_bert: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_texts: list[str],
    cache_dir: Path,
    few_batches: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Job, Model, Target, Question, Chosen]] = []

    def note(job: Job, model: Model, target: Target, question: Question, chosen: Chosen) -> Chosen:
        asked.append((job, model, target, question, choose_on_segments(job, model, target, question, chosen)))
        return asked[-1][-1]

    monkeypatch.setattr("mpcompile.compile.choose.precision.choose_on_segments", note)
    optimized = mpcompile.optimize(
        tiny_bert, 2.0, tokenizer=tiny_tokenizer, texts=tiny_texts[:20], held_out=tiny_texts[20:], precision="int8",
        progress=False, cache_dir=cache_dir,
    )  # fmt: skip
    job, model, target, question, chosen = asked[0]
    assert {row.point for row in optimized.operating_points} == {c.point for c in chosen.candidates}
    part, exits = question.part, (1, 2)
    assert question.heads is not None
    chosen = dataclasses.replace(chosen, heads={layer: question.heads.heads[layer] for layer in exits})
    offer = Offer(target, cast(Runtime, optimized.runtime), 1.0, (chosen,))
    (built,) = build_chains(job, model, offer, length=10)
    ones = (1.0,) * len(chosen.prune_layers)
    whole = OperatingPoint((model.num_layers,), (), chosen.prune_layers, ones, "int8")
    log = LoggingRuntime(built.runtime).log_texts(part.tokenizer, part.encoded, whole)
    collector = Collector(job, model, target, exits, part)
    of_segments, of_whole = (
        np.abs(question.heads.predict_held_out(features.pooled)[2] - log.logits[log.exit_layers.index(2)]).max()
        for features in (Chain(job, model, target, chosen).collect(part, ones), collector.collect(collector.unpruned))
    )
    assert 3 * of_segments < of_whole


def test_artifact_is_read_without_torch_and_nncf(quantised: OptimizedModel, saved: Path, tiny_texts: list[str]) -> None:
    command = [sys.executable, "-c", READ_WITHOUT_TORCH, str(saved), json.dumps(tiny_texts)]
    answers, loaded = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert loaded == []
    assert answers == [prediction.label for prediction in quantised.predict(tiny_texts)]


def test_stale_engines_are_used_as_they_are(
    quantised: OptimizedModel, saved: Path, tmp_path: Path, tiny_texts: list[str]
) -> None:
    copied = quantised.save(tmp_path / "stale")
    manifest = read_manifest(copied)
    fingerprint = {**manifest.fingerprint, "openvino": "older"}
    write_manifest(copied, dataclasses.replace(manifest, fingerprint=fingerprint))
    again = load(copied)
    assert any(
        "used as they are, because int8 engines are rebuilt by optimizing" in note for note in again.report.notes
    )
    np.testing.assert_array_equal(again.classify(tiny_texts)[0], quantised.classify(tiny_texts)[0])


def test_tuning_takes_its_engines_and_builds_the_baseline(saved: Path, cache_dir: Path) -> None:
    builder = VariantBuilder(saved, default_profile(38), cache_dir)
    built = builder.build(Variant(0, "int8"))
    assert built.segments == read_manifest(saved).segments
    ids = np.array([[2, 7, 9, 3]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    assert builder.load_unpruned([batch]).segments[0].precision == "int8"


def test_texts_are_needed(tiny_model_dir: Path) -> None:
    with pytest.raises(SettingError, match="'int8' is calibrated on texts"):
        mpcompile.optimize(tiny_model_dir, 1.0, precision="int8", progress=False)
