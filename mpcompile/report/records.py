"""Records that the figures of a report draw, as plain JSON. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PyramidLayer:
    """The work left at one encoder layer, over the texts that the point was chosen on.

    Attributes:
        layer: index, from 0.
        running: share of the texts that run it.
        tokens_kept: tokens that a text which runs it has left after it, on average; 0 where none runs it.
    """

    layer: int
    running: float
    tokens_kept: float


@dataclass(frozen=True)
class SampleToken:
    """A token as it was written.

    Attributes:
        text: its characters; the name of a special token.
        before: characters between the token before and this one, such as a space.
        is_special: whether the tokenizer added it.
        dropped_in: layer that dropped it, None when it was kept until the answer.
    """

    text: str
    before: str
    is_special: bool
    dropped_in: int | None


@dataclass(frozen=True)
class SampleText:
    """What happened to one text.

    Attributes:
        tokens: all that the model read, in order.
        is_truncated: whether the text goes on after them.
        exit_layer: encoder layers run.
        answer: in words, such as the name of a class.
        score: how sure the answer is: a probability, or for a vector the cosine with the original's; None for a score.
        original_answer: what the original answers.
        agrees: whether both answers count as the same; None in artifacts that do not say, where words are compared.
    """

    tokens: tuple[SampleToken, ...]
    is_truncated: bool
    exit_layer: int
    answer: str
    score: float | None
    original_answer: str
    agrees: bool | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SampleText:
        """The text that `dataclasses.asdict` turned into JSON values."""
        return cls(**{**values, "tokens": tuple(SampleToken(**token) for token in values["tokens"])})
