"""Tests of capture: the graph answers as the model does, and the model is left alone."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from mpcompile.contract.task import Task
from mpcompile.errors import CaptureError
from mpcompile.graph.capture import CapturedModel, capture, find_task
from passes import verify
from tests.models import (
    FAMILIES,
    HIDDEN_SIZE,
    MAX_POSITIONS,
    NUM_LABELS,
    VOCAB_SIZE,
    build_model,
    family_model,
    random_batch,
)

SHAPES = ([1], [2], [9, 5, 7], [1, 1], [3] * 8, [38, 2])


@pytest.fixture(scope="module")
def captured(family: str) -> CapturedModel:
    return capture(family_model(family))


def small_gpt2() -> GPT2ForSequenceClassification:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 20}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, **ids, num_labels=3)).eval()


def small_t5() -> T5ForSequenceClassification:
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16, "vocab_size": 50}
    return T5ForSequenceClassification(T5Config(**sizes, num_labels=3)).eval()


def small_xlnet() -> XLNetForSequenceClassification:
    config = XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=50, num_labels=3)
    return XLNetForSequenceClassification(config).eval()


@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_logits_are_bitwise_equal_to_the_model(
    model: PreTrainedModel, captured: CapturedModel, lengths: list[int]
) -> None:
    batch = random_batch(model, lengths)
    with torch.no_grad():
        assert torch.equal(captured.graph_module(**batch)["logits"], model(**batch).logits)


def test_longest_input_is_bitwise_equal_to_the_model(model: PreTrainedModel, captured: CapturedModel) -> None:
    batch = random_batch(model, [captured.max_length, 3])
    with torch.no_grad():
        assert torch.equal(captured.graph_module(**batch)["logits"], model(**batch).logits)


def test_input_longer_than_the_position_table_is_refused(model: PreTrainedModel, captured: CapturedModel) -> None:
    batch = random_batch(model, [captured.max_length + 1])
    with pytest.raises((RuntimeError, IndexError)):
        captured.graph_module(**batch)


def test_model_is_described(family: str, captured: CapturedModel) -> None:
    assert captured.num_layers == 3
    assert captured.num_labels == NUM_LABELS
    assert captured.hidden_size == HIDDEN_SIZE
    assert captured.vocab_size == VOCAB_SIZE
    assert captured.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    # RoBERTa's positions start behind its padding id, 1.
    assert captured.max_length == MAX_POSITIONS - (2 if family == "roberta" else 0)


@pytest.mark.parametrize(("name", "has_types"), zip(FAMILIES, (True, False, True, False), strict=True))
def test_token_types_are_an_input_where_the_model_has_segments(name: str, has_types: bool) -> None:
    expected = ("input_ids", "attention_mask", *(("token_type_ids",) if has_types else ()))
    assert capture(family_model(name)).input_names == expected


def test_inputs_of_the_graph_are_the_input_names_in_order(captured: CapturedModel) -> None:
    inputs = [node.target for node in captured.graph_module.graph.nodes if node.op == "placeholder"]
    assert tuple(inputs) == captured.input_names


def test_graph_is_canonical(captured: CapturedModel) -> None:
    assert isinstance(captured.graph_module, GraphModule)
    verify(captured.graph_module)


def test_weights_stay_as_they_were() -> None:
    model = build_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("training", [True, False])
def test_mode_stays_as_it_was(training: bool) -> None:
    model = build_model("bert").train(training)
    capture(model)
    assert all(module.training is training for module in model.modules())


def test_mode_of_each_module_stays_as_it_was() -> None:
    model = build_model("bert").train()
    model.bert.embeddings.eval()
    before = [module.training for module in model.modules()]
    capture(model)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_stays_as_it_was(implementation: str) -> None:
    model = build_model("bert", attn_implementation=implementation)
    capture(model)
    assert model.config._attn_implementation == implementation
    assert model.bert.config._attn_implementation == implementation


def test_frozen_weights_stay_frozen() -> None:
    model = build_model("bert")
    model.bert.requires_grad_(False)
    capture(model)
    assert not any(parameter.requires_grad for parameter in model.bert.parameters())
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())


def test_model_is_left_as_it_was_when_capture_fails() -> None:
    model = build_model("bert", is_decoder=True, attn_implementation="eager").train()
    with pytest.raises(CaptureError):
        capture(model)
    assert model.training
    assert model.config._attn_implementation == "eager"


def test_model_in_eager_attention_is_captured(tiny_bert: PreTrainedModel) -> None:
    model = build_model("bert", attn_implementation="eager")
    batch = random_batch(tiny_bert, [9, 5])
    with torch.no_grad():
        logits = capture(model).graph_module(**batch)["logits"]
        torch.testing.assert_close(logits, model(**batch).logits, atol=1e-5, rtol=1e-5)


def test_model_in_training_mode_is_captured_without_dropout(tiny_bert: PreTrainedModel) -> None:
    captured = capture(build_model("bert").train())
    batch = random_batch(tiny_bert, [9, 5])
    with torch.no_grad():
        assert torch.equal(captured.graph_module(**batch)["logits"], tiny_bert(**batch).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_model_in_half_precision_is_captured_in_fp32_and_left_in_half(dtype: torch.dtype) -> None:
    model = build_model("bert").to(dtype)
    captured = capture(model)
    assert {parameter.dtype for parameter in captured.graph_module.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_model_in_half_precision_answers_as_its_weights_in_fp32() -> None:
    half = build_model("bert").half()
    batch = random_batch(half, [9, 5])
    with torch.no_grad():
        logits = capture(half).graph_module(**batch)["logits"]
        assert torch.equal(logits, half.float()(**batch).logits)


def test_model_that_returns_more_than_logits_is_captured(tiny_bert: PreTrainedModel) -> None:
    captured = capture(build_model("bert", output_hidden_states=True, output_attentions=False))
    assert list(captured.graph_module(**random_batch(tiny_bert, [4]))) == ["logits"]


def test_model_that_returns_tuples_is_captured(tiny_bert: PreTrainedModel) -> None:
    captured = capture(build_model("bert", return_dict=False))
    assert list(captured.graph_module(**random_batch(tiny_bert, [4]))) == ["logits"]


def test_model_of_one_layer_is_captured() -> None:
    assert capture(build_model("bert", num_layers=1)).num_layers == 1


def test_model_read_from_disk_is_captured(tiny_model_dir: Path, tiny_bert: PreTrainedModel) -> None:
    captured = capture(AutoModelForSequenceClassification.from_pretrained(tiny_model_dir))
    batch = random_batch(tiny_bert, [9, 5])
    with torch.no_grad():
        assert torch.equal(captured.graph_module(**batch)["logits"], tiny_bert(**batch).logits)


def test_module_of_torch_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"model: got Linear, expected a transformers model.*or a hub id"):
        capture(nn.Linear(2, 2))


def test_model_with_another_head_is_refused(tiny_bert: PreTrainedModel) -> None:
    with pytest.raises(CaptureError, match=r"BertForMaskedLM: expected a \.\.\.ForSequenceClassification model"):
        capture(BertForMaskedLM(tiny_bert.config))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Task("single_label", NUM_LABELS)),
        ({"problem_type": "single_label_classification"}, Task("single_label", NUM_LABELS)),
        ({"problem_type": "multi_label_classification"}, Task("multi_label", NUM_LABELS)),
        ({"problem_type": "regression"}, Task("regression", NUM_LABELS)),
        ({"id2label": {0: "score"}, "label2id": {"score": 0}, "num_labels": 1}, Task("regression", 1)),
    ],
    ids=["unsaid", "single", "multi", "regression", "one logit"],
)
def test_task_follows_from_the_config(changes: dict[str, object], expected: Task) -> None:
    assert find_task(build_model("bert", num_layers=1, **changes)) == expected


@pytest.mark.parametrize("normalise", [False, True])
def test_encoder_answers_with_the_mean_over_its_tokens(model: PreTrainedModel, family: str, normalise: bool) -> None:
    encoder = getattr(model, model.base_model_prefix)
    captured = capture(encoder, normalise)
    assert captured.task == Task("embedding", HIDDEN_SIZE)
    batch = random_batch(model, [9, 5, 1])
    with torch.no_grad():
        vectors, hidden = captured.graph_module(**batch)["logits"], encoder(**batch).last_hidden_state
    for row, length in enumerate((9, 5, 1)):
        expected = hidden[row, :length].mean(0)
        torch.testing.assert_close(vectors[row], expected / expected.norm() if normalise else expected)


def test_decoder_is_refused_with_what_was_expected() -> None:
    with pytest.raises(CaptureError, match=r"BertForSequenceClassification.*masked by more than padding"):
        capture(build_model("bert", is_decoder=True))


def test_gpt2_is_refused_with_what_was_expected() -> None:
    with pytest.raises(CaptureError, match=r"GPT2ForSequenceClassification.*expected every token to see every real"):
        capture(small_gpt2())


def test_model_without_layers_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(CaptureError, match="looked for one scaled_dot_product_attention per layer"):
        capture(build_model("bert", num_layers=0))


@pytest.mark.parametrize("build", [small_t5, small_xlnet])
def test_model_without_a_position_table_is_refused(build: type) -> None:
    with pytest.raises(CaptureError, match="ForSequenceClassification"):
        capture(build())
