"""Says what a run will do and about how long that takes, before it starts."""

from __future__ import annotations

import math

from mpcompile.compile.measure.front import Pace
from mpcompile.compile.measure.workload import BLOCK_S
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart, Texts

FIXED_S = 60.0
"""Seconds of what does not grow with the texts: engines, the calibration of the machine, timing the front."""
ANSWER, CHOOSE, CERTIFY = 0.5, 1.5, 1.5
"""Times the seconds of the original for a text: answers of its fp32 engine, features under all schedules, and answers
of the points that are tested."""
FRONT = 14.0
"""Times the seconds that a run of the original takes beyond `BLOCK_S`: four runs, in which all points together are
taken to need as long as two and a half originals. A guess on the safe side."""
TEACH = 0.25
"""The same for texts to teach on: 0.32 for features and 0.19 for answers in the second run of
`bench/results/agnews-teach_amd-epyc-2-cores_2026-11-29.md`."""
LEAST, MOST = 0.5, 1.5
"""Shares of the estimate that are said, for what the factors differ by from model to model."""


def estimate_seconds(
    settings: Settings, pace: Pace, parts: Texts | None, on_test: TextPart | None
) -> tuple[float, float]:
    """About the shortest and the longest that a run takes, in seconds; results of earlier runs spare some of it.

    Args:
        settings: options; the time that fine-tuning takes is not in the estimate.
        pace: of the original.
        parts: the texts.
        on_test: test texts.
    """
    text_s = pace.batch_s / settings.batch_size
    if parts is None:
        return LEAST * FIXED_S, MOST * FIXED_S
    choosing, held_out = _count(parts.choosing), _count(parts.certifying)
    asked = choosing + held_out + _count(parts.training) + _count(on_test)
    seconds = FIXED_S + text_s * (ANSWER * asked + CHOOSE * choosing + CERTIFY * held_out)
    seconds += FRONT * max(pace.batch_s * pace.num_batches - BLOCK_S, 0.0)
    if settings.exits:
        seconds += min(TEACH * text_s * _count(parts.teaching), 60.0 * settings.teach_minutes)
    more = 0
    if settings.max_drop is not None and parts.spare is not None:
        more = min(len(parts.spare), settings.max_texts)
    return LEAST * seconds, MOST * (seconds + text_s * (ANSWER + CERTIFY) * more)


def describe_agenda(settings: Settings, pace: Pace, parts: Texts | None, on_test: TextPart | None) -> str:
    """What a run will do, and about how long it takes; see `estimate_seconds`."""
    low, high = estimate_seconds(settings, pace, parts, on_test)
    shortest, longest = math.ceil(low / 60), math.ceil(high / 60)
    minutes = "a minute" if longest == 1 else f"about {shortest} to {longest} minutes"
    trains = " and the time to fine-tune" if settings.adapt == "finetune" else ""
    said = f"{minutes}{trains}, less where an earlier run left results"
    if parts is None:
        return f"no texts: prunes tokens, trains no exits; {said}"
    sizes = {
        "to train on": _count(parts.training),
        "to choose points on": _count(parts.choosing),
        "to teach exits on": _count(parts.teaching) if settings.exits else 0,
        "to time": _count(parts.timing),
        "held out": _count(parts.certifying),
        "to test": _count(on_test),
    }
    texts = ", ".join(f"{count:,} {purpose}" for purpose, count in sizes.items() if count)
    return f"{texts}; the original takes {1e3 * pace.batch_s:.1f} ms for a batch of {settings.batch_size}; {said}"


def _count(part: TextPart | None) -> int:
    return 0 if part is None else len(part.encoded)
