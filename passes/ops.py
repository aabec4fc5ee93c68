"""The operations that mpcompile adds to an ATen graph.

Each is one node in a rewritten graph and plain ATen once the graph is exported, so
that a rewrite recognises a node by its target and never by its name.

Shapes: B examples, S tokens, K tokens kept, R survivors, L tokens of the longest
survivor, D hidden size, H heads, C classes, N positions that a model knows.

An additive mask is `MASKED` at padding, 0 at tokens and `PROTECTED` at tokens that no prune drops.
Token positions are where tokens stood in the text, whatever was dropped since.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASKED = -1e4
"""Additive mask at padding: exp(-1e4) is 0 in fp32, and the value fits fp16."""

PROTECTED = 1e-30
"""Additive mask at separators: no score changes by it in fp32 or bf16, and it goes wherever the mask goes."""

_SEPARATOR_IMPORTANCE = 1e30
"""Above any sum of attention times norm, and below position 0."""


def additive_mask(attention_mask: Tensor, input_ids: Tensor | None = None, separator_id: int | None = None) -> Tensor:
    """Turns a 0/1 mask (B, S) into an additive one (B, 1, 1, S).

    Args:
        attention_mask: 1 at tokens, (B, S) int64.
        input_ids: (B, S) int64, where a separator is given.
        separator_id: token that no prune may drop.
    """
    real = attention_mask[:, None, None, :] != 0
    if input_ids is None or separator_id is None:
        return torch.where(real, 0.0, MASKED)
    tokens = torch.where(input_ids[:, None, None, :] == separator_id, PROTECTED, 0.0)
    return torch.where(real, tokens, MASKED)


def number_tokens(attention_mask: Tensor) -> Tensor:
    """Token positions of texts that nothing was dropped from, 0..S-1 in every row: (B, S) int64."""
    return torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(attention_mask)


def keep_positions(token_positions: Tensor, kept_index: Tensor) -> Tensor:
    """Token positions (B, S) of the tokens that a prune kept, (B, K)."""
    return token_positions.gather(1, kept_index.clamp(max=token_positions.shape[1] - 1))


def enter_positions(token_positions: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Token positions (B, S) of the survivors, (R, L); see `enter_segment`."""
    return token_positions.index_select(0, rows).index_select(1, positions)


def look_up_positions(token_positions: Tensor, table: Tensor) -> Tensor:
    """Rows of a table (N, E) at token positions (B, S): (B, S, E)."""
    return table[token_positions]


def look_up_distances(token_positions: Tensor, table: Tensor) -> Tensor:
    """Entries of a table (2N - 1,) at how far column j stands after row i, -(N - 1) first: (B, S, S)."""
    distance = token_positions[:, None, :] - token_positions[:, :, None]
    return table[distance + table.shape[0] // 2]


def relative_bias(token_positions: Tensor, buckets: Tensor, weight: Tensor) -> Tensor:
    """What attention adds to its scores for the distance between two tokens: (B, H, S, S).

    Args:
        token_positions: (B, S) int64.
        buckets: rows of `weight` by distance, see `look_up_distances`, (2N - 1,) int64.
        weight: (buckets, H).
    """
    return weight[look_up_distances(token_positions, buckets)].permute(0, 3, 1, 2)


def biased_mask(bias: Tensor, mask: Tensor) -> Tensor:
    """What attention adds to its scores: a bias (B, H, S, S) and an additive mask (B, 1, 1, S)."""
    return bias + mask


def window_mask(token_positions: Tensor, mask: Tensor, window: int) -> Tensor:
    """An additive mask (B, 1, 1, S) that also hides what stands further than `window` away: (B, 1, S, S)."""
    distance = token_positions[:, None, None, :] - token_positions[:, None, :, None]
    return torch.where(distance.abs() <= window, mask, MASKED)


def pool_features(hidden: Tensor, mask: Tensor) -> Tensor:
    """What an exit head reads: [CLS] beside the mean over real tokens, (B, 2D).

    Args:
        hidden: hidden state (B, S, D).
        mask: additive mask (B, 1, 1, S).
    """
    weight = (mask[:, 0, 0, :, None] >= 0).to(hidden.dtype)
    mean = (hidden * weight).sum(1) / weight.sum(1)
    return torch.cat([hidden[:, 0], mean], dim=-1)


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over ln C: (B, C) -> (B,), 0 is certain and 1 is uniform."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def label_entropy(logits: Tensor) -> Tensor:
    """Entropy of independent labels: (B, C) -> (B,), the largest binary entropy of sigmoid(logits) over ln 2.

    A text is as unsure as its least sure label: it leaves only when every label is sure.
    """
    distance = logits.abs()  # H(p) = H(1 - p), and exp(-distance) cannot overflow
    entropy = torch.nn.functional.softplus(-distance) + distance * torch.sigmoid(-distance)
    return entropy.amax(-1) / math.log(2.0)


def pool_tokens(hidden: Tensor, mask: Tensor, normalise: bool) -> Tensor:
    """The mean over real tokens as one vector per text, (B, D).

    Args:
        hidden: hidden state (B, S, D).
        mask: additive mask (B, 1, 1, S).
        normalise: whether the vector is divided by its length.
    """
    weight = (mask[:, 0, 0, :, None] >= 0).to(hidden.dtype)
    mean = (hidden * weight).sum(1) / weight.sum(1)
    if not normalise:
        return mean
    return mean / mean.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)


