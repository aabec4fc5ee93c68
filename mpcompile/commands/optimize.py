"""`mpcompile optimize`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show, silence_transformers


def add(commands: Any) -> None:
    """Declares the command."""
    optimize = commands.add_parser("optimize", help="compile a fine-tuned classifier, regression or encoder")
    optimize.add_argument("model", help="folder of a Hugging Face or sentence-transformers model, or a hub id")
    optimize.add_argument("--target-speedup", type=float, required=True, help="times the original, such as 8")
    optimize.add_argument("--out", type=Path, required=True, help="folder to write the artifact to")
    optimize.add_argument("--texts", help="csv, jsonl or parquet with a column text, maybe text_pair and label")
    optimize.add_argument("--test", help="the same with labels, read once for the report")
    optimize.add_argument("--max-drop", type=float, help="loss that is allowed, such as 0.005")
    optimize.add_argument("--confidence", type=float, default=0.95)
    optimize.add_argument("--adapt", default="frozen", help="none, frozen (default) or finetune")
    optimize.add_argument("--train-epochs", type=int, default=10, help="of --adapt finetune, at most (default: 10)")
    optimize.add_argument("--train-minutes", type=float, help="of --adapt finetune, at most (default: no limit)")
    optimize.add_argument("--batch-size", type=int, default=1)
    optimize.add_argument("--device", default="auto")
    optimize.add_argument("--backend", default="auto", help="auto, openvino, eager, inductor or tensorrt")
    optimize.add_argument("--builder", default="auto", help="of --backend tensorrt: onnx (default) or torch_tensorrt")
    optimize.add_argument("--precision", default="auto", help="auto, f32, bf16, f16 (on GPUs) or int8")
    optimize.add_argument("--max-texts", type=int, default=4000)
    optimize.add_argument("--seed", type=int, default=0)
    optimize.add_argument("--cache-dir", type=Path, help="where slow results are kept (default: the user's cache)")
    optimize.add_argument(
        "--plan", type=Path, help="json file of mpcompile plan, whose keep ratios and exits are tried"
    )
    optimize.add_argument("--trials", type=int, default=0, help="schedules of keep ratios to search (default 0)")
    optimize.add_argument("--storage", help="file or Optuna URL of the search, which resumes there and may be shared")
    optimize.add_argument("--no-exits", dest="exits", action="store_false", help="prune tokens only")
    optimize.add_argument("--no-pruning", dest="pruning", action="store_false", help="exit early only")
    optimize.add_argument("--selection", default="top", help="tokens to keep: top (default) or threshold")
    optimize.add_argument("--hide-texts", action="store_true", help="keep the texts out of report.json and report.html")
    optimize.add_argument("--no-progress", action="store_true")
    optimize.add_argument("--json", action="store_true", help="print the report as one JSON object")
    optimize.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import mpcompile
    from mpcompile.runtime.artifact import check_target_directory

    check_target_directory(options.out)
    silence_transformers()
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
        builder=options.builder,
        precision=options.precision,
        max_texts=options.max_texts,
        seed=options.seed,
        progress=not options.no_progress,
        cache_dir=options.cache_dir,
        plan=options.plan,
        show_texts=not options.hide_texts,
        exits=options.exits,
        pruning=options.pruning,
        selection=options.selection,
        trials=options.trials,
        storage=options.storage,
        train_epochs=options.train_epochs,
        train_minutes=options.train_minutes,
    )
    optimized.save(options.out)
    show(json.dumps(optimized.report.to_json()) if options.json else f"{optimized.report}\nwritten to {options.out}")
