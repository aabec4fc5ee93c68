"""Lowers segments to the precision that they run in: casts are in the graph, so that compilers decide nothing."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch.fx import GraphModule

from mpcompile.contract.segment import Segment
from passes import LowerPrecision, SpellOutAttention, run_passes
from passes.pass_base import Pass

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""What a segment's hidden state is in, by precision."""


def lower(segment: Segment, spells_out_attention: bool = False) -> Segment:
    """A segment whose graph does its products, and hands on its hidden state, in the segment's precision.

    Args:
        segment: left as it is; in fp32 the weights are shared.
        spells_out_attention: whether attention becomes products and a softmax, for compilers that know no such node.
    """
    assert segment.graph_module is not None
    graph_module = GraphModule(segment.graph_module, copy.deepcopy(segment.graph_module.graph))
    dtype = DTYPES[segment.precision]
    passes: list[Pass] = [] if dtype == torch.float32 else [LowerPrecision(dtype)]
    if spells_out_attention:
        passes.append(SpellOutAttention(dtype))
    return dataclasses.replace(segment, graph_module=run_passes(graph_module, passes))
