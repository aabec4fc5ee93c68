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

from tests.reference_encoders import gelu, load_weights, softmax


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
    separator_id: int | None = None,
    token_thresholds: Mapping[int, float] | None = None,
) -> Trace:
    """Runs one example through a classifier, every layer to the end.

    Args:
        input_ids: real tokens alone, (N,).
        token_type_ids: (N,); zeros by default.
        keep_ratios: share of its tokens that a layer keeps between attention and feed-forward, by layer.
        heads: exit heads, by layers run before them.
        separator_id: token that is always kept.
        token_thresholds: attention that a token must receive to be kept by a layer, by layer.
    """
    weights = load_weights(model)
    ids = np.asarray(input_ids)
    hidden = weights.embed(ids, np.asarray(token_type_ids if token_type_ids is not None else []))
    states, kept, left = [hidden], {}, np.arange(len(ids))
    for layer in range(weights.num_layers):
        attended, importance = weights.attend(layer, hidden, left)
        separators = np.flatnonzero(ids[left] == separator_id) if separator_id is not None else ()
        if keep_ratios and layer in keep_ratios:
            kept[layer] = top_tokens(importance.top, count_kept(keep_ratios[layer], len(hidden)), separators)
        if token_thresholds and layer in token_thresholds:
            enough = [i for i, share in enumerate(importance.received) if share >= token_thresholds[layer]]
            kept[layer] = np.array(sorted({0, *enough, *(int(i) for i in separators)}))
        if layer in kept:
            attended, left = attended[kept[layer]], left[kept[layer]]
        hidden = weights.feed_forward(layer, attended)
        states.append(hidden)
    exits = {layer: exit_at(head, states[layer]) for layer, head in (heads or {}).items()}
    return Trace(tuple(states), kept, exits, weights.classify(hidden))


def count_kept(keep_ratio: float, length: int) -> int:
    """ceil(keep_ratio * length) in exact arithmetic, at least 4 where there are so many."""
    return max(min(4, length), math.ceil(Fraction(str(keep_ratio)) * length))


def top_tokens(importance: np.ndarray, num_kept: int, always: Sequence[int] = ()) -> np.ndarray:
    """Position 0, then those that are always kept, then the most important of the others, ascending."""
    others = sorted(range(1, len(importance)), key=lambda i: (i not in set(always), -importance[i]))
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
