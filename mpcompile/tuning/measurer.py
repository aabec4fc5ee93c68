"""The measuring process as the tuner sees it: calls with a time limit, over any channel."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpcompile.errors import MpcompileError
from mpcompile.tuning.bench import Answers
from mpcompile.tuning.builder import BuiltVariant
from mpcompile.tuning.retiming import Times
from mpcompile.tuning.space import Machine
from mpcompile.tuning.variant import Variant

BUILD_SHARE = 10.0
"""Building may take this many times as long as a round: a model is captured and converted."""


class MeasureFailed(Exception):
    """A candidate could not be measured: it cannot be built, hangs, or took its process down.

    Attributes:
        reason: for the study and the user.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Reply:
    """The reply of a measuring process.

    Attributes:
        value: of the call, None when it failed.
        reason: why it failed, None when it did not.
    """

    value: Any = None
    reason: str | None = None


class Channel(Protocol):
    """A way to a process with a `Bench` in it; a call after one that failed finds a fresh process."""

    name: str

    def call(self, method: str, arguments: Sequence[Any], timeout_s: float) -> Reply:
        """Calls a method of the bench. Raises MeasureFailed when no reply comes."""
        ...

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        ...


class Measurer(Protocol):
    """Measures candidates against the start. Each method raises MeasureFailed."""

    name: str

    def build(self, variants: Sequence[Variant]) -> list[str]: ...

    def warm_up(self) -> list[Answers]: ...

    def measure_round(self) -> list[float]: ...

    def close(self) -> None: ...


class Worker:
    """A measuring process, see `Bench` for what the methods do.

    Args:
        channel: to the process.
        timeout_s: seconds that a round may take.
    """

    def __init__(self, channel: Channel, timeout_s: float) -> None:
        self.name = channel.name
        self._channel = channel
        self._timeout_s = timeout_s

    def describe_machine(self) -> Machine:
        machine: Machine = self._call("describe_machine", (), BUILD_SHARE)
        return machine

    def identify_start(self) -> str:
        key: str = self._call("identify_start", (), BUILD_SHARE)
        return key

    def predict(self, variants: Sequence[Variant]) -> list[float | None]:
        predicted: list[float | None] = self._call("predict", (tuple(variants),), BUILD_SHARE)
        return predicted

    def build(self, variants: Sequence[Variant]) -> list[str]:
        keys: list[str] = self._call("build", (tuple(variants),), BUILD_SHARE)
        return keys

    def warm_up(self) -> list[Answers]:
        answers: list[Answers] = self._call("warm_up", ())
        return answers

    def measure_round(self) -> list[float]:
        seconds: list[float] = self._call("measure_round", ())
        return seconds

    def package(self, variant: Variant) -> BuiltVariant:
        built: BuiltVariant = self._call("package", (variant,), BUILD_SHARE)
        return built

    def retime(self, variant: Variant) -> Times:
        times: Times = self._call("retime", (variant,), BUILD_SHARE)
        return times

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._channel.close()

    def _call(self, method: str, arguments: Sequence[Any], share: float = 1.0) -> Any:
        reply = self._channel.call(method, arguments, share * self._timeout_s)
        if reply.reason is not None:
            raise MeasureFailed(reply.reason)
        return reply.value


def attempt(function: Callable[..., Any], *arguments: Any) -> Reply:
    """Calls a function in the measuring process; an exception becomes a reply and is not raised."""
    try:
        return Reply(function(*arguments))
    except MpcompileError as error:
        return Reply(reason=str(error))
    except Exception as error:  # the edge of the process: the tuner decides what becomes of the candidate
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Reply(reason=f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})")
