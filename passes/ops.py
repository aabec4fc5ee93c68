"""The operations that mpcompile adds to an ATen graph.

Each is one node in a rewritten graph and plain ATen once the graph is exported, so
that a rewrite recognises a node by its target and never by its name.

Shapes: B examples, S tokens, K tokens kept, R survivors, L tokens of the longest
survivor, D hidden size, H heads, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASKED = -1e4
"""Additive mask at padding: exp(-1e4) is 0 in fp32, and the value fits fp16."""


def additive_mask(attention_mask: Tensor) -> Tensor:
    """Turns a 0/1 mask (B, S) into an additive one (B, 1, 1, S), 0 at tokens and `MASKED` at padding."""
    return torch.where(attention_mask[:, None, None, :] != 0, 0.0, MASKED)


def pool_features(hidden: Tensor, mask: Tensor) -> Tensor:
    """What an exit head reads: [CLS] beside the mean over real tokens, (B, 2D).

    Args:
        hidden: hidden state (B, S, D).
        mask: additive mask (B, 1, 1, S).
    """
    weight = (mask[:, 0, 0, :, None] == 0).to(hidden.dtype)
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
    weight = (mask[:, 0, 0, :, None] == 0).to(hidden.dtype)
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


def token_importance(mask: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Scores tokens by the attention that the mean query pays them, weighted by value norms: (B, S).

    softmax(mean(q) K^T * scale) is one row of attention per head, so the fused attention
    kernel stays whole; `../shared/DESIGN.md` has the comparison with attention received
    from all rows (LTP, Kim et al. 2022), which it matches.

    Args:
        mask: additive mask (B, 1, 1, S).
        query, key, value: (B, H, S, D / H), the inputs of the layer's attention.
        scale: what attention multiplies its scores by.
    """
    real = (mask == 0).to(query.dtype).transpose(2, 3)
    mean_query = (query * real).sum(2, keepdim=True) / real.sum(2, keepdim=True)
    # Not a matrix product: one row each is too little for it, and its operand would be transposed for nothing.
    scores = (key * (mean_query * scale)).sum(-1)
    attention = torch.softmax(scores + mask[:, 0], dim=-1)
    norms = value.square().sum(-1).sqrt()
    return (attention * norms).sum(1)


def keep_tokens(importance: Tensor, mask: Tensor, num_kept: Tensor, slots: Tensor) -> Tensor:
    """Positions of each example's most important tokens, ascending: (B, K) int64.

    Position 0 ([CLS]) is always kept. Examples that keep fewer than K are filled up with S,
    one past the last position.

    Args:
        importance: (B, S).
        mask: additive mask (B, 1, 1, S).
        num_kept: tokens that each example keeps, (B,) int64, 1 to its length.
        slots: 0..K-1, (K,) int64, K the largest of `num_kept`.
    """
    seq_len = importance.shape[1]
    first = torch.arange(seq_len, device=importance.device) == 0
    score = torch.where(mask[:, 0, 0, :] == 0, importance, -1.0)  # importance is never negative
    best = torch.where(first, torch.inf, score).topk(slots.shape[0], dim=1).indices
    return torch.where(slots < num_kept[:, None], best, seq_len).sort(dim=1).values


def prune_tokens(
    hidden: Tensor,
    mask: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_kept: Tensor,
    slots: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drops the tokens that matter least: the tensors really get shorter.

    Args:
        hidden: hidden state (B, S, D).
        mask: additive mask (B, 1, 1, S).
        query, key, value, scale: see `token_importance`.
        num_kept, slots: see `keep_tokens`.

    Returns:
        Hidden state (B, K, D), additive mask (B, 1, 1, K) and kept positions (B, K) int64.
    """
    importance = token_importance(mask, query, key, value, scale)
    kept_index = keep_tokens(importance, mask, num_kept, slots)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    kept = take_tokens(hidden, rows, kept_index.clamp(max=hidden.shape[1] - 1))
    kept_mask = torch.where(slots < num_kept[:, None], 0.0, MASKED)[:, None, None, :]
    return kept, kept_mask, kept_index
