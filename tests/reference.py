"""Pruned inference with exits, in numpy and float64: what a rewritten model must answer.

One example at a time, so that there is no padding, no batch and no mask. Shares no code
with `passes` and does not import it.

Shapes: N tokens that the example has left, D hidden size, H heads, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trace:
    """What happened to one example.

    Attributes:
        hidden: hidden states (N, D) after the embeddings and after each layer.
        kept: for each layer that prunes, positions kept among those that entered it, ascending.
        exits: logits (C,) and normalised entropy at each off-ramp, by layers run before it.
        logits: (C,) of the model's own classifier.
    """

    hidden: tuple[np.ndarray, ...]
    kept: dict[int, np.ndarray]
    exits: dict[int, tuple[np.ndarray, float]]
    logits: np.ndarray

    def answer(self, exit_thresholds: Mapping[int, float]) -> tuple[np.ndarray, int]:
        """Logits (C,) and layers run, leaving at the first exit whose entropy is below its threshold."""
        for layer, threshold in sorted(exit_thresholds.items()):
            if self.exits[layer][1] < threshold:
                return self.exits[layer][0], layer
        return self.logits, len(self.hidden) - 1


def run_reference(
    model: PreTrainedModel,
    input_ids: Sequence[int],
    token_type_ids: Sequence[int] | None = None,
    keep_ratios: Mapping[int, float] | None = None,
    heads: Mapping[int, nn.Module] | None = None,
) -> Trace:
    """Runs one example through a classifier, every layer to the end.

    Args:
        input_ids: real tokens alone, (N,).
        token_type_ids: (N,); zeros by default.
        keep_ratios: share of its tokens that a layer keeps between attention and feed-forward, by layer.
        heads: exit heads, by layers run before them.
    """
    weights = _Weights(model)
    hidden = weights.embed(np.asarray(input_ids), np.asarray(token_type_ids if token_type_ids is not None else []))
    states, kept = [hidden], {}
    for layer in range(weights.num_layers):
        attended, importance = weights.attend(layer, hidden)
        if keep_ratios and layer in keep_ratios:
            kept[layer] = top_tokens(importance, count_kept(keep_ratios[layer], len(hidden)))
            attended = attended[kept[layer]]
        hidden = weights.feed_forward(layer, attended)
        states.append(hidden)
    exits = {layer: exit_at(head, states[layer]) for layer, head in (heads or {}).items()}
    return Trace(tuple(states), kept, exits, weights.classify(hidden))


def count_kept(keep_ratio: float, length: int) -> int:
    """ceil(keep_ratio * length) in exact arithmetic, at least 1."""
    return max(1, math.ceil(Fraction(str(keep_ratio)) * length))


def top_tokens(importance: np.ndarray, num_kept: int) -> np.ndarray:
    """Position 0 and the most important of the others, ascending."""
    others = sorted(range(1, len(importance)), key=lambda position: -importance[position])
    return np.array(sorted([0, *others[: num_kept - 1]]))


def exit_at(head: nn.Module, hidden: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits (C,) and normalised entropy of an exit head at a hidden state (N, D)."""
    weights = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    features = np.concatenate([hidden[0], hidden.mean(0)])
    inner = gelu(weights["hidden.weight"] @ features + weights["hidden.bias"])
    logits = weights["output.weight"] @ inner + weights["output.bias"]
    return logits, normalised_entropy(logits)


def normalised_entropy(logits: np.ndarray) -> float:
    """Entropy of the softmax of logits (C,) over ln C."""
    p = softmax(logits)
    return float(sum(-share * math.log(share) for share in p if share > 0) / math.log(len(p)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function."""
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}
# Where the layers are, what their parts are called, and the classifier: dense, activation, dense.
_FAMILIES = {
    "bert": ("bert.encoder.layer", _BERT_LAYER, ("bert.pooler.dense", np.tanh, "classifier")),
    "roberta": ("roberta.encoder.layer", _BERT_LAYER, ("classifier.dense", np.tanh, "classifier.out_proj")),
    "electra": ("electra.encoder.layer", _BERT_LAYER, ("classifier.dense", gelu, "classifier.out_proj")),
    "distilbert": (
        "distilbert.transformer.layer",
        _DISTILBERT_LAYER,
        ("pre_classifier", lambda x: np.maximum(x, 0), "classifier"),
    ),
}


class _Weights:
    """The weights of a model under the names of its family."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.family = model.config.model_type
        self.num_layers = model.config.num_hidden_layers
        self.num_heads = model.config.num_attention_heads
        self.eps = getattr(model.config, "layer_norm_eps", 1e-12)
        self.first_position = model.config.pad_token_id + 1 if self.family == "roberta" else 0
        self.layers, self.names, self.classifier = _FAMILIES[self.family]
        self.tensors = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def embed(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        """Token vectors (N,) -> (N, D)."""
        prefix = f"{self.family}.embeddings"
        positions = self.first_position + np.arange(len(input_ids))
        hidden = self.tensors[f"{prefix}.word_embeddings.weight"][input_ids]
        hidden = hidden + self.tensors[f"{prefix}.position_embeddings.weight"][positions]
        if self.family != "distilbert":
            types = token_type_ids if len(token_type_ids) else np.zeros_like(input_ids)
            hidden = hidden + self.tensors[f"{prefix}.token_type_embeddings.weight"][types]
        hidden = self._norm(f"{prefix}.LayerNorm", hidden)
        return self._dense("electra.embeddings_project", hidden) if self.family == "electra" else hidden

    def attend(self, layer: int, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden state behind attention (N, D) and the importance of its tokens (N,)."""
        query, key, value = (self._heads(self._part(layer, name, hidden)) for name in ("query", "key", "value"))
        scale = 1 / math.sqrt(query.shape[-1])
        context = [softmax(q @ k.T * scale) @ v for q, k, v in zip(query, key, value, strict=True)]
        importance = np.zeros(len(hidden))
        for q, k, v in zip(query, key, value, strict=True):
            importance += softmax(q.mean(0) @ k.T * scale) * np.linalg.norm(v, axis=-1)
        attended = self._part(layer, "attention", np.concatenate(context, axis=-1))
        return self._norm(self._name(layer, "attention_norm"), attended + hidden), importance

    def feed_forward(self, layer: int, hidden: np.ndarray) -> np.ndarray:
        """Second half of a layer, (N, D) -> (N, D)."""
        inner = gelu(self._part(layer, "up", hidden))
        return self._norm(self._name(layer, "norm"), self._part(layer, "down", inner) + hidden)

    def classify(self, hidden: np.ndarray) -> np.ndarray:
        """Logits (C,) of the model's own classifier, which reads position 0."""
        dense, activation, output = self.classifier
        return self._dense(output, activation(self._dense(dense, hidden[0])))

    def _heads(self, states: np.ndarray) -> np.ndarray:
        return np.stack(np.split(states, self.num_heads, axis=-1))

    def _name(self, layer: int, part: str) -> str:
        return f"{self.layers}.{layer}.{self.names[part]}"

    def _part(self, layer: int, part: str, states: np.ndarray) -> np.ndarray:
        return self._dense(self._name(layer, part), states)

    def _dense(self, name: str, states: np.ndarray) -> np.ndarray:
        return np.asarray(states @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"])

    def _norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return np.asarray(scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])
