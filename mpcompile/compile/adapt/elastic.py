"""Elastic fine-tuning: the rewritten graph itself is trained, so that what is trained is what is deployed.

One training serves every operating point: each step draws other keep ratios (LengthDrop, Kim & Cho 2021,
arXiv 2010.07003), answers at all exits at once, and learns from the original model's own answers.

Shapes: N texts, C outputs of the model.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node

from mpcompile.compile.adapt.checkpoint import Checkpoint
from mpcompile.compile.adapt.lesson import ElasticSettings, Lesson, Start, TaughtTexts
from mpcompile.compile.adapt.losses import Loss, SingleLabelLoss
from mpcompile.compile.adapt.trainer import Trainer, copy_graph, name_weights
from mpcompile.errors import DataError
from mpcompile.graph.capture import CapturedModel
from mpcompile.progress import Stage
from mpcompile.store.results import Store, digest_arrays
from mpcompile.store.source import digest_source
from passes import ExitHead

logger = logging.getLogger(__name__)

DEFAULTS = ElasticSettings()
DISTILLATION = SingleLabelLoss()


@dataclass(frozen=True)
class ElasticHeads:
    """Trained exit heads, to be asked as `TrainedHeads` are, but about texts that they were not trained on.

    Attributes:
        heads: by exit layer.
    """

    heads: dict[int, ExitHead]

    @property
    def stack(self) -> nn.ModuleDict:
        """All of them as one module."""
        return nn.ModuleDict({str(layer): head for layer, head in sorted(self.heads.items())})

    def predict_held_out(
        self, features: Mapping[int, np.ndarray], index: np.ndarray | None = None
    ) -> dict[int, np.ndarray]:
        """Logits (N, C) by exit layer.

        Args:
            features: by exit layer, pooled features (N, 2D); at some of the off-ramps or all of them.
            index: not needed here, since no text was trained on.
        """
        del index
        with torch.inference_mode():
            return {
                layer: self.heads[layer].classify(torch.from_numpy(pooled)).numpy()
                for layer, pooled in features.items()
            }


@dataclass(frozen=True)
class Elastic:
    """A model that answers at every exit and under every schedule of keep ratios.

    Attributes:
        captured: the model with trained weights.
        heads: trained, by exit layer.
    """

    captured: CapturedModel
    heads: dict[int, ExitHead]


def train_elastic(
    start: Start,
    lesson: Lesson,
    store: Store,
    settings: ElasticSettings = DEFAULTS,
    loss: Loss = DISTILLATION,
    stage: Stage = lambda share: None,
) -> Elastic:
    """Trains backbone and exit heads together; a run that was killed goes on from its last checkpoint.

    The weights with the lowest loss on `validation` are returned, those before training among them.

    Args:
        start: what training starts from; left as it is.
        lesson: texts to learn from and to stop by.
        store: keeps the result, and checkpoints beside it.
        settings: how to train.
        loss: of every output.
        stage: told the share of the run that is done.

    Raises:
        DataError: when texts, answers and labels differ in number, or there are none.
    """
    captured, heads, prune_layers = start.captured, start.heads, start.prune_layers
    check_lesson(captured, lesson)
    key = describe_run(captured, heads, prune_layers, (lesson.training, lesson.validation), settings, loss)

    def make_trainer() -> Trainer:
        return Trainer(captured, heads, prune_layers, lesson.tokenizer, settings, loss)

    return assemble(captured, heads, train_once(key, store, make_trainer, lesson, settings, stage))


def train_once(
    key: Mapping[str, object],
    store: Store,
    make_trainer: Callable[[], Trainer],
    lesson: Lesson,
    settings: ElasticSettings,
    stage: Stage,
) -> dict[str, np.ndarray]:
    """The best weights of a run by name, from the store where it was done before; a killed one goes on.

    Args:
        key: everything that decides the result.
        store: keeps the result, and checkpoints beside it.
        make_trainer: slow; only called where there is something to train.
        lesson: texts to learn from and to stop by.
        settings: how to train.
        stage: told the share of the run that is done.
    """
    arrays = store.find_maybe(key)
    if arrays is None:
        checkpoint = Checkpoint(store.directory / "checkpoints", key)
        trainer = make_trainer()
        _fit(trainer, lesson, checkpoint, settings, stage)
        arrays = {name: value.numpy() for name, value in trainer.best.items()}
        store.keep(key, arrays)
        checkpoint.remove()
    return arrays


def _fit(trainer: Trainer, lesson: Lesson, checkpoint: Checkpoint, settings: ElasticSettings, stage: Stage) -> None:
    """Steps and evaluations until the end, a time limit or a stall; goes on from a checkpoint."""
    training, validation = lesson.training, lesson.validation
    _restore(trainer, checkpoint)
    if not trainer.validation_loss:
        logger.info("validation loss before training: %.4f", trainer.evaluate(validation))
    saved_s = time.monotonic()
    while trainer.share_done(len(training)) < 1.0 and not trainer.is_stalled:
        trainer.train_step(training)
        share = trainer.share_done(len(training))
        if trainer.step % settings.steps_per_evaluation == 0 or share == 1.0:
            logger.info("step %d: validation loss %.4f", trainer.step, trainer.evaluate(validation))
        if time.monotonic() - saved_s >= settings.seconds_per_checkpoint:
            checkpoint.save(trainer.state())
            saved_s = time.monotonic()
        stage(share)
    best_step, best_loss = min(trainer.validation_loss, key=lambda entry: entry[1])
    logger.info("best of %d steps, %.0f s: %.4f after step %d", trainer.step, trainer.elapsed_s, best_loss, best_step)


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    state = checkpoint.load_maybe()
    if state is not None:
        try:
            trainer.restore(state)
        except (ValueError, KeyError, TypeError) as error:
            checkpoint.set_aside(str(error))


def check_lesson(captured: CapturedModel, lesson: Lesson) -> None:
    """Refuses texts without answers, or with too few.

    Raises:
        DataError: saying which.
    """
    _check_texts(captured, lesson.training, "training")
    _check_texts(captured, lesson.validation, "validation")


def _check_texts(captured: CapturedModel, texts: TaughtTexts, name: str) -> None:
    """Refuses texts without answers, or with too few.

    Raises:
        DataError: saying which.
    """
    shape = (len(texts), captured.num_labels)
    if len(texts) == 0:
        raise DataError(f"{name}: no texts; elastic fine-tuning needs some, better thousands")
    if texts.teacher_logits.shape != shape:
        raise DataError(f"{name}: answers of the original have shape {texts.teacher_logits.shape}, expected {shape}")
    if texts.labels is not None and len(texts.labels) != len(texts):
        raise DataError(f"{name}: {len(texts.labels)} labels for {len(texts)} texts; one each is expected")


def describe_run(
    captured: CapturedModel,
    heads: Mapping[int, ExitHead],
    prune_layers: tuple[int, ...],
    parts: tuple[TaughtTexts, ...],
    settings: ElasticSettings,
    loss: Loss,
) -> dict[str, object]:
    """Everything that decides the result. How often a checkpoint is written does not."""
    decisive = {k: v for k, v in dataclasses.asdict(settings).items() if k != "seconds_per_checkpoint"}
    return {
        "kind": "elastic",
        "source": digest_source(),
        "model": _digest_weights(name_weights(captured.graph_module)),
        "graph": [_name_target(node) for node in captured.graph_module.graph.nodes],
        "heads": {str(layer): _digest_weights(name_weights(head)) for layer, head in sorted(heads.items())},
        "prune_layers": prune_layers,
        "texts": [_digest_texts(part) for part in parts],
        "settings": decisive,
        "loss": repr(loss),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def _name_target(node: Node) -> str:
    """What a node calls or reads, named alike in every process: a function's own text holds its address."""
    if isinstance(node.target, str | OpOverload):
        return str(node.target)
    return f"{node.target.__module__}.{node.target.__qualname__}"


