"""The operations of learned token pruning (LTP, Kim et al. 2022, arXiv 2107.00910), which Magic Pyramid uses.

Shapes: B examples, S tokens, K tokens that the example keeping most keeps (2 at least), D hidden size, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.ops import MASKED, take_tokens


def received_attention(mask: Tensor, added: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scores tokens by the attention probability that they receive, mean over heads and real rows: (B, S).

    Every row counts, as in the paper, so that a row of scores sums to 1 over an example's tokens and a long
    example's tokens score less each. `passes.ops.token_importance` is the cheaper score of `selection="top"`.

    Args:
        mask: additive mask (B, 1, 1, S).
        added: what attention adds to its scores, the mask or more: broadcasts to (B, H, S, S).
        query, key: (B, H, S, D / H), inputs of the layer's attention.
        scale: what attention multiplies its scores by.
    """
    attention = torch.softmax((query @ key.transpose(2, 3)) * scale + added, dim=-1)
    real = (mask >= 0).to(attention.dtype).transpose(2, 3)
    return ((attention * real).sum(2) / real.sum(2)).mean(1)


def keep_above(importance: Tensor, mask: Tensor, threshold: Tensor, separated: bool = False) -> Tensor:
    """Whether a token stays: importance at or above the threshold; position 0 and what the mask protects always.

    Args:
        importance: (B, S).
        mask: additive mask (B, 1, 1, S).
        threshold: (1,).
        separated: whether the mask protects any tokens.

    Returns:
        (B, S) bool, False at padding.
    """
    return ((importance >= threshold) | _always_kept(mask, separated)) & (mask[:, 0, 0, :] >= 0)


def prune_by_threshold(
    hidden: Tensor,
    mask: Tensor,
    attention: tuple[Tensor, Tensor, Tensor, float],
    threshold: Tensor,
    separated: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drops tokens below a threshold: the tensors get as short as the example that keeps most.

    Args:
        hidden: hidden state (B, S, D).
        mask: additive mask (B, 1, 1, S).
        attention: (added, query, key, scale) of the layer, see `received_attention`.
        threshold, separated: see `keep_above`.

    Returns:
        Hidden state (B, K, D), additive mask (B, 1, 1, K), kept positions (B, K) int64, ascending and filled up
        with S, and tokens kept (B,) int64.
    """
    seq_len = hidden.shape[1]
    keep = keep_above(received_attention(mask, *attention), mask, threshold, separated)
    num_kept = keep.sum(1)
    position = torch.arange(seq_len, device=hidden.device)
    # As a list of positions K is a size like any other: torch.export takes it, and OpenVINO, both without a look
    # from the host. It is 2 at least, so that torch.export need not ask whether a mask of K columns is to be
    # broadcast; where all keep position 0 alone, the second is masked like padding.
    slots = (position < num_kept.amax().clamp(min=2)).nonzero().flatten()
    if torch.compiler.is_exporting():
        torch._check(slots.shape[0] >= 2)
        torch._check(slots.shape[0] <= seq_len)
    kept_index = torch.where(keep, position, seq_len).sort(dim=1).values.index_select(1, slots)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    taken = kept_index.clamp(max=seq_len - 1)
    tokens = mask[:, 0, 0, :].gather(1, taken) if separated else 0.0
    kept_mask = torch.where(slots < num_kept[:, None], tokens, MASKED)[:, None, None, :]
    return take_tokens(hidden, rows, taken), kept_mask, kept_index, num_kept


def soften_tokens(
    hidden: Tensor,
    mask: Tensor,
    attention: tuple[Tensor, Tensor, Tensor, float],
    threshold: Tensor,
    temperature: float,
    separated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fades tokens below a threshold instead of dropping them, so that the threshold has a gradient.

    The mask sigmoid((importance - threshold) / temperature) multiplies what the layer gives (equation 6 of LTP).

    Args:
        hidden: what the layer gives, (B, S, D).
        mask: additive mask (B, 1, 1, S).
        attention: (added, query, key, scale) of the layer, see `received_attention`.
        threshold, separated: see `keep_above`.
        temperature: the lower, the harder.

    Returns:
        Hidden state (B, S, D), and the mean of the mask over each example's tokens, (B,).
    """
    importance = received_attention(mask, *attention).float()
    soft = torch.sigmoid((importance - threshold) / temperature)
    soft = torch.where(_always_kept(mask, separated), 1.0, soft)
    real = (mask[:, 0, 0, :] >= 0).to(soft.dtype)
    return hidden * soft[:, :, None].to(hidden.dtype), (soft * real).sum(1) / real.sum(1)


def _always_kept(mask: Tensor, separated: bool) -> Tensor:
    tokens = mask[:, 0, 0, :]
    first = torch.arange(tokens.shape[1], device=mask.device) == 0
    return (first | (tokens > 0)) if separated else first.expand_as(tokens)
