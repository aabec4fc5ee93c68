"""The device that training runs on, and its precision."""

from __future__ import annotations

import torch
from torch.fx import GraphModule
from torch.fx.node import map_aggregate


def find_training_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_bf16_fast(device: torch.device) -> bool:
    """Tells whether the device multiplies bfloat16 in hardware, so that training in it is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(bool(torch.cpu.get_capabilities().get(feature)) for feature in ("avx512_bf16", "amx_bf16"))


def move_graph(graph_module: GraphModule, device: torch.device) -> GraphModule:
    """Moves a graph in place: its weights, and the tensors that it makes while it runs."""
    for node in graph_module.graph.nodes:
        node.args = map_aggregate(node.args, lambda value: device if isinstance(value, torch.device) else value)
        node.kwargs = map_aggregate(node.kwargs, lambda value: device if isinstance(value, torch.device) else value)
    graph_module.recompile()
    return graph_module.to(device)
