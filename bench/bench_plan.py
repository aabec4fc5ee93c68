"""Times `mpcompile plan` as a user types it: on a model that it never saw, and on one that it did.

python bench/bench_plan.py MODEL_FOLDER

Each run is a process of its own, imports included, with a pause before it. All give the same plan, which is checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from result_files import describe_machine, slug, write_result

DEVICE, TARGET = "jetson-orin-nano", "4"
PAUSE_S = 2.0


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a Hugging Face classifier")
    parser.add_argument("--runs", type=int, default=3, help="with an empty store; two more plans follow each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    first: list[float] = []
    second: list[float] = []
    plans = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as cache_dir:
            plans += [plan(options.model, cache_dir, seconds) for seconds in (first, second, second)]
    assert all(found == plans[0] for found in plans), "a plan differs from the first one"
    result = {
        **describe_machine(),
        "command": f"python bench/bench_plan.py {options.model.name} --runs {options.runs}",
        "model": options.model.name, "device": DEVICE, "target_speedup": float(TARGET),
        "first_s": first, "second_s": second, "plan": plans[0],
    }  # fmt: skip
    write_result(options.out / f"plan_{slug()}.json", result, format_table(result))


def plan(model: Path, cache_dir: str, seconds: list[float]) -> dict[str, Any]:
    """One plan; adds how long it took."""
    command = [sys.executable, "-m", "mpcompile.commands.cli", "plan", str(model), "--device", DEVICE]
    command += ["--target-speedup", TARGET, "--cache-dir", cache_dir, "--no-progress", "--json"]
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds.append(time.perf_counter() - start)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def format_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"| {name} | {median(times):.1f} | {min(times):.1f} to {max(times):.1f} | {len(times)} |"
        for name, times in (("never seen", result["first_s"]), ("seen before", result["second_s"]))
    ]
    return "\n".join(
        [
            f"# `mpcompile plan {result['model']} --device {DEVICE}`",
            "",
            f"{result['cpu']}, {result['cores']} cores, commit {result['commit']}. Seconds of the whole command.",
            "",
            "| model | median s | from, to | runs |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
