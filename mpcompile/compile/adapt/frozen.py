"""Trains exit heads on cached features: the backbone is frozen, the model itself is the teacher.

Shapes: N texts, M off-ramps, F folds, D hidden size, C classes, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpcompile.contract.task import Task
from passes import ExitHead

LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2
DROPOUT = 0.1
BATCH_SIZE = 256
MIN_STEPS, MAX_STEPS = 150, 1500
EPOCHS = 20
ROUNDING = 2.0**-8
"""Distance of two numbers in bf16, as a share of them: engines cannot tell a feature that varies by less from a
constant, such as [CLS] right after the embeddings."""
LEAST_DEVIATION = 10 * ROUNDING
"""Share of its mean that a feature is taken to vary by at least: standardised by less, its rounding would be amplified
to more than a tenth of a standard deviation."""


@dataclass(frozen=True)
class TrainedHeads:
    """Exit heads, and for each of them siblings that were trained without a part of the texts.

    Attributes:
        heads: by exit layer, trained on all texts.
        folds: part that each text belongs to, (N,).
        stack: all heads of all parts, by exit layer in ascending order.
    """

    heads: dict[int, ExitHead]
    folds: Tensor
    stack: HeadStack

    def predict_held_out(
        self, features: Mapping[int, np.ndarray], index: np.ndarray | None = None
    ) -> dict[int, np.ndarray]:
        """Logits (N, C) by exit layer; each text's row comes from a head trained without its part.

        Args:
            features: as for training, of the same texts, pruned or not; at some of the off-ramps or all of them.
            index: which of the texts they are of, None for all.
        """
        folds = self.folds if index is None else self.folds[torch.from_numpy(index)]
        blank = np.zeros_like(next(iter(features.values())))  # heads are one stack, and answer together
        inputs = torch.from_numpy(np.stack([features.get(layer, blank) for layer in sorted(self.heads)]))
        with torch.inference_mode():
            logits = self.stack.predict_held_out(inputs, folds).numpy()
        return {layer: of for layer, of in zip(sorted(self.heads), logits, strict=True) if layer in features}


def train_exit_heads(
    features: Mapping[int, np.ndarray],
    teacher_logits: np.ndarray,
    num_folds: int = 4,
    seed: int = 0,
    on_step: Callable[[float], None] = lambda _: None,
    task: Task | None = None,
) -> TrainedHeads:
    """Distils the model's own answers into a head per off-ramp (Hinton et al. 2015).

    All heads of all folds are one stacked set of parameters and train side by side: AdamW treats
    each element alone, so that this is the same as training them one after another, only faster.

    Args:
        features: by exit layer, pooled features (N, 2D) as `passes.ops.pool_features` gives them.
        teacher_logits: of the model itself, (N, C).
        num_folds: parts for cross-fitting, at least 2; 0 for none, where answers are read on other texts.
        seed: of initialisation, order and folds.
        on_step: called after each step with the share of steps done, (0, 1].
        task: whether one label holds (None: so) or each by itself.
    """
    multi_label = task is not None and task.kind == "multi_label"
    layers = sorted(features)
    inputs = torch.from_numpy(np.stack([features[layer] for layer in layers]).astype(np.float32))
    teacher = torch.from_numpy(teacher_logits.astype(np.float32))
    targets = torch.sigmoid(teacher) if multi_label else torch.softmax(teacher, dim=-1)
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.randperm(len(targets), generator=generator)
    folds = everyone % num_folds if num_folds else torch.full_like(everyone, -1)
    stack = HeadStack(inputs, num_folds + 1, targets.shape[-1], generator, multi_label)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        _fit(stack, inputs, targets, folds, generator, on_step)
    return TrainedHeads({layer: stack.extract(i) for i, layer in enumerate(layers)}, folds, stack)


def name_head_weights(heads: Mapping[int, ExitHead]) -> dict[str, np.ndarray]:
    """Weights of heads as named arrays, for the store."""
    return {
        f"{layer}.{name}": value.numpy() for layer, head in heads.items() for name, value in head.state_dict().items()
    }


def read_heads(
    arrays: Mapping[str, np.ndarray], exit_layers: Sequence[int], size: int, task: Task
) -> dict[int, ExitHead]:
    """The heads whose weights `name_head_weights` named.

    Args:
        arrays: by name.
        exit_layers: of the heads.
        size: D.
        task: of the model.
    """
    heads = {}
    for layer in exit_layers:
        head = ExitHead(size, task.num_outputs, multi_label=task.kind == "multi_label")
        head.load_state_dict({name: torch.from_numpy(arrays[f"{layer}.{name}"]) for name in head.state_dict()})
        heads[layer] = head.eval().requires_grad_(False)
    return heads


class HeadStack(nn.Module):
    """M x (F + 1) heads: for each off-ramp one per part held out, and at last one trained on all.

    Args:
        inputs: features (M, N, 2D), for mean and deviation to standardise by, in weights that engines may round.
        variants: F + 1.
        num_labels: C.
        generator: of the initial weights.
        multi_label: see `ExitHead`.
    """

    def __init__(
        self, inputs: Tensor, variants: int, num_labels: int, generator: torch.Generator, multi_label: bool = False
    ) -> None:
        super().__init__()
        self.multi_label = multi_label
        num_exits, _, size = inputs.shape
        width = ExitHead(size // 2, num_labels).hidden.out_features
        shape = (num_exits, variants)

        def start(*sizes: int) -> nn.Parameter:
            bound = sizes[0] ** -0.5  # as nn.Linear starts
            return nn.Parameter((torch.rand(*shape, *sizes, generator=generator) * 2 - 1) * bound)

        self.mean, deviation = inputs.mean(1, keepdim=True), inputs.std(1, keepdim=True)
        self.scale = (deviation > ROUNDING * self.mean.abs()) / (deviation + LEAST_DEVIATION * self.mean.abs() + 1e-3)
        self.hidden_weight, self.hidden_bias = start(size, width), nn.Parameter(torch.zeros(*shape, 1, width))
        self.output_weight, self.output_bias = (
            start(width, num_labels),
            nn.Parameter(torch.zeros(*shape, 1, num_labels)),
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (M, F + 1, N, C) of features (M, N, 2D)."""
        standard = (inputs - self.mean) * self.scale
        hidden = self.dropout(standard)[:, None] @ self.hidden_weight + self.hidden_bias
        logits: Tensor = self.dropout(nn.functional.gelu(hidden)) @ self.output_weight + self.output_bias
        return logits

    def predict_held_out(self, inputs: Tensor, folds: Tensor) -> Tensor:
        """Logits (M, N, C) of each text by the heads that did not see it."""
        self.eval()
        logits = torch.cat([self(part) for part in inputs.split(4096, dim=1)], dim=2)
        return logits[:, folds, torch.arange(len(folds))]

    def extract(self, index: int) -> ExitHead:
        """The head of one off-ramp that was trained on all texts; it standardises in its own weights."""
        size, width = self.hidden_weight.shape[2:]
        head = ExitHead(size // 2, self.output_weight.shape[-1], width, self.multi_label)
        weight = self.hidden_weight[index, -1] * self.scale[index, 0, :, None]
        head.hidden.weight.data = weight.T.detach().contiguous()
        head.hidden.bias.data = (self.hidden_bias[index, -1, 0] - self.mean[index, 0] @ weight).detach()
        head.output.weight.data = self.output_weight[index, -1].T.detach().contiguous()
        head.output.bias.data = self.output_bias[index, -1, 0].detach().clone()
        return head.eval().requires_grad_(False)


def _fit(
    stack: HeadStack,
    inputs: Tensor,
    targets: Tensor,
    folds: Tensor,
    generator: torch.Generator,
    on_step: Callable[[float], None],
) -> None:
    count = len(targets)
    batch_size = min(BATCH_SIZE, count)
    steps = min(MAX_STEPS, max(MIN_STEPS, EPOCHS * count // batch_size))
    optimizer = torch.optim.AdamW(stack.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    variants = torch.arange(stack.hidden_weight.shape[1])
    order = torch.empty(0, dtype=torch.int64)
    stack.train()
    with torch.enable_grad():
        for step in range(steps):
            if len(order) < batch_size:
                order = torch.cat([order, torch.randperm(count, generator=generator)])
            batch, order = order[:batch_size], order[batch_size:]
            trains_on = (folds[batch] != variants[:, None]).float()
            loss = _distillation_loss(stack(inputs[:, batch]), targets[batch], stack.multi_label) * trains_on
            optimizer.zero_grad(set_to_none=True)
            (loss.sum((0, 1)).mean()).backward()
            optimizer.step()
            schedule.step()
            on_step((step + 1) / steps)


def _distillation_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Cross-entropy with the teacher's probabilities (B, C), of each label by itself where several may hold."""
    if multi_label:
        by_label = nn.functional.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none")
        return by_label.sum(-1)
    return -(targets * torch.log_softmax(logits, dim=-1)).sum(-1)
