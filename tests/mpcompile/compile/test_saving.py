"""Tests that what is packed answers as what was captured, or is refused before anything slow."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from mpcompile.compile.original import Original
from mpcompile.compile.saving import check_adapters, check_saved
from mpcompile.errors import CaptureError
from mpcompile.graph.sentence import Pooling
from tests.models import build_model


class FirstTokenForSequenceClassification(BertForSequenceClassification):
    """A head of its own, with the usual names of weights."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **_: Any) -> Any:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        return SequenceClassifierOutput(logits=self.classifier(hidden[:, 0]))


def original_of(model: PreTrainedModel) -> Original:
    return Original(model.eval(), None, type(model).__name__, Pooling())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta", "modernbert", "albert", "mpnet"])
def test_models_of_transformers_are_taken(family: str) -> None:
    check_saved(original_of(build_model(family, num_layers=1)))


def test_encoder_is_taken() -> None:
    check_saved(original_of(BertModel(build_model("bert", num_layers=1).config)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_in_half_precision_is_taken(dtype: torch.dtype) -> None:
    check_saved(original_of(build_model("bert", num_layers=2).to(dtype)))


def test_head_of_its_own_is_refused() -> None:
    model = FirstTokenForSequenceClassification(build_model("bert", num_layers=1).config)
    with pytest.raises(CaptureError, match=r"with AutoModelForSequenceClassification it is a Bert.* answers"):
        check_saved(original_of(model))


def test_model_that_cannot_be_saved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("bert", num_layers=1)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("early_stopping is invalid")

    monkeypatch.setattr(model, "save_pretrained", refuse)
    with pytest.raises(CaptureError, match="cannot be saved: save_pretrained says: early_stopping is invalid"):
        check_saved(original_of(model))


def test_config_keeps_no_trace_of_it() -> None:
    model = build_model("bert", num_layers=1)
    before = dict(vars(model.config))
    check_saved(original_of(model))
    assert vars(model.config) == before


def test_model_of_peft_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"adapters; merge them .* model\.merge_and_unload\(\)"):
        check_adapters(SimpleNamespace(merge_and_unload=None))


def test_adapters_inside_are_refused() -> None:
    model = build_model("bert", num_layers=1)
    check_adapters(model)
    model.bert.encoder.layer[0].attention.self.query.lora_A = torch.nn.Linear(2, 2)
    with pytest.raises(CaptureError, match=r"has adapters inside \(bert\.encoder\.layer\.0.*lora_A"):
        check_adapters(model)
