# ruff: noqa: ARG002 (families override what not all of them need)
"""The encoders' layers in numpy and float64, family by family; see `tests.reference`.

Shapes: N tokens that the example has left, D hidden size, H heads, C classes.
"""

import math
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function."""
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


@dataclass(frozen=True)
class Importance:
    """What the tokens of a layer are worth, (N,) each: to keep the best, or those above a threshold."""

    top: np.ndarray
    received: np.ndarray


def mix(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: np.ndarray,
    scale: float,
    window: np.ndarray | None = None,
) -> tuple[np.ndarray, Importance]:
    """What attention gives (N, D) and the importance of the tokens.

    Args:
        query, key, value: (H, N, D / H).
        bias: (H, N, N).
        scale: of the scores.
        window: where a row may look, (N, N); importance has none.
    """
    context, importance, received = [], np.zeros(query.shape[1]), np.zeros(query.shape[1])
    for q, k, v, b in zip(query, key, value, bias, strict=True):
        scores = q @ k.T * scale + b
        importance += softmax(scores.mean(0)) * np.linalg.norm(v, axis=-1)
        attention = softmax(scores if window is None else np.where(window, scores, -np.inf))
        received += attention.mean(0) / len(query)
        context.append(attention @ v)
    return np.concatenate(context, axis=-1), Importance(importance, received)


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
_ALBERT_LAYER = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "up": "ffn",
    "down": "ffn_output",
    "norm": "full_layer_layer_norm",
}
_MPNET_LAYER = {
    **_BERT_LAYER,
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
_DEBERTA_LAYER = {
    **_BERT_LAYER,
    "query": "attention.self.query_proj",
    "key": "attention.self.key_proj",
    "value": "attention.self.value_proj",
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
    "albert": ("albert.encoder.albert_layer_groups", _ALBERT_LAYER, ("albert.pooler", np.tanh, "classifier")),
    "mpnet": ("mpnet.encoder.layer", _MPNET_LAYER, ("classifier.dense", np.tanh, "classifier.out_proj")),
    "modernbert": ("model.layers", {}, ("head.dense", gelu, "classifier")),
    "deberta-v2": ("deberta.encoder.layer", _DEBERTA_LAYER, ("pooler.dense", gelu, "classifier")),
}


class Weights:
    """The weights of a model under the names of its family."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.family = "roberta" if model.config.model_type in ("xlm-roberta", "camembert") else model.config.model_type
        self.config = model.config
        self.num_layers = model.config.num_hidden_layers
        self.num_heads = model.config.num_attention_heads
        self.eps = getattr(model.config, "norm_eps", getattr(model.config, "layer_norm_eps", 1e-12))
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

    def attend(self, layer: int, hidden: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, Importance]:
        """Hidden state behind attention (N, D) and the importance of its tokens.

        Args:
            left: where the tokens stood in the text, (N,).
        """
        query, key, value = (self._heads(self._part(layer, name, hidden)) for name in ("query", "key", "value"))
        context, importance = mix(query, key, value, self._bias(layer, query, key, left), self._scale(query))
        attended = self._part(layer, "attention", context)
        return self._norm(self._name(layer, "attention_norm"), attended + hidden), importance

    def _scale(self, query: np.ndarray) -> float:
        return 1 / math.sqrt(query.shape[-1])

    def _bias(self, layer: int, query: np.ndarray, key: np.ndarray, left: np.ndarray) -> np.ndarray:
        """What is added to the scores, (H, N, N)."""
        return np.zeros((self.num_heads, len(left), len(left)))

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
        return np.asarray(states @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0))

    def _norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return np.asarray(scaled * self.tensors[f"{name}.weight"] + self.tensors.get(f"{name}.bias", 0))


