"""Tests of the original model: it is timed at its best."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mpcompile.compile import original as source
from mpcompile.compile.original import Original, open_original


def test_original_may_take_all_cores_whatever_torch_is_set_to(
    tiny_bert: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(source, "count_cores", lambda: 7)
    monkeypatch.setattr(Original, "run", lambda self, batch, num_threads: tried.append(num_threads) or np.zeros(1))
    original = Original(tiny_bert, None, "")
    chosen = original.find_threads([{}])
    assert set(tried) == {1, torch.get_num_threads(), 7} and chosen in tried


def test_model_that_returns_tuples_is_answered_for(tiny_bert: PreTrainedModel) -> None:
    inputs = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    expected = Original(tiny_bert, None, "").run(inputs)
    model = copy.deepcopy(tiny_bert)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    np.testing.assert_array_equal(Original(model, None, "").run(inputs), expected)


def test_folder_without_a_vocabulary_has_no_tokenizer_and_says_what_was_looked_for(
    tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    tiny_bert.save_pretrained(tmp_path)
    original = open_original(tmp_path, None)
    assert original.tokenizer is None
    assert original.missing.startswith("looked for tokenizer.json, vocab.txt, ")


def test_tokenizer_that_cannot_be_loaded_says_why(tiny_bert: PreTrainedModel, tmp_path: Path) -> None:
    tiny_bert.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    original = open_original(tmp_path, None)
    assert original.tokenizer is None
    assert original.missing.startswith("AutoTokenizer says: ")


BATCH = {"input_ids": np.array([[2, 9, 3]]), "attention_mask": np.ones((1, 3), np.int64)}


def test_original_is_timed_in_its_fastest_dtype_where_engines_run_on_a_gpu(
    tiny_bert: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for the GPU, and bf16 is the fastest there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(source, "GPU", "cpu")
    seconds = {"torch.float32": 3.0, "torch.float16": 2.0, "torch.bfloat16": 1.0}

    def measure(calls: dict[str, list[Callable[[], np.ndarray]]], runs: int) -> dict[str, SimpleNamespace]:
        assert all(np.isfinite(call()).all() for every in calls.values() for call in every)
        return {name: SimpleNamespace(median_s=seconds[name]) for name in calls}

    monkeypatch.setattr(source, "measure_interleaved", measure)
    original = Original(tiny_bert, None, "")
    placed = source.place_original(original, "gpu", [BATCH], tuple(BATCH))
    assert placed.describe_place() == "cpu in bfloat16"
    assert original.describe_place() == "cpu in float32" and placed.model is not tiny_bert


@pytest.mark.parametrize("device_kind", ["cpu", "gpu"])
def test_original_stays_as_it_is_where_torch_sees_no_gpu(
    tiny_bert: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, device_kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device_kind == "cpu")
    original = Original(tiny_bert, None, "")
    assert source.place_original(original, device_kind, [BATCH], tuple(BATCH)) is original
