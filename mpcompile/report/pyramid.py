"""The pyramid: texts that leave and tokens that are dropped, layer by layer. Imports no torch.

Shapes: N texts.
"""

from __future__ import annotations

import numpy as np

from mpcompile.contract.operating_point import OperatingPoint, count_kept
from mpcompile.report.records import PyramidLayer


def count_pyramid(
    lengths: np.ndarray, exit_layer: np.ndarray, point: OperatingPoint, num_layers: int
) -> tuple[PyramidLayer, ...]:
    """Counts what runs in every encoder layer of a model.

    Args:
        lengths: tokens of each text, (N,).
        exit_layer: encoder layers that each runs, (N,).
        point: says how many tokens each layer keeps.
        num_layers: encoder layers of the original; layers after the last exit run nothing.
    """
    kept, rows = np.asarray(lengths), []
    for layer in range(num_layers):
        kept = count_kept(point.keep_ratio_at(layer), kept)
        runs = exit_layer > layer
        tokens = float(kept[runs].mean()) if runs.any() else 0.0
        rows.append(PyramidLayer(layer, float(runs.mean()), tokens))
    return tuple(rows)
