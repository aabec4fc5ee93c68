"""Tests of the original model: it is timed at its best."""

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
