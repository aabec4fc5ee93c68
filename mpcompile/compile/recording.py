"""Records the inputs of segments while texts are answered: int8 engines are calibrated on them. Imports no torch.

A segment in the middle of a chain reads a hidden state, so the float engines before it run. Exits are disabled while
recording, so all segments get equally many samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpcompile.contract.backend import Backend, Engine
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.runtime.runtime import Runtime
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from mpcompile.store.results import digest_arrays

NUM_SAMPLES = 100
"""Texts to calibrate on."""
MAX_TOKENS = 16384
"""Tokens of all samples together: recorded hidden states of 1,024 numbers then take 64 MB per segment."""
KEEP_RATIOS = (1.0, 0.6)
"""Samples take turns with these: engines serve every ratio, so that they are calibrated on pruned texts, too."""


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts to calibrate int8 engines on.

    Attributes:
        batches: input_ids, attention_mask, token_type_ids of each, (B, S).
    """

    batches: tuple[Mapping[str, np.ndarray], ...]

    @classmethod
    def draw(cls, tokenizer: Tokenizer, encoded: Sequence[TokenIds]) -> CalibrationTexts:
        """The first texts, as many as are needed and their tokens allow; at least one.

        Each is a batch of its own: padding would be calibrated on, too.
        """
        tokens = np.cumsum([len(text) for text in encoded[:NUM_SAMPLES]])
        drawn = encoded[: max(int((tokens <= MAX_TOKENS).sum()), 1)]
        return cls(tuple(tokenizer.pad([text]) for text in drawn))

    @property
    def digest(self) -> str:
        """Changes with what is recorded."""
        arrays = {f"{i} {name}": value for i, batch in enumerate(self.batches) for name, value in batch.items()}
        return digest_arrays({**arrays, "keep_ratios": np.array(KEEP_RATIOS)})


def describe_calibration(backend: Backend, precision: str, calibration: CalibrationTexts | None) -> dict[str, str]:
    """What int8 engines depend on beside the segment, for the keys they are kept under; nothing in other precisions."""
    if precision != "int8" or calibration is None:
        return {}
    return {"quantiser": backend.find_quantiser(), "calibration": calibration.digest}


@dataclass
class _Recorder:
    """An engine that keeps copies of its inputs; without an engine it answers nothing.

    Attributes:
        engine: runs the segment; None for the last of a chain, whose answers are not read.
        samples: inputs of each call.
    """

    engine: Engine | None
    samples: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.samples.append({name: value.copy() for name, value in inputs.items()})
        if self.engine is not None:
            outputs = self.engine(inputs)
            return {**outputs, "logits": outputs["logits"][:, :1]}
        rows = inputs["rows"] if "rows" in inputs else inputs["input_ids"]
        return {"logits": np.zeros((len(rows), 1), np.float32)}


def record_inputs(
    segments: Sequence[Segment], engines: Sequence[Engine], batches: Sequence[Mapping[str, np.ndarray]]
) -> tuple[list[dict[str, np.ndarray]], ...]:
    """Inputs of each segment of a chain, one sample per batch.

    Args:
        segments: the chain.
        engines: one per segment but the last.
        batches: see `CalibrationTexts`.
    """
    recorders = [_Recorder(engine) for engine in (*engines, None)]
    assert len(recorders) == len(segments)
    runtime = Runtime(segments, recorders, 1, [np.inf] * len(segments))
    exits = tuple(segment.exit_layer for segment in segments)
    prunes = tuple(layer for segment in segments for layer in segment.prune_layers)
    for i, batch in enumerate(batches):
        ratios = (KEEP_RATIOS[i % len(KEEP_RATIOS)],) * len(prunes)
        runtime.run(batch, OperatingPoint(exits[-1:], (), prunes, ratios))
    return tuple(recorder.samples for recorder in recorders)
