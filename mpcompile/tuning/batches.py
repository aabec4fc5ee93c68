"""The workload of tuning: batches of the user's texts, or of random ids with the lengths in the artifact's report."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpcompile.compile.measure.workload import build_workload, count_batches
from mpcompile.compile.texts.examples import load_examples
from mpcompile.compile.texts.known import leave_out_known
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.errors import SettingError
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import Manifest
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import digest_arrays

logger = logging.getLogger(__name__)

BLOCK_S = 0.4
"""Seconds that the start should need for a round: long enough to average over texts and over the scheduler."""
MAX_TEXTS = 4096
FEW_BATCHES = 3
"""Of fewer batches of texts that `optimize` was not given, all texts are timed."""
MIN_CHECKED = 200
"""Examples on which answers in another precision are compared: of fewer, a share of 99.5% says little."""


@dataclass(frozen=True)
class TuningWorkload:
    """Batches to run one after another.

    Attributes:
        batches: input_ids, attention_mask and token_type_ids of each, (B, S).
        has_texts: whether they are texts of the user.
        profile: shapes for engines that are to be fastest at them.
    """

    batches: tuple[dict[str, np.ndarray], ...]
    has_texts: bool
    profile: OptimizationProfile

    @property
    def can_check_answers(self) -> bool:
        """Whether there are enough texts to tell what another precision does to answers."""
        return self.has_texts and sum(len(batch["input_ids"]) for batch in self.batches) >= MIN_CHECKED

    def digest(self) -> str:
        """SHA-256 of all batches, in hexadecimal."""
        named = {f"{i} {name}": value for i, batch in enumerate(self.batches) for name, value in batch.items()}
        return digest_arrays(named)

    def describe(self) -> dict[str, Any]:
        """The description of the workload for the report."""
        lengths = np.concatenate([batch["attention_mask"].sum(1) for batch in self.batches])
        return {
            "batch_size": len(self.batches[0]["input_ids"]),
            "num_batches": len(self.batches),
            "mean_length": float(lengths.mean()),
            "max_length": int(lengths.max()),
        }


def build_tuning_workload(
    directory: Path, manifest: Manifest, report: Report, texts: Any, batch_size: int, seed: int
) -> TuningWorkload:
    """Draws the batches. The same arguments give the same batches, so that a study goes on with them.

    Args:
        directory: the artifact.
        manifest, report: of the artifact.
        texts: see `mpcompile.optimize`; None for random ids.
        batch_size: examples in a batch.
        seed: of what is drawn.

    Raises:
        DataError: when texts are malformed.
        SettingError: when there are texts and the artifact has no tokenizer.
    """
    example_s = report.measured_s / report.workload["batch_size"]
    count = count_batches(example_s * batch_size, BLOCK_S)
    if texts is None:
        batches = _draw_random(manifest, report, batch_size, min(count, 32), seed)
    else:
        batches = _draw_texts(directory, manifest, texts, batch_size, count, seed)
    lengths = np.concatenate([batch["attention_mask"].sum(1) for batch in batches])
    max_length = manifest.signature.max_length
    # Only what engines are fastest at is narrowed: a narrower range would refuse longer requests later.
    profile = OptimizationProfile(
        Range(1, batch_size, max(batch_size, 32)), Range(2, max(int(np.median(lengths)), 2), max_length)
    )
    return TuningWorkload(batches, texts is not None, profile)


def _draw_texts(
    directory: Path, manifest: Manifest, texts: Any, batch_size: int, count: int, seed: int
) -> tuple[dict[str, np.ndarray], ...]:
    examples = load_examples(texts)
    unknown = leave_out_known(directory, examples)
    if len(unknown) >= batch_size * FEW_BATCHES:
        examples = unknown
    elif len(unknown) < len(examples):
        logger.warning(
            "texts: exits were trained on %d of the %d, where more leave early than elsewhere, and %d others are too "
            "few to time: give texts that optimize was not given",
            len(examples) - len(unknown),
            len(examples),
            len(unknown),
        )
    if not manifest.has_tokenizer:
        raise SettingError(f"texts: {directory} holds no tokenizer, so they cannot be read; leave them out")
    order = np.random.default_rng(seed).permutation(len(examples))[:MAX_TEXTS]
    drawn, tokenizer = examples.take(order), Tokenizer.load(directory)
    encoded = tokenizer.encode(drawn.texts, drawn.text_pairs)
    return build_workload(tokenizer, encoded, batch_size, count, np.arange(len(encoded)), seed).batches


def _draw_random(
    manifest: Manifest, report: Report, batch_size: int, count: int, seed: int
) -> tuple[dict[str, np.ndarray], ...]:
    """Random ids with the mean and the longest length of the artifact's workload, padded on the right."""
    rng, longest = np.random.default_rng(seed), max(int(report.workload["max_length"]), 2)
    # A beta distribution stretched over [2, longest] has the mean that is asked for.
    mean = np.clip((report.workload["mean_length"] - 2) / max(longest - 2, 1), 0.01, 0.99)
    lengths = np.rint(2 + rng.beta(4 * mean, 4 * (1 - mean), (count, batch_size)) * (longest - 2)).astype(int)
    batches = []
    for row in lengths:
        mask = (np.arange(row.max()) < row[:, None]).astype(np.int64)
        ids = rng.integers(0, manifest.signature.vocab_size, mask.shape) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)})
    return tuple(batches)
