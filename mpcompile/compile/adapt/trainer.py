"""Trains a rewritten graph: one step, one evaluation, and the state for a checkpoint.

Shapes: N texts, B examples of a batch, C outputs of the model.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mpcompile.compile.adapt.checkpoint import State
from mpcompile.compile.adapt.device import find_training_device, is_bf16_fast, move_graph
from mpcompile.compile.adapt.lesson import ElasticSettings, TaughtTexts
from mpcompile.compile.adapt.losses import Loss
from mpcompile.compile.adapt.schedules import WIDTH_STEP, count_slots, draw_batches, draw_keep_ratios, round_up
from mpcompile.contract.inputs import TOKEN_THRESHOLD
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import rewrite
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length
from passes import ExitHead

MAX_GRADIENT_NORM = 1.0
THRESHOLD_PREFIX = TOKEN_THRESHOLD.name
"""Prefix of the names of learned thresholds, see `mpcompile.compile.adapt.token_thresholds`."""
EVALUATED_KEEPS = (1.0, 0.8, 0.6)
"""Keep ratios, the same at every pruning layer, that an evaluation averages over."""


class Trainer:
    """The rewritten graph with weights of its own, and what is needed to stop and go on.

    Args:
        captured: left as it is.
        heads: by exit layer, where training starts from; left as they are.
        prune_layers: layers that prune.
        tokenizer: pads the texts.
        settings: how to train.
        loss: of every output.

    Attributes:
        step: steps done.
        elapsed_s: time that they and the evaluations took.
        validation_loss: of every evaluation, with the step that it followed.
        best: weights of the best evaluation, by name.
    """

    def __init__(
        self,
        captured: CapturedModel,
        heads: Mapping[int, ExitHead],
        prune_layers: tuple[int, ...],
        tokenizer: Tokenizer,
        settings: ElasticSettings,
        loss: Loss,
    ) -> None:
        self.device = find_training_device()
        self._captured, self._prune_layers, self._tokenizer = captured, prune_layers, tokenizer
        self._settings, self._loss = settings, loss
        heads = {layer: copy.deepcopy(head) for layer, head in heads.items()}
        self._graph = move_graph(self._rewrite(heads), self.device).eval().requires_grad_(True)
        self._weights = name_weights(self._graph)
        self._head_weights = [value for name, value in self._weights.items() if name.startswith("exits.")]
        self._backbone_weights = [
            value for name, value in self._weights.items() if not name.startswith(("exits.", THRESHOLD_PREFIX))
        ]
        self._optimizer = self._make_optimizer()
        self._output_weights = _weigh_outputs(tuple(heads), captured.num_layers, settings.exit_weight_power)
        self._autocast = is_bf16_fast(self.device)
        self._epoch_batches: tuple[int, list[np.ndarray]] | None = None
        self.step, self.elapsed_s = 0, 0.0
        self.validation_loss: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    def share_done(self, num_texts: int) -> float:
        """Share of the run that is done, by steps or by time, whichever is further: [0, 1]."""
        steps = self._settings.max_epochs * math.ceil(num_texts / self._settings.batch_size)
        limit_s = self._settings.max_seconds
        return min(1.0, max(self.step / steps, 0.0 if limit_s is None else self.elapsed_s / limit_s))

    @property
    def is_stalled(self) -> bool:
        """Whether the last `patience` evaluations brought nothing."""
        losses = [loss for _, loss in self.validation_loss]
        return len(losses) - 1 - int(np.argmin(losses)) >= self._settings.patience

    def train_step(self, texts: TaughtTexts) -> float:
        """Runs one step at all exits under one draw of keep ratios, and returns its loss."""
        start_s = time.perf_counter()
        settings = self._settings
        rate = _rate_at(self.share_done(len(texts)), settings.warmup_share)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["highest"]
        ratios = draw_keep_ratios(
            len(self._prune_layers), settings.unpruned_share, settings.min_kept, settings.seed, self.step
        )
        with torch.enable_grad():
            losses = self._costs(texts, self._find_batch(texts), ratios)
            loss = sum(self._output_weights[name] * cost.mean() for name, cost in losses.items())
            assert isinstance(loss, Tensor)
            loss.backward()
        nn.utils.clip_grad_norm_(self._backbone_weights, MAX_GRADIENT_NORM)
        nn.utils.clip_grad_norm_(self._head_weights, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        value = loss.item()
        self.elapsed_s += time.perf_counter() - start_s
        return value

    def evaluate(self, texts: TaughtTexts) -> float:
        """Mean loss over texts, outputs and `EVALUATED_KEEPS`; keeps the weights when it is the lowest so far."""
        start_s = time.perf_counter()
        total, count = 0.0, 0
        keeps = EVALUATED_KEEPS if self._prune_layers else (1.0,)
        with torch.no_grad():
            for batch in batches_by_length([len(tokens) for tokens in texts.encoded], 2 * self._settings.batch_size):
                for keep in keeps:
                    losses = self._costs(texts, batch, (keep,) * len(self._prune_layers))
                    total += sum(float(cost.sum()) for cost in losses.values())
                    count += sum(len(cost) for cost in losses.values())
        loss = total / count
        if not self.validation_loss or loss < min(value for _, value in self.validation_loss):
            self.best = {name: value.detach().to("cpu", copy=True) for name, value in self._weights.items()}
        self.validation_loss.append((self.step, loss))
        self.elapsed_s += time.perf_counter() - start_s
        return loss

    def state(self) -> State:
        """Everything that `restore` needs."""
        tensors: dict[str, Tensor] = {f"weights/{name}": value for name, value in self._weights.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
        progress = {"step": self.step, "elapsed_s": self.elapsed_s, "validation_loss": self.validation_loss}
        return State(tensors, progress)

    def restore(self, state: State) -> None:
        """Goes back to where a run was.

        Raises:
            ValueError: when the state is not one of this run; nothing was changed then.
        """
        ours, theirs = self._weights, state.tensors
        needed = {f"{kind}/{name}": value.shape for kind in ("weights", "best") for name, value in ours.items()}
        if any(name not in theirs or theirs[name].shape != shape for name, shape in needed.items()):
            raise ValueError("it holds other weights than this model's")
        progress = state.progress
        self.step, self.elapsed_s = int(progress["step"]), float(progress["elapsed_s"])
        self.validation_loss = [(int(step), float(loss)) for step, loss in progress["validation_loss"]]
        with torch.no_grad():
            for name, value in ours.items():
                value.copy_(theirs[f"weights/{name}"])
        self.best = {name: theirs[f"best/{name}"] for name in ours}
        remembered: dict[int, dict[str, Tensor]] = {}
        for name, tensor in theirs.items():
            if name.startswith("optimizer/"):
                _, index, field = name.split("/")
                remembered.setdefault(int(index), {})[field] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": remembered})

    def _rewrite(self, heads: Mapping[int, ExitHead]) -> GraphModule:
        """The graph that is trained, with weights of its own."""
        return rewrite(copy_graph(self._captured.graph_module), heads, self._prune_layers)

    def _price(self, outputs: Mapping[str, Tensor]) -> Tensor | float:
        """Loss of each example beside that of its answers, (B,)."""
        del outputs
        return 0.0

    def _find_batch(self, texts: TaughtTexts) -> np.ndarray:
        epoch, position = divmod(self.step, math.ceil(len(texts) / self._settings.batch_size))
        if self._epoch_batches is None or self._epoch_batches[0] != epoch:
            lengths = [len(tokens) for tokens in texts.encoded]
            batches = draw_batches(lengths, self._settings.batch_size, self._settings.seed, epoch)
            self._epoch_batches = epoch, batches
        return self._epoch_batches[1][position]

    def _costs(self, texts: TaughtTexts, batch: np.ndarray, ratios: tuple[float, ...]) -> dict[str, Tensor]:
        """Loss of each example of a batch, (B,), by output."""
        outputs = self._run([texts.encoded[i] for i in batch], ratios)
        teacher_logits = torch.from_numpy(texts.teacher_logits[batch].astype(np.float32)).to(self.device)
        labels = None if texts.labels is None else torch.from_numpy(texts.labels[batch]).to(self.device)
        price = self._price(outputs)
        return {
            name: self._loss(outputs[name].float(), teacher_logits, labels) + price for name in self._output_weights
        }

    def _run(self, encoded: Sequence[TokenIds], ratios: tuple[float, ...]) -> dict[str, Tensor]:
        padded = self._tokenizer.pad(encoded)
        longest = padded["attention_mask"].shape[1]
        width = max(longest, min(round_up(longest, WIDTH_STEP), self._captured.max_length))
        filling = {"input_ids": self._tokenizer.pad_id}
        inputs = {
            name: np.pad(padded[name], ((0, 0), (0, width - longest)), constant_values=filling.get(name, 0))
            for name in self._captured.input_names
        }
        keep_ratios = dict(zip(self._prune_layers, ratios, strict=True))
        inputs |= count_slots(padded["attention_mask"].sum(1), width, keep_ratios)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            outputs: dict[str, Tensor] = self._graph(
                **{name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
            )
        return outputs

    def _make_optimizer(self) -> torch.optim.AdamW:
        settings = self._settings
        groups = self._threshold_groups()
        for weights, rate in (
            (self._backbone_weights, settings.learning_rate),
            (self._head_weights, settings.head_learning_rate),
        ):
            for decays in (True, False):
                chosen = [weight for weight in weights if (weight.dim() > 1) == decays]
                if chosen:
                    decay = settings.weight_decay if decays else 0.0
                    groups.append({"params": chosen, "highest": rate, "lr": 0.0, "weight_decay": decay})
        # Fused: 8 ms a step instead of 62 ms for 22 million parameters on two cores.
        return torch.optim.AdamW(groups, fused=True)

    def _threshold_groups(self) -> list[dict[str, Any]]:
        """Parameters that are no weights of the model, with their highest learning rate."""
        return []


def copy_graph(graph_module: GraphModule) -> GraphModule:
    """A copy of a graph with weights of its own."""
    copied = copy.deepcopy(graph_module)
    assert isinstance(copied, GraphModule)
    return copied


def name_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a module, each once, under the first of its names in alphabetical order."""
    named: dict[int, tuple[str, nn.Parameter]] = {}
    for name, weight in sorted(module.named_parameters(remove_duplicate=False)):
        named.setdefault(id(weight), (name, weight))
    return dict(named.values())


def _weigh_outputs(exit_layers: Sequence[int], num_layers: int, power: float) -> dict[str, float]:
    """Share of each output in the loss, by the layers run before it."""
    depths = {**{f"logits_{layer}": layer for layer in sorted(exit_layers)}, "logits": num_layers}
    total = sum((depth + 1) ** power for depth in depths.values())
    return {name: (depth + 1) ** power / total for name, depth in depths.items()}


def _rate_at(share_done: float, warmup_share: float) -> float:
    """Share of the highest learning rate: up to 1 while warming up, then down to 0, both linear."""
    if share_done < warmup_share:
        return max(share_done, 1e-3) / warmup_share
    return (1.0 - share_done) / (1.0 - warmup_share)
