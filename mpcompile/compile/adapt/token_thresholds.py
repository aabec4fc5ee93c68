"""Learned token pruning with exits, as Magic Pyramid trains them (He et al. 2021, arXiv 2111.00230).

Two stages (Kim et al. 2022, arXiv 2107.00910). Soft: every token stays, multiplied by
sigmoid((importance - threshold) / temperature), and thresholds learn with the weights while the mean of that mask is
paid for. Hard: the thresholds are fixed, tokens below them are dropped, and the weights get used to it. In both all
exits learn the original's answers at once, as in `adapt.elastic`, whose steps and checkpoints these are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mpcompile.compile.adapt.elastic import DISTILLATION, assemble, check_lesson, describe_run, train_once
from mpcompile.compile.adapt.lesson import ElasticSettings, Lesson, Start
from mpcompile.compile.adapt.losses import Loss
from mpcompile.compile.adapt.trainer import THRESHOLD_PREFIX, Trainer, copy_graph
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import rewrite
from mpcompile.progress import Stage
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store
from passes import ExitHead, PruneByThreshold, SoftenTokens, run_passes

STAGE = ElasticSettings(max_epochs=5)


@dataclass(frozen=True)
class ThresholdSettings:
    """Settings of training; those of LTP's own code (github.com/kssteven418/LTP), where it says.

    Attributes:
        soft, hard: settings of the two stages.
        keep_weight: weight (lambda) of the share of tokens kept in the soft stage's loss; 0.01 to 0.2 in LTP.
        temperature: temperature of the soft mask; 1e-4 to 2e-3 in LTP.
        last_threshold: threshold that the last layer starts from; earlier layers start lower, in proportion to depth.
        threshold_learning_rate: highest learning rate of the thresholds, which are a hundredth as large as weights.
    """

    soft: ElasticSettings = STAGE
    hard: ElasticSettings = STAGE
    keep_weight: float = 0.1
    temperature: float = 1e-3
    last_threshold: float = 0.01
    threshold_learning_rate: float = 3e-4


DEFAULTS = ThresholdSettings()


@dataclass(frozen=True)
class Pyramid:
    """A model trained to drop tokens below thresholds and to answer at every exit.

    Attributes:
        captured: with trained weights.
        heads: trained, by exit layer.
        token_thresholds: learned, by layer that prunes.
    """

    captured: CapturedModel
    heads: dict[int, ExitHead]
    token_thresholds: dict[int, float]


class SoftTrainer(Trainer):
    """The soft stage: thresholds are weights of the graph.

    Args:
        thresholds: by pruning layer, where they start.
        pyramid: what is learned how, beside the weights.
    """

    def __init__(
        self,
        captured: CapturedModel,
        heads: Mapping[int, ExitHead],
        thresholds: Mapping[int, float],
        tokenizer: Tokenizer,
        pyramid: ThresholdSettings,
        loss: Loss,
    ) -> None:
        self._thresholds, self._pyramid = dict(thresholds), pyramid
        super().__init__(captured, heads, (), tokenizer, pyramid.soft, loss)

    def _rewrite(self, heads: Mapping[int, ExitHead]) -> GraphModule:
        graph = rewrite(copy_graph(self._captured.graph_module), heads, ())
        run_passes(graph, [SoftenTokens(layer, self._pyramid.temperature) for layer in sorted(self._thresholds)])
        return _own_thresholds(graph, self._thresholds)

    def _price(self, outputs: Mapping[str, Tensor]) -> Tensor | float:
        shares = [outputs[f"soft_kept_{layer}"] for layer in self._thresholds]
        return self._pyramid.keep_weight * torch.stack(shares).mean(0) if shares else 0.0

    def _threshold_groups(self) -> list[dict[str, Any]]:
        weights = [value for name, value in self._weights.items() if name.startswith(THRESHOLD_PREFIX)]
        rate = self._pyramid.threshold_learning_rate
        return [{"params": weights, "highest": rate, "lr": 0.0, "weight_decay": 0.0}] if weights else []


class HardTrainer(Trainer):
    """The hard stage: tokens below the thresholds are dropped, as they will be when it is deployed.

    Args:
        thresholds: by pruning layer, fixed.
    """

    def __init__(
        self,
        captured: CapturedModel,
        heads: Mapping[int, ExitHead],
        thresholds: Mapping[int, float],
        tokenizer: Tokenizer,
        settings: ElasticSettings,
        loss: Loss,
    ) -> None:
        self._thresholds = dict(thresholds)
        super().__init__(captured, heads, (), tokenizer, settings, loss)

    def _rewrite(self, heads: Mapping[int, ExitHead]) -> GraphModule:
        graph = rewrite(copy_graph(self._captured.graph_module), heads, ())
        run_passes(graph, [PruneByThreshold(layer) for layer in sorted(self._thresholds)])
        return _own_thresholds(graph, self._thresholds, learned=False)


def train_thresholds(
    start: Start,
    lesson: Lesson,
    store: Store,
    settings: ThresholdSettings = DEFAULTS,
    loss: Loss = DISTILLATION,
    stage: Stage = lambda share: None,
) -> Pyramid:
    """Learns thresholds with the weights, then trains the weights under them; each stage resumes after a kill.

    Args:
        start: what training starts from; left as it is.
        lesson: texts to learn from and to stop by.
        store: keeps the results, and checkpoints beside them.
        settings: how to train.
        loss: of every output.
        stage: told the share of the run that is done.

    Raises:
        DataError: when texts, answers and labels differ in number, or there are none.
    """
    captured, heads, prune_layers = start.captured, start.heads, start.prune_layers
    check_lesson(captured, lesson)
    first = _start_thresholds(captured.num_layers, prune_layers, settings.last_threshold)
    decisive = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("soft", "hard")}
    this = {"kind": "thresholds"}
    texts, tokenizer = (lesson.training, lesson.validation), lesson.tokenizer
    arrays = train_once(
        describe_run(captured, heads, prune_layers, texts, settings.soft, loss) | {"soft": decisive} | this,
        store,
        lambda: SoftTrainer(captured, heads, first, tokenizer, settings, loss),
        lesson,
        settings.soft,
        lambda share: stage(share / 2),
    )
    learned = {layer: float(np.clip(arrays[f"{THRESHOLD_PREFIX}{layer}"][0], 0.0, 1.0)) for layer in prune_layers}
    soft = assemble(captured, heads, arrays)
    fixed = {"hard": sorted(learned.items())}
    arrays = train_once(
        describe_run(soft.captured, soft.heads, prune_layers, texts, settings.hard, loss) | fixed | this,
        store,
        lambda: HardTrainer(soft.captured, soft.heads, learned, tokenizer, settings.hard, loss),
        lesson,
        settings.hard,
        lambda share: stage(0.5 + share / 2),
    )
    hard = assemble(soft.captured, soft.heads, arrays)
    return Pyramid(hard.captured, hard.heads, learned)


def _start_thresholds(num_layers: int, prune_layers: tuple[int, ...], last: float) -> dict[int, float]:
    """Rising with depth: early layers look at more tokens."""
    return {layer: last * (layer + 1) / num_layers for layer in prune_layers}


def _own_thresholds(graph: GraphModule, thresholds: Mapping[int, float], learned: bool = True) -> GraphModule:
    """Makes thresholds weights, or buffers, of a graph instead of inputs."""
    for node in [n for n in graph.graph.nodes if n.op == "placeholder" and str(n.target).startswith(THRESHOLD_PREFIX)]:
        name = str(node.target)
        value = torch.tensor([thresholds[int(name.removeprefix(THRESHOLD_PREFIX))]])
        if learned:
            graph.register_parameter(name, nn.Parameter(value))
        else:
            graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.get_attr(name))
        graph.graph.erase_node(node)
    graph.recompile()
    return graph
