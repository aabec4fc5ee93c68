"""Tests of the original model: it is timed at its best."""

import copy

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mpcompile.compile import original as source
from mpcompile.compile.original import Original


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