def _digest_weights(weights: Mapping[str, Tensor]) -> str:
    return digest_arrays({name: value.detach().cpu().numpy() for name, value in weights.items()})


def _digest_texts(texts: TaughtTexts) -> str:
    arrays = {f"ids_{i}": tokens.ids for i, tokens in enumerate(texts.encoded)}
    arrays |= {f"types_{i}": tokens.type_ids for i, tokens in enumerate(texts.encoded)}
    labels = {} if texts.labels is None else {"labels": texts.labels}
    return digest_arrays({**arrays, "teacher_logits": texts.teacher_logits, **labels})


def assemble(captured: CapturedModel, heads: Mapping[int, ExitHead], arrays: Mapping[str, np.ndarray]) -> Elastic:
    """The captured model and its heads with trained weights."""
    graph_module = copy_graph(captured.graph_module)
    trained = {layer: copy.deepcopy(head).eval().requires_grad_(False) for layer, head in sorted(heads.items())}
    named = dict(name_weights(graph_module))
    for layer, head in trained.items():
        named |= {f"exits.{layer}.{name}": weight for name, weight in name_weights(head).items()}
    with torch.no_grad():
        for name, weight in named.items():
            weight.copy_(torch.from_numpy(arrays[name]))
    return Elastic(dataclasses.replace(captured, graph_module=graph_module), trained)
