"""What segments are given and hand on, by name. Imports no torch.

Inputs of segment 0: `input_ids`, `attention_mask` and maybe `token_type_ids`, (B, S) int64.
Inputs of the others: `hidden` (B, S, D) and `mask` (B, 1, 1, S) of the segment before, `rows` (R,)
int64, the survivors, and `positions` (L,) int64, 0..L-1 for the longest of them. For each layer N
that prunes: `num_kept_N` (R,) int64 and `slots_N` (K,) int64, 0..K-1 for the largest of them.
Where layer N prunes by a threshold: `token_threshold_N` (1,) fp32 instead of these two.
Outputs: `hidden`, `mask`, `logits` (R, C) and `entropy` (R,); the last segment gives `logits` alone.
For each layer N that prunes by a threshold: `kept_N` (R,) int64, tokens that each example has left after it.
Where layers tell by position how far apart tokens are (MPNet, ModernBERT, DeBERTa), `token_positions`
(B, S) int64 goes along with `mask`: where each token stood in the text, whatever was dropped since.
"""

from __future__ import annotations

FIRST_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CARRIED = ("hidden", "mask", "token_positions")
"""What a segment may hand on to the next."""
NEXT = "next_"
"""Before the names of what a segment hands on: in ONNX an output may not have the name of an input."""


def size_names(name: str) -> dict[int, str]:
    """Names of the dynamic sizes of an input, by dimension.

    `batch` and `seq_len` of what the segment before hands on, `rows` survivors, `positions` tokens of the longest,
    `kept_N` tokens kept in layer N.
    """
    if name.startswith("token_threshold_"):
        return {}
    if name == "mask":
        return {0: "batch", 3: "seq_len"}
    if name in ("hidden", "token_positions", *FIRST_INPUTS):
        return {0: "batch", 1: "seq_len"}
    if name.startswith("slots_"):
        return {0: f"kept_{name.removeprefix('slots_')}"}
    return {0: "positions" if name == "positions" else "rows"}


def name_output(name: str) -> str:
    """What an output of a segment is called in its ONNX model."""
    return NEXT + name if name in CARRIED else name
