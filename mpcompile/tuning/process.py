"""A measuring process on this machine, which may hang or die without taking the tuner with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mpcompile.tuning.bench import Bench, Job
from mpcompile.tuning.measurer import MeasureFailed, Reply, attempt

_LEAVE_S = 2.0


class ProcessChannel:
    """Calls a `Bench` in a process of its own.

    Args:
        job: for the bench.
        make_bench: makes it there; picklable.
    """

    name = "this machine"

    def __init__(self, job: Job, make_bench: Callable[[Job], object] = Bench) -> None:
        self._job, self._make_bench = job, make_bench
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def call(self, method: str, arguments: Sequence[Any], timeout_s: float) -> Reply:
        """Calls a method of the bench.

        Raises:
            MeasureFailed: when the process does not reply in time, which ends it, or dies.
        """
        connection = self._connection or self._start()
        try:
            connection.send((method, tuple(arguments)))
            if connection.poll(timeout_s):
                reply: Reply = connection.recv()
                return reply
        except (EOFError, OSError) as error:
            raise MeasureFailed(f"its process died ({_describe_exit(self._end(5.0))})") from error
        self._end(0.0)
        raise MeasureFailed(
            f"{method.replace('_', ' ')} hung: no answer for {timeout_s:g} s (more with --trial-timeout-s)"
        )

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._end(_LEAVE_S)

    def _start(self) -> Connection:
        # Spawned, not forked: engines and torch have threads, which a fork does not survive.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._job, self._make_bench), daemon=True)
        self._process.start()
        theirs.close()
        return self._connection

    def _end(self, wait_s: float) -> int | None:
        """Closes the connection, on which the process leaves by itself, or is killed; its exit code."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        process.join(wait_s)
        process.kill()
        process.join()
        return process.exitcode


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}; out of memory?" if name == "SIGKILL" else name


def serve(connection: Connection, job: Job, make_bench: Callable[[Job], object]) -> None:
    """The measuring process: answers calls until its parent closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    made = attempt(make_bench, job)
    try:
        while True:
            method, arguments = connection.recv()
            connection.send(made if made.reason is not None else attempt(getattr(made.value, method), *arguments))
    except (EOFError, OSError):  # the parent is gone or wants no more
        return


def _end_with_parent() -> None:
    """A parent that was killed leaves no process behind, not even one that hangs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
