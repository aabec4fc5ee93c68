"""Magic Pyramid as its paper has it, with flops and measured time side by side (He et al. 2021, arXiv 2111.00230).

    python scripts/reproduce_magic_pyramid.py --model DIR --texts train.csv --test test.csv --name agnews

Learned token pruning (Kim et al. 2022, arXiv 2107.00910): a threshold per layer on the attention that a token
receives, learned under a soft mask, then fixed while tokens below it are dropped. Entropy exits, trained by
self-distillation with it; their thresholds are chosen on held-out texts. The paper's speedup, 8.06 on average, is a
ratio of flops. Here each row has accuracy, that ratio, counted with the tokens that every text really kept, and time
on the clock.

A run that was stopped goes on where it was when the same command is given again; what is slow is kept in --cache-dir.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging as transformers_logging

from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.finetune import adopt, split_validation, teach, train_first_heads
from mpcompile.compile.adapt.lesson import ElasticSettings, Lesson, Start
from mpcompile.compile.adapt.losses import find_loss
from mpcompile.compile.adapt.token_thresholds import Pyramid, ThresholdSettings, train_thresholds
from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.choose.cost import measure_cost_model
from mpcompile.compile.choose.features import FeatureCollector
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.point_search import PointSearch
from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.choose.schedules import KeepSchedule, keep_schedules
from mpcompile.compile.job import Job, Model, open_job
from mpcompile.compile.measure.front import Baseline
from mpcompile.compile.measure.workload import build_workload
from mpcompile.compile.original import open_original
from mpcompile.compile.reference import ask_original, build_unpruned, unpruned_point
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import load_examples
from mpcompile.compile.texts.parts import TextPart, encode_examples
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.cost.model import CostModel
from mpcompile.cost.timing import Timing, measure_interleaved
from mpcompile.errors import DataError, MpcompileError
from mpcompile.graph.segments import partition, tap
from mpcompile.progress import StageProgress
from mpcompile.runtime.runner import make_runtime
from mpcompile.runtime.runtime import Runtime
from mpcompile.store.results import digest_arrays

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from result_files import describe_machine, slug, write_result
from smoke import run_or_smoke

PAPERS_FLOPS_RATIO = 8.06
"""On average over its tasks, as Magic Pyramid's abstract has it."""
CHOOSING_SHARE = 0.25
SEARCHED_GAINS = (2.0, 4.0, 8.0, 16.0)
"""Times the unpruned engine's speed that exits are searched for; what is taken is decided by --max-drop."""


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        name: of it.
        point: what it runs at.
        runtime: what runs.
        drop: accuracy lost on the texts for choosing, None where nothing was chosen.
    """

    name: str
    point: OperatingPoint
    runtime: Runtime
    drop: float | None = None


@dataclass(frozen=True)
class Experiment:
    """What all rows share.

    Attributes:
        job: settings, store and progress.
        target: backend and precision.
        model: the original.
        adapted: the model that was trained.
        pyramid: what was trained.
        prune_layers: layers that prune.
        choosing: held-out texts.
        cost: counts flops and predicts time.
        unpruned: the original as one engine.
    """

    job: Job
    target: Target
    model: Model
    adapted: Model
    pyramid: Pyramid
    prune_layers: tuple[int, ...]
    choosing: TextPart
    cost: CostModel
    unpruned: Runtime

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Learned, by layer that prunes."""
        return tuple(self.pyramid.token_thresholds[layer] for layer in self.prune_layers)

    def collect(self, part: TextPart, thresholds: tuple[float, ...]) -> tuple[HeldOut, dict[int, np.ndarray]]:
        """Answers at every exit under some thresholds, and tokens that each text has left behind each layer."""
        captured, exits = self.adapted.captured, tuple(sorted(self.pyramid.heads))
        segment = tap(captured, exits, self.prune_layers, self.target.precision, "threshold")
        collector = FeatureCollector(segment, self.target, captured.max_length, part.tokenizer)
        schedule = KeepSchedule(self.prune_layers, (1.0,) * len(self.prune_layers), thresholds)
        with self.job.progress.stage(f"answers at every exit ({len(part.encoded)} texts)") as stage:
            features = collector.collect(part.encoded, schedule, stage)
        logits = ElasticHeads(self.pyramid.heads).predict_held_out(features.pooled) if self.pyramid.heads else {}
        logits = {**logits, captured.num_layers: features.logits}
        held_out = HeldOut.from_logits(schedule.measured(features.kept, part.lengths), logits, part.task)
        return held_out, features.kept


def main() -> None:
    options = _parse()
    try:
        run_or_smoke(options, reproduce, _smoke_options)
    except MpcompileError as error:
        raise SystemExit(f"error: {error}") from error


