"""Puts the cost model beside measurements: on this machine, and in NVIDIA's public tables.

    python bench/bench_cost.py --model DIR --out bench/results

This machine is calibrated as `mpcompile calibrate` does it, on random encoders of two widths; what is reported are
engines that nothing was fitted to: a random encoder of a third width, and, with --model, segments of a trained one.
`tensorrt_bert_base.csv` has average latencies of TensorRT BERT-base from NVIDIA's demo/BERT README (releases 8.4
on T4, 10.5 on L4, 10.16 on A100 and L40S); one scalar per device is fitted to them, which `devices.toml` keeps.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from result_files import describe_machine, describe_run, slug, write_result
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from mpcompile.backends import find_backend
from mpcompile.contract.backend import Backend, Target
from mpcompile.cost.calibration import describe_fit, fit_rates
from mpcompile.cost.devices import find_device
from mpcompile.cost.grid_bench import GridBench, Sample, measure_steady
from mpcompile.cost.grids import FULL, HELD_OUT, QUICK, Grid
from mpcompile.cost.model import CostModel
from mpcompile.cost.rates import Profile, Rates, declare_rates
from mpcompile.cost.regions import GraphWork
from mpcompile.cost.work import estimate_work
from mpcompile.graph.capture import CapturedModel, capture

TABLE = Path(__file__).with_name("tensorrt_bert_base.csv")
SEGMENT_EXITS, SEGMENT_PRUNES = (1, 4, 8), (1, 3, 5, 9)
SEGMENT_GRID = Grid(0, 0, (1, 3, 8, 32), (12, 32, 60, 128), (0.7,), 2048)
SCALES = np.geomspace(0.3, 4.0, 100)


def main() -> None:
    """Calibrates, measures what is held out, and compares with the tables."""
    options = _parse()
    transformers_logging.disable_progress_bar()
    result = {"name": "cost", "command": " ".join(["python", *sys.argv]), **describe_machine()}
    backend = find_backend("openvino")
    result["this_machine"] = [_check_machine(options, backend, precision) for precision in options.precisions]
    result["public_tables"] = _check_tables(options.smoke)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) if options.smoke else options.out
        path = out / f"cost_{slug()}.json"
        write_result(path, result, format_tables(result))
        draw(result, path.with_suffix(".png"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a classifier whose segments are measured, too")
    parser.add_argument("--precisions", nargs="+", default=list(find_backend("openvino").precisions()))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--smoke", action="store_true", help="the smallest grid; writes nothing that stays")
    options = parser.parse_args()
    if options.smoke:
        options.precisions, options.runs = options.precisions[:1], 1
    return options


def _check_machine(options: argparse.Namespace, backend: Backend, precision: str) -> dict[str, Any]:
    """Fits in one precision, and compares with engines that nothing was fitted to.

    All are timed in the same rounds: a shared machine is not equally fast an hour, or a minute, later.
    """
    target, declared = Target(backend, precision), declare_rates(find_device("cpu"), precision)
    fitted, held_out = (QUICK, QUICK[:1]) if options.smoke else (FULL, HELD_OUT)
    benches = {f"fitted {i}": GridBench(target, grid) for i, grid in enumerate(fitted)}
    benches |= {f"held-out width {i}": GridBench(target, grid) for i, grid in enumerate(held_out)}
    if options.model and not options.smoke:
        captured = capture(AutoModelForSequenceClassification.from_pretrained(options.model).eval())
        benches[f"segments of {Path(options.model).name}"] = GridBench(
            target, SEGMENT_GRID, captured, SEGMENT_EXITS, SEGMENT_PRUNES
        )
    calls = {(name, key): call for name, bench in benches.items() for key, call in bench.calls().items()}
    seconds = measure_steady(calls, options.runs)
    samples = {
        name: bench.describe({key: taken for (owner, key), taken in seconds.items() if owner == name})
        for name, bench in benches.items()
    }
    fitted_to = [sample for name, made in samples.items() if name.startswith("fitted") for sample in made]
    rates = fit_rates(fitted_to, declared)
    others = {name: made for name, made in samples.items() if not name.startswith("fitted")}
    return {
        "precision": precision,
        "rates": dataclasses.asdict(rates),
        "fitted": _describe(describe_fit(rates, fitted_to)),
        "held_out": {
            name: {**_describe(describe_fit(rates, made)), "rows": _rows(rates, made)} for name, made in others.items()
        },
        "all held out": _describe(describe_fit(rates, [s for made in others.values() for s in made])),
        "declared": _describe(describe_fit(declared, [s for made in others.values() for s in made])),
    }


def _describe(fit: Profile) -> dict[str, Any]:
    return {"median_error": fit.median_error, "p95_error": fit.p95_error, "samples": fit.num_samples}


def _rows(rates: Rates, samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"name": s.name, "measured_s": s.measured_s, "predicted_s": s.predict(rates)} for s in samples]


def _check_tables(smoke: bool) -> list[dict[str, Any]]:
    """Errors against NVIDIA's tables, with the scalar in devices.toml and with the one that fits best."""
    config = BertConfig(vocab_size=100, num_hidden_layers=1 if smoke else 12)
    work = estimate_work(_capture(config), "TensorRT")
    with TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    checked = []
    for name in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == name]
        kept = find_device(name).arithmetic_scale
        fitted = min(SCALES, key=lambda scale: float(np.mean(np.abs(np.log(_ratios(work, own, name, scale))))))
        errors = np.abs(_ratios(work, own, name, kept) - 1)
        checked.append({
            "device": name, "arithmetic_scale": kept, "fitted_scale": float(fitted), "rows": len(own),
            "median_error": float(np.median(errors)), "p95_error": float(np.percentile(errors, 95)),
            "predicted_over_measured": _ratios(work, own, name, kept).tolist(),
        })  # fmt: skip
    return checked


