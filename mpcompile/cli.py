"""The command line: `mpcompile optimize | predict | bench | inspect | doctor`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpcompile.errors import MpcompileError, SettingError

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 for an error that the user can fix, 130 for Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    command: Command = options.command
    try:
        command(options)
    except MpcompileError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written; the same command goes on where it was", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpcompile", description="Compiles BERT-family classifiers to run faster.")
    parser.add_argument("--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_optimize(commands)
    _add_predict(commands)
    _add_bench(commands)
    inspect = commands.add_parser("inspect", help="show what an artifact holds")
    inspect.add_argument("directory", type=Path)
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(command=_inspect)
    doctor = commands.add_parser("doctor", help="show what this machine can run")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_optimize(commands: Any) -> None:
    optimize = commands.add_parser("optimize", help="compile a fine-tuned classifier")
    optimize.add_argument("model", help="folder of a Hugging Face classifier, or a hub id")
    optimize.add_argument("--target-speedup", type=float, required=True, help="times the original, such as 8")
    optimize.add_argument("--out", type=Path, required=True, help="folder to write the artifact to")
    optimize.add_argument("--texts", help="csv, jsonl or parquet with a column text, maybe text_pair and label")
    optimize.add_argument("--test", help="the same with labels, read once for the report")
    optimize.add_argument("--max-drop", type=float, help="loss that is allowed, such as 0.005")
    optimize.add_argument("--confidence", type=float, default=0.95)
    optimize.add_argument("--adapt", default="frozen", help="none or frozen (default)")
    optimize.add_argument("--batch-size", type=int, default=1)
    optimize.add_argument("--device", default="auto")
    optimize.add_argument("--backend", default="auto", help="auto, openvino or eager")
    optimize.add_argument("--precision", default="auto", help="auto, f32 or bf16")
    optimize.add_argument("--max-texts", type=int, default=4000)
    optimize.add_argument("--seed", type=int, default=0)
    optimize.add_argument("--cache-dir", type=Path, help="where slow results are kept (default: the user's cache)")
    optimize.add_argument("--no-progress", action="store_true")
    optimize.add_argument("--json", action="store_true", help="print the report as one JSON object")
    optimize.set_defaults(command=_optimize)


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="answer the texts of a file")
    predict.add_argument("directory", type=Path)
    predict.add_argument("file", help="csv, jsonl or parquet with a column text, maybe text_pair")
    predict.add_argument("--out", type=Path, required=True, help="csv to write: label, score, exit_layer per text")
    predict.add_argument("--batch-size", type=int, default=32)
    predict.add_argument("--speedup", type=float, help="another operating point than the one optimized for")
    predict.set_defaults(command=_predict)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="time an artifact against its original")
    bench.add_argument("directory", type=Path)
    bench.add_argument("--test", required=True, help="csv, jsonl or parquet with texts, and labels for the accuracy")
    bench.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    bench.add_argument("--runs", type=int, default=5)
    bench.add_argument("--max-texts", type=int, default=1000)
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.set_defaults(command=_bench)


def _optimize(options: argparse.Namespace) -> None:
    import mpcompile
    from mpcompile.artifact import check_target_directory

    check_target_directory(options.out)
    _silence_transformers()
    optimized = mpcompile.optimize(
        options.model,
        options.target_speedup,
        texts=options.texts,
        test=options.test,
        max_drop=options.max_drop,
        confidence=options.confidence,
        adapt=options.adapt,
        batch_size=options.batch_size,
        device=options.device,
        backend=options.backend,
        precision=options.precision,
        max_texts=options.max_texts,
        seed=options.seed,
        progress=not options.no_progress,
        cache_dir=options.cache_dir,
    )
    optimized.save(options.out)
    _show(json.dumps(optimized.report.to_json()) if options.json else f"{optimized.report}\nwritten to {options.out}")


def _silence_transformers() -> None:
    """One set of progress bars is enough."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _predict(options: argparse.Namespace) -> None:
    import mpcompile
    from mpcompile.data import load_examples

    examples = load_examples(options.file, name="file")
    optimized = mpcompile.load(options.directory)
    if options.speedup is not None:
        optimized.set_speedup(options.speedup)
    predictions = optimized.predict(examples.texts, examples.text_pairs, options.batch_size)
    rows = [(p.label, f"{p.score:.6f}", p.exit_layer) for p in predictions]
    _write_csv(options.out, [("label", "score", "exit_layer"), *rows])
    _show(f"{len(rows)} answers written to {options.out}")


def _bench(options: argparse.Namespace) -> None:
    from mpcompile.benchmark import benchmark_artifact, format_rows

    for name, values in (
        ("batch-size", options.batch_size),
        ("runs", [options.runs]),
        ("max-texts", [options.max_texts]),
    ):
        if min(values) < 1:
            raise SettingError(f"--{name}: {min(values)}; a whole number from 1 is expected")
    rows = benchmark_artifact(options.directory, options.test, options.batch_size, options.runs, options.max_texts)
    _show(json.dumps({"rows": rows}) if options.json else format_rows(rows))


def _inspect(options: argparse.Namespace) -> None:
    from mpcompile.inspection import describe_artifact, inspect_artifact

    _show(json.dumps(inspect_artifact(options.directory)) if options.json else describe_artifact(options.directory))


def _doctor(options: argparse.Namespace) -> None:
    from mpcompile.inspection import describe_doctor, examine_machine

    _show(json.dumps(examine_machine()) if options.json else describe_doctor())


def _write_csv(target: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes a file whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        os.replace(temporary, target)
    except OSError as error:
        raise SettingError(f"--out {target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _show(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