def reproduce(options: argparse.Namespace) -> dict[str, Any]:
    """Trains, chooses, measures and writes the result; returns it."""
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING)
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    examples, test = load_examples(options.texts), load_examples(options.test, name="test")
    original = open_original(options.model, None)
    settings = Settings(
        1.0, precision=options.precision, backend=options.backend, seed=options.seed, cache_dir=options.cache_dir
    )
    with StageProgress(True) as bars, original.evaluating():
        job, model, target = open_job(settings, original, bars, examples.text_pairs is not None)
        order = np.random.default_rng(options.seed).permutation(len(examples))[: options.max_texts]
        texts = encode_examples(job.require_tokenizer("texts"), model, examples.take(order), "texts")
        experiment = prepare(job, model, target, texts, options)
        systems = choose_systems(experiment, options.max_drop)
        drawn = encode_examples(texts.tokenizer, model, test, "test").take(_first(test, options))
        part = ask_original(job, model, target, drawn, "test texts")
        if not part.has_accuracy:
            raise DataError(f"{options.test}: no column 'label'; accuracy is measured on labelled texts")
        rows = measure(experiment, systems, part, options)
    result = {
        **describe_machine(), "command": " ".join(["python", *sys.argv]), "name": options.name,
        "paper": {"flops_ratio": PAPERS_FLOPS_RATIO},
        "settings": {key: str(value) for key, value in vars(options).items()},
        "prune_layers": experiment.prune_layers, "token_thresholds": experiment.thresholds,
        "num_texts": len(texts.encoded), "num_test": len(part.encoded), "rows": rows,
    }  # fmt: skip
    write_result(options.out / f"magic-pyramid_{options.name}_{slug()}.json", result, format_table(result))
    return result


def prepare(job: Job, model: Model, target: Target, texts: TextPart, options: argparse.Namespace) -> Experiment:
    """Trains the pyramid on three quarters of the texts, and readies what measures it on the rest."""
    num_choosing = max(1, round(CHOOSING_SHARE * len(texts.encoded)))
    choosing = ask_original(job, model, target, texts.take(np.arange(num_choosing)), "choosing")
    rest = ask_original(job, model, target, texts.take(np.arange(num_choosing, len(texts.encoded))), "training")
    training, validation = split_validation(rest)
    prune_layers, _ = keep_schedules(model.num_layers)
    stage_settings = ElasticSettings(
        max_epochs=options.epochs, max_seconds=None if options.minutes is None else 30.0 * options.minutes,
        seed=options.seed,
    )  # fmt: skip
    settings = ThresholdSettings(
        soft=stage_settings, hard=stage_settings, keep_weight=options.keep_weight, temperature=options.temperature
    )
    heads = train_first_heads(job, model, target, training)
    with job.progress.stage("soft and hard stage") as stage:
        pyramid = train_thresholds(
            Start(model.captured, heads, prune_layers), Lesson(teach(training), teach(validation), texts.tokenizer),
            job.store, settings, find_loss(model.task), stage,
        )  # fmt: skip
    unpruned = build_unpruned(job, model, target)
    cost = measure_cost_model(job, model, target, unpruned, int(np.median(texts.lengths)))
    return Experiment(job, target, model, adopt(model, pyramid), pyramid, prune_layers, choosing, cost, unpruned)


def choose_systems(experiment: Experiment, max_drop: float) -> tuple[System, ...]:
    """The rows behind the baselines: pruning alone, exits alone, both; exits are chosen on held-out texts."""
    whole = (experiment.model.captured.num_layers,)
    plain, _ = experiment.collect(experiment.choosing, (0.0,) * len(experiment.prune_layers))
    learned, _ = experiment.collect(experiment.choosing, experiment.thresholds)
    precision = experiment.target.precision
    schedule = learned.schedule
    pruned = OperatingPoint(
        whole, (), schedule.prune_layers, schedule.keep_ratios, precision, schedule.token_thresholds
    )
    exits = choose_exits(experiment, plain, max_drop)
    both = choose_exits(experiment, learned, max_drop)
    unpruned = OperatingPoint(exits.exit_layers, exits.exit_thresholds, precision=precision)
    return (
        System("token pruning", pruned, build(experiment, pruned), _drop(experiment, learned, pruned)),
        System("exits", unpruned, build(experiment, unpruned), _drop(experiment, plain, unpruned)),
        System("Magic Pyramid", both, build(experiment, both), _drop(experiment, learned, both)),
    )


def choose_exits(experiment: Experiment, held_out: HeldOut, max_drop: float) -> OperatingPoint:
    """The exits and their thresholds that are predicted to be fastest and lose at most so much; else lose least."""
    part = experiment.choosing
    allowed = float(part.original_loss.mean()) + max_drop
    found = []
    for size in (1, 32):
        pricer = Pricer(part.truth, part.lengths, experiment.cost, size, experiment.target.precision, part.task)
        for gain in SEARCHED_GAINS:
            found += [(c.seconds / pricer.full_s, c) for c in PointSearch([held_out], pricer).search(gain)]
    fitting = [(share, c) for share, c in found if c.loss <= allowed]
    if fitting:
        return trim(min(fitting, key=lambda item: item[0])[1].point)
    return trim(min(found, key=lambda item: (item[1].loss, item[0]))[1].point)


