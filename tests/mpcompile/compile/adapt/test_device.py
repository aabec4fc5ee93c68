"""Tests of moving a graph to the device that trains it."""

import torch

from mpcompile.compile.adapt.device import find_training_device, is_bf16_fast, move_graph
from mpcompile.graph.rewrite import rewrite
from tests.models import build_head, canonical_graph


def test_moved_graph_makes_its_tensors_on_the_device(family: str) -> None:
    # Nothing runs on the meta device, but a tensor made elsewhere is an error there as on a GPU.
    graph = move_graph(rewrite(canonical_graph(family), {1: build_head(1)}, (0, 2)), torch.device("meta"))
    inputs = {"input_ids": torch.ones((2, 8), dtype=torch.int64, device="meta")}
    inputs |= {"attention_mask": inputs["input_ids"], "token_type_ids": inputs["input_ids"]}
    for layer, width in ((0, 8), (2, 4)):
        inputs[f"num_kept_{layer}"] = torch.ones(2, dtype=torch.int64, device="meta")
        inputs[f"slots_{layer}"] = torch.ones(width, dtype=torch.int64, device="meta")
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    outputs = graph(**{name: inputs[name] for name in names})
    assert {value.device.type for value in outputs.values()} == {"meta"}
    assert outputs["logits"].shape == (2, 3) and outputs["logits_1"].shape == (2, 3)


def test_device_is_one_that_torch_has() -> None:
    device = find_training_device()
    assert torch.zeros(1, device=device).device.type == device.type
    assert isinstance(is_bf16_fast(device), bool)