def _ratios(work: GraphWork, rows: list[dict[str, str]], name: str, scale: float) -> np.ndarray:
    """Predicted over measured."""
    device = dataclasses.replace(find_device(name), arithmetic_scale=float(scale))
    costs = {precision: CostModel(work, declare_rates(device, precision)) for precision in ("int8", "f16")}
    return np.array([
        float(costs[row["precision"]].predict_unpruned(int(row["batch_size"]), np.float64(row["seq_len"])))
        / (float(row["measured_ms"]) / 1e3)
        for row in rows
    ])  # fmt: skip


def _capture(config: BertConfig) -> CapturedModel:
    return capture(BertForSequenceClassification(config).eval())


def format_tables(result: dict[str, Any]) -> str:
    """A result file as Markdown."""
    lines = describe_run(result)
    lines += ["| precision | engines | number | median error | 95th percentile |"]
    lines.append("|---|---|---|---|---|")
    for machine in result["this_machine"]:
        sets = {
            "fitted to": machine["fitted"],
            **machine["held_out"],
            "all held out": machine["all held out"],
            "all held out, declared rates": machine["declared"],
        }
        for name, fit in sets.items():
            lines.append(
                f"| {machine['precision']} | {name} | {fit['samples']} | {fit['median_error']:.1%} "
                f"| {fit['p95_error']:.1%} |"
            )
    lines += [
        "",
        "TensorRT BERT-base, public tables:",
        "",
        "| device | rows | scalar | median error | 95th percentile |",
    ]
    lines.append("|---|---|---|---|---|")
    for row in result["public_tables"]:
        lines.append(
            f"| {row['device']} | {row['rows']} | {row['arithmetic_scale']:.2f} (best {row['fitted_scale']:.2f}) "
            f"| {row['median_error']:.1%} | {row['p95_error']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Predicted against measured, one panel per precision."""
    mpl.use("Agg")
    machines = result["this_machine"]
    figure, axes = plt.subplots(1, len(machines), figsize=(5 * len(machines), 4.6), squeeze=False)
    for axis, machine in zip(axes[0], machines, strict=True):
        for name, made in machine["held_out"].items():
            pairs = np.array([(row["measured_s"], row["predicted_s"]) for row in made["rows"]]) * 1e3
            label = f"{name}: median {made['median_error']:.1%}, p95 {made['p95_error']:.1%}"
            axis.loglog(pairs[:, 0], pairs[:, 1], "o", markersize=3.5, alpha=0.7, label=label)
        ends = np.array(axis.get_xlim())
        axis.plot(ends, ends, color="gray", linewidth=0.8)
        axis.fill_between(ends, ends / 1.25, ends * 1.25, color="gray", alpha=0.12, linewidth=0)
        axis.set(xlabel="measured, ms", ylabel="predicted, ms", title=f"{machine['precision']}, held-out engines")
        axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