def trim(point: OperatingPoint) -> OperatingPoint:
    """A point without the prunes behind its last exit, which nothing reaches."""
    layers = tuple(layer for layer in point.prune_layers if layer < point.exit_layers[-1])
    return dataclasses.replace(
        point, prune_layers=layers, keep_ratios=tuple(point.keep_ratio_at(layer) for layer in layers),
        token_thresholds=tuple(point.token_threshold_at(layer) for layer in layers) if point.token_thresholds else (),
    )  # fmt: skip


def build(experiment: Experiment, point: OperatingPoint) -> Runtime:
    """A chain of engines for one point."""
    model, target, whole = experiment.adapted, experiment.target, experiment.model.num_layers
    heads = {layer: experiment.pyramid.heads[layer] for layer in point.exit_layers if layer < whole}
    last = None if point.exit_layers[-1] == whole else point.exit_layers[-1]
    segments = partition(model.captured, heads, point.prune_layers, last, target.precision, "threshold")
    weights = {
        f"{layer}.{name}": value.numpy() for layer, head in heads.items() for name, value in head.state_dict().items()
    }
    digest = f"threshold {model.digest} {digest_arrays(weights)} {point.prune_layers} {last}"
    blueprint = Blueprint(segments, default_profile(model.captured.max_length), digest)
    plans = build_plans(target, blueprint, experiment.job.store)
    length = int(np.median(experiment.choosing.lengths))
    split = experiment.cost.split_tokens(tuple(segment.exit_layer for segment in segments), length, point.prune_layers)
    return make_runtime(target, segments, plans, model.captured.num_labels, split)


