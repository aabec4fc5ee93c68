"""Segments as torch.export programs, the form that backends read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from mpcompile.contract.inputs import FIRST_INPUTS, LayerSetting, fill_inputs, size_names
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError


def example_inputs(
    segment: Segment, batch_size: int = 3, seq_len: int = 8, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Inputs of a segment with every size unlike the others, all tokens real, a token pruned per prune.

    Args:
        batch_size: B; one example fewer survives.
        seq_len: S; the survivors are one token shorter.
        dtype: of the hidden state.
    """
    given: dict[str, Tensor] = {name: torch.ones((batch_size, seq_len), dtype=torch.int64) for name in FIRST_INPUTS[:2]}
    given["token_type_ids"] = torch.zeros((batch_size, seq_len), dtype=torch.int64)
    given["hidden"] = torch.zeros((batch_size, seq_len, segment.hidden_size), dtype=dtype)
    given["mask"] = torch.zeros((batch_size, 1, 1, seq_len))
    given["token_positions"] = torch.arange(seq_len).repeat(batch_size, 1)
    survivors, length = batch_size, seq_len
    if "rows" in segment.input_names:
        survivors, length = batch_size - 1, seq_len - 1
        given["rows"], given["positions"] = torch.arange(survivors), torch.arange(length)
    for layer in segment.prune_layers:
        length = max(2, length - 1)
        filled = fill_inputs(segment.input_names, LayerSetting(layer, np.full(survivors, length), length))
        given |= {name: torch.from_numpy(value) for name, value in filled.items()}
    return {name: given[name] for name in segment.input_names}


def export_segment(segment: Segment, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Exports a segment with every size dynamic.

    Args:
        segment: with its graph.
        dtype: of the hidden state that it is handed.

    Raises:
        BackendError: when torch.export fails.
    """
    assert segment.graph_module is not None
    inputs = example_inputs(segment, seq_len=8 + len(segment.prune_layers), dtype=dtype)
    shapes = {name: dict.fromkeys(size_names(name), Dim.DYNAMIC) for name in segment.input_names}
    try:
        # Hardly any fake tensor of symbolic sizes is met again: their cache costs more time than it spares.
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            return torch.export.export(
                segment.graph_module,
                (),
                inputs,
                dynamic_shapes=shapes,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise BackendError(f"segment {segment.index}: torch.export failed: {error}") from error
