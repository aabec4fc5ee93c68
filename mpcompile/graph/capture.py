"""Capture: from a Hugging Face classifier or encoder to a canonical fx graph."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mpcompile.contract.task import Task
from mpcompile.errors import CaptureError
from mpcompile.graph.sentence import is_encoder
from passes import Canonicalize, FuseAttention, PassError, PoolTokens, find_layers, run_passes
from passes.encoder import LOOKED_FOR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_PROBLEMS = {
    None: "single_label",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


@dataclass(frozen=True)
class CapturedModel:
    """A model as a graph, with what the later stages need to know of it.

    Attributes:
        graph_module: canonical graph in fp32; inputs `input_names`, output {"logits": (B, C)}.
        input_names: input_ids, attention_mask and, where the model has segments, token_type_ids.
        num_layers: encoder layers.
        num_labels: C, outputs: classes, labels, scores or dimensions of a vector.
        hidden_size: D.
        max_length: tokens that the position table allows.
        vocab_size: rows of the token embedding.
        id2label: class names by id; of an encoder without a head, none.
        task: what the outputs mean.
        separator_id: token that no prune drops, None when there is none.
    """

    graph_module: GraphModule
    input_names: tuple[str, ...]
    num_layers: int
    num_labels: int
    hidden_size: int
    max_length: int
    vocab_size: int
    id2label: dict[int, str]
    task: Task
    separator_id: int | None = None


class _Answer(nn.Module):
    """The model with its logits, or last hidden state, as the only output, whatever its config returns beside them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.name = "last_hidden_state" if is_encoder(model) else "logits"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **types, return_dict=True)
        answer: Tensor = outputs[self.name]
        return answer


def capture(model: PreTrainedModel, normalise: bool = False, separator_id: int | None = None) -> CapturedModel:
    """Captures a fine-tuned classifier or encoder with torch.export, dynamic in batch and length.

    The model itself is left as it was: weights, mode and attention implementation.

    Args:
        model: BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT, ALBERT, MPNet, ModernBERT or DeBERTa-v2/v3 for
            sequence classification or without a head, or one of similar structure.
        normalise: whether the vectors of a model without a head are divided by their length.
        separator_id: token between the parts of a text pair, which no prune may drop; None for single texts.

    Raises:
        CaptureError: when it is not such a model, with what was looked for.
    """
    task = find_task(model)
    names = list_input_names(model)
    with _ready_to_export(model) as ready:
        graph_module = _export(ready, names)
    try:
        pooling = [PoolTokens(normalise)] if task.kind == "embedding" else []
        # NOTE: attention that is written out becomes a node first: layers are found by it.
        run_passes(graph_module, [FuseAttention(), Canonicalize(separator_id), *pooling])
        layers = find_layers(graph_module)
    except PassError as error:
        raise CaptureError(f"{type(model).__name__}: {error}") from error
    config: Any = model.config
    logger.info("captured %s: %d encoder layers", type(model).__name__, len(layers))
    return CapturedModel(
        graph_module=graph_module,
        input_names=names,
        num_layers=len(layers),
        num_labels=task.num_outputs,
        hidden_size=int(layers[0].input.meta["val"].shape[-1]),
        max_length=_max_length(model),
        vocab_size=int(config.vocab_size),
        id2label={} if task.kind == "embedding" else {int(i): str(name) for i, name in config.id2label.items()},
        task=task,
        separator_id=separator_id,
    )


def find_task(model: object) -> Task:
    """What a model answers, from its class and config.

    Raises:
        CaptureError: when it is no transformers model, or neither a sequence classifier nor an encoder.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise CaptureError(
            f"model: got {type(model).__name__}, expected a transformers model for sequence classification or an "
            "encoder, a path to one or a hub id"
        )
    config: Any = model.config
    if is_encoder(model) and hasattr(config, "hidden_size"):
        return Task("embedding", int(config.hidden_size))
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise CaptureError(
            f"{type(model).__name__}: expected a ...ForSequenceClassification model (its logits are what is kept) or "
            "an encoder (the mean over its tokens is); load it with AutoModelForSequenceClassification or AutoModel"
        )
    problem, num_labels = getattr(config, "problem_type", None), int(config.num_labels)
    if problem not in _PROBLEMS or num_labels < 1:
        raise CaptureError(
            f"{type(model).__name__}: problem_type={problem!r}, num_labels={num_labels}; expected one of "
            f"{', '.join(map(repr, _PROBLEMS))} and at least one label"
        )
    # One logit is a score, whatever it is called: that of a cross-encoder that reranks.
    return Task("regression" if num_labels == 1 else _PROBLEMS[problem], num_labels)


def list_input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the model reads of a batch.

    Raises:
        CaptureError: when it reads no tokens or no mask.
    """
    accepted = inspect.signature(model.forward).parameters
    for name in ("input_ids", "attention_mask"):
        if name not in accepted:
            raise CaptureError(f"{type(model).__name__} takes no {name}: expected an encoder of text")
    has_types = "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if has_types else ()))


def _max_length(model: PreTrainedModel) -> int:
    """Tokens that fit the position table; RoBERTa's starts after its padding id."""
    size = getattr(model.config, "max_position_embeddings", None)
    if size is None or size < 2:
        raise CaptureError(f"{type(model).__name__}: no table of position embeddings; {LOOKED_FOR}")
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(size) - module.padding_idx - 1
    return int(size)


@contextlib.contextmanager
def _ready_to_export(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model in fp32, in evaluation mode and with one attention node per layer; undone at the end."""
    if any(parameter.dtype != torch.float32 or parameter.is_cuda for parameter in model.parameters()):
        model = copy.deepcopy(model).float().cpu()
    attention = model.config._attn_implementation
    modes = [(module, module.training) for module in model.modules()]
    try:
        if model._can_set_attn_implementation():  # the others write it out, see FuseAttention
            model.set_attn_implementation("sdpa")
        yield model.eval()
    except ValueError as error:
        raise CaptureError(f"{type(model).__name__}: no fused attention: {LOOKED_FOR} ({error})") from error
    finally:
        if model._can_set_attn_implementation():
            model.set_attn_implementation(attention)
        for module, training in modes:
            module.training = training


def _export(model: PreTrainedModel, names: tuple[str, ...]) -> GraphModule:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    length = torch.export.Dim("length", min=2, max=_max_length(model))
    # Lengths and batch are chosen unlike each other and unlike every small constant of the model.
    example = torch.ones((3, min(7, _max_length(model))), dtype=torch.int64)
    inputs = {name: example.clone() if name != "token_type_ids" else example * 0 for name in names}
    try:
        # Hardly any fake tensor of symbolic sizes is met again: their cache costs more time than it spares.
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            program = torch.export.export(
                _Answer(model), (), inputs, dynamic_shapes={name: {0: batch, 1: length} for name in names}
            )
    except Exception as error:  # torch.export raises anything that the model's own code can raise
        raise CaptureError(f"{type(model).__name__}: torch.export failed: {error}; {LOOKED_FOR}") from error
    return program.module()