def take_tokens(hidden: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Gathers whole token vectors: (B, S, D) -> (R, L, D).

    Args:
        hidden: hidden state (B, S, D).
        rows: example of each output row, (R, 1) int64.
        positions: position of each output token, (R, L) or (1, L) int64.
    """
    # One gather of rows from (B * S, D): a gather along dim 1 would read an index per element.
    flat = rows * hidden.shape[1] + positions
    taken = hidden.flatten(0, 1).index_select(0, flat.flatten())
    return taken.reshape(flat.shape[0], flat.shape[1], hidden.shape[2])


def enter_segment(hidden: Tensor, mask: Tensor, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Compacts the batch to the survivors and shortens it to the longest of them.

    Args:
        hidden: hidden state of the segment before, (B, S, D).
        mask: additive mask of the segment before, (B, 1, 1, S).
        rows: the survivors, (R,) int64.
        positions: 0..L-1, (L,) int64; only its length carries information.

    Returns:
        Hidden state (R, L, D) and additive mask (R, 1, 1, L).
    """
    short = mask.index_select(0, rows).index_select(3, positions)
    return take_tokens(hidden, rows[:, None], positions[None, :]), short


def token_importance(
    mask: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Scores tokens by the attention that the mean query pays them, weighted by value norms: (B, S).

    softmax(mean(q) K^T * scale) is one row of attention per head, so the fused attention
    kernel stays whole; `docs/design.md` has the comparison with attention received from
    all rows (LTP, Kim et al. 2022), which it matches.

    Args:
        mask: additive mask (B, 1, 1, S).
        query, key, value: (B, H, S, D / H), the inputs of the layer's attention.
        scale: what attention multiplies its scores by.
        bias: what attention adds to its scores beside the mask, (B, H, S, S); the mean query's is the mean of its rows.
    """
    real = (mask >= 0).to(query.dtype).transpose(2, 3)
    mean_query = (query * real).sum(2, keepdim=True) / real.sum(2, keepdim=True)
    # Not a matrix product: one row each is too little for it, and its operand would be transposed for nothing.
    scores = (key * (mean_query * scale)).sum(-1)
    if bias is not None:
        scores = scores + (bias * real).sum(2) / real.sum(2)
    attention = torch.softmax(scores + mask[:, 0], dim=-1)
    norms = value.square().sum(-1).sqrt()
    return (attention * norms).sum(1)


def keep_tokens(importance: Tensor, mask: Tensor, num_kept: Tensor, slots: Tensor, separated: bool = False) -> Tensor:
    """Positions of each example's most important tokens, ascending: (B, K) int64.

    Position 0 ([CLS]) is always kept, and what the mask protects wherever `num_kept` has room for it.
    Examples that keep fewer than K are filled up with S, one past the last position.

    Args:
        importance: (B, S).
        mask: additive mask (B, 1, 1, S).
        num_kept: tokens that each example keeps, (B,) int64, 1 to its length.
        slots: 0..K-1, (K,) int64, K the largest of `num_kept`.
        separated: whether the mask protects any tokens.
    """
    seq_len = importance.shape[1]
    first = torch.arange(seq_len, device=importance.device) == 0
    score = torch.where(mask[:, 0, 0, :] >= 0, importance, -1.0)  # importance is never negative
    if separated:
        score = torch.where(mask[:, 0, 0, :] > 0, _SEPARATOR_IMPORTANCE, score)
    best = torch.where(first, torch.inf, score).topk(slots.shape[0], dim=1).indices
    return torch.where(slots < num_kept[:, None], best, seq_len).sort(dim=1).values


def prune_tokens(
    hidden: Tensor,
    mask: Tensor,
    attention: tuple[Tensor, Tensor, Tensor, float] | tuple[Tensor, Tensor, Tensor, float, Tensor],
    num_kept: Tensor,
    slots: Tensor,
    separated: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drops the tokens that matter least: the tensors really get shorter.

    Args:
        hidden: hidden state (B, S, D).
        mask: additive mask (B, 1, 1, S).
        attention: (query, key, value, scale) of the layer, and the bias where there is one; see `token_importance`.
        num_kept, slots, separated: see `keep_tokens`.

    Returns:
        Hidden state (B, K, D), additive mask (B, 1, 1, K) and kept positions (B, K) int64.
    """
    importance = token_importance(mask, *attention)
    kept_index = keep_tokens(importance, mask, num_kept, slots, separated)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    last = hidden.shape[1] - 1
    kept = take_tokens(hidden, rows, kept_index.clamp(max=last))
    tokens = mask[:, 0, 0, :].gather(1, kept_index.clamp(max=last)) if separated else 0.0
    kept_mask = torch.where(slots < num_kept[:, None], tokens, MASKED)[:, None, None, :]
    return kept, kept_mask, kept_index