class AlbertWeights(Weights):
    """Layers share modules; the embeddings are narrower than the hidden state."""

    def embed(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        return self._dense("albert.encoder.embedding_hidden_mapping_in", super().embed(input_ids, token_type_ids))

    def feed_forward(self, layer: int, hidden: np.ndarray) -> np.ndarray:
        inner = self._part(layer, "up", hidden)
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        return self._norm(self._name(layer, "norm"), self._part(layer, "down", inner) + hidden)

    def _name(self, layer: int, part: str) -> str:
        config = self.config
        group = layer * config.num_hidden_groups // self.num_layers
        return f"{self.layers}.{group}.albert_layers.0.{self.names[part]}"


class MpnetWeights(Weights):
    """A bias by distance, in buckets that grow with it, shared by all layers."""

    def embed(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        hidden = self.tensors["mpnet.embeddings.word_embeddings.weight"][input_ids]
        hidden = hidden + self.tensors["mpnet.embeddings.position_embeddings.weight"][2 + np.arange(len(input_ids))]
        return self._norm("mpnet.embeddings.LayerNorm", hidden)

    def _bias(self, layer: int, query: np.ndarray, key: np.ndarray, left: np.ndarray) -> np.ndarray:
        table = self.tensors["mpnet.encoder.relative_attention_bias.weight"]
        return np.array([[table[self._bucket(int(i - j))] for j in left] for i in left]).transpose(2, 0, 1)

    @staticmethod
    def _bucket(behind: int) -> int:
        """Of 32 buckets, 16 to each side: 8 for distances below 8, 8 in powers up to 128."""
        side, distance = (16 if behind < 0 else 0), abs(behind)
        if distance < 8:
            return side + distance
        return side + min(15, 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8 + 1e-9))


class ModernBertWeights(Weights):
    """Norms come first, positions are rotations, and most layers see a window."""

    def embed(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        return self._norm("model.embeddings.norm", self.tensors["model.embeddings.tok_embeddings.weight"][input_ids])

    def attend(self, layer: int, hidden: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, Importance]:
        name = f"{self.layers}.{layer}"
        normed = hidden if layer == 0 else self._norm(f"{name}.attn_norm", hidden)
        query, key, value = (
            self._heads(part) for part in np.split(self._dense(f"{name}.attn.Wqkv", normed), 3, axis=-1)
        )
        is_global = self.config.layer_types[layer] == "full_attention"
        theta = 160_000.0 if is_global else 10_000.0
        query, key = (self._rotate(states, left, theta) for states in (query, key))
        near = np.abs(left[:, None] - left) <= self.config.local_attention // 2
        bias = np.zeros((self.num_heads, len(left), len(left)))
        context, importance = mix(query, key, value, bias, self._scale(query), None if is_global else near)
        return hidden + self._dense(f"{name}.attn.Wo", context), importance

    def feed_forward(self, layer: int, hidden: np.ndarray) -> np.ndarray:
        name = f"{self.layers}.{layer}"
        inner, gate = np.split(self._dense(f"{name}.mlp.Wi", self._norm(f"{name}.mlp_norm", hidden)), 2, axis=-1)
        return np.asarray(hidden + self._dense(f"{name}.mlp.Wo", gelu(inner) * gate))

    def classify(self, hidden: np.ndarray) -> np.ndarray:
        pooled = gelu(self._dense("head.dense", self._norm("model.final_norm", hidden)[0]))
        return self._dense("classifier", self._norm("head.norm", pooled))

    @staticmethod
    def _rotate(states: np.ndarray, left: np.ndarray, theta: float) -> np.ndarray:
        half = states.shape[-1] // 2
        angle = left[:, None] / theta ** (np.arange(half) / half)
        first, second = states[..., :half], states[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class DebertaWeights(Weights):
    """Scores of content with content, content with position and position with content."""

    def embed(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        hidden = self.tensors["deberta.embeddings.word_embeddings.weight"][input_ids]
        return self._norm("deberta.embeddings.LayerNorm", hidden)

    def _scale(self, query: np.ndarray) -> float:
        return 1 / math.sqrt(3 * query.shape[-1])

    def _bias(self, layer: int, query: np.ndarray, key: np.ndarray, left: np.ndarray) -> np.ndarray:
        span, scale = self.config.position_buckets, self._scale(query)
        relative = self._norm("deberta.encoder.LayerNorm", self.tensors["deberta.encoder.rel_embeddings.weight"])
        keys, queries = (self._heads(self._part(layer, name, relative)) for name in ("key", "query"))
        bias = np.zeros((self.num_heads, len(left), len(left)))
        for i, at in enumerate(left):
            for j, other in enumerate(left):
                content_to_position = np.clip(self._bucket(int(at - other)) + span, 0, 2 * span - 1)
                position_to_content = np.clip(span - self._bucket(int(other - at)), 0, 2 * span - 1)
                bias[:, i, j] = (query[:, i] * keys[:, content_to_position]).sum(-1) * scale
                bias[:, i, j] += (key[:, j] * queries[:, position_to_content]).sum(-1) * scale
        return bias

    def _bucket(self, ahead: int) -> int:
        """Distances up to half the buckets as they are, further ones in powers."""
        middle, longest = self.config.position_buckets // 2, self.config.max_position_embeddings
        if abs(ahead) <= middle:
            return ahead
        power = math.log(abs(ahead) / middle) / math.log((longest - 1) / middle) * (middle - 1)
        return int(math.copysign(math.ceil(power - 1e-9) + middle, ahead))


_KINDS = {"albert": AlbertWeights, "mpnet": MpnetWeights, "modernbert": ModernBertWeights, "deberta-v2": DebertaWeights}


def load_weights(model: PreTrainedModel) -> Weights:
    """The weights of a model, as its family computes with them."""
    return _KINDS.get(model.config.model_type, Weights)(model)