def measure(
    experiment: Experiment, systems: tuple[System, ...], part: TextPart, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Accuracy and flops on all test texts, time on batches of them, every system in one interleaved run."""
    point = unpruned_point(experiment.model, experiment.target.precision)
    baseline = System("unpruned engine", point, experiment.unpruned)
    _, kept = experiment.collect(part, experiment.thresholds)
    answers = {"original": {"answer": part.original_answer, "flops_ratio": 1.0, "mean_exit_layer": None, "point": None}}
    for system in (baseline, *systems):
        result = part.answer(system.runtime, system.point)
        answers[system.name] = {
            "answer": part.task.answers(result.logits),
            "flops_ratio": count_flops_ratio(experiment, system.point, part.lengths, kept, result.exit_layer),
            "mean_exit_layer": float(result.exit_layer.mean()),
            "share_kept": float((result.tokens_kept / part.lengths).mean()),
            "drop_on_choosing": system.drop, "point": system.point.to_json(),
        }  # fmt: skip
    rows = []
    for size in options.batch_size:
        timings = time_systems(experiment, (baseline, *systems), part, size, options)
        rows += [_row(name, size, facts, timings, part) for name, facts in answers.items()]
    return rows


def count_flops_ratio(
    experiment: Experiment,
    point: OperatingPoint,
    lengths: np.ndarray,
    kept: dict[int, np.ndarray],
    exit_layer: np.ndarray,
) -> float:
    """Flops of the whole model over those of a point, each text with the tokens that it really kept.

    What the scores cost, queries times keys once more, is counted where a layer prunes.
    """
    whole = experiment.model.captured.num_layers
    full = experiment.cost.count_flops(lengths, OperatingPoint((whole,)), np.full(len(lengths), whole)).sum()
    flops = experiment.cost.count_flops(lengths, point, exit_layer, kept)
    before = lengths
    for layer in point.prune_layers:
        scores = 2.0 * experiment.model.captured.hidden_size * before.astype(np.float64) ** 2
        flops, before = flops + (exit_layer > layer) * scores, kept[layer]
    return float(full / flops.sum())


def time_systems(
    experiment: Experiment, systems: tuple[System, ...], part: TextPart, batch_size: int, options: argparse.Namespace
) -> dict[str, Timing]:
    """Seconds per batch of the original and the systems on the same batches, drawn at random."""
    original, names = experiment.job.original, experiment.model.captured.input_names
    rank = np.random.default_rng(options.seed).permutation(len(part.encoded))
    num_batches = max(options.batches, options.requests // batch_size)
    workload = build_workload(part.tokenizer, part.encoded, batch_size, num_batches, rank, options.seed)
    num_threads = original.find_threads([original.prepare(batch, names) for batch in workload.batches[:3]])
    whole = unpruned_point(experiment.model, experiment.target.precision)
    baseline = Baseline(original, num_threads, experiment.unpruned, whole, workload, names)
    calls = {"original": baseline.original_calls()}
    calls |= {system.name: baseline.point_calls(system.runtime, system.point) for system in systems}
    with experiment.job.progress.stage(f"time, batch {batch_size}") as stage:
        return measure_interleaved(calls, options.runs, on_run=stage)


def format_table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"# Magic Pyramid on {result['name']}", "",
        f"{result['date']}, {result['cpu']}, {result['cores']} cores, {result['num_test']} test texts. The paper "
        f"reports {result['paper']['flops_ratio']}x on average over its tasks, a ratio of flops.", "",
        "| system | batch | accuracy | agreement | flops ratio | time ratio to original | to unpruned engine | ms |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        lines.append(
            f"| {row['system']} | {row['batch_size']} | {100 * row['accuracy']:.2f} | {100 * row['agreement']:.2f} | "
            f"{row['flops_ratio']:.2f} | {row['speedup']:.2f} | {row['speedup_over_unpruned']:.2f} | "
            f"{1e3 * row['measured_s']:.2f} |"
        )
    return "\n".join([*lines, ""])


def _row(
    name: str, batch_size: int, facts: dict[str, Any], timings: dict[str, Timing], part: TextPart
) -> dict[str, Any]:
    differs, timing = part.task.differs, timings[name]
    return {
        "system": name, "batch_size": batch_size,
        "accuracy": float(1.0 - differs(facts["answer"], part.truth).mean()),
        "agreement": float(1.0 - differs(facts["answer"], part.original_answer).mean()),
        "measured_s": timing.median_s, "p10_s": timing.p10_s, "p90_s": timing.p90_s,
        "speedup": timings["original"].median_s / timing.median_s,
        "speedup_over_unpruned": timings["unpruned engine"].median_s / timing.median_s,
        **{key: value for key, value in facts.items() if key != "answer"},
    }  # fmt: skip


def _drop(experiment: Experiment, held_out: HeldOut, point: OperatingPoint) -> float:
    """Accuracy lost on the texts for choosing."""
    part, exits = experiment.choosing, point.exit_layers
    answer, waiting = held_out.answer[exits[-1]].copy(), np.ones(len(part.truth), bool)
    for layer, threshold in itertools.zip_longest(exits[:-1], point.exit_thresholds):
        leaving = waiting & (held_out.entropy[layer] < threshold)
        answer[leaving], waiting = held_out.answer[layer][leaving], waiting & ~leaving
    return float(part.task.differs(answer, part.truth).mean() - part.original_loss.mean())


def _first(test: Any, options: argparse.Namespace) -> np.ndarray:
    return np.arange(min(len(test), options.test_texts))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Hugging Face classifier, or a hub id")
    parser.add_argument("--texts", help="csv to train and choose on; labels are used when there")
    parser.add_argument("--test", help="csv with labels, read once, at the end")
    parser.add_argument("--name", default="task", help="of the task, in the result file's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "bench" / "results")
    parser.add_argument("--cache-dir", type=Path, default=None, help="where slow results and checkpoints are kept")
    parser.add_argument("--keep-weight", type=float, default=0.1, help="lambda: the higher, the more is pruned")
    parser.add_argument("--temperature", type=float, default=1e-3, help="of the soft mask")
    parser.add_argument("--max-drop", type=float, default=0.005, help="accuracy that exits may lose, on held-out texts")
    parser.add_argument("--epochs", type=int, default=5, help="of each of the two stages, at most")
    parser.add_argument("--minutes", type=float, default=None, help="that training may take, both stages together")
    parser.add_argument("--max-texts", type=int, default=8000)
    parser.add_argument("--test-texts", type=int, default=10**9, help="test texts (default: all)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--requests", type=int, default=96, help="texts in a timed run, at least")
    parser.add_argument("--batches", type=int, default=4, help="batches in a timed run, at least")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto", help="auto, f32 or bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a minute on a small untrained model, nothing kept")
    options = parser.parse_args()
    if not options.smoke and None in (options.model, options.texts, options.test):
        parser.error("--model, --texts and --test are needed (or --smoke)")
    if options.precision == "int8":
        parser.error("--precision int8: engines that prune by threshold are not quantised; auto, f32 or bf16")
    return options


def _smoke_options(folder: Path) -> dict[str, Any]:
    """The same run on the demo encoder with an untrained classifier and a hundred docstrings."""
    return {
        "model": str(folder / "model"), "texts": str(folder / "train.csv"), "test": str(folder / "test.csv"),
        "out": folder, "name": "smoke", "cache_dir": folder / "cache", "epochs": 1, "minutes": 0.2, "max_texts": 64,
        "test_texts": 16, "batch_size": [1, 8], "requests": 4, "batches": 1, "runs": 1,
    }  # fmt: skip


if __name__ == "__main__":
    main()
