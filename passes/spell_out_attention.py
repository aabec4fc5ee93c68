"""SpellOutAttention: attention as products and a softmax in fp32, the pattern that TensorRT fuses into one kernel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from passes.encoder import ATTENTION, find_scale
from passes.pass_base import Pass

aten = torch.ops.aten


class SpellOutAttention(Pass):
    """Replaces each attention node by what it stands for.

    The exporter of ONNX would scale queries and keys, and leave the softmax in the precision of the operands. Written
    like this, it is one kernel of TensorRT's all the same (bench/results/tensorrt-rtx_*).

    Before:
        o: "f16[B, H, S, D/H]" = scaled_dot_product_attention(q, k, v, added, scale=scale)
    After:
        scores: "f32[B, H, S, S]" = to(matmul(q * scale, transpose(k)) + added, f32)
        o: "f16[B, H, S, D/H]" = matmul(to(softmax(scores), f16), v)

    Args:
        dtype: of the operands.
    """

    name: ClassVar[str] = "SpellOutAttention"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def run(self, gm: GraphModule) -> bool:
        nodes = [node for node in gm.graph.nodes if node.target is ATTENTION]
        for node in nodes:
            self._spell_out(gm, node)
        return bool(nodes)

    def _spell_out(self, gm: GraphModule, node: Node) -> None:
        query, key, value = node.args[:3]
        added = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        call = gm.graph.call_function
        with gm.graph.inserting_before(node):
            scaled = call(aten.mul.Tensor, (query, find_scale(node)))
            scores = call(aten.matmul.default, (scaled, call(aten.transpose.int, (key, 2, 3))))
            if added is not None:
                scores = call(aten.add.Tensor, (scores, added))
            if self.dtype != torch.float32:
                scores = call(aten.to.dtype, (scores, torch.float32))
            attention = call(aten.softmax.int, (scores, -1))
            if self.dtype != torch.float32:
                attention = call(aten.to.dtype, (attention, self.dtype))
            mixed = call(aten.matmul.default, (attention, value))
        mixed.meta = dict(node.meta)
        node.replace_all_uses_with(mixed)
