"""One command for a GPU machine: is everything right, and how fast is it?

make gpu-check

Every backend that is available is held against eager PyTorch over the corners of a profile, then timed at batch 1, 8,
32 and 128 and length 64, 128 and 384: eager, the backend without prunes and exits, and mpcompile at three operating
points. Weights are random, in the shape of BERT-base. Random weights are never sure of anything, so that who leaves at
which exit is **given**, by `SCHEDULE`, and not found; the entropies are computed and then replaced. What this says is
what an exit costs and what leaving saves, not how many texts would leave.

Runs under `--minutes`: cells that do not fit any more are left out, and the result says which. Needs torch with CUDA
and transformers; TensorRT is used where it is. `--smoke` runs a tiny model on the CPU and keeps nothing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_files import describe_machine, write_result
from transformers import BertConfig, BertForSequenceClassification

from mpcompile.backends import find_backend
from mpcompile.contract.backend import Backend, BuildConfig, Engine, Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.cost.devices import load_devices
from mpcompile.cost.model import CostModel
from mpcompile.cost.rates import declare_rates
from mpcompile.cost.timing import Timing, measure_interleaved
from mpcompile.cost.work import estimate_work
from mpcompile.errors import MpcompileError
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition
from mpcompile.runtime.runner import make_runtime
from mpcompile.runtime.runtime import Runtime
from passes import ExitHead

EXITS = (4, 8)
PRUNES = (2, 5, 9)
SCHEDULE = (0.4, 0.5)
"""Share of those who are still there that leaves at each exit: of 10 texts 4, then 3, then the last 3."""
TOLERANCES = {"f32": 5e-3, "f16": 2e-2, "bf16": 1e-1}
"""Largest difference of a logit from eager fp32's, over the largest logit; in f32, products may run in TF32."""
RUNS = 5
ASKED = 4
"""Batches of each size that answers are checked on."""
NO_SPLIT = 1e12


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is checked.

    Attributes:
        model: random weights in fp32, on the device: what answers are held against.
        timed: the same in the precision that systems are timed in.
        captured: the same as a graph.
        device: "cuda", or "cpu" for a smoke run.
        profile: sizes that engines are built for.
    """

    model: BertForSequenceClassification
    timed: BertForSequenceClassification
    captured: CapturedModel
    device: str
    profile: OptimizationProfile


class Scheduled:
    """An engine after which a given share leaves, whatever the entropies are."""

    def __init__(self, engine: Engine, share: float) -> None:
        self._engine, self._share = engine, share

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = dict(self._engine(inputs))
        if "entropy" in outputs:
            leaving = round(self._share * len(outputs["entropy"]))
            outputs["entropy"] = (np.arange(len(outputs["entropy"])) >= leaving).astype(np.float32)
        return outputs


def main() -> None:
    """Checks, times, writes and prints."""
    options = _parse()
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            tiny = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=12,
                              vocab_size=100, max_position_embeddings=40, num_labels=3)  # fmt: skip
            run(_make_setup("cpu", tiny, 4, 24), [4], [24], 600.0, Path(folder), "f32")
        return
    if not torch.cuda.is_available():
        raise SystemExit("gpu-check: torch sees no GPU here; run it on a machine with one, or --smoke on this")
    setup = _make_setup("cuda", BertConfig(num_labels=4), 128, 384)
    run(setup, [1, 8, 32, 128], [64, 128, 384], 60.0 * options.minutes, options.out, "f16")


def run(
    setup: Setup, batch_sizes: Sequence[int], lengths: Sequence[int], limit_s: float, out: Path, precision: str
) -> None:
    """Correctness first, then times, until the time is up; writes a result file."""
    started = time.monotonic()
    backends, skipped = find_backends(setup.device)
    checks: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    systems: dict[str, tuple[Runtime, OperatingPoint] | None] = {"eager": None}
    for backend in backends:
        try:
            chains = load_chains(setup, backend, precision)
            exact = load_chain(setup, backend, EXITS, PRUNES, "f32")
            checks += [check_chain(setup, backend.name, "f32", exact)]
            checks += [check_chain(setup, backend.name, precision, chains["both"])] if precision != "f32" else []
        except MpcompileError as error:
            skipped.append(f"{backend.name}: {error}")
        else:
            systems |= make_systems(setup, backend.name, chains, precision)
    predict = make_predictor(setup, precision)
    for batch_size in batch_sizes:
        for length in lengths:
            spent = time.monotonic() - started
            if spent > 0.9 * limit_s:
                skipped.append(f"batch {batch_size}, length {length}: {spent:.0f} of {limit_s:.0f} s were gone")
                continue
            rows += time_cell(setup, systems, batch_size, length, predict)
    name = re.sub(r"[^a-z0-9]+", "-", _name_device(setup.device).lower()).strip("-")
    result: dict[str, Any] = {
        **describe_machine(), "device": _name_device(setup.device), "command": "make gpu-check",
        "weights": "random", "exit_schedule": dict(zip(EXITS, SCHEDULE, strict=True)), "prune_layers": PRUNES,
        "precision": precision, "seconds": time.monotonic() - started, "skipped": skipped, "checks": checks,
        "rows": rows,
    }  # fmt: skip
    write_result(out / f"{name}_{datetime.now(UTC):%Y-%m-%d}.json", result, format_tables(result))
    if not checks or any(not row["ok"] for row in checks):
        raise SystemExit("gpu-check: nothing could be checked, or answers differ from eager's: see the table")


def find_backends(device: str) -> tuple[list[Backend], list[str]]:
    """Backends that run on the device, and why others do not."""
    found, skipped = [], []
    for name in ("inductor", "tensorrt"):
        try:
            found.append(find_backend(name, device))
        except MpcompileError as error:
            skipped.append(f"{name}: {error}")
    return found, skipped


def load_chains(setup: Setup, backend: Backend, precision: str) -> dict[str, Runtime]:
    """The chains that systems are made of; what is compiled is compiled once."""
    return {
        name: load_chain(setup, backend, exits, prunes, precision)
        for name, exits, prunes in (
            ("unpruned", (), ()), ("pruning", (), PRUNES), ("exits", EXITS, ()), ("both", EXITS, PRUNES),
        )
    }  # fmt: skip


def load_chain(
    setup: Setup, backend: Backend, exits: tuple[int, ...], prunes: tuple[int, ...], precision: str
) -> Runtime:
    """A chain with the same exit heads every time; batches are not split."""
    torch.manual_seed(1)
    heads = {layer: ExitHead(setup.captured.hidden_size, setup.captured.num_labels).eval() for layer in exits}
    segments, config = partition(setup.captured, heads, prunes, precision=precision), BuildConfig()
    plans = [backend.build(segment, setup.profile, config) for segment in segments]
    target = Target(backend, precision, config)
    return make_runtime(target, segments, plans, setup.captured.num_labels, [NO_SPLIT] * len(segments))


def check_chain(setup: Setup, backend: str, precision: str, runtime: Runtime) -> dict[str, Any]:
    """Largest difference of a logit from eager's at the profile's corners, everything kept and nobody leaving.

    Each corner is asked with several texts: first launched, then captured as a CUDA graph, then replayed. A batch of
    one more than the profile holds is split.
    """
    exits, ratios = (*EXITS, setup.captured.num_layers), (1.0,) * len(PRUNES)
    point = OperatingPoint(exits, (0.0,) * len(EXITS), PRUNES, ratios, precision)
    batches, lengths = setup.profile.batch_size, setup.profile.seq_len
    sizes = [*itertools.product((batches.min, batches.max), (lengths.min, lengths.max)), (batches.max + 1, lengths.min)]
    differences = []
    for (batch_size, length), seed in itertools.product(sizes, range(ASKED)):
        inputs = draw(setup, batch_size, length, seed=seed)
        expected = run_eager(setup.model, inputs)
        found = runtime.run(inputs, point).logits
        differences.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
    return {
        "backend": backend, "precision": precision, "tolerance": TOLERANCES[precision], "difference": max(differences),
        "ok": max(differences) <= TOLERANCES[precision],
    }  # fmt: skip


def make_systems(
    setup: Setup, backend: str, chains: Mapping[str, Runtime], precision: str
) -> dict[str, tuple[Runtime, OperatingPoint]]:
    """What is timed of a backend, by name."""
    whole, labels, ratios = setup.captured.num_layers, setup.captured.num_labels, (0.7,) * len(PRUNES)
    exits = OperatingPoint((*EXITS, whole), (0.5,) * len(EXITS), precision=precision)
    both = dataclasses.replace(exits, prune_layers=PRUNES, keep_ratios=ratios)
    pruning = OperatingPoint((whole,), (), PRUNES, ratios, precision)
    return {
        f"{backend}, unpruned": (chains["unpruned"], OperatingPoint((whole,), precision=precision)),
        f"{backend}, keep 0.7": (chains["pruning"], pruning),
        f"{backend}, exits": (_schedule(chains["exits"], SCHEDULE, labels), exits),
        f"{backend}, exits nobody takes": (_schedule(chains["exits"], (0.0,) * len(EXITS), labels), exits),
        f"{backend}, both": (_schedule(chains["both"], SCHEDULE, labels), both),
    }


def time_cell(
    setup: Setup,
    systems: Mapping[str, tuple[Runtime, OperatingPoint] | None],
    batch_size: int,
    length: int,
    predict: Callable[[OperatingPoint, int, int], float] | None,
) -> list[dict[str, Any]]:
    """All systems at one batch size and length, interleaved, on the same ids; every text is as long as the batch."""
    inputs = draw(setup, batch_size, length, full=True)
    calls: dict[str, list[Callable[[], object]]] = {}
    for name, system in systems.items():
        if system is None:
            calls[name] = [lambda: run_eager(setup.timed, inputs)] * 4
        else:
            runtime, point = system
            calls[name] = [lambda runtime=runtime, point=point: runtime.run(inputs, point)] * 4  # type: ignore[misc]
    timings = measure_interleaved(calls, RUNS, warm_up=2)
    return [_row(name, systems[name], timings, batch_size, length, predict) for name in systems]


def make_predictor(setup: Setup, precision: str) -> Callable[[OperatingPoint, int, int], float] | None:
    """Predicted seconds of the unpruned model and of pruned ones; None for a device that is not in devices.toml."""
    name = _name_device(setup.device).lower().replace(" ", "-")
    device = next((d for key, d in load_devices().items() if d.kind == "gpu" and key in name), None)
    if device is None or precision not in device.peak_flops_per_s:
        return None
    cost = CostModel(estimate_work(setup.captured, "TensorRT"), declare_rates(device, precision))

    def predict(point: OperatingPoint, batch_size: int, length: int) -> float:
        return float(cost.predict_segment(True, 0, point.exit_layers[-1], batch_size, np.float64(length), point))

    return predict


def draw(setup: Setup, batch_size: int, length: int, full: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids; texts of all lengths up to the longest unless `full`."""
    rng = np.random.default_rng((batch_size, length, seed))
    lengths = np.full(batch_size, length) if full else rng.integers(2, length + 1, batch_size)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(5, setup.captured.vocab_size, (batch_size, length)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run_eager(model: BertForSequenceClassification, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits of the Hugging Face model, on the host: the copy waits for the device."""
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value).to(model.device) for name, value in inputs.items()}
        logits: np.ndarray = model(**tensors).logits.float().cpu().numpy()
    return logits


def format_tables(result: Mapping[str, Any]) -> str:
    """Checks and times as Markdown."""
    lines = [
        f"# {result['device']}", "",
        f"{result['date']}, {result['precision']}, random weights; exits follow a given schedule (share of those still "
        f"there that leaves: {result['exit_schedule']}), prunes in {result['prune_layers']} keep 0.7.", "",
        "| backend | precision | difference of a logit, over the largest | allowed | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["checks"]:
        cells = f"{row['difference']:.2g} | {row['tolerance']:g} | {'ok' if row['ok'] else 'FAILED'}"
        lines.append(f"| {row['backend']} | {row['precision']} | {cells} |")
    lines += ["", "| system | batch | length | ms | over eager | over unpruned | ms per off-ramp | predicted ms |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in result["rows"]:
        cells = [_ms(row["measured_s"]), f"{row['speedup']:.2f}x", f"{row['over_unpruned']:.2f}x",
                 _ms(row["exit_overhead_s"]), _ms(row["predicted_s"])]  # fmt: skip
        lines.append(f"| {row['system']} | {row['batch_size']} | {row['seq_len']} | {' | '.join(cells)} |")
    lines += ["", *(f"Skipped: {reason}" for reason in result["skipped"]), ""]
    return "\n".join(lines)


def _row(
    name: str, system: tuple[Runtime, OperatingPoint] | None, timings: Mapping[str, Timing], batch_size: int,
    length: int, predict: Callable[[OperatingPoint, int, int], float] | None,
) -> dict[str, Any]:  # fmt: skip
    seconds = timings[name].median_s
    unpruned = timings.get(f"{name.split(',')[0]}, unpruned", timings[name]).median_s
    takes_time = predict is not None and system is not None and not system[1].exit_thresholds
    overhead = (seconds - unpruned) / len(EXITS) if name.endswith("nobody takes") else None
    return {
        "system": name, "batch_size": batch_size, "seq_len": length, "measured_s": seconds,
        "p10_s": timings[name].p10_s, "p90_s": timings[name].p90_s, "speedup": timings["eager"].median_s / seconds,
        "over_unpruned": unpruned / seconds, "exit_overhead_s": overhead,
        "predicted_s": predict(system[1], batch_size, length) if takes_time else None,  # type: ignore[index,misc]
    }  # fmt: skip


def _schedule(runtime: Runtime, shares: Sequence[float], num_labels: int) -> Runtime:
    """The same engines, with exits that are taken as a schedule says."""
    engines = [Scheduled(engine, share) for engine, share in zip(runtime.engines, shares, strict=False)]
    engines += runtime.engines[len(engines) :]
    return Runtime(runtime.segments, engines, num_labels, runtime.split_tokens)


def _make_setup(device: str, config: BertConfig, max_batch_size: int, max_length: int) -> Setup:
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    captured = capture(model)
    profile = OptimizationProfile(Range(1, min(8, max_batch_size), max_batch_size), Range(8, max_length, max_length))
    on_device = copy.deepcopy(model).to(device)  # a copy: the graph shares the weights of the first
    timed = on_device if device == "cpu" else copy.deepcopy(on_device).half()
    return Setup(on_device, timed, captured, device, profile)


def _name_device(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="that it may take, all of it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, nothing kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
