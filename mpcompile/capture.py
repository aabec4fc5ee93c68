"""Capture: from a Hugging Face classifier to a canonical fx graph."""

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

from mpcompile.errors import CaptureError
from passes import Canonicalize, PassError, find_layers, run_passes
from passes.encoder import LOOKED_FOR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CapturedModel:
    """A classifier as a graph, with what the later stages need to know of it.

    Attributes:
        graph_module: canonical graph in fp32; inputs `input_names`, output {"logits": (B, C)}.
        input_names: input_ids, attention_mask and, where the model has segments, token_type_ids.
        num_layers: encoder layers.
        num_labels: C, classes.
        hidden_size: D.
        max_length: tokens that the position table allows.
        vocab_size: rows of the token embedding.
        id2label: class names by id.
    """

    graph_module: GraphModule
    input_names: tuple[str, ...]
    num_layers: int
    num_labels: int
    hidden_size: int
    max_length: int
    vocab_size: int
    id2label: dict[int, str]


class _Logits(nn.Module):
    """The model with its logits as the only output, whatever its config returns beside them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **types, return_dict=True
        ).logits
        return logits


def capture(model: PreTrainedModel) -> CapturedModel:
    """Captures a fine-tuned classifier with torch.export, dynamic in batch and length.

    The model itself is left as it was: weights, mode and attention implementation.

    Args:
        model: BERT, RoBERTa, ELECTRA or DistilBERT for sequence classification, or one built alike.

    Raises:
        CaptureError: when it is not such a model, with what was looked for.
    """
    _check_model(model)
    names = _input_names(model)
    with _ready_to_export(model) as ready:
        graph_module = _export(ready, names)
    try:
        run_passes(graph_module, [Canonicalize()])
        layers = find_layers(graph_module)
    except PassError as error:
        raise CaptureError(f"{type(model).__name__}: {error}") from error
    config: Any = model.config
    logger.info("captured %s: %d encoder layers", type(model).__name__, len(layers))
    return CapturedModel(
        graph_module=graph_module,
        input_names=names,
        num_layers=len(layers),
        num_labels=int(config.num_labels),
        hidden_size=int(layers[0].input.meta["val"].shape[-1]),
        max_length=_max_length(model),
        vocab_size=int(config.vocab_size),
        id2label={int(i): str(name) for i, name in config.id2label.items()},
    )


def _check_model(model: object) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise CaptureError(
            f"model: got {type(model).__name__}, expected a transformers model for sequence classification, "
            "a path to one or a hub id"
        )
    config: Any = model.config
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise CaptureError(
            f"{type(model).__name__}: expected a ...ForSequenceClassification model (its logits are what is kept); "
            "load it with AutoModelForSequenceClassification"
        )
    problem = getattr(config, "problem_type", None)
    if config.num_labels < 2 or problem not in (None, "single_label_classification"):
        raise CaptureError(
            f"{type(model).__name__}: num_labels={config.num_labels}, problem_type={problem}; "
            "only classifiers with one label of two or more classes are supported"
        )


def _input_names(model: PreTrainedModel) -> tuple[str, ...]:
    accepted = inspect.signature(model.forward).parameters
    for name in ("input_ids", "attention_mask"):
        if name not in accepted:
            raise CaptureError(f"{type(model).__name__} takes no {name}: expected an encoder of text")
    has_types = "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if has_types else ()))


def _max_length(model: PreTrainedModel) -> int:
    """Tokens that fit the position table; RoBERTa's starts behind its padding id."""
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
        model.set_attn_implementation("sdpa")
        yield model.eval()
    except ValueError as error:
        raise CaptureError(f"{type(model).__name__}: no fused attention: {LOOKED_FOR} ({error})") from error
    finally:
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
        program = torch.export.export(
            _Logits(model), (), inputs, dynamic_shapes={name: {0: batch, 1: length} for name in names}
        )
    except Exception as error:  # torch.export raises anything that the model's own code can raise
        raise CaptureError(f"{type(model).__name__}: torch.export failed: {error}; {LOOKED_FOR}") from error
    return program.module()
