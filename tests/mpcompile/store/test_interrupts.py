"""Ctrl-C that waits for a database. In processes of their own: a test process may ignore it, or die of it."""

import signal
import subprocess
import sys
import threading

import pytest

from mpcompile.store.interrupts import held_interrupts
from tests.paths import ROOT

PREAMBLE = """
import signal
from mpcompile.store.interrupts import held_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)  # CI that was put in the background ignores it
def interrupt():
    signal.raise_signal(signal.SIGINT)
try:
"""
END = """
except KeyboardInterrupt as caught:
    print("interrupted", type(caught.__context__).__name__)
"""
CASES = {
    "it waits for the end of the block": (
        ["with held_interrupts():", "    interrupt(); print('the block')"],
        ["the block", "interrupted NoneType"],
    ),
    "it waits for the outermost block": (
        ["with held_interrupts():", "    with held_interrupts(): interrupt()", "    print('after the inner block')"],
        ["after the inner block", "interrupted NoneType"],
    ),
    "a second one does not wait": (
        ["with held_interrupts():", "    interrupt(); interrupt(); print('too late')"],
        ["interrupted KeyboardInterrupt"],
    ),
    "an error of the block is not lost": (
        ["with held_interrupts():", "    interrupt(); raise OSError('disk')"],
        ["interrupted OSError"],
    ),
    "the handler is as it was": (
        ["with held_interrupts(): pass", "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"],
        ["True"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_interrupt_is_held(name: str) -> None:
    lines, expected = CASES[name]
    program = PREAMBLE + "\n".join(f"    {line}" for line in lines) + END
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, expected), done.stderr


def test_other_threads_have_nothing_to_hold() -> None:
    entered: list[bool] = []

    def hold() -> None:
        before = signal.getsignal(signal.SIGINT)
        with held_interrupts():
            entered.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert entered == [True]
