"""Times an artifact in a process that runs torch, too: its threads wait spinning on cores that engines want.

    python bench/bench_beside_torch.py --artifact DIR --test test.csv --out bench/results

A row per remedy, each in a process of its own. "Alone": calls of the artifact in a row, after a pause. "In turn": each
one right after a call of the original through torch, as a service has it that runs both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from result_files import describe_machine, describe_run, slug, write_result
from smoke import parse_or_smoke, run_or_smoke

REMEDIES: dict[str, tuple[dict[str, str], int | None]] = {
    "none": ({}, None),
    "OMP_WAIT_POLICY=passive": ({"OMP_WAIT_POLICY": "passive"}, None),
    "GOMP_SPINCOUNT=0": ({"GOMP_SPINCOUNT": "0"}, None),
    "torch.set_num_threads(1)": ({}, 1),
}
"""Variables of the environment, and threads of torch."""
PAUSE_S = 0.3


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="folder that optimize wrote")
    parser.add_argument("--test", help="csv of texts")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="processes per remedy, in turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parse_or_smoke(parser, "artifact", "test")
    if options.child:
        print(json.dumps(_measure(options)))
        return
    run_or_smoke(options, _bench, _smoke_options)


def _bench(options: argparse.Namespace) -> None:
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in REMEDIES}
    for _ in range(options.repeats):
        for name, (variables, threads) in REMEDIES.items():
            taken[name].append(_run_child(options, variables, threads))
    rows = [
        {"remedy": name, **{key: float(np.median([run[key] for run in runs])) for key in runs[0]}}
        for name, runs in taken.items()
    ]
    result = {**describe_machine(), "command": " ".join(["python", *sys.argv]), "batch_size": options.batch_size}
    result["rows"] = rows
    write_result(options.out / f"beside_torch_{slug()}.json", result, format_table(result))


def _run_child(options: argparse.Namespace, variables: dict[str, str], threads: int | None) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", "--artifact", options.artifact, "--test", options.test]
    command += ["--batch-size", options.batch_size, "--calls", options.calls]
    command += [] if threads is None else ["--threads", threads]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _measure(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a call of the artifact and of the original, alone and in turn."""
    import torch

    import mpcompile
    from mpcompile.compile.original import open_original
    from mpcompile.compile.texts.examples import load_examples
    from mpcompile.graph.capture import list_input_names

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    optimized, original = mpcompile.load(options.artifact), open_original(options.artifact / "model", None)
    tokenizer, examples = optimized.tokenizer, load_examples(options.test)
    assert tokenizer is not None
    count = min(options.calls * options.batch_size, len(examples) // options.batch_size * options.batch_size)
    order = np.random.default_rng(0).permutation(len(examples))[:count]
    encoded = tokenizer.encode([examples.texts[i] for i in order])
    batches = [tokenizer.pad(encoded[i : i + options.batch_size]) for i in range(0, count, options.batch_size)]
    names, point = list_input_names(original.model), optimized.operating_point.point
    ours = [partial(optimized.runtime.run, batch, point) for batch in batches]
    theirs = [partial(original.run, original.prepare(batch, names)) for batch in batches]
    with original.evaluating():
        for calls in (theirs, ours):
            _time(calls)
        time.sleep(PAUSE_S)
        alone = _time(ours)
        time.sleep(PAUSE_S)
        theirs_alone = _time(theirs)
        in_turn = [(_time([their])[0], _time([our])[0]) for their, our in zip(theirs, ours, strict=True)]
    return {
        "alone_s": float(np.mean(alone)),
        "in_turn_s": float(np.mean([our for _, our in in_turn])),
        "original_alone_s": float(np.mean(theirs_alone)),
        "original_in_turn_s": float(np.mean([their for their, _ in in_turn])),
    }


def _time(calls: Sequence[Callable[[], Any]]) -> list[float]:
    taken = []
    for call in calls:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def _smoke_options(folder: Path, cache_dir: Path) -> dict[str, Any]:
    """A small artifact of the demo encoder with an untrained classifier."""
    import mpcompile

    train = str(folder / "train.csv")
    optimized = mpcompile.optimize(
        folder / "model", 2.0, texts=train, max_texts=64, precision="f32", cache_dir=cache_dir, progress=False
    )
    optimized.save(folder / "artifact")
    return {"artifact": folder / "artifact", "test": train, "calls": 10, "repeats": 1, "out": folder}


def format_table(result: dict[str, Any]) -> str:
    """A result file as Markdown."""
    lines = [
        *describe_run(result),
        f"Milliseconds of a call at batch {result['batch_size']}, mean over the calls, median over processes.",
        "",
        "| remedy | artifact alone | right after torch | slower | torch alone | torch in turn |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        times = [1e3 * row[name] for name in ("alone_s", "in_turn_s", "original_alone_s", "original_in_turn_s")]
        lines.append(
            f"| {row['remedy']} | {times[0]:.2f} | {times[1]:.2f} | {times[1] / times[0]:.2f}x | {times[2]:.2f} "
            f"| {times[3]:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
