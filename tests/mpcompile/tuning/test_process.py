"""Tests of the measuring process: it may hang, die or fail, and never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from mpcompile.errors import BackendError
from mpcompile.tuning.bench import Job
from mpcompile.tuning.measurer import MeasureFailed, Worker
from mpcompile.tuning.process import ProcessChannel
from tests.paths import ROOT

START_S = 120.0
"""A fresh interpreter, on a machine that has other things to do."""
NO_JOB = cast(Job, None)


class FakeBench:
    """What goes wrong in a measuring process, on demand."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def echo(self, value: object) -> object:
        return value

    def pid(self) -> int:
        return os.getpid()

    def hang(self) -> None:
        time.sleep(1000.0)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        os._exit(3)

    def refuse(self) -> None:
        raise BackendError("segment 0: no")

    def stumble(self) -> None:
        raise ZeroDivisionError("by zero")


def never_made(job: Job) -> object:
    raise BackendError("no such backend")


@pytest.fixture
def channel() -> Iterator[ProcessChannel]:
    made = ProcessChannel(NO_JOB, FakeBench)
    yield made
    made.close()


def is_running(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for_end(pid: int) -> None:
    end = time.monotonic() + 60.0
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(pid)


def test_calls_are_answered_by_one_process(channel: ProcessChannel) -> None:
    assert channel.call("echo", [[1, 2]], START_S).value == [1, 2]
    pids = {channel.call("pid", [], START_S).value for _ in range(3)}
    assert len(pids) == 1 and os.getpid() not in pids


def test_hanging_process_is_killed_and_replaced(channel: ProcessChannel) -> None:
    pid = channel.call("pid", [], START_S).value
    with pytest.raises(MeasureFailed, match=r"hang hung: no answer for 0.2 s \(more with --trial-timeout-s\)"):
        channel.call("hang", [], 0.2)
    assert not is_running(pid)
    assert channel.call("pid", [], START_S).value != pid


def test_process_that_is_killed_is_replaced(channel: ProcessChannel) -> None:
    with pytest.raises(MeasureFailed, match=r"its process died \(SIGKILL; out of memory\?\)"):
        channel.call("die", [], START_S)
    assert channel.call("echo", [1], START_S).value == 1


def test_exit_status_is_told(channel: ProcessChannel) -> None:
    with pytest.raises(MeasureFailed, match=r"its process died \(exit status 3\)"):
        channel.call("leave", [], START_S)


def test_errors_are_told_and_the_process_goes_on(channel: ProcessChannel) -> None:
    pid = channel.call("pid", [], START_S).value
    assert channel.call("refuse", [], START_S).reason == "segment 0: no"
    reason = channel.call("stumble", [], START_S).reason
    assert reason is not None and reason.startswith("ZeroDivisionError: by zero (") and "test_process.py" in reason
    assert channel.call("pid", [], START_S).value == pid


def test_bench_that_cannot_be_made_tells_why() -> None:
    worker = Worker(ProcessChannel(NO_JOB, never_made), START_S)
    with pytest.raises(MeasureFailed, match="no such backend"):
        worker.describe_machine()
    worker.close()


def test_closed_process_ends(channel: ProcessChannel) -> None:
    pid = channel.call("pid", [], START_S).value
    channel.close()
    assert not is_running(pid)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_process_that_hangs_ends_with_its_killed_parent() -> None:
    program = (
        "import threading\n"
        "from tests.mpcompile.tuning.test_process import NO_JOB, FakeBench, ProcessChannel\n"
        "channel = ProcessChannel(NO_JOB, FakeBench)\n"
        "print(channel.call('pid', [], 120.0).value, flush=True)\n"
        "channel.call('hang', [], 1000.0)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    parent.communicate()
    wait_for_end(pid)
