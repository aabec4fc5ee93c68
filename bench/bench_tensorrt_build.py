"""What TensorRT-RTX builds of a BERT-base here, without a GPU: fused attention, scratch memory, sizes, build times.

python bench/bench_tensorrt_build.py

Nothing is run: kernels and memory are what the builder's log says, for batches of 1 to 64 and lengths of 8 to 512.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from result_files import describe_machine, slug, write_result
from transformers import BertConfig, BertForSequenceClassification

from mpcompile.backends.tensorrt.builder import BuilderOptions, build_engine
from mpcompile.backends.tensorrt.loader import load_tensorrt
from mpcompile.backends.tensorrt.profiles import find_shapes
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.onnx_segments import export_onnx
from mpcompile.graph.segments import partition
from passes import ExitHead

PROFILE = OptimizationProfile(Range(1, 8, 64), Range(8, 128, 512))
TARGETS = ("SM80", "SM86", "SM89", "SM120")
EXITS, PRUNES = (4, 8), (2, 5, 9)


def main() -> None:
    """Builds, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.manual_seed(0)
    captured = capture(BertForSequenceClassification(BertConfig(num_labels=4)).eval())
    rows = []
    for precision in ("f16", "bf16"):
        chain = cut(captured, EXITS, PRUNES, precision)
        rows += [measure(f"segment {segment.index} of 3", segment, TARGETS) for segment in chain]
        rows += [measure(f"segment {segment.index} of 3", segment, ("SM89",)) for segment in chain]
        layers = cut(captured, (1, 2, 3), (1,), precision)
        rows += [measure("embeddings and a layer", layers[0], ("SM89",))]
        rows += [measure("a layer that prunes", layers[1], ("SM89",)), measure("a layer", layers[2], ("SM89",))]
    found = load_tensorrt()
    result = {
        **describe_machine(), "command": "python bench/bench_tensorrt_build.py", "weights": "random, BERT-base",
        "tensorrt": f"{found.flavour} {found.version}", "exits": EXITS, "prunes": PRUNES, "rows": rows,
    }  # fmt: skip
    write_result(options.out / f"tensorrt-rtx_{slug()}.json", result, format_table(result))


def cut(captured: CapturedModel, exits: Sequence[int], prunes: tuple[int, ...], precision: str) -> tuple[Segment, ...]:
    """A chain with untrained heads."""
    heads = {layer: ExitHead(captured.hidden_size, captured.num_labels) for layer in exits}
    return partition(captured, heads, prunes, precision=precision)


def measure(name: str, segment: Segment, targets: tuple[str, ...]) -> dict[str, Any]:
    """A row of the table."""
    started = time.perf_counter()
    model = export_onnx(segment)
    export_s = time.perf_counter() - started
    facts = build_engine(model, [find_shapes(segment, PROFILE)], BuilderOptions(targets), name=name).facts
    return {
        "name": name, "precision": segment.precision, "targets": targets, "prunes": segment.prune_layers,
        "has_embeddings": segment.index == 0, "fused_attentions": facts.num_fused_attentions,
        "kernels": len(facts.kernels),
        "scratch_mib": None if facts.scratch_bytes is None else facts.scratch_bytes / 2**20,
        "plan_mib": facts.plan_bytes / 2**20, "onnx_mib": len(model) / 2**20, "export_s": export_s,
        "build_s": facts.build_s,
    }  # fmt: skip


def format_table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# TensorRT-RTX engines of a BERT-base, built without a GPU", "",
        f"{result['date']}, {result['tensorrt']}, {result['cpu']}, {result['cores']} cores. Batches of 1 to 64, "
        f"lengths of 8 to 512; exits after layers {result['exits']}, prunes in {result['prunes']}. Nothing was run.",
        "",
        "| engine | precision | targets | fused attentions | kernels | scratch MiB | plan MiB | export s | build s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        scratch = "-" if row["scratch_mib"] is None else f"{row['scratch_mib']:.0f}"
        lines.append(
            f"| {row['name']} | {row['precision']} | {' '.join(row['targets'])} | {row['fused_attentions']} | "
            f"{row['kernels']} | {scratch} | {row['plan_mib']:.1f} | {row['export_s']:.1f} | {row['build_s']:.1f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
